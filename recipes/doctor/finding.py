"""A finding of the doctor, and a report of all of them."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from samgraft.grid import Grid

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_NAMES = (
    ("singular", "singular affine"),
    ("pixdim is", "pixdim 0"),
    ("non-finite values", "damaged affine"),
    ("truncated|damaged|cannot be decoded|cannot be read|holds .* bytes", "truncated or damaged"),
    ("is 4D", "4D"),
    (r"is \dD", "more than 4D"),
    ("voxels are", "RGB or complex"),
    ("grids differ", "label on another grid"),
    ("no whole numbers|smallest label", "no label map"),
    ("is missing or incomplete", "slice without a place"),
    ("multi-frame|stacks|orientations", "multi-frame"),
    ("colour", "colour"),
    ("channels", "channels"),
    ("no such file|is empty", "missing"),
)
"""Words of a reader's error -> name of the finding."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    severity: Severity
    """"error": cannot be used, or gives wrong results. "warning": look at it. "note": good to know."""
    check: str
    """Short name of what was found."""
    file: str
    """File or folder."""
    what: str
    """What is wrong, with figures."""
    remedy: str
    """What to do."""
    place: str = ""
    """Where in the file: voxel and world."""

    def text(self) -> str:
        """Two lines for people."""
        at = f", {self.place}" if self.place else ""
        return f"{self.severity:<8}{self.file}: {self.check}: {self.what}{at}\n        do: {self.remedy}"


@dataclass(kw_only=True)
class Report:
    """All findings of one examination."""

    path: str
    """What was examined."""
    files: int = 0
    """Files that were looked at."""
    findings: list[Finding] = field(default_factory=list)
    """Worst first after :meth:`sort`."""

    def add(self, findings: Iterable[Finding]) -> None:
        """Append findings."""
        self.findings.extend(findings)

    def sort(self) -> None:
        """Worst first, then by file; the order of checks stays."""
        self.findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.file))

    def count(self, severity: Severity) -> int:
        """Number of findings of one severity."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def healthy(self) -> bool:
        """True without errors."""
        return self.count("error") == 0

    def text(self) -> str:
        """For people."""
        counts = ", ".join(f"{self.count(s)} {s}{'' if self.count(s) == 1 else 's'}" for s in SEVERITIES)
        lines = [f.text() for f in self.findings]
        return "\n".join([*lines, f"{self.path}: {self.files} file{'' if self.files == 1 else 's'} examined: {counts}"])

    def json(self) -> str:
        """For programs."""
        content = {
            "path": self.path,
            "files": self.files,
            "healthy": self.healthy,
            **{f"{s}s": self.count(s) for s in SEVERITIES},
            "findings": [asdict(f) for f in self.findings],
        }
        return json.dumps(content, indent=1)


def from_error(error: Exception, file: Path | str, check: str | None = None) -> Finding:
    """A reader's error as a finding: what it says before the last semicolon, and the remedy behind it."""
    text = " ".join(str(error).split()).removeprefix(f"{file}: ")
    what, _, remedy = text.rpartition("; ")
    name = check or next((name for words, name in _NAMES if re.search(words, text)), "unreadable")
    return Finding(
        severity="error",
        check=name,
        file=str(file),
        what=what or text,
        remedy=remedy if what else "repair or replace the file",
    )


def place_of(grid: Grid, index: Sequence[int]) -> str:
    """Voxel and world position in words."""
    world = ", ".join(f"{float(v):.2f}" for v in grid.to_world(np.array(index, dtype=np.float64)))
    unit = " mm" if grid.world in ("LPS", "RAS") else ""
    return f"voxel ({', '.join(str(int(i)) for i in index)}), {grid.world} ({world}){unit}"
