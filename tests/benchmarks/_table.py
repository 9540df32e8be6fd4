"""Markdown tables and JSON files of results."""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A markdown table; floats get three digits, missing values a dash."""
    if not rows:
        return "(no results)\n"
    names = list(columns) if columns is not None else list(rows[0])
    body = [[cell(row.get(name)) for name in names] for row in rows]
    width = [max(len(names[i]), *(len(r[i]) for r in body)) for i in range(len(names))]
    lines = [names, ["-" * w for w in width], *body]
    return "".join("| " + " | ".join(v.ljust(w) for v, w in zip(r, width, strict=True)) + " |\n" for r in lines)


def cell(value: Any) -> str:
    """Text of one value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def is_there(task: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    """Whether ``rows`` hold a result of ``task``: one with the same values under ``keys``."""
    return any(all(row.get(key) == task[key] for key in keys) for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """The file's object, or an empty one if there is no such file."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
