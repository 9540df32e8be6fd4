"""Blocks of a raster that train or validate: a lattice on the ground, a free strip between, a draw by label density.

Neighbouring pixels look alike, so a window that trains beside one that validates would be a leak. Whole blocks
validate; whatever comes nearer to one of them than the buffer is not seen in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.labels.source import Windows
from samgraft.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A lattice of blocks over a raster, some of which validate."""

    shape: tuple[int, int]
    """(H, W) of the raster."""
    side: tuple[int, int]
    """Rows and columns of a block; the last ones are cut at the edge of the raster."""
    buffer: tuple[int, int]
    """Rows and columns between a block that validates and the nearest pixel that trains, at least."""
    val: NDArray[np.bool_]
    """(rows, columns) of the lattice: which blocks validate."""

    def __post_init__(self) -> None:
        """Check that everything fits."""
        if self.val.shape != lattice_shape(self.shape, self.side):
            raise ShapeError(f"val is {self.val.shape}; the lattice has {lattice_shape(self.shape, self.side)} blocks")
        if min(self.side) < 1 or min(self.buffer) < 0:
            raise ConfigError(f"blocks of {self.side} with a buffer of {self.buffer} pixels; expected 1 and 0 at least")

    def parts(self) -> Windows:
        """All blocks, in the order of ``val.ravel()``."""
        return block_parts(self.shape, self.side)

    def val_parts(self) -> Windows:
        """The blocks that validate."""
        return self.parts()[self.val.ravel()]

    def trains(self, windows: Windows) -> NDArray[np.bool_]:
        """(n,): whether a window keeps its distance: no pixel of it lies within the buffer of a block that validates.

        Args:
            windows: (n, 4) inside the raster.
        """
        low, high = [], []
        for axis in (0, 1):
            start, stop = windows[:, 2 * axis], windows[:, 2 * axis + 1]
            low.append(np.maximum(start - self.buffer[axis], 0) // self.side[axis])
            last = np.minimum(stop + self.buffer[axis], self.shape[axis]) - 1
            high.append(last // self.side[axis] + 1)
        sums = self._sums
        found = sums[high[0], high[1]] - sums[low[0], high[1]] - sums[high[0], low[1]] + sums[low[0], low[1]]
        return np.asarray(found == 0)

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        """(rows + 1, columns + 1): how many blocks above and to the left validate."""
        sums = np.zeros((self.val.shape[0] + 1, self.val.shape[1] + 1), dtype=np.int64)
        sums[1:, 1:] = self.val.astype(np.int64).cumsum(axis=0).cumsum(axis=1)
        return sums


def lattice_shape(shape: tuple[int, int], side: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of blocks that cover a raster."""
    return -(-shape[0] // side[0]), -(-shape[1] // side[1])


def block_parts(shape: tuple[int, int], side: tuple[int, int]) -> Windows:
    """(n, 4) of all blocks, row by row."""
    rows, cols = lattice_shape(shape, side)
    top, left = np.meshgrid(np.arange(rows) * side[0], np.arange(cols) * side[1], indexing="ij")
    ends = np.minimum(top + side[0], shape[0]), np.minimum(left + side[1], shape[1])
    return np.stack([top, ends[0], left, ends[1]], axis=-1).reshape(-1, 4).astype(np.int64)


def draw_blocks(
    density: NDArray[np.float64], usable: NDArray[np.bool_], *, share: float, most: int, seed: int
) -> NDArray[np.bool_]:
    """Draw the blocks that validate, as dense and as sparse ones as all are.

    The blocks are sorted by their labels and cut into as many runs as are drawn, one of each: the empty ones, the
    sparse ones, the dense ones are all represented. Blocks of several classes are sorted by the rarest one that they
    hold.

    Args:
        density: (n, classes) share of each block's pixels that are labelled.
        usable: (n,): blocks that may be drawn.
        share: Share of the usable blocks.
        most: Most blocks.
        seed: Decides everything; the same blocks for the same seed.

    Returns:
        (n,) bool. At least one block is drawn, and at least one usable block is not.

    Raises:
        ConfigError: fewer than two blocks are usable.
    """
    numbers = np.flatnonzero(usable)
    if len(numbers) < 2:
        raise ConfigError(
            f"{len(numbers)} blocks of the raster can be used; training and validation need one each: choose smaller "
            "blocks (data.block_m), or name what validates (data.val_area)"
        )
    count = min(max(1, round(share * len(numbers))), most, len(numbers) - 1)
    rng = np.random.default_rng(seed)
    ties = rng.random(len(numbers))
    order = numbers[np.lexsort((ties, *_keys(density[numbers])))]
    found = np.zeros(len(density), dtype=np.bool_)
    for number, run in enumerate(np.array_split(order, count), start=1):
        labelled = run[(density[run] > 0).any(axis=1)]
        chosen = labelled if number == count and len(labelled) else run  # the dense end: something has to be found
        found[chosen[rng.integers(len(chosen))]] = True
    return found


def _keys(density: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    """Sorting keys of blocks, the last one first: the rarest class held, then how much of it, for ``lexsort``."""
    frequency = (density > 0).sum(axis=0)
    held = np.where(density > 0, frequency, len(density) + 1)
    rarest = held.argmin(axis=1)
    amount = density[np.arange(len(density)), rarest]
    rank = np.where(amount > 0, -held.min(axis=1).astype(np.float64), -np.inf)
    return amount, rank
