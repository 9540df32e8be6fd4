"""Where the tiles of a raster lie: windows that overlap, and cores that cover every pixel once.

Along each axis windows of ``side`` pixels start every ``side - overlap`` pixels on a lattice that passes through
``origin``; they are cut at the edge of the raster, never moved. Two neighbours share ``overlap`` pixels, and the border
between their cores runs through the middle of what they share. The overlap is at most half the side, so that a tile
meets its eight neighbours only. Tiles are computed from their numbers; a plan of a million tiles is a handful of
integers.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ConfigError, ShapeError

Part = tuple[slice, slice]
"""Rows and columns of the raster, start inclusive, stop exclusive."""


def shape_of(part: Part) -> tuple[int, int]:
    """(h, w) of a part."""
    return part[0].stop - part[0].start, part[1].stop - part[1].start


def shared(a: Part, b: Part) -> Part | None:
    """What two parts have in common, or None."""
    rows = slice(max(a[0].start, b[0].start), min(a[0].stop, b[0].stop))
    cols = slice(max(a[1].start, b[1].start), min(a[1].stop, b[1].stop))
    return None if rows.start >= rows.stop or cols.start >= cols.stop else (rows, cols)


def within(part: Part, whole: Part) -> Part:
    """The same part counted from the corner of ``whole``: an index into an array over ``whole``."""
    rows, cols = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
    return rows, cols


def around(part: Part, by: int, shape: Sequence[int]) -> Part:
    """The part and ``by`` pixels on each side, as far as the raster (H, W) goes."""
    rows, cols = (slice(max(0, p.start - by), min(n, p.stop + by)) for p, n in zip(part, shape, strict=True))
    return rows, cols


@dataclass(frozen=True)
class Tile:
    """One step of the work."""

    number: int
    """Row in the tile grid times its columns plus column."""
    index: tuple[int, int]
    """Row and column in the tile grid."""
    window: Part
    """What is looked at."""
    core: Part
    """What belongs to this tile alone; the cores of all tiles cover the raster, each pixel once."""


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one raster; see :func:`plan_tiles`, which checks the values."""

    shape: tuple[int, int]
    """(H, W) of the raster."""
    side: int
    """Side of a window in pixels."""
    overlap: int
    """Pixels that neighbours share."""
    origin: tuple[int, int] = (0, 0)
    """A point (row, col) of the lattice of window corners."""
    kept: bytes | None = None
    """One bit for each tile number (``numpy.packbits``), 1 where the tile is looked at; None for all."""

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tile grid."""
        return self._count(0), self._count(1)

    @property
    def tiles(self) -> Sequence[Tile]:
        """The tiles that are looked at, in raster scan order."""
        return _Tiles(self)

    def tile(self, number: int) -> Tile:
        """The tile of a number, looked at or not.

        Raises:
            ConfigError: there is no such tile.
        """
        rows, cols = self.grid
        if not 0 <= number < rows * cols:
            raise ConfigError(f"tile {number} does not exist; the plan has tiles 0 to {rows * cols - 1}")
        row, col = divmod(number, cols)
        (window_rows, core_rows), (window_cols, core_cols) = self._extent(0, row), self._extent(1, col)
        return Tile(number=number, index=(row, col), window=(window_rows, window_cols), core=(core_rows, core_cols))

    def has(self, number: int) -> bool:
        """Whether the tile of a number is looked at."""
        return self.kept is None or bool(self.kept[number >> 3] >> (7 - (number & 7)) & 1)

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Up to eight tiles whose windows overlap this one's and that are looked at, in raster scan order."""
        (rows, cols), (row, col) = self.grid, tile.index
        around = [
            y * cols + x
            for y in range(max(0, row - 1), min(rows, row + 2))
            for x in range(max(0, col - 1), min(cols, col + 2))
            if (y, x) != (row, col)
        ]
        return [self.tile(number) for number in around if self.has(number)]

    def block(self, tile: Tile) -> Part:
        """What is complete once ``tile`` and all before it are known: its window without what later tiles share.

        The blocks of all tiles cover the raster, each pixel once.
        """
        parts = []
        for axis in (0, 1):
            last = tile.index[axis] == self.grid[axis] - 1
            own = tile.window[axis]
            parts.append(slice(own.start, own.stop if last else own.stop - self.overlap))
        return parts[0], parts[1]

    def to_dict(self) -> dict[str, object]:
        """JSON types only."""
        values = asdict(self)
        return values | {
            "shape": list(self.shape),
            "origin": list(self.origin),
            "kept": None if self.kept is None else hashlib.sha256(self.kept).hexdigest(),
        }

    def digest(self) -> str:
        """SHA-256 of the plan; two plans with the same digest have the same tiles."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def _start(self, axis: int) -> int:
        """First pixel of the first window, 0 or less."""
        return -(-self.origin[axis] % (self.side - self.overlap))

    def _count(self, axis: int) -> int:
        """Windows along an axis: as few as reach the end."""
        left = self.shape[axis] - (self._start(axis) + self.side)
        return 1 + max(0, math.ceil(left / (self.side - self.overlap)))

    def _extent(self, axis: int, place: int) -> tuple[slice, slice]:
        """Window and core along an axis."""
        step, length = self.side - self.overlap, self.shape[axis]
        start = self._start(axis) + place * step
        half = self.overlap // 2
        last = place == self.grid[axis] - 1
        window = slice(max(0, start), min(length, start + self.side))
        return window, slice(0 if place == 0 else start + half, length if last else start + step + half)


class _Tiles(Sequence[Tile]):
    """Tiles made when they are asked for."""

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        total = plan.grid[0] * plan.grid[1]
        self._numbers: Sequence[int] | NDArray[np.intp] = range(total)
        if plan.kept is not None:
            self._numbers = np.flatnonzero(np.unpackbits(np.frombuffer(plan.kept, dtype=np.uint8), count=total))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Tile]:
        return (self._plan.tile(int(number)) for number in self._numbers)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        if isinstance(index, slice):
            return [self._plan.tile(int(number)) for number in self._numbers[index]]
        return self._plan.tile(int(self._numbers[index]))


def plan_tiles(
    shape: tuple[int, int],
    side: int,
    overlap: int,
    *,
    origin: tuple[int, int] = (0, 0),
    keep: NDArray[np.bool_] | None = None,
) -> TilePlan:
    """Lay tiles over a raster.

    Args:
        shape: (H, W) of the raster, any size from one pixel on.
        side: Side of a window in pixels.
        overlap: Pixels that neighbours share: 1 to half the side.
        origin: A point (row, col) of the lattice of window corners; may lie outside the raster.
        keep: (rows, cols) of the tile grid (``plan_tiles(...).grid``), True for tiles that are looked at; None for all.

    Raises:
        ShapeError: the raster is empty, or ``keep`` does not fit the tile grid.
        ConfigError: side or overlap cannot be used.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"the raster is {tuple(shape)}; expected (H, W) of at least one pixel each")
    if side < 2 or not 1 <= overlap <= side // 2:
        raise ConfigError(
            f"side {side} with overlap {overlap} cannot be used; objects are joined through pixels that two tiles "
            f"share: choose an overlap of 1 to half the side, here {max(1, side // 2)}, and a side of 2 or more"
        )
    whole = (int(shape[0]), int(shape[1]))
    plan = TilePlan(shape=whole, side=int(side), overlap=int(overlap), origin=(int(origin[0]), int(origin[1])))
    if keep is None:
        return plan
    if keep.shape != plan.grid:
        raise ShapeError(f"keep is {keep.shape}; expected one value for each tile, {plan.grid}")
    kept = np.packbits(keep.astype(bool).ravel()).tobytes()
    return TilePlan(shape=whole, side=plan.side, overlap=plan.overlap, origin=plan.origin, kept=kept)


def plan_for_objects(
    gsd_m: float, largest_m: float, *, window: int = 1024, max_side: int = 4096, step: int = 16
) -> tuple[int, int]:
    """Side and overlap for objects of a known size, so that some tile shows each of them whole.

    Objects that are larger than the overlap are still joined, but out of parts that the network saw cut off.

    Args:
        gsd_m: Ground sampling distance in metres per pixel.
        largest_m: Longest extent of the largest expected object in metres.
        window: Least side in pixels, for example that of the network's view.
        max_side: Largest side in pixels; bounds the memory of one tile.
        step: Overlap and side are multiples of it.

    Returns:
        Side and overlap in pixels. The side is at least four times the overlap where ``max_side`` allows it, so that
        at most 16/9 of the pixels are looked at.

    Raises:
        ConfigError: a value is not positive, or ``max_side`` is smaller than ``window`` or two steps.

    Warns:
        UserWarning: the overlap had to stay smaller than the object.
    """
    if not all(math.isfinite(v) and v > 0 for v in (gsd_m, largest_m)) or min(window, max_side, step) < 1:
        raise ConfigError(f"gsd {gsd_m} m and largest object {largest_m} m must be positive; give both in metres")
    if max_side < max(window, 2 * step):
        raise ConfigError(
            f"max_side is {max_side}; expected at least the network's view {window} and {2 * step}; raise it"
        )
    largest = math.ceil(largest_m / gsd_m)
    wanted = max(step, math.ceil((largest + 2) / step) * step)  # a free pixel on each side shows that it ends
    side = min(max_side, max(window, 4 * wanted))
    side = max(2 * step, side - side % step)
    overlap = min(wanted, side // 2 // step * step)
    if overlap < largest:
        warnings.warn(
            f"objects up to {largest_m:g} m are {largest} px at {gsd_m:g} m per pixel, more than the overlap of "
            f"{overlap} px; larger ones are joined from parts. Raise max_side ({max_side}) to 4 x {wanted}, or work at "
            f"a coarser ground sampling distance",
            UserWarning,
            stacklevel=2,
        )
    return side, overlap
