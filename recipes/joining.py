"""Objects that several overlapping windows show in pieces, put together.

Two pieces are one object where they agree in what both windows see: the IoU of their masks inside the common part of
the windows decides. The best agreements come first, and two pieces of one window are never joined, so that a blob in
one window cannot glue together what another window keeps apart. An object that some window shows whole is taken from
there; one that every window cuts is the union of its pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.recipes.data.fit import Fit

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


def join(
    pieces: Sequence[Piece], windows: Sequence[Place], *, threshold: float = 0.5, frame: Place | None = None
) -> list[Piece]:
    """Whole objects, in the order of their first piece.

    Args:
        pieces: In any order; ``piece.window`` is an index of ``windows``.
        windows: Where each window lies in the picture.
        threshold: Least IoU in the common part of two windows.
        frame: Where the picture ends, if the windows show only a part of it: an edge of a window that is not an edge
            of the picture cuts objects. None says that the windows cover the picture.
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
    rows, cols = (slice(0, max((window[axis].stop for window in windows), default=0)) for axis in (0, 1))
    return [_union(group, windows, frame or (rows, cols)) for group in groups.values()]


def _cut(piece: Piece, window: Place, frame: Place) -> bool:
    """Whether a piece reaches an edge of its window inside the picture, so that there may be more of it."""
    return any(
        (own.start == seen.start and seen.start > whole.start) or (own.stop == seen.stop and seen.stop < whole.stop)
        for own, seen, whole in zip(piece.place, window, frame, strict=True)
    )


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


def _union(group: Sequence[Piece], windows: Sequence[Place], frame: Place) -> Piece:
    """The best piece that a window shows whole; if there is none, all pixels, the score their mean by area."""
    if len(group) == 1:
        return group[0]
    whole = [piece for piece in group if not _cut(piece, windows[piece.window], frame)]
    if whole:
        return max(whole, key=lambda piece: piece.score)
    rows = slice(min(p.place[0].start for p in group), max(p.place[0].stop for p in group))
    cols = slice(min(p.place[1].start for p in group), max(p.place[1].stop for p in group))
    mask = np.zeros((rows.stop - rows.start, cols.stop - cols.start), dtype=bool)
    for piece in group:
        mask[_within(piece.place, (rows, cols))] |= piece.mask
    weights = np.array([piece.area for piece in group], dtype=np.float64)
    score = float(np.average([piece.score for piece in group], weights=weights))
    return Piece(window=-1, place=(rows, cols), mask=mask, score=score, class_id=group[0].class_id)


class Joining:
    """Collects the objects of overlapping windows on one plane.

    Args:
        shape: (H, W) of the plane.
        size: Side of the network input.
        frame: Where the picture ends, if the plane is a part of it; see :func:`join`.
    """

    def __init__(self, shape: tuple[int, int], size: int, *, frame: Place | None = None) -> None:
        """Nothing is there yet."""
        self.shape, self.size, self.frame = shape, size, frame
        self._windows: list[Place] = []
        self._pieces: list[Piece] = []

    def add(self, window: Place, found: FoundObjects) -> None:
        """Take the objects of one window, which lies at these rows and columns of the plane."""
        fit = Fit(source=(window[0].stop - window[0].start, window[1].stop - window[1].start), size=self.size)
        number, classes = len(self._windows), (found.classes + 1).tolist()
        self._windows.append(window)
        for logits, score, class_id in zip(found.logits.float().cpu(), found.scores.tolist(), classes, strict=True):
            mask = (fit.back(logits[None, None])[0, 0] > 0).numpy()
            piece = piece_of(mask, window, window=number, score=score, class_id=class_id)
            self._pieces += [] if piece is None else [piece]

    def finish(
        self, *, min_area: int = 1, valid: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """All objects.

        Args:
            min_area: Objects with fewer pixels are dropped.
            valid: (H, W): no object has pixels elsewhere.

        Returns:
            labels (H, W) int32, 1..n, the best object first; scores (n,) in [0, 1].
        """
        whole = join(self._pieces, self._windows, frame=self.frame)
        return paint_pieces(whole, self.shape, min_area=min_area, valid=valid)


def paint_pieces(
    pieces: Sequence[Piece],
    shape: tuple[int, int],
    *,
    min_area: int = 1,
    min_visible: float = 0.5,
    valid: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """One label map, the better score on top.

    Args:
        pieces: Whole objects.
        shape: (H, W) of the picture.
        min_area: Objects with fewer visible pixels are left out.
        min_visible: Least share of an object's pixels that no better object covers; less is a second answer for the
            same thing, of which only crumbs would stay.
        valid: (H, W): no object has pixels elsewhere.

    Returns:
        (H, W) labels 1..n, the best object first, and scores (n,) in [0, 1].
    """
    labels = np.zeros(shape, dtype=np.int32)
    covered = np.zeros(shape, dtype=bool)
    scores: list[float] = []
    for piece in sorted(pieces, key=lambda p: -p.score):
        mask = piece.mask if valid is None else piece.mask & valid[piece.place]
        seen = mask & ~covered[piece.place]
        visible = int(seen.sum())
        if visible >= max(1, min_area) and visible >= min_visible * int(mask.sum()):
            covered[piece.place] |= mask
            scores.append(min(1.0, max(0.0, piece.score)))
            labels[piece.place][seen] = len(scores)
    return labels, np.asarray(scores, dtype=np.float32)
