"""A package index for resolving locks, whose packages have metadata but no content."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from pathlib import Path

# One package of a lock, up to its last hash.
LOCKED = re.compile(r"^(?P<requirement>[^\s#].*?)(?: \\\n +--hash=\S+)+$", re.MULTILINE)
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class Pin:
    """A package at the version that a lock gives it."""

    name: str
    version: str


def pinned_here(lock: str) -> set[Pin]:
    """Return the packages of a lock for this Python on this computer."""
    requirements = [Requirement(match["requirement"]) for match in LOCKED.finditer(lock)]
    return {_pin(each) for each in requirements if each.marker is None or each.marker.evaluate()}


def without_extras(lock: str) -> str:
    """Return the lock with `coverage==1` instead of `coverage[toml]==1`."""
    return re.sub(r"^([\w.-]+)\[[\w.,-]+\]==", r"\1==", lock, flags=re.MULTILINE)


class Index:
    """Pinned packages, each at its pinned version and at a newer one, as if it had a new release.

    Each requires what the installed package requires, so that pip resolves the same dependencies.
    """

    def __init__(self, folder: Path, pins: set[Pin]) -> None:
        self.folder = folder
        self._hashes = {pin: _write_wheel(folder, pin.name, pin.version) for pin in pins}
        for pin in pins:
            _write_wheel(folder, pin.name, f"{Version(pin.version).base_version}.1")

    def lock_with_its_hashes(self, lock: str) -> str:
        """Return the lock with the hashes of this index's packages."""

        def exchanged(match: re.Match[str]) -> str:
            hashed = self._hashes.get(_pin(Requirement(match["requirement"])))
            return f"{match['requirement']} --hash=sha256:{hashed}" if hashed else match[0]

        return LOCKED.sub(exchanged, lock)


def _pin(requirement: Requirement) -> Pin:
    [specifier] = requirement.specifier
    return Pin(canonicalize_name(requirement.name), specifier.version)


def _write_wheel(folder: Path, name: str, version: str) -> str:
    installed = distribution(name).metadata
    fields = [("Metadata-Version", "2.1"), ("Name", name), ("Version", version)]
    for field in ("Requires-Python", "Requires-Dist", "Provides-Extra"):
        fields += [(field, value) for value in installed.get_all(field) or []]
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        metadata = "".join(f"{field}: {value}\n" for field, value in fields)
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", WHEEL)
    return hashlib.sha256(path.read_bytes()).hexdigest()
