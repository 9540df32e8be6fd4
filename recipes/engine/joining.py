"""Objects that several overlapping windows show in pieces, put together.

Two pieces are one object where they agree in what both windows see: the IoU of their masks inside the common part of
the windows decides. The best agreements come first, and two pieces of one window are never joined, so that a blob in
one window cannot glue together what another window keeps apart. An object that is cut by every window comes out whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array, label_dtype
from samgraft.domains.segmentation import InstanceRecord

Place = tuple[slice, slice]
"""Rows and columns of a picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One object as one window shows it, or as several do together."""

    window: int
    """Number of the window; -1 once joined."""
    place: Place
    """Where ``mask`` lies in the picture: the smallest rectangle that holds the object."""
    mask: NDArray[np.bool_]
    """(h, w), not empty."""
    score: float
    """0 to 1."""
    class_id: int = 1

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())

    def inside(self, place: Place) -> NDArray[np.bool_]:
        """The mask on another rectangle of the picture; False where the piece says nothing."""
        rows, cols = place
        result = np.zeros((rows.stop - rows.start, cols.stop - cols.start), dtype=bool)
        common = intersection(self.place, place)
        if common is not None:
            result[_within(common, place)] = self.mask[_within(common, self.place)]
        return result


def piece_of(mask: NDArray[np.bool_], place: Place, *, window: int, score: float, class_id: int = 1) -> Piece | None:
    """A piece from a mask over ``place``; None if the mask is empty."""
    if not mask.any():
        return None
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = (slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))
    top, left = place[0].start, place[1].start
    return Piece(
        window=window,
        place=(slice(top + tight[0].start, top + tight[0].stop), slice(left + tight[1].start, left + tight[1].stop)),
        mask=mask[tight].copy(),  # a view would keep the whole window alive
        score=score,
        class_id=class_id,
    )


def intersection(a: Place, b: Place) -> Place | None:
    """The common rectangle, or None."""
    rows = slice(max(a[0].start, b[0].start), min(a[0].stop, b[0].stop))
    cols = slice(max(a[1].start, b[1].start), min(a[1].stop, b[1].stop))
    return None if rows.start >= rows.stop or cols.start >= cols.stop else (rows, cols)


def _within(part: Place, whole: Place) -> Place:
    rows, cols = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
    return rows, cols


def agreement(a: Piece, b: Piece, common: Place) -> float:
    """IoU of two pieces inside ``common``, the part of the picture that both of their windows show; 0 if both miss."""
    first, second = a.inside(common), b.inside(common)
    both = int((first & second).sum())
    return both / max(1, int((first | second).sum()))


def join(pieces: Sequence[Piece], windows: Sequence[Place], *, threshold: float = 0.5) -> list[Piece]:
    """Whole objects, in the order of their first piece.

    Args:
        pieces: In any order; ``piece.window`` is an index of ``windows``.
        windows: Where each window lies in the picture.
        threshold: Least IoU in the common part of two windows.
    """
    root = list(range(len(pieces)))
    members = [{piece.window} for piece in pieces]

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for _, i, j in sorted(_agreeing(pieces, windows, threshold), key=lambda pair: (-pair[0], pair[1], pair[2])):
        first, second = sorted((find(i), find(j)))
        if first != second and not members[first] & members[second]:
            root[second] = first
            members[first] |= members[second]
    groups: dict[int, list[Piece]] = {}
    for number, piece in enumerate(pieces):
        groups.setdefault(find(number), []).append(piece)
    return [_union(group) for group in groups.values()]


def _agreeing(pieces: Sequence[Piece], windows: Sequence[Place], threshold: float) -> list[tuple[float, int, int]]:
    """(agreement, i, j) of pieces of the same class in two overlapping windows."""
    own: dict[int, list[int]] = {}
    for number, piece in enumerate(pieces):
        own.setdefault(piece.window, []).append(number)
    used, found = sorted(own), list[tuple[float, int, int]]()
    for place, a in enumerate(used):
        for b in used[place + 1 :]:
            common = intersection(windows[a], windows[b])
            if common is None:
                continue
            for i in own[a]:
                for j in own[b]:
                    if pieces[i].class_id == pieces[j].class_id and intersection(pieces[i].place, pieces[j].place):
                        value = agreement(pieces[i], pieces[j], common)
                        found += [(value, i, j)] if value >= threshold else []
    return found


def _union(group: Sequence[Piece]) -> Piece:
    """All pixels of the pieces; the score is their mean by area."""
    if len(group) == 1:
        return group[0]
    rows = slice(min(p.place[0].start for p in group), max(p.place[0].stop for p in group))
    cols = slice(min(p.place[1].start for p in group), max(p.place[1].stop for p in group))
    mask = np.zeros((rows.stop - rows.start, cols.stop - cols.start), dtype=bool)
    for piece in group:
        mask[_within(piece.place, (rows, cols))] |= piece.mask
    weights = np.array([piece.area for piece in group], dtype=np.float64)
    score = float(np.average([piece.score for piece in group], weights=weights))
    return Piece(window=-1, place=(rows, cols), mask=mask, score=score, class_id=group[0].class_id)


def paint_pieces(
    pieces: Sequence[Piece], shape: tuple[int, int], *, min_area: int = 1, min_visible: float = 0.5
) -> tuple[Array, tuple[InstanceRecord, ...]]:
    """One label map, the better score on top.

    Args:
        pieces: Whole objects.
        shape: (H, W) of the picture.
        min_area: Objects with fewer visible pixels are left out.
        min_visible: Least share of an object's pixels that no better object covers; less is a second answer for the
            same thing, of which only crumbs would stay.

    Returns:
        (H, W) labels 1..n, the best object first, and a record for each.
    """
    covered = np.zeros(shape, dtype=bool)
    kept: list[tuple[Piece, NDArray[np.bool_]]] = []
    for piece in sorted(pieces, key=lambda p: -p.score):
        seen = piece.mask & ~covered[piece.place]
        visible = int(seen.sum())
        if visible >= max(1, min_area) and visible >= min_visible * piece.area:
            covered[piece.place] |= piece.mask
            kept.append((piece, seen))
    labels = np.zeros(shape, dtype=label_dtype(len(kept)))
    records = []
    for number, (piece, seen) in enumerate(kept, start=1):
        labels[piece.place][seen] = number
        y, x = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        top, left = piece.place[0].start, piece.place[1].start
        box = (float(x[0] + left), float(y[0] + top), float(x[-1] + left), float(y[-1] + top))
        score = min(1.0, max(0.0, piece.score))
        records.append(InstanceRecord(id=number, class_id=piece.class_id, score=score, box=box))
    return labels, tuple(records)
