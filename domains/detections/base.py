"""What a detection file says of one object, in pixels of one image.

Points are (x, y), 0 is the first pixel's centre. A box names its first and last pixel, so that its outer edges are x0
and x1 + 1 when pixel corners are counted, y alike; parts of pixels are allowed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from samgraft.errors import InputError

DEFAULT_CLASS = "object"
"""Class of objects whose file names none."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object."""

    box: Box | None = None
    """x0, y0, x1, y1: first and last pixel inside."""
    points: tuple[tuple[float, float, int], ...] = ()
    """x, y, label: 1 on the object, 0 off it."""
    line: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1: the two ends of a diameter that was measured (RECIST)."""
    class_name: str = DEFAULT_CLASS
    """What it is."""
    score: float | None = None
    """Confidence of whoever found it, or None."""
    slice: int | None = None
    """Index of the slice of a volume, or None."""
    source: str = ""
    """Row, annotation or feature of the file, for messages."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """All objects that a file names in one image."""

    found: tuple[Detection, ...]
    """In the order of the file."""
    left_out: tuple[str, ...] = ()
    """What was left out, each with its name in the file and the reason."""

    def within(self, shape: tuple[int, int], *, min_score: float = 0.0) -> "Detections":
        """Boxes cut at the edges of an image, and without what lies outside it.

        Args:
            shape: (H, W).
            min_score: Objects with a lower score are left out, those without a score are kept.
        """
        kept: list[Detection] = []
        left_out = list(self.left_out)
        for one in self.found:
            if one.score is not None and one.score < min_score:
                left_out.append(f"{one.source}: score {one.score:g} is below {min_score:g}")
                continue
            box = None if one.box is None else clip_box(one.box, shape)
            lost = one.box is not None and box is None
            places = [(x, y) for x, y, _ in one.points]
            if one.line is not None:
                places += [one.line[:2], one.line[2:]]
            if lost or not all(_inside(place, shape) for place in places):
                left_out.append(f"{one.source}: outside the image")
                continue
            kept.append(replace(one, box=box))
        return Detections(found=tuple(kept), left_out=tuple(left_out))


def clip_box(box: Box, shape: tuple[int, int]) -> Box | None:
    """The part of ``box`` inside an image of ``shape`` (H, W), at least one pixel; None if there is none."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), box[2] + 1, box[3] + 1
    x1, y1 = min(x1, float(shape[1])), min(y1, float(shape[0]))
    if x1 <= x0 or y1 <= y0:
        return None
    x0, y0 = min(x0, shape[1] - 1.0), min(y0, shape[0] - 1.0)
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)


def box_of_edges(x0: float, y0: float, x1: float, y1: float) -> Box:
    """Box of outer edges counted from pixel corners (0 is the image's edge); at least one pixel."""
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)


def finite(values: Iterable[object], where: str) -> list[float]:
    """Numbers of a file.

    Raises:
        InputError: a value that is no finite number.
    """
    numbers = []
    for value in values:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}: {value!r} is no number; correct the file")
        numbers.append(number)
    return numbers


def _inside(place: tuple[float, float], shape: tuple[int, int]) -> bool:
    return -0.5 <= place[0] <= shape[1] - 0.5 and -0.5 <= place[1] <= shape[0] - 0.5
