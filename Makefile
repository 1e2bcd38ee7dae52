# What a developer runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

# Microsoft's own Functions runtime is for Python 3.13; here is one, or nothing.
PYTHON_3_13 = $(shell for python in $(PYTHON) python3.13 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13*/bin/python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: help
help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 24

.PHONY: demo
demo: setup  ## Show the main job: sign in, get tokens, be refused, prune. Stops by itself.
	@$(BIN)/python -m local demo

.PHONY: start
start: setup  ## Keep everything up on fixed ports (functions on 7071) until Ctrl-C.
	@$(BIN)/python -m local start

.PHONY: test
test: setup  ## Run all tests, with branch coverage of shared/.
	@$(BIN)/python -m pytest -n auto --dist loadgroup --cov --cov-report=term $(ARGS)
	@$(MAKE) --no-print-directory test-runtime

.PHONY: test-runtime
test-runtime:  ## Load and call function_app.py in Microsoft's own runtime (Python 3.13).
ifeq ($(PYTHON_3_13),$(PYTHON))
	@echo "Microsoft's Functions runtime is part of all tests on Python 3.13: make test"
else ifneq ($(PYTHON_3_13),)
	@$(MAKE) --no-print-directory PYTHON="$(PYTHON_3_13)" VENV=.venv-3.13 packages
	@.venv-3.13/bin/python -m pytest tests/runtime
else
	@echo "LEFT OUT: loading function_app.py in Microsoft's Functions runtime needs Python 3.13, which is not here."
endif

.PHONY: lint
lint: setup  ## Check style and types.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

.PHONY: format
format: setup  ## Put the code into form.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: package
package:  ## Build what is published to Azure: dist/app.zip, for Python 3.13 on Linux.
	@$(PYTHON) infra/package.py

# Extras stay in the lock: pip before 23.3, which Python 3.11 and 3.12 bring, takes `coverage[toml]`
# for something that `coverage==7.17.3` does not pin (pypa/pip#9644).
COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-strip-extras

.PHONY: lock
lock: setup  ## Pin the newest packages, with hashes, for Python 3.11 to 3.13.
	@$(BIN)/pip install --quiet uv
	@$(BIN)/$(COMPILE) requirements.in --output-file requirements.txt
	@$(BIN)/$(COMPILE) --constraints requirements.txt requirements-dev.in --output-file requirements-dev.txt
	@$(BIN)/$(COMPILE) local/requirements-node.in --output-file local/requirements-node.txt

.PHONY: setup
setup: packages  ## Install what is missing: Python packages, Node.js if there is none, Azurite.
	@$(BIN)/python -m local.azurite

.PHONY: packages
packages: $(VENV)/installed

$(VENV)/installed: requirements-dev.txt local/requirements-node.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing Python packages into $(VENV), which may take a minute ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && npm --version >/dev/null 2>&1 || { \
		echo "Node.js 20 or later is not here: installing it into $(VENV) ..."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement local/requirements-node.txt; }
	@touch $@

.PHONY: clean
clean:  ## Remove what the targets above made.
	rm -rf .venv .venv-3.13 dist local/node_modules tests/js/node_modules tests/infra/node_modules .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
