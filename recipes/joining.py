"""Objects of overlapping windows on one plane: what two windows saw of the same object becomes one.

An object that reaches an inner edge of its window is cut. Whole objects come first, the best first, then cut ones. An
object that lies on one that is there already, by more than half of the smaller of the two, is the same: it is dropped,
or united with the other where both are cut. Two cut pieces are compared only where both windows look. Every pixel goes
to the first object that claims it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samgraft.recipes.data.fit import Fit

SAME = 0.5
"""Share of the smaller of two objects that both claim, above which they are the same."""
Place = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one window saw of an object."""

    corner: tuple[int, int]
    """Row and column of the mask's first pixel on the plane."""
    mask: NDArray[np.bool_]
    score: float
    cut: bool
    window: Place

    @property
    def place(self) -> Place:
        """Where the mask lies."""
        (top, left), (height, width) = self.corner, self.mask.shape
        return slice(top, top + height), slice(left, left + width)


class Joining:
    """Collects objects window by window.

    Args:
        shape: (H, W) of the plane.
        size: Side of the network input.
    """

    def __init__(self, shape: tuple[int, int], size: int) -> None:
        """Nothing is there yet."""
        self.shape, self.size = shape, size
        self._pieces: list[_Piece] = []

    def add(self, window: Place, logits: Tensor, scores: Tensor) -> None:
        """Take the objects of one window.

        Args:
            window: Rows and columns on the plane.
            logits: (n, s, s) mask logits over the network input.
            scores: (n,) in [0, 1].
        """
        fit = Fit(source=(window[0].stop - window[0].start, window[1].stop - window[1].start), size=self.size)
        for one, score in zip(logits.float().cpu(), scores.tolist(), strict=True):
            mask = (fit.back(one[None, None])[0, 0] > 0).numpy()
            if mask.any():
                self._pieces.append(self._piece(window, mask, score))

    def finish(
        self, *, min_area: int = 1, valid: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """All objects.

        Args:
            min_area: Objects with fewer pixels are dropped.
            valid: (H, W): no object has pixels elsewhere.

        Returns:
            labels (H, W) int32, 1..n; scores (n,).
        """
        canvas = _Canvas(self.shape)
        for piece in sorted(self._pieces, key=lambda piece: (piece.cut, -piece.score)):
            canvas.take(piece)
        labels = canvas.labels if valid is None else np.where(valid, canvas.labels, 0)
        area = np.bincount(labels.ravel(), minlength=len(canvas.scores) + 1)
        keep = 1 + np.flatnonzero(area[1:] >= max(min_area, 1))
        table = np.zeros(len(area), dtype=np.int32)
        table[keep] = np.arange(1, len(keep) + 1)
        return table[labels], np.asarray(canvas.scores, dtype=np.float32)[keep - 1]

    def _piece(self, window: Place, mask: NDArray[np.bool_], score: float) -> _Piece:
        lines: list[NDArray[np.bool_]] = [np.asarray(mask.any(axis=axis)) for axis in (1, 0)]
        cut = any(
            (line[0] and part.start > 0) or (line[-1] and part.stop < length)
            for line, part, length in zip(lines, window, self.shape, strict=True)
        )
        rows, cols = (slice(int(np.argmax(line)), len(line) - int(np.argmax(line[::-1]))) for line in lines)
        corner = (window[0].start + rows.start, window[1].start + cols.start)
        return _Piece(corner, mask[rows, cols].copy(), float(score), cut, window)


class _Canvas:
    """The label map in the making."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.labels = np.zeros(shape, dtype=np.int32)
        self.scores: list[float] = []
        self._cut: list[bool] = []
        self._windows: list[list[Place]] = []
        self._area: list[int] = []

    def take(self, piece: _Piece) -> None:
        """Paint a piece, as a new object or as part of one that is there."""
        under = self.labels[piece.place][piece.mask]
        counts = np.bincount(under)
        counts[0] = 0
        other = int(counts.argmax())
        if other and self._same(piece, other, int(counts[other])):
            if piece.cut and self._cut[other - 1]:
                self._paint(piece, other)
            return
        if (under == 0).any():
            self.scores.append(piece.score)
            self._cut.append(piece.cut)
            self._windows.append([])
            self._area.append(0)
            self._paint(piece, len(self.scores))

    def _paint(self, piece: _Piece, label: int) -> None:
        here = self.labels[piece.place]
        free = piece.mask & (here == 0)
        here[free] = label
        self._area[label - 1] += int(free.sum())
        self._windows[label - 1].append(piece.window)
        self.scores[label - 1] = max(self.scores[label - 1], piece.score)

    def _same(self, piece: _Piece, label: int, both: int) -> bool:
        own, theirs = int(piece.mask.sum()), self._area[label - 1]
        if piece.cut and self._cut[label - 1]:
            seen = np.zeros_like(piece.mask)
            there = np.zeros_like(self.labels[piece.window], dtype=bool)
            for window in self._windows[label - 1]:
                seen[_within(window, piece.place)] = True
                there[_within(window, piece.window)] = True
            own = int((piece.mask & seen).sum())
            theirs = int(((self.labels[piece.window] == label) & there).sum())
        return both > SAME * min(own, theirs) if min(own, theirs) else False


def _within(window: Place, part: Place) -> Place:
    """Rows and columns of ``window``, counted from the corner of ``part`` and cut to it."""
    rows, cols = (
        slice(max(0, w.start - p.start), max(0, min(w.stop, p.stop) - p.start))
        for w, p in zip(window, part, strict=True)
    )
    return rows, cols
