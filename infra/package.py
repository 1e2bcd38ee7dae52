"""Build the package that is published to Azure, on any laptop and with any Python from 3.9.

    python3 infra/package.py [FOLDER]

It makes FOLDER/app (default: dist/app) with all that runs in Azure, and zips it as FOLDER/app.zip.
It is for Python 3.13 on Linux x86-64, whatever machine runs this script. The same sources and lock
give the same bytes, so the SHA-256 that it prints identifies the package. Nothing is built in
Azure: a remote build has used another Python than the app's, for which the lock installs without an
error, but then the app cannot be imported (https://github.com/Azure/azure-dev/issues/8538).
"""  # noqa: INP001 - a script that is run by its path

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pip._vendor.packaging.markers import Marker
from pip._vendor.packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
LOCK = "requirements.txt"
FILES = ("function_app.py", "host.json", LOCK)
FOLDER = "shared"
# Where the Functions host looks for packages:
# https://learn.microsoft.com/azure/azure-functions/functions-reference-python#folder-structure
PACKAGES = ".python_packages/lib/site-packages"

# infra/modules/app.bicep says which Python runs in Azure; a test compares the two.
PYTHON = "3.13"
TAG = f"cp{PYTHON.replace('.', '')}"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Values for the lock's markers. pip would take those of the Python that runs it, not of the target.
ENVIRONMENT = {
    "implementation_name": "cpython",
    "implementation_version": f"{PYTHON}.0",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}

EXTENSION = re.compile(rf"\.(cpython-{TAG[2:]}-x86_64-linux-gnu|abi3)\.so$")
X86_64_ELF = (b"\x7fELF", (62).to_bytes(2, "little"))  # The magic number; e_machine, 18 bytes in.
EARLIEST = (1980, 1, 1, 0, 0, 0)  # The earliest time that a zip can store.
FILE_MODE = 0o100644 << 16


# Imports the app using only the package's own modules, and prints the names of its functions.
IMPORT = f"""
import sys
sys.path[:0] = [".", "{PACKAGES}"]
import function_app
print(*(function.get_function_name() for function in function_app.app.get_functions()))
"""


class PackageError(Exception):
    """The package cannot be built, or would not run on Azure's Python."""


def requirements_for_azure(lock: str) -> dict[str, str]:
    """Return the lines of a lock that apply in Azure, without markers, by `name==version`."""
    found = {}
    for line in lock.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+(?=--hash=)", line.partition(" #")[0].strip())
        if not requirement or requirement.startswith("#"):
            continue
        pinned, _, marker = (part.strip() for part in requirement.partition(";"))
        if not re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!-]+", pinned) or not hashes:
            raise PackageError(f"{LOCK}: not a pinned package with a hash: {line.strip()[:60]}")
        if not marker or Marker(marker).evaluate(ENVIRONMENT):
            name, version = re.sub(r"\[.*\]", "", pinned).split("==")
            found[f"{normal(name)}=={version}"] = " ".join([pinned, *hashes])
    return found


def normal(name: str) -> str:
    """Return the normalised name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install(requirements: dict[str, str], target: Path) -> None:
    """Install wheels for Azure's Python into a folder. The lock names all: nothing is resolved."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, LOCK)
        lock.write_text("".join(f"{line}\n" for line in requirements.values()))
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--no-deps", "--no-compile", "--only-binary=:all:"),
            *("--implementation=cp", f"--python-version={PYTHON}", *platforms),
            # pip before 23.3 compares Requires-Python with the Python that runs it;
            # `problems` compares it with Azure's.
            "--ignore-requires-python",
            *(f"--target={target}", f"--requirement={lock}"),
        ]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 - pip, with our lock
            raise PackageError(f"pip did not install what {LOCK} names (see above)")
    # Scripts contain the path of this machine's Python, and INSTALLER and REQUESTED depend on pip.
    shutil.rmtree(target / "bin", ignore_errors=True)
    for path in [*target.glob("*.dist-info/INSTALLER"), *target.glob("*.dist-info/REQUESTED")]:
        path.unlink()
    for path in target.glob("*.dist-info/RECORD"):
        kept = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if not re.match(r'"?(\.\./\.\./)?bin/|[^,]*\.dist-info/(INSTALLER|REQUESTED),', line)
        ]
        # As bytes: Windows would write its own line ends.
        path.write_bytes("".join(f"{line}\n" for line in sorted(kept)).encode())


def problems(packages: Path, expected: set[str]) -> list[str]:
    """Return messages about what is wrong with installed packages."""
    found = []
    installed = set()
    for folder in packages.glob("*.dist-info"):
        name, _, version = folder.stem.rpartition("-")
        installed.add(f"{normal(name)}=={version}")
        tags = fields(folder / "WHEEL", "Tag")
        if not any(fits(*tag.split("-")) for tag in tags):
            found.append(f"{folder.stem} is not for Python {PYTHON} on Linux x86-64: {tags}")
        found += [
            f"{folder.stem} is for Python {versions}"
            for versions in fields(folder / "METADATA", "Requires-Python")
            if ENVIRONMENT["python_full_version"] not in SpecifierSet(versions)
        ]
    found += [f"{package} is missing" for package in sorted(expected - installed)]
    found += [f"{package} is not in {LOCK}" for package in sorted(installed - expected)]
    for path in sorted(packages.rglob("*")):
        name = path.relative_to(packages).as_posix()
        if path.suffix in {".pyd", ".dll", ".dylib"}:
            found.append(f"{name} is not for Linux")
        elif re.search(r"\.so(\.|$)", path.name) and path.is_file():
            head = path.read_bytes()[:20]
            if (head[:4], head[18:20]) != X86_64_ELF:
                found.append(f"{name} is not for Linux x86-64")
            # Libraries that wheels bundle for their extensions (name.libs/) are not extensions.
            elif ".libs/" not in name and not EXTENSION.search(name):
                found.append(f"{name} is not for Python {PYTHON}")
    return found


def fields(path: Path, name: str) -> list[str]:
    """Return the values of a field in a wheel's metadata, in order."""
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    return re.findall(rf"^{name}: *(.*)$", head, re.MULTILINE)


def fits(python: str, abi: str, platform: str) -> bool:
    """Return whether Azure's Python can load a wheel with this tag."""
    if abi == "none":
        return platform == "any" and (python.startswith("py3") or python == TAG)
    return platform in PLATFORMS and (abi == TAG or (abi == "abi3" and python.startswith("cp3")))


def functions(app: Path) -> str | None:
    """Return the names of a package's functions; None if no Python here is like Azure's.

    Raises:
        PackageError: the package cannot be imported.
    """
    python = python_of_azure()
    if python is None:
        return None
    finished = subprocess.run(  # noqa: S603 - Python, with our own program
        [python, "-I", "-S", "-B", "-c", IMPORT],
        cwd=app,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if finished.returncode or not finished.stdout.strip():
        raise PackageError("the package cannot be imported (see above), or has no function")
    return finished.stdout.strip()


def python_of_azure() -> str | None:
    """Return a Python on this machine that can load packages for Azure's, or None."""
    here = (platform.system(), platform.machine(), platform.libc_ver()[0])
    if here != ("Linux", "x86_64", "glibc"):
        return None
    program = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{PYTHON}')"
    for python in (sys.executable, shutil.which(f"python{PYTHON}")):
        # A version manager may have the command without having the Python: then this fails.
        if (
            python
            and not subprocess.run(  # noqa: S603 - Python, with our own program
                [python, "-I", "-S", "-c", program], capture_output=True, check=False
            ).returncode
        ):
            return python
    return None


def write_zip(folder: Path, archive: Path) -> str:
    """Write a zip of a folder, and return its SHA-256. The same files give the same bytes.

    Nothing is compressed, since the result would depend on the zlib that Python was built with:
    Python 3.14 for Windows, and Fedora's, have zlib-ng, which compresses to other bytes.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for name in sorted(name for name, path in paths.items() if path.is_file()):
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.create_system = 3  # Unix, also on Windows.
            entry.external_attr = FILE_MODE
            zipped.writestr(entry, paths[name].read_bytes())
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def build(folder: Path) -> tuple[str, str | None]:
    """Build app/ and app.zip in a folder; return the zip's SHA-256 and the names of the functions.

    Raises:
        PackageError: a package cannot be installed, or is for another Python or platform.
    """
    app = folder / "app"
    archive = folder / "app.zip"
    archive.unlink(missing_ok=True)
    shutil.rmtree(app, ignore_errors=True)
    app.mkdir(parents=True)
    requirements = requirements_for_azure((ROOT / LOCK).read_text())
    install(requirements, app / PACKAGES)
    found = problems(app / PACKAGES, set(requirements))
    if found:
        raise PackageError("\n".join(found))
    for name in FILES:
        shutil.copy(ROOT / name, app / name)
    shutil.copytree(ROOT / FOLDER, app / FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
    names = functions(app)
    return write_zip(app, archive), names


def main() -> int:
    """Build the package, print where it is, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist", metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        digest, names = build(arguments.folder)
    except PackageError as exc:
        sys.stderr.write(f"{exc}\nNo package was built.\n")
        return 1
    archive = arguments.folder / "app.zip"
    size = archive.stat().st_size / 1_000_000
    sys.stdout.write(f"{archive}: {size:.1f} MB, for Python {PYTHON} on Linux\n")
    sys.stdout.write(
        f"functions: {names or f'not checked, without Python {PYTHON} on Linux x86-64'}\n"
    )
    sys.stdout.write(f"sha256 {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
