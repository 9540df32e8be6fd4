"""Checks of a DICOM folder by its headers: every defect of every series, where the reader stops at the first."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical import dicom_order
from samgraft.domains.medical.dicom import SPACING_TOLERANCE_MM, differences
from samgraft.domains.medical.dicom_header import read_slices
from samgraft.domains.medical.dicom_order import Slice
from samgraft.errors import GeometryError, InputError
from samgraft.recipes.doctor.finding import Finding, Severity, from_error

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Series:
    """Slices of one series, in order of position."""

    path: Path
    uid: str
    slices: Sequence[Slice]
    """Those that agree in size and direction, ascending along the normal."""
    along: NDArray[np.float64]
    """Their places in mm."""
    normal: NDArray[np.float64]
    odd: Sequence[tuple[Slice, str]]
    """Slices that do not agree with most, and in what."""

    def finding(self, severity: Severity, check: str, what: str, remedy: str, place: str = "") -> Finding:
        """A finding about this series."""
        name = self.slices[0].description or self.uid
        where = f"{self.path} [{name}]" if self.path.is_dir() else str(self.path)
        return Finding(severity=severity, check=check, file=where, what=what, remedy=remedy, place=place)


def read_headers(path: Path) -> tuple[dict[str, list[Slice]], int, list[Finding]]:
    """Slices by series, how many files were read, and what is wrong with single files."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    groups: dict[str, list[Slice]] = {}
    findings = []
    for file in files:
        try:
            found = read_slices(file)
        except InputError as error:
            findings.append(from_error(error, file))
            continue
        for one in [] if isinstance(found, str) else found:
            groups.setdefault(one.series, []).append(one)
    return groups, len(files), findings


def examine_series(path: Path, uid: str, slices: Sequence[Slice]) -> Iterator[Finding]:
    """All findings about one series."""
    try:
        series = _arrange(path, uid, slices)
    except GeometryError as error:
        yield from_error(error, path, "damaged directions")
        return
    for check in CHECKS:
        yield from check(series)


def _arrange(path: Path, uid: str, slices: Sequence[Slice]) -> Series:
    """Order the slices; those unlike most are set apart."""
    kinds = Counter((s.shape, tuple(np.round(s.orientation, 3))) for s in slices)
    usual = kinds.most_common(1)[0][0]
    lead = next(s for s in slices if (s.shape, tuple(np.round(s.orientation, 3))) == usual)
    odd = [(s, ", ".join(what for what, _, _ in differences(s, lead))) for s in slices if differences(s, lead)]
    unlike = {id(s) for s, _ in odd}
    like = [s for s in slices if id(s) not in unlike]
    normal = dicom_order.slice_normal(lead, path)
    along = np.array([float(s.position @ normal) for s in like])
    order = np.argsort(along, kind="stable")
    return Series(path=path, uid=uid, slices=[like[i] for i in order], along=along[order], normal=normal, odd=odd)


def _mixed(s: Series) -> Iterator[Finding]:
    for what, count in Counter(what for _, what in s.odd).items():
        example = next(one for one, why in s.odd if why == what)
        yield s.finding(
            "error",
            "mixed slices",
            f"{count} of {len(s.slices) + len(s.odd)} slices differ from the others in {what}, such as {example.name}",
            "remove localisers and foreign slices",
        )


def _stacks(s: Series) -> Iterator[Finding]:
    names = sorted({one.stack for one in s.slices})
    if len(names) > 1:
        yield s.finding("error", "multi-frame", f"holds the stacks {names}", "split them into one file per stack")


def _duplicates(s: Series) -> Iterator[Finding]:
    twice = dicom_order.duplicates(s.along)
    if len(twice):
        shown = "; ".join(
            f"{s.along[i]:.2f} mm: {s.slices[i].name} ({s.slices[i].uid}) and {s.slices[i + 1].name} "
            f"({s.slices[i + 1].uid})"
            for i in twice[:_SHOWN]
        )
        yield s.finding(
            "error",
            "duplicate slices",
            f"{len(twice)} positions twice: {shown}",
            "keep one of each (phases and echoes belong into folders of their own)",
        )


def _places(s: Series) -> Iterator[Finding]:
    """Gaps and irregular steps; meaningless while positions repeat."""
    if len(s.along) < 2 or len(dicom_order.duplicates(s.along)):
        return
    numbers = dicom_order.slice_numbers(s.along)
    spacing, off = dicom_order.regularity(s.along, numbers)
    if off.max() > SPACING_TOLERANCE_MM:
        worst = int(off.argmax())
        steps = np.diff(s.along)
        yield s.finding(
            "error",
            "irregular slices",
            f"steps from {steps.min():.3f} to {steps.max():.3f} mm; {s.slices[worst].name} is {off[worst]:.3f} mm off",
            "remove foreign slices, or open with a larger spacing_tolerance",
            f"at {s.along[worst]:.2f} mm along the normal",
        )
        return
    gaps = dicom_order.find_gaps(s.along, numbers)
    if gaps:
        text = ", ".join(f"{a:.2f} to {b:.2f} mm ({n})" for a, b, n in gaps[:_SHOWN])
        yield s.finding(
            "error",
            "missing slices",
            f"{sum(n for _, _, n in gaps)} slices missing at spacing {spacing:.3f} mm",
            "find them, or open with allow_gaps=True to leave them empty",
            text,
        )


def _tilt(s: Series) -> Iterator[Finding]:
    if len(s.along) < 2 or s.along[-1] - s.along[0] <= 0:
        return
    step = (s.slices[-1].position - s.slices[0].position) / (len(s.slices) - 1)
    _, sideways, angle = dicom_order.tilt(step, s.normal)
    if angle > dicom_order.MAX_TILT_DEGREES:
        yield s.finding(
            "error",
            "gantry tilt",
            f"slices are stacked {angle:.2f} degrees off their normal ({sideways:.3f} mm sideways per slice)",
            "resample to an upright volume",
        )


def _no_frame(s: Series) -> Iterator[Finding]:
    if s.slices and not s.slices[0].frame_of_reference:
        yield s.finding(
            "note",
            "no frame of reference",
            "headers have no FrameOfReferenceUID",
            "write results as NIfTI: DICOM-SEG and RTSTRUCT need one",
        )


CHECKS: tuple[Callable[[Series], Iterator[Finding]], ...] = (_mixed, _stacks, _duplicates, _places, _tilt, _no_frame)
"""Checks of a series, in the order of their findings."""
