"""`infra/package.py`, with a package index of tiny wheels on loopback."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import shutil
import sys
import zipfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).parents[2]
SITE = ".python_packages/lib/site-packages"
# The first bytes of an ELF file; machine 62 is x86-64, and 183 is ARM64.
ELF = b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little")
ARM = b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little")
LINUX = "manylinux_2_17_x86_64.manylinux2014_x86_64"
EXTENSION = "_core.cpython-313-x86_64-linux-gnu.so"


def wheel(name: str, tag: str, files: dict[str, bytes], requires: str = ">=3.11") -> bytes:
    """Return a wheel, version 1.0, with the metadata that pip asks for."""
    info = f"{name}-1.0.dist-info"
    python, abi, platforms = tag.split("-")
    tags = "".join(f"Tag: {python}-{abi}-{platform}\n" for platform in platforms.split("."))
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: {requires}\n"
    content = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n{tags}".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n".encode(),
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([path, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in {**content, f"{info}/RECORD": record.getvalue().encode()}.items():
            archive.writestr(path, data)
    return buffer.getvalue()


WHEELS = {
    # One for Azure, and others for other machines.
    f"fast-1.0-cp313-cp313-{LINUX}.whl": wheel(
        "fast", f"cp313-cp313-{LINUX}", {"fast/__init__.py": b"", f"fast/{EXTENSION}": ELF}
    ),
    f"fast-1.0-cp311-cp311-{LINUX}.whl": wheel("fast", f"cp311-cp311-{LINUX}", {"fast.py": b""}),
    "fast-1.0-cp313-cp313-macosx_11_0_arm64.whl": wheel(
        "fast", "cp313-cp313-macosx_11_0_arm64", {"fast.py": b""}
    ),
    # These are for other machines, but only their content shows it.
    "liar-1.0-py3-none-any.whl": wheel(
        "liar", "py3-none-any", {"liar/_core.cpython-311-x86_64-linux-gnu.so": ELF}
    ),
    "arm-1.0-py3-none-any.whl": wheel("arm", "py3-none-any", {f"arm/{EXTENSION}": ARM}),
    "win-1.0-py3-none-any.whl": wheel("win", "py3-none-any", {"win/_core.pyd": b"MZ"}),
    "past-1.0-py3-none-any.whl": wheel("past", "py3-none-any", {"past.py": b""}, "<3.13"),
    "old-1.0-py3-none-any.whl": wheel("old", "py3-none-any", {"old.py": b""}, "<3.13"),
    "new-1.0-py3-none-any.whl": wheel("new", "py3-none-any", {"new.py": b""}, ">=3.13"),
    "mac_only-1.0-cp313-cp313-macosx_11_0_arm64.whl": wheel(
        "mac_only", "cp313-cp313-macosx_11_0_arm64", {"mac_only.py": b""}
    ),
}
APP = """
class Function:
    def get_function_name(self):
        return "token"


class app:
    get_functions = staticmethod(lambda: [Function()])
"""


@asynccontextmanager
async def index() -> AsyncIterator[str]:
    """Serve the wheels as a package index does."""

    async def page(request: web.Request) -> web.Response:
        name = request.match_info["name"].replace("-", "_")
        links = "".join(
            f'<a href="/{file}">{file}</a>' for file in WHEELS if file.startswith(f"{name}-")
        )
        return web.Response(text=f"<html><body>{links}</body></html>", content_type="text/html")

    async def file(request: web.Request) -> web.Response:
        return web.Response(body=WHEELS[request.match_info["file"]])

    app = web.Application()
    app.router.add_get("/simple/{name}/", page)
    app.router.add_get("/{file}", file)
    async with serve(app) as url:
        yield f"{url}/simple"


def locked(*names: str, marker: str = "") -> str:
    """Return lines of a lock, as uv writes them."""
    lines = []
    for name in names:
        plain = name.partition("[")[0].replace("-", "_")
        files = [data for file, data in WHEELS.items() if file.startswith(f"{plain}-")]
        hashes = " \\\n".join(
            f"    --hash=sha256:{hashlib.sha256(data).hexdigest()}" for data in files
        )
        lines.append(f"{name}==1.0{f' ; {marker}' if marker else ''} \\\n{hashes}\n    # via app\n")
    return "".join(lines)


def project(folder: Path, lock: str) -> Path:
    """Make a small project with this one's layout."""
    (folder / "infra").mkdir(parents=True)
    (folder / "shared/__pycache__").mkdir(parents=True)
    shutil.copy(ROOT / "infra/package.py", folder / "infra")
    (folder / "requirements.txt").write_text(lock)
    (folder / "function_app.py").write_text(APP)
    (folder / "host.json").write_text("{}")
    (folder / "shared/http.py").write_text("")
    (folder / "shared/__pycache__/http.pyc").write_text("")
    (folder / "local.settings.json").write_text("a secret")
    return folder


async def build(folder: Path, python: str = sys.executable) -> tuple[int | None, str, str]:
    """Run the script with this index; return its exit code and output."""
    async with index() as url:
        process = await asyncio.create_subprocess_exec(
            *(python, str(folder / "infra/package.py"), str(folder / "dist")),
            env={
                "PATH": "/usr/bin:/bin",
                "PIP_CONFIG_FILE": "/dev/null",
                "PIP_INDEX_URL": url,
                "PIP_NO_CACHE_DIR": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
            stdout=-1,
            stderr=-1,
        )
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def names_in(folder: Path) -> list[str]:
    """Return the names in the zip, without the wheels' metadata."""
    with zipfile.ZipFile(folder / "dist/app.zip") as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


async def test_content(tmp_path: Path) -> None:
    """The package has the app, and the wheels for Azure's Python, whichever Python builds it."""
    code, out, err = await build(project(tmp_path / "a", locked("fast")))
    assert (0, "") == (code, err)
    assert [
        f"{SITE}/fast/__init__.py",
        f"{SITE}/fast/{EXTENSION}",
        "function_app.py",
        "host.json",
        "requirements.txt",
        "shared/http.py",
    ] == names_in(tmp_path / "a")
    assert "sha256" in out


async def test_reproducible(tmp_path: Path, each_python: str) -> None:
    """The same sources give the same bytes, and the printed digest is theirs."""
    lock = locked("fast", "new")
    first = await build(project(tmp_path / "a", lock))
    second = await build(project(tmp_path / "b", lock), each_python)
    packages = [(tmp_path / name / "dist/app.zip").read_bytes() for name in ("a", "b")]
    assert packages[0] == packages[1]
    digest = f"sha256 {hashlib.sha256(packages[0]).hexdigest()}"
    assert digest in first[1]
    assert digest in second[1]


async def test_reproducible_elsewhere(tmp_path: Path) -> None:
    """The bytes do not depend on the zlib that this Python was built with."""
    await build(project(tmp_path, locked("fast")))
    with zipfile.ZipFile(tmp_path / "dist/app.zip") as archive:
        assert {zipfile.ZIP_STORED} == {entry.compress_type for entry in archive.infolist()}


async def test_rebuilt(tmp_path: Path) -> None:
    """Nothing is left of an earlier build."""
    folder = project(tmp_path, locked("fast"))
    await build(folder)
    (folder / "requirements.txt").write_text(locked("new"))
    await build(folder)
    assert f"{SITE}/new.py" in names_in(folder)
    assert not [name for name in names_in(folder) if "fast" in name]


async def test_markers(tmp_path: Path) -> None:
    """Markers are evaluated for Azure's Python, not for the one that runs the script."""
    lock = locked("old", marker="python_full_version < '3.13'")
    lock += locked("new", marker="python_full_version >= '3.13' and sys_platform == 'linux'")
    lock += locked("past", marker="platform_python_implementation == 'PyPy'")
    code, _, err = await build(project(tmp_path, lock))
    assert (0, "") == (code, err)
    assert [f"{SITE}/new.py"] == [name for name in names_in(tmp_path) if name.startswith(SITE)]


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        pytest.param(locked("liar"), "is not for Python 3.13", id="extension of another Python"),
        pytest.param(locked("arm"), "is not for Linux x86-64", id="extension for ARM"),
        pytest.param(locked("win"), "is not for Linux", id="extension for Windows"),
        pytest.param(locked("past"), "past-1.0 is for Python <3.13", id="wheel for another Python"),
        pytest.param(locked("mac-only"), "No matching distribution", id="no wheel for Linux"),
        pytest.param("fast==1.0\n", "not a pinned package with a hash", id="no hash"),
        pytest.param(
            "fast>=1.0 \\\n    --hash=sha256:00\n", "not a pinned package", id="not pinned"
        ),
        pytest.param("fast==1.0 \\\n    --hash=sha256:00\n", "HASHES", id="wrong hash"),
    ],
)
async def test_refuses(tmp_path: Path, lock: str, said: str) -> None:
    """No package is built from wheels that Azure's Python cannot load, or from a bad lock."""
    code, _, err = await build(project(tmp_path, lock))
    assert 1 == code
    assert said in err
    assert not (tmp_path / "dist/app.zip").exists()


async def test_imports(tmp_path: Path, python_3_13: str) -> None:
    """With Azure's Python, the package is imported as in Azure, and its functions are printed."""
    code, out, err = await build(project(tmp_path, locked("fast")), python_3_13)
    assert (0, "") == (code, err)
    assert "functions: token\n" in out


@pytest.mark.parametrize("app", ["import no_such_module", "class app:\n    get_functions = list"])
async def test_no_functions(tmp_path: Path, python_3_13: str, app: str) -> None:
    """No package is built if it cannot be imported, or has no function."""
    folder = project(tmp_path, locked("fast"))
    (folder / "function_app.py").write_text(app)
    code, _, err = await build(folder, python_3_13)
    assert 1 == code
    assert "cannot be imported (see above), or has no function" in err
    assert not (folder / "dist/app.zip").exists()


@pytest.fixture
def python_3_13(find_python: Callable[[str], str]) -> str:
    """Return a Python of Azure's version."""
    return find_python("3.13")


def test_same_python() -> None:
    """The package is for the Python that runs the app in Azure."""
    script = (ROOT / "infra/package.py").read_text()
    assert '\nPYTHON = "3.13"\n' in script
    assert (
        "runtime: { name: 'python', version: '3.13' }"
        in (ROOT / "infra/modules/app.bicep").read_text()
    )
