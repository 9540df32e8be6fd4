"""What is shipped: the wheel, the sdist, and the wheel made from the sdist hold all the code and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.architecture._tree import FOLDERS, ROOT, data_files, python_files

pytest.importorskip("hatchling", reason="building needs the test extra")
pytest.importorskip("build", reason="building needs the test extra")


def _build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or sdist from ``source`` with the backend of this environment (no network)."""
    command = [sys.executable, "-P", "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


def _installed_name(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return str(relative).removeprefix(".src/") if relative.parts[0] == ".src" else f"samgraft/{relative}"


def _wheel_names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    expected = {_installed_name(path) for path in [*python_files(), *data_files()]} | {"samgraft/py.typed"}
    assert len(expected) > 20
    assert expected - _wheel_names(wheel) == set()


def test_wheel_has_one_top_level_package(wheel: Path) -> None:
    assert {name.split("/")[0] for name in _wheel_names(wheel)} == {"samgraft"}


def test_wheel_names_the_licence_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        assert "samgraft = samgraft.recipes.cli:main" in archive.read(info["entry_points.txt"]).decode()
        assert "License-Expression: Apache-2.0" in archive.read(info["METADATA"]).decode()
    assert "licenses/LICENSE" in info


def test_sdist_holds_the_source_and_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {
        str(path.relative_to(ROOT)) for path in [*python_files(), *data_files(), *(ROOT / "tests").rglob("*.py")]
    }
    assert expected - names == set()
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "CHANGELOG.md"} <= names
    assert not any(name.startswith(f".src/samgraft/{folder}") for name in names for folder in FOLDERS)


def test_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert _wheel_names(_build("wheel", source, tmp_path / "out")) == _wheel_names(wheel)
