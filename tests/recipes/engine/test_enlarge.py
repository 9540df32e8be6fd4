"""Parts of an enlarged mask equal the same parts of the whole."""

import pytest
import torch

from samgraft.recipes.engine.enlarge import Enlarger
from samgraft.recipes.engine.windows import from_network


@pytest.mark.parametrize("side", [12, 13, 31, 48, 5, 7, 1])
def test_a_part_is_the_part_of_the_whole(side: int) -> None:
    logits = torch.randn(12, 12, generator=torch.Generator().manual_seed(side))
    whole = from_network(logits[None], side)[0]
    enlarger = Enlarger(12, side)
    rows, cols = slice(side // 4, side), slice(side // 3, max(side // 3 + 1, side - 1))
    torch.testing.assert_close(enlarger.part(logits, rows, cols), whole[rows, cols], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [12, 13, 31, 48, 5, 7])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 5), (11, 11), (4, 4)])
def test_reach_leaves_nothing_out_and_is_tight(side: int, first: int, last: int) -> None:
    cells = torch.full((12, 12), -1.0)
    cells[first : last + 1] = 1000.0  # one such cell shows wherever it has a part
    seen = (from_network(cells[None], side)[0] > -0.99).any(dim=1).nonzero().flatten()
    start, stop = Enlarger(12, side).reach(first, last)
    assert start <= int(seen[0]) and stop > int(seen[-1])
    assert int(seen[0]) - start <= 2 + side / 12 and stop - int(seen[-1]) <= 3 + side / 12
