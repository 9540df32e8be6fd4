"""Attention in cubes: how axes are cut, and every value against a sum over the tokens of a cube."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.attention import relative_table
from samgraft.volumetric.cubic import Run, attend_cubes, pair_table, runs


@pytest.mark.parametrize(
    ("length", "window", "shifted", "expected"),
    [
        (16, 8, False, [Run(0, 8, 2)]),
        (16, 8, True, [Run(0, 4, 1), Run(4, 8, 1), Run(12, 4, 1)]),
        (9, 8, False, [Run(0, 5, 1), Run(5, 4, 1)]),  # as equal as can be, not 8 and 1
        (9, 8, True, [Run(0, 2, 1), Run(2, 5, 1), Run(7, 2, 1)]),
        (8, 8, True, [Run(0, 8, 1)]),  # fits into one cube: never cut
        (1, 8, True, [Run(0, 1, 1)]),
        (25, 8, True, [Run(0, 3, 1), Run(3, 7, 3), Run(24, 1, 1)]),
    ],
)
def test_axes_are_cut_into_nearly_equal_cubes(length: int, window: int, shifted: bool, expected: list[Run]) -> None:
    assert runs(length, window, shifted=shifted) == expected


def test_pairs_keep_the_distance_that_they_have_in_the_frozen_block() -> None:
    table = torch.arange(9.0)[:, None] - 4  # distances -4 to 4 of a window of 5
    assert pair_table(table, 3, 5)[..., 0].tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    torch.testing.assert_close(pair_table(table, 5, 5), relative_table(table, 5))
    torch.testing.assert_close(pair_table(table, 7, 5), relative_table(table, 7))  # longer than the window: resized
    wide = pair_table(table, 2, 9)[..., 0]  # the block stretches its table over 9 tokens
    torch.testing.assert_close(wide, relative_table(table, 9)[:2, :2, 0])


def _naive(qkv: Tensor, heads: int, cubes: Any, tables: tuple[Tensor, ...] | None) -> Tensor:
    """Token by token: softmax over the tokens of its cube."""
    grid = qkv.shape[1:4]
    query, key, value = qkv[0].unflatten(-1, (3, heads, -1)).unbind(-3)  # (D, h, w, heads, c)
    out = torch.zeros(*grid, heads, query.shape[-1], dtype=qkv.dtype)
    for place in itertools.product(*(range(n) for n in grid)):
        near = [p for p in itertools.product(*(range(n) for n in grid)) if cubes(p) == cubes(place)]
        for head in range(heads):
            asked = query[place][head]
            scores = []
            for other in near:
                score = (asked @ key[other][head]) / len(asked) ** 0.5
                for axis, table in enumerate(tables or ()):
                    score = score + asked @ table[place[axis] - other[axis] + len(table) // 2]
                scores.append(score)
            weights = torch.stack(scores).softmax(dim=0)
            out[place][head] = sum(w * value[other][head] for w, other in zip(weights, near, strict=True))
    return out.flatten(-2)[None]


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
def test_every_token_attends_to_the_tokens_of_its_cube(shifted: bool, positions: bool) -> None:
    grid, heads, window = (5, 3, 4), 2, 3
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, *grid, 3 * heads * 2, generator=generator, dtype=torch.float64)
    sides = (4, 4, 4)
    tables = tuple(torch.randn(7, 2, generator=generator, dtype=torch.float64) for _ in sides) if positions else None
    starts = {False: ((0, 3), (0,), (0, 2)), True: ((0, 1, 4), (0,), (0, 1, 3))}[shifted]  # worked out by hand

    def cube(place: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(s for s in axis if s <= p) for axis, p in zip(starts, place, strict=True))

    found = attend_cubes(qkv, heads, window, tables, shifted=shifted, sides=sides)  # type: ignore[arg-type]
    torch.testing.assert_close(found, _naive(qkv, heads, cube, tables))


def test_volumes_of_a_batch_do_not_mix() -> None:
    qkv = torch.randn(2, 3, 4, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = attend_cubes(qkv, 2, 2, None, shifted=True, sides=(2, 2, 2))
    alone = attend_cubes(qkv[1:], 2, 2, None, shifted=True, sides=(2, 2, 2))
    torch.testing.assert_close(both[1:], alone)
