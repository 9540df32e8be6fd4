"""The package is imported under its own name only, quickly, and from declared dependencies."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.architecture._tree import FOLDERS, ROOT, pyproject, python_files

REFUSED = {"torchvision", "timm", "ultralytics", "dill", "joblib"}
UNPICKLES = re.compile(r"pickle\.loads?\(|Unpickler\(|allow_pickle=[T]rue|torch\.load\((?![^\n]*weights_only=True)")


def _run(code: str) -> str:
    """Run code in a new interpreter, away from the repository, with the import root first; return what it printed."""
    program = f"import sys; sys.path.insert(0, {str(ROOT / '.src')!r}); {code}"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@cache
def _imports(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a module, wherever they stand; "." for a relative one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").split(".")[0])
    return names


def test_no_folder_is_loaded_under_its_bare_name() -> None:
    modules = "samgraft.adapters, samgraft.domains, samgraft.volumetric, samgraft.recipes"
    code = f"import {modules}; print(sorted({set(FOLDERS)!r} & set(sys.modules)), samgraft.adapters.__name__)"
    assert _run(code) == "[] samgraft.adapters"


def test_nothing_imports_a_bare_folder_or_a_refused_package() -> None:
    paths = python_files() + sorted((ROOT / "tests").rglob("*.py"))
    bad = {str(p.relative_to(ROOT)): names for p in paths if (names := _imports(p) & {*FOLDERS, ".", *REFUSED})}
    assert bad == {}


def test_nothing_unpickles() -> None:
    paths = python_files() + sorted((ROOT / "tests").rglob("*.py"))
    hits = {str(p.relative_to(ROOT)): found for p in paths if (found := UNPICKLES.findall(p.read_text()))}
    assert hits == {}


def test_import_of_the_root_is_quick() -> None:
    code = "import samgraft; print(sorted({'torch', 'numpy', 'transformers', 'lightning'} & set(sys.modules)))"
    assert _run(code) == "[]"


def test_unknown_public_name_lists_the_known_ones() -> None:
    import samgraft

    with pytest.raises(AttributeError, match=r"no attribute 'opne'; public names: .*\bopen\b"):
        _ = samgraft.opne  # type: ignore[attr-defined]


def test_every_import_is_a_declared_dependency() -> None:
    project = pyproject()["project"]
    declared = project["dependencies"] + [
        d for extra in ("geo", "dicom", "dask") for d in project["optional-dependencies"][extra]
    ]
    names = {_canonical(re.split(r"[<>=\[;! ]", d)[0]) for d in declared}
    owners = packages_distributions()
    used = set().union(*(_imports(p) for p in python_files())) - set(sys.stdlib_module_names) - {"samgraft"}
    missing = {
        name for name in used if not names & ({_canonical(d) for d in owners.get(name, ())} | {_canonical(name)})
    }
    assert missing == set(), "imported, but in neither dependencies nor an extra of pyproject.toml"


def test_root_modules_are_packaged_by_name() -> None:
    targets = pyproject()["tool"]["hatch"]["build"]["targets"]
    real = {f".src/samgraft/{p.name}" for p in (ROOT / ".src" / "samgraft").iterdir() if p.is_file()}
    for target in ("wheel", "sdist"):
        listed = {path for path in targets[target]["only-include"] if path.startswith(".src/")}
        assert listed == real, f"{target}: a new root module goes into both lists and into the layers contract"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
