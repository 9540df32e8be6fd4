"""Where the code of the repository lies; shared by the architecture tests."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("adapters", "domains", "volumetric", "recipes")


def python_files() -> list[Path]:
    """Every module of the four folders and of the import root, each once."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(files) + sorted((ROOT / ".src" / "samgraft").glob("*.py"))


def data_files() -> list[Path]:
    """Every file of the four folders that a user needs and that is no module."""
    suffixes = {".yaml", ".json", ".safetensors", ".md", ".html", ".css"}
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def pyproject() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
