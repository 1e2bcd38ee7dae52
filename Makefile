# What a developer runs. `make help` lists it.
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

# The first Python found that the locks are for; `make PYTHON=...` takes another.
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$python" && break; done),python3)

.PHONY: help
help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 24

.PHONY: demo
demo: setup  ## Show what the broker does: sign in, get tokens, be refused, prune. Stops by itself.
	@$(BIN)/python -m local demo

.PHONY: start
start: setup  ## Run everything on fixed ports (functions on 7071) until Ctrl-C; over HTTPS with TLS=1.
	@$(BIN)/python -m local start $(if $(TLS),--tls)

.PHONY: sample
sample: setup  ## Serve the page in samples/web against the local stack, until Ctrl-C.
	@$(BIN)/python -m local.sample

.PHONY: screenshots
screenshots: setup  ## Take the pictures of the page for the documents, in Chromium.
	@$(BIN)/python -m tests.web.screenshots

.PHONY: test
test: setup  ## Run all tests, with branch coverage of shared/.
	@$(BIN)/python -m pytest -n auto --dist loadgroup --cov --cov-report=term $(ARGS)
	@$(MAKE) --no-print-directory test-pythons

# Packages differ from Python to Python, and Microsoft's own Functions runtime is for 3.13 only.
ON_3.11 := tests/setup
ON_3.13 := tests/setup tests/runtime

.PHONY: test-pythons
test-pythons: test-on-3.11 test-on-3.13  ## Run the tests that depend on the Python version on 3.11 and 3.13, if installed.

test-on-%:
	@set -e; \
	is_wanted() { "$$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$*")' 2>/dev/null; }; \
	if is_wanted "$(PYTHON)"; then \
		echo "Python $* runs all tests, $(ON_$*) among them: make test"; exit; \
	fi; \
	for python in python$* "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$**/bin/python; do \
		if is_wanted "$$python"; then \
			$(MAKE) --no-print-directory PYTHON="$$python" VENV=.venv-$* packages; \
			exec .venv-$*/bin/python -m pytest $(ON_$*); \
		fi; \
	done; \
	echo "LEFT OUT: $(ON_$*) on Python $*, which was not found here."

# When the clock starts, in a form that `date` reads: `make test-next-year CLOCK='2028-02-29 12:00'`.
CLOCK ?= next year

.PHONY: test-next-year
test-next-year: setup  ## Run all tests with the clock a year ahead, which needs faketime.
	@command -v faketime >/dev/null || { echo "faketime is missing: apt-get install faketime, or brew install libfaketime"; exit 1; }
	@# By today's clock, since next year the certificates of the npm registry will have expired.
	@$(BIN)/python -m local.storage.npm samples/javascript samples/web tests/infra tests/js
	@faketime "$(CLOCK)" $(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

.PHONY: simulate
simulate: setup  ## Drive the code through 100,000 random schedules in virtual time.
	@$(BIN)/python -m tests.simulation --schedules 100000 $(ARGS)

.PHONY: cases
cases: setup  ## Try each known attack and failure, and print what became of it.
	@$(BIN)/python -m tests.cases $(ARGS)

.PHONY: pressure
pressure: setup  ## Put the broker under pressure, and print each figure beside its bound.
	@$(BIN)/python -m tests.pressure $(ARGS)

.PHONY: fuzz
fuzz: setup  ## Feed a million broken inputs to everything that reads any.
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: lint
lint: setup  ## Check style and types.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

.PHONY: format
format: setup  ## Format the code.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: package
package:  ## Build the package for Azure: dist/app.zip, for Python 3.13 on Linux.
	@$(PYTHON) infra/package.py

# Extras stay in the lock: for pip before 23.3, which comes with Python 3.11 and 3.12,
# `coverage==7.17.3` does not pin `coverage[toml]` (pypa/pip#9644).
COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-strip-extras

.PHONY: lock
lock:  ## Pin the newest packages, with hashes, for Python 3.11 to 3.13.
	@# Not in $(VENV): it must be possible to renew a lock that can no longer be installed.
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-lock/bin/$(COMPILE) requirements.in --output-file requirements.txt
	@.venv-lock/bin/$(COMPILE) --constraints requirements.txt requirements-dev.in --output-file requirements-dev.txt
	@.venv-lock/bin/$(COMPILE) local/storage/requirements-node.in --output-file local/storage/requirements-node.txt
	@echo pip | .venv-lock/bin/$(COMPILE) --no-annotate - --output-file tests/setup/newest-pip.txt

.PHONY: setup
setup: packages  ## Install what is missing: Python packages, Node.js, Azurite.
	@$(BIN)/python -m local.storage.azurite

.PHONY: packages
packages: $(VENV)/installed

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

$(VENV)/installed: requirements-dev.txt local/storage/requirements-node.txt $(wildcard tests/setup/*-pip.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing Python packages into $(VENV), which may take a minute ..."
	@$(PYTHON) -m venv --clear $(VENV) || { echo "Without virtual environments nothing can be installed. Debian and Ubuntu have them in python3-venv."; exit 1; }
	@$(PIP_INSTALL) --requirement requirements-dev.txt || { \
		echo "The packages were not installed. That takes a package index within reach, and Python 3.11, 3.12 or 3.13: this is $$($(PYTHON) --version)."; exit 1; }
	@for pip in oldest-pip newest-pip; do \
		$(PIP_INSTALL) --target $(VENV)/pips/$$pip --requirement tests/setup/$$pip.txt || exit 1; done
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && npm --version >/dev/null 2>&1 || { \
		echo "Node.js 20 or later is not here: installing it into $(VENV) ..."; \
		$(PIP_INSTALL) --requirement local/storage/requirements-node.txt; }
	@touch $@

.PHONY: clean
clean:  ## Remove what the targets above have made.
	rm -rf .venv .venv-3.11 .venv-3.13 .venv-lock dist local/storage/node_modules samples/javascript/node_modules samples/web/node_modules samples/web/dist samples/web/.compiled tests/js/node_modules tests/infra/node_modules .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
