"""Attention within shifted cubes of tokens, for a grid of any size: no padding, and no mask.

A shift by half a cube is not done by rolling the grid: cubes simply start half a cube later, and those at the borders
are smaller. That gives what rolling and masking give, since the mask keeps apart what was not adjacent. Cubes are made
as equal as they can be: an axis of 9 tokens with cubes of at most 8 has cubes of 5 and 4.

Source:
    3DSAM-adapter, arXiv:2306.13465, section 3.1; shifted windows from Swin, arXiv:2103.14030, section 3.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.attention import attend_terms, relative_table

Tables = tuple[Tensor, Tensor, Tensor]
"""Relative vectors of all pairs along depth, rows and columns of one cube: (n, n, c) each."""


@dataclass(frozen=True)
class Run:
    """Cubes of one size along one axis."""

    start: int
    """First token."""
    size: int
    """Tokens of a cube."""
    count: int
    """Cubes, one after the other."""

    @property
    def place(self) -> slice:
        """Their tokens."""
        return slice(self.start, self.start + self.count * self.size)


def runs(length: int, window: int, *, shifted: bool) -> list[Run]:
    """Cubes along an axis of ``length`` tokens, none larger than ``window``; with ``shifted`` half a cube later.

    An axis that fits into one cube is not cut, shifted or not.
    """
    count = -(-length // window)
    size = -(-length // count)
    if count == 1:
        return [Run(0, length, 1)]
    first = size // 2 if shifted else 0
    found = [Run(0, first, 1)] if first else []
    whole, rest = divmod(length - first, size)
    found += [Run(first, size, whole)] if whole else []
    return found + ([Run(first + whole * size, rest, 1)] if rest else [])


def pair_table(table: Tensor, size: int, side: int) -> Tensor:
    """Relative vectors (size, size, c) of pairs in a cube.

    Args:
        table: (L, c) of a frozen block.
        size: Tokens of the cube along the axis.
        side: Tokens of what the block attends over in a slice (its window, or the grid). The table is resized to that
            as the block does it; so two tokens of one slice have the relative vector that they have there. Only a cube
            that is longer takes a resized one.
    """
    if size > side:
        return relative_table(table, size)
    length = 2 * side - 1
    if len(table) != length:
        table = functional.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + side - 1]


def attend_cubes(
    qkv: Tensor, heads: int, window: int, tables: Tables | None, *, shifted: bool, sides: tuple[int, int, int]
) -> Tensor:
    """Attention of every token over its cube: (B, D, h, w, C), before the projection.

    Args:
        qkv: (B, D, h, w, 3 C).
        heads: Heads.
        window: Largest side of a cube, tokens.
        tables: Frozen tables (L, c) along depth, rows and columns; None for no relative positions.
        shifted: Cubes start half a cube later.
        sides: Of each axis, as for :func:`pair_table`.
    """
    axes = [runs(length, window, shifted=shifted) for length in qkv.shape[1:4]]
    parts = {}
    for place, cube in zip(product(*(range(len(a)) for a in axes)), product(*axes), strict=True):
        region = qkv[:, cube[0].place, cube[1].place, cube[2].place]
        parts[place] = _attend_cube(region, heads, cube, tables, sides)
    return _joined(parts, [len(axis) for axis in axes])


def _attend_cube(
    region: Tensor, heads: int, cube: tuple[Run, ...], tables: Tables | None, sides: tuple[int, int, int]
) -> Tensor:
    """The same for cubes of one size: (B, D', h', w', 3 C) to (B, D', h', w', C)."""
    (depth, rows, cols), batch = cube, len(region)
    cut = region.reshape(
        batch, depth.count, depth.size, rows.count, rows.size, cols.count, cols.size, 3, heads, -1
    ).permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)  # (3, B, cubes along three axes, heads, three axes of a cube, c)
    query, key, value = cut.flatten(6, 8).flatten(1, 4).unbind(0)  # (B cubes, heads, tokens, c)
    if tables is None:
        seen = functional.scaled_dot_product_attention(query, key, value)
    else:
        pairs = [pair_table(table, run.size, side) for table, run, side in zip(tables, cube, sides, strict=True)]
        seen = attend_terms(query, key, value, *_terms(query, pairs))
    cells = seen.unflatten(2, (depth.size, rows.size, cols.size)).unflatten(0, (batch, *(run.count for run in cube)))
    joined: Tensor = cells.permute(0, 1, 5, 2, 6, 3, 7, 4, 8)  # (B, cubes and tokens of each axis, heads, c)
    return joined.reshape(*region.shape[:4], -1)


def _terms(query: Tensor, pairs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Two factors of the bias: of depth and rows together, (N, heads, T, d h), and of columns, (N, heads, T, w)."""
    sizes = [len(pair) for pair in pairs]
    cells = query.unflatten(2, sizes)
    deep = torch.einsum("nadhwc,dkc->nadhwk", cells, pairs[0])
    down = torch.einsum("nadhwc,hkc->nadhwk", cells, pairs[1])
    across = torch.einsum("nadhwc,wkc->nadhwk", cells, pairs[2])
    both = (deep[..., :, None] + down[..., None, :]).flatten(-2)
    return both.flatten(2, 4).to(query.dtype), across.flatten(2, 4).to(query.dtype)


def _joined(parts: dict[tuple[int, ...], Tensor], counts: list[int]) -> Tensor:
    """Regions put side by side along columns, then rows, then depth."""

    def line(fixed: tuple[int, ...]) -> Iterator[Tensor]:
        axis = len(fixed)
        for index in range(counts[axis]):
            place = (*fixed, index)
            yield parts[place] if axis == 2 else torch.cat(list(line(place)), dim=axis + 2)

    return torch.cat(list(line(())), dim=1)
