from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.setup.packages import Index, Pin, pinned_here, without_extras

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolve: TypeAlias = Callable[[str, str], subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
PIPS = Path(sys.prefix) / "pips"  # `make packages` puts them there.
LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")}

each_lock = pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of everything that the locks pin for this Python."""
    pins = set[Pin].union(*map(pinned_here, LOCKS.values()))
    return Index(tmp_path_factory.mktemp("index"), pins)


@pytest.fixture
def resolve(index: Index, tmp_path: Path) -> Resolve:
    """Return a function that resolves a lock with a version of pip, from the index only."""

    def run(pip: str, lock: str) -> subprocess.CompletedProcess[str]:
        assert (PIPS / pip).is_dir(), "This pip is missing: run `make packages`."
        (tmp_path / "lock.txt").write_text(index.lock_with_its_hashes(lock))
        command = [sys.executable, "-m", "pip", "--isolated", "--quiet", "install", "--dry-run"]
        command += ["--ignore-installed", "--no-index", "--find-links", str(index.folder)]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
        command += ["--require-hashes", "--requirement", "lock.txt", "--report", "report.json"]
        # This computer's configuration might name other indexes.
        env = {**os.environ, "PYTHONPATH": str(PIPS / pip), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(  # noqa: S603 - pip, with fixed arguments
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    return run


@each_lock
def test_installed(lock: str) -> None:
    """The lock's packages are installed, so the index has their real requirements."""
    pins = pinned_here(lock)
    assert pins
    assert pins == {Pin(pin.name, version(pin.name)) for pin in pins}


@each_lock
@pytest.mark.parametrize("pip", ["oldest-pip", "newest-pip"])
def test_newer_releases(resolve: Resolve, tmp_path: Path, pip: str, lock: str) -> None:
    """The lock gives the same versions after newer releases of its packages."""
    finished = resolve(pip, lock)

    assert 0 == finished.returncode, finished.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = [package["metadata"] for package in report["install"]]
    assert pinned_here(lock) == {Pin(each["name"], each["version"]) for each in found}


@each_lock
def test_without_extras(resolve: Resolve, lock: str) -> None:
    """The oldest pip refuses a lock without extras, so the test above can fail."""
    finished = resolve("oldest-pip", without_extras(lock))

    assert 0 != finished.returncode
    assert "all requirements must have their versions pinned with ==" in finished.stderr
