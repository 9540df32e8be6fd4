"""A whole object of a raster, kept in pieces so that one that crosses the country needs no array of its size."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.plan import Part, shape_of, within

Mask = NDArray[np.bool_]
_SMALL = 64 * 64
"""Pieces up to this many pixels stay as they are; packing them would cost more time than it saves memory."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some pixels of an object; pieces of one object share no pixel."""

    part: Part
    """The smallest rectangle of the raster that holds them."""
    first: tuple[int, int]
    """Row and column of the first pixel in raster scan order."""
    area_px: int
    _mask: Mask | bytes | None
    """As an array, as zlib of packed bits, or None for a full rectangle."""

    @classmethod
    def of(cls, part: Part, mask: Mask) -> Self:
        """Keep a mask over ``part`` with a pixel in its first row; a small array is kept as it is, not copied."""
        area = int(np.count_nonzero(mask))
        first = part[0].start, part[1].start + int(mask[0].argmax())
        if area == mask.size:
            return cls(part, first, area, None)
        if mask.size <= _SMALL:
            return cls(part, first, area, mask)
        return cls(part, first, area, zlib.compress(np.packbits(mask).tobytes(), level=1))

    @property
    def mask(self) -> Mask:
        """(h, w) over ``part``."""
        shape = shape_of(self.part)
        if self._mask is None:
            return np.ones(shape, dtype=bool)
        if isinstance(self._mask, bytes):
            bits = np.frombuffer(zlib.decompress(self._mask), dtype=np.uint8)
            return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)
        return self._mask


@dataclass(frozen=True, eq=False, kw_only=True)
class MosaicObject:
    """One object, complete."""

    id: int
    """1 to n in raster scan order of the first pixel where a ``Numbering`` was given, else in the order of closing."""
    class_id: int
    """As in ``TileObjects.classes``."""
    score: float
    """Mean of the scores that the tiles gave, weighed by the pixels that each of them saw; 0 to 1."""
    tiles: int
    """In how many tiles it was found."""
    box: Part
    """The smallest rectangle of the raster that holds it."""
    area_px: int
    parts: tuple[Piece, ...]
    """Its pixels, in raster scan order of the blocks of the plan."""

    @property
    def pieces(self) -> Iterator[tuple[Part, Mask]]:
        """(rectangle of the raster, (h, w) bool over it), one after the other; together they are the object."""
        return ((piece.part, piece.mask) for piece in self.parts)

    @property
    def mask(self) -> Mask:
        """(h, w) bool over ``box``; as large as the object's rectangle, so use ``pieces`` for very large objects."""
        if len(self.parts) == 1:
            return self.parts[0].mask
        whole = np.zeros(shape_of(self.box), dtype=bool)
        for part, mask in self.pieces:
            whole[within(part, self.box)] |= mask
        return whole

    @property
    def first(self) -> tuple[int, int]:
        """Row and column of the first pixel in raster scan order."""
        return min(piece.first for piece in self.parts)


def hull(parts: Iterable[Part]) -> Part:
    """The smallest rectangle that holds all of ``parts``."""
    known = list(parts)
    if len(known) == 1:
        return known[0]
    rows, cols = zip(*known, strict=True)
    return (
        slice(min(r.start for r in rows), max(r.stop for r in rows)),
        slice(min(c.start for c in cols), max(c.stop for c in cols)),
    )
