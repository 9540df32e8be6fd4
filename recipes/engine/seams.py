"""Masks of different crops and tiles become one list: doubles go, and parts that tiles cut an object into are joined.

Whole masks come first. A part that a whole mask mostly covers is dropped. Of the others, two from different tiles are
one object if they agree where both tiles look; they are joined, over as many tiles as it takes. What still ends at an
inner edge of a tile is no object and is given back apart, so that it can be looked at again (``ends.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.crops import Crop
from samgraft.recipes.engine.ends import Piece
from samgraft.recipes.engine.runs import RunMask, runs_of
from samgraft.recipes.engine.suppress import keep_best

COVERED = 0.5
"""A part is dropped if a whole mask covers more than this share of it."""
AGREE = 0.5
"""Least IoU of two parts where both tiles look, for one object."""
Boxes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Joined:
    """Masks of all crops as one list."""

    kept: list[Candidate]
    open: list[Piece]
    """What stops at an inner edge of a tile; not among ``kept``."""


def join_crops(found: Sequence[Candidate], threshold: float, by: str) -> Joined:
    """One list of the masks of all crops: those of smaller crops before those of larger ones, then the better first.

    Args:
        found: Masks of all crops.
        threshold: Largest IoU of two that stay.
        by: As for :func:`samgraft.recipes.engine.suppress.keep_best`.
    """
    whole = _best([one for one in found if not one.cut], threshold, by)
    parts = [one for one in found if one.cut]
    free = [one for one, covered in zip(parts, _covered(parts, whole), strict=True) if not covered]
    pieces = _joined(free)
    ends = [piece.ends_openly() for piece in pieces]
    complete = [piece.mask for piece, end in zip(pieces, ends, strict=True) if not end]
    kept = _best(whole + complete, threshold, by) if complete else whole
    return Joined(kept=kept, open=[piece for piece, end in zip(pieces, ends, strict=True) if end])


def _best(found: list[Candidate], threshold: float, by: str) -> list[Candidate]:
    """Masks without doubles; those that no tile cut before joined ones, smaller crops before larger ones, then IoU."""
    order = sorted(range(len(found)), key=lambda i: (found[i].cut, found[i].crop.area, -found[i].iou))
    return [found[i] for i in keep_best([one.runs for one in found], order, threshold, by=by)]


def _covered(parts: Sequence[Candidate], whole: Sequence[Candidate]) -> list[bool]:
    """For every part whether a whole mask covers most of it."""
    boxes = _boxes(whole)
    near = [_touching(part.runs.box, boxes) for part in parts]
    return [
        any(part.runs.intersection(whole[i].runs) > COVERED * part.runs.area for i in some)
        for part, some in zip(parts, near, strict=True)
    ]


def _joined(parts: Sequence[Candidate]) -> list[Piece]:
    """Parts of one object together."""
    boxes, owner = _boxes(parts), list(range(len(parts)))

    def root(i: int) -> int:
        while owner[i] != i:
            owner[i] = owner[owner[i]]
            i = owner[i]
        return i

    for i, part in enumerate(parts):
        for k in _touching(part.runs.box, boxes[:i]):
            if root(i) != root(int(k)) and _same(part, parts[k]):
                owner[root(i)] = root(int(k))
    groups: dict[int, list[Candidate]] = {}
    for i, part in enumerate(parts):
        groups.setdefault(root(i), []).append(part)
    return [Piece(mask=_union(group), parts=tuple(group)) for group in groups.values()]


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether two parts agree where both tiles look."""
    a, b = one.crop, other.crop
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom, right = min(a.top + a.height, b.top + b.height), min(a.left + a.width, b.left + b.width)
    if a == b or bottom <= top or right <= left:
        return False
    both = one.runs.intersection(other.runs)
    common = _rectangle(Crop(top=top, left=left, height=bottom - top, width=right - left), one.runs.shape)
    union = one.runs.intersection(common) + other.runs.intersection(common) - both
    return both > 0 and both >= AGREE * union


def _rectangle(crop: Crop, shape: tuple[int, int]) -> RunMask:
    starts = np.arange(crop.left, crop.left + crop.width) * shape[0] + crop.top
    return RunMask(shape=shape, starts=starts, stops=starts + crop.height)


def _union(group: Sequence[Candidate]) -> Candidate:
    """The best part, grown by the others; what was cut several times is whole only as far as tiles show."""
    best = max(group, key=lambda one: one.iou)
    if len(group) == 1:
        return best
    boxes = _boxes(group)
    (left, top), (right, bottom) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    mask = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for one in group:
        rows, cols = one.runs.place
        mask[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] |= one.runs.crop()
    return replace(
        best,
        runs=runs_of(mask, top=top, left=left, shape=best.runs.shape),
        iou=float(np.mean([one.iou for one in group])),
        stability=min(one.stability for one in group),
    )


def _boxes(found: Sequence[Candidate]) -> Boxes:
    """(n, 4) outer edges."""
    boxes = np.array([one.runs.box for one in found], dtype=np.int64).reshape(-1, 4)
    edges: Boxes = boxes + np.array([0, 0, 1, 1])
    return edges


def _touching(box: tuple[int, int, int, int], boxes: Boxes) -> NDArray[np.intp]:
    """Numbers of the boxes that share a pixel with ``box``."""
    x0, y0, x1, y1 = box
    meets = (boxes[:, 0] <= x1) & (boxes[:, 2] > x0) & (boxes[:, 1] <= y1) & (boxes[:, 3] > y0)
    return np.flatnonzero(meets)
