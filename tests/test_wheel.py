"""The wheel works with its dependencies on every suitable CPython of this machine."""

import email
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"python3\.(\d+)")
OLDEST = 10
DESCRIBE = (
    "import sys, sysconfig; "
    "print(sys.implementation.name, sys.version_info[1], bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
)
OFFLINE = re.compile(r"error sending request|failed to fetch|dns error|not found in the cache", re.IGNORECASE)


def candidates() -> Iterator[Path]:
    """Whatever is called python3.X: on the path, of pyenv, and managed by uv."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from Path(folder).glob("python3.*")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from (pyenv / "versions").glob("*/bin/python3.*")
    data = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    managed = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", data / "uv" / "python"))
    yield from managed.glob("*/bin/python3.*")


def interpreters() -> dict[int, Path]:
    """One CPython for each minor version; the running one for its own."""
    found = {sys.version_info.minor: Path(sys.executable)}
    for path in candidates():
        name = NAME.fullmatch(path.name)
        if name is None or int(name[1]) < OLDEST or int(name[1]) in found:
            continue
        described = subprocess.run([path, "-c", DESCRIBE], capture_output=True, text=True, check=False)
        # One that does not run is a shim of a version manager; one without the GIL takes no abi3 wheel.
        if described.stdout.split() == ["cpython", name[1], "False"]:
            found[int(name[1])] = path
    return dict(sorted(found.items()))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--quiet"]
    run(*build, "--interpreter", sys.executable, "--out", folder, cwd=ROOT)
    (built,) = folder.iterdir()
    return built


def run(*command: str | Path, cwd: Path | None = None) -> None:
    # The folder of the tests must not be on the path of what is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}")


def test_one_wheel_for_every_version(wheel: Path) -> None:
    assert re.fullmatch(r"alps_heads-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)


def test_the_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "python"
    sources = {
        path.relative_to(package).as_posix()
        for path in (package / "alps").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__" and path.suffix not in {".so", ".pyd"}
    }
    with ZipFile(wheel) as files:
        packed = set(files.namelist())
        size = sum(file.compress_size for file in files.infolist())
    (extension,) = (name for name in packed if name.endswith((".so", ".pyd")))
    assert {name for name in packed if name.startswith("alps/")} == sources | {extension}
    assert {name.partition("/")[0].partition("-")[0] for name in packed} == {"alps", "alps_heads"}
    assert size < 4_000_000


def test_the_extras_are_what_users_want(wheel: Path) -> None:
    with ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(files.read(name))
    assert metadata["Name"] == "alps-heads"
    assert metadata.get_all("Provides-Extra") == ["all", "plot", "remote", "train"]
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in needed} == {"numpy", "rich", "safetensors", "typer"}


@pytest.mark.parametrize(("minor", "interpreter"), interpreters().items(), ids=lambda value: f"{value}")
def test_the_wheel_works(wheel: Path, tmp_path: Path, minor: int, interpreter: Path) -> None:
    environment, folder = tmp_path / "environment", tmp_path / "work"
    folder.mkdir()
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--python", interpreter, environment)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pinned = ("--constraint", ROOT / "constraints.txt")
    try:
        run(*uv, "pip", "install", "--quiet", "--python", python, *pinned, wheel)
    except AssertionError as failure:
        if minor != sys.version_info.minor and OFFLINE.search(str(failure)):
            pytest.skip(f"the dependencies for Python 3.{minor} cannot be fetched")
        raise
    run(python, "-W", "error", ROOT / "tests" / "support" / "installed_wheel.py", folder, cwd=folder)
