"""Checks of one opened image: a table of functions over what one pass through its pixels has found."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from samgraft.domains.medical.intensity import NO_HU
from samgraft.domains.scene import Array, Scene
from samgraft.grid import Grid
from samgraft.recipes.doctor.finding import Finding, Severity, place_of

SLAB_BYTES = 64 * 2**20
"""Pixels are read in slabs of about so many bytes."""
SHEAR_DEGREES = 0.05
"""Angle between axes beyond 90 degrees that counts as shear."""
SPACING_MM = (0.01, 25.0)
"""Spacing of volumes outside this range is taken for a wrong unit."""


@dataclass(kw_only=True)
class Pixels:
    """What one pass over an image found."""

    nans: int = 0
    """NaN."""
    infs: int = 0
    """Inf."""
    first_bad: tuple[int, ...] | None = None
    """First voxel that is not finite."""
    low: float = math.inf
    """Smallest finite value."""
    high: float = -math.inf
    """Largest finite value."""
    digest: str = ""
    """Hash of shape and values, the same for copies in other files."""
    values: set[int] = field(default_factory=set)
    """Labels that occur; filled for label files."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """An image and what is known of it."""

    scene: Scene
    pixels: Pixels
    modality: str = ""
    """CT, MR, ... from file or data set."""

    def finding(self, severity: Severity, check: str, what: str, remedy: str, place: str = "") -> Finding:
        """A finding about this image."""
        return Finding(
            severity=severity,
            check=check,
            file=str(self.scene.path),
            what=what,
            remedy=remedy,
            place=place,
        )


def measure(scene: Scene, *, labels: bool = False) -> Pixels:
    """Read an image once, slab by slab.

    Args:
        scene: opened with ``nan="fill"`` where it can hold NaN.
        labels: also collect the values that occur.

    Raises:
        InputError: damaged pixels.
    """
    found, digest = Pixels(), hashlib.sha256(repr(scene.grid.shape).encode())
    for slab in slabs(scene):
        values = scene.read(slab)
        nans, infs = scene.nonfinite(slab)
        found.nans, found.infs = found.nans + nans, found.infs + infs
        if nans + infs and found.first_bad is None:
            first = np.argwhere(~scene.valid(slab))[0]
            found.first_bad = tuple(int(i + s.start) for i, s in zip(first, slab, strict=True))
        found.low, found.high = min(found.low, float(values.min())), max(found.high, float(values.max()))
        digest.update(np.ascontiguousarray(values, dtype=np.float32).tobytes())
        if labels:
            found.values |= _whole(values)
    found.digest = digest.hexdigest()
    return found


def slabs(scene: Scene) -> Iterator[tuple[slice, ...]]:
    """Windows along the first axis that cover the scene."""
    depth, rest = scene.grid.shape[0], scene.grid.shape[1:]
    row = max(1, scene.nbytes // depth)
    step = max(1, SLAB_BYTES // row)
    for start in range(0, depth, step):
        yield (slice(start, min(start + step, depth)), *(slice(0, n) for n in rest))


def _whole(values: Array) -> set[int]:
    """Whole numbers that occur."""
    return {int(v) for v in np.unique(values) if float(v).is_integer()}


def examine_image(patient: Patient) -> Iterator[Finding]:
    """All findings about one image."""
    for check in CHECKS:
        found = check(patient)
        if found is not None:
            yield found
    for note in patient.scene.notes:
        yield patient.finding("note", "header", note, "nothing, if that is as it should be")


def _not_finite(p: Patient) -> Finding | None:
    if p.pixels.first_bad is None:
        return None
    total = int(np.prod(p.scene.shape, dtype=np.int64))
    return p.finding(
        "error",
        "NaN or Inf",
        f"{p.pixels.nans} NaN and {p.pixels.infs} Inf of {total:,} values",
        'repair the file, or open it with nan="fill" to read them as 0',
        f"the first at {place_of(p.scene.grid, p.pixels.first_bad)}",
    )


def _frame_unknown(p: Patient) -> Finding | None:
    if p.scene.kind != "volume" or p.scene.frame_known:
        return None
    return p.finding(
        "warning",
        "no sform and no qform" if p.scene.format == "NIfTI" else "no space",
        "the header does not say where the volume lies; sides may be swapped",
        "export it again with its position, or set the affine if you know it",
    )


def shear_degrees(grid: Grid) -> float:
    """Largest deviation of two axes from a right angle, in degrees."""
    axes = grid.affine[:-1, :-1] / np.linalg.norm(grid.affine[:-1, :-1], axis=0)
    gram = np.abs(axes.T @ axes - np.eye(len(axes)))
    return float(np.degrees(np.arcsin(min(1.0, gram.max()))))


def _sheared(p: Patient) -> Finding | None:
    angle = shear_degrees(p.scene.grid)
    if p.scene.kind != "volume" or angle <= SHEAR_DEGREES:
        return None
    return p.finding(
        "warning",
        "sheared affine",
        f"axes are {angle:.2f} degrees off a right angle",
        "NIfTI, NRRD and MHA keep it here; DICOM and many tools cannot: resample it if it has to go there",
    )


def _constant(p: Patient) -> Finding | None:
    if p.pixels.low != p.pixels.high:
        return None
    return p.finding(
        "warning",
        "constant image",
        f"every value is {p.pixels.low:g}",
        "check the export; leave the case out if there is nothing in it",
    )


def _no_hu(p: Patient) -> Finding | None:
    if p.modality.upper() != "CT" or p.scene.kind != "volume" or p.pixels.low < 0:
        return None
    shape = "8-bit gray values" if p.pixels.high <= 255 else "offset or scaled values"
    return p.finding(
        "error",
        NO_HU,
        f"CT whose values run from {p.pixels.low:g} to {p.pixels.high:g}: {shape}; air is -1000 HU",
        "convert from the original DICOM with its rescale slope and intercept, not from a picture",
    )


def _spacing(p: Patient) -> Finding | None:
    wrong = [v for v in p.scene.grid.spacing if not SPACING_MM[0] <= v <= SPACING_MM[1]]
    if p.scene.kind != "volume" or not wrong:
        return None
    return p.finding(
        "warning",
        "doubtful spacing",
        f"spacing {' x '.join(f'{v:.4g}' for v in p.scene.grid.spacing)} mm",
        "check the unit: metres and micrometres are not read as such",
    )


CHECKS: tuple[Callable[[Patient], Finding | None], ...] = (
    _not_finite,
    _frame_unknown,
    _sheared,
    _constant,
    _no_hu,
    _spacing,
)
"""Checks of an image, in the order of their findings."""
