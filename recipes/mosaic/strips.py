"""From blocks of tiles to rows over the whole width of a raster, which is how raster files are written.

The blocks of one row of tiles are kept, packed, until the row is complete; then it is unpacked a few rows at a time.
Memory follows what is in one row of tiles, not its pixels: an empty block takes none.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array
from samgraft.recipes.mosaic.plan import Part

ROWS = 64
"""Rows that are unpacked together."""


@dataclass(frozen=True, eq=False)
class RowStrip:
    """Decided pixels over the whole width."""

    rows: slice
    labels: Array
    """(h, W)."""
    scores: NDArray[np.uint8] | None
    """(h, W), 0 to 255 for 0 to 1."""


@dataclass(frozen=True, eq=False)
class _Packed:
    """A block, cut into pieces of ``ROWS`` rows; None where all is 0."""

    cols: slice
    pieces: tuple[bytes | None, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, cols: slice, block: Array) -> "_Packed":
        parts = (np.ascontiguousarray(block[top : top + ROWS]) for top in range(0, len(block), ROWS))
        return cls(cols, tuple(zlib.compress(part, level=1) if part.any() else None for part in parts), block.dtype)

    def put(self, number: int, target: Array) -> None:
        """Write one piece into rows over the whole width."""
        piece = self.pieces[number]
        if piece is not None:
            shape = (len(target), self.cols.stop - self.cols.start)
            target[:, self.cols] = np.frombuffer(zlib.decompress(piece), dtype=self.dtype).reshape(shape)


class Strips:
    """Collects blocks in raster scan order of their tiles, and gives rows from top to bottom, each once.

    Args:
        shape: (H, W) of the raster.
        dtype: Of the labels.
        scores: Whether there are scores.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], *, scores: bool) -> None:
        """Nothing is there yet."""
        self.shape, self.dtype, self.scored = shape, dtype, scores
        self._rows = slice(0, 0)
        self._labels: list[_Packed] = []
        self._scores: list[_Packed] = []

    def add(self, part: Part, labels: Array | None, scores: NDArray[np.uint8] | None = None) -> Iterator[RowStrip]:
        """Take a block; give the rows that are complete because it begins a new row of tiles.

        Args:
            part: Where it lies; blocks of one row of tiles have the same rows.
            labels: (h, w); None for zeros.
            scores: (h, w); None for zeros.
        """
        if part[0] != self._rows:
            yield from self._flush()
            yield from self._blank(part[0].start)
            self._rows = part[0]
        if labels is not None:
            self._labels.append(_Packed.of(part[1], labels.astype(self.dtype, copy=False)))
        if scores is not None:
            self._scores.append(_Packed.of(part[1], scores))

    def finish(self) -> Iterator[RowStrip]:
        """All rows that are left."""
        yield from self._flush()
        yield from self._blank(self.shape[0])

    def _flush(self) -> Iterator[RowStrip]:
        """The rows of the row of tiles that is held."""
        for number, top in enumerate(range(self._rows.start, self._rows.stop, ROWS)):
            strip = self._empty(slice(top, min(top + ROWS, self._rows.stop)))
            for block in self._labels:
                block.put(number, strip.labels)
            if strip.scores is not None:
                for block in self._scores:
                    block.put(number, strip.scores)
            yield strip
        self._labels, self._scores = [], []

    def _blank(self, stop: int) -> Iterator[RowStrip]:
        """Rows that no tile was looked at for."""
        for top in range(self._rows.stop, stop, ROWS):
            yield self._empty(slice(top, min(top + ROWS, stop)))
        self._rows = slice(stop, stop)

    def _empty(self, rows: slice) -> RowStrip:
        shape = (rows.stop - rows.start, self.shape[1])
        scores = np.zeros(shape, dtype=np.uint8) if self.scored else None
        return RowStrip(rows, np.zeros(shape, dtype=self.dtype), scores)
