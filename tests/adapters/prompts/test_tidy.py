"""Islands and holes of masks, by hand, on a grid that is not square."""

import numpy as np
import pytest
import torch

from samgraft.adapters.prompts import InContextConfig, PersamFConfig, make_references
from samgraft.adapters.prompts.tidy import in_one_part, tidied
from samgraft.errors import ConfigError
from tests.adapters.prompts.one_shot import scene, shown
from tests.adapters.toy import toy_backbone

LARGE, SMALL = (slice(1, 7), slice(2, 10)), (slice(7, 9), slice(13, 17))
"""48 cells without a hole of 2, and 8 cells that touch nothing."""


def mask() -> np.ndarray:
    logits = np.full((10, 18), -2.0, dtype=np.float32)
    logits[LARGE] = 1.0
    logits[3, 4:6] = -0.5
    logits[SMALL] = 3.0
    return logits


def test_the_part_under_the_point_stays_and_small_holes_go() -> None:
    expected = np.zeros((10, 18), dtype=bool)
    expected[LARGE] = True
    assert np.array_equal(tidied(mask(), (2, 3), True, 0.05), expected)  # 2 <= 0.05 * 46
    with_hole = expected & (mask() > 0)
    assert np.array_equal(tidied(mask(), (2, 3), True, 0.04), with_hole)  # 2 > 0.04 * 46
    assert np.array_equal(tidied(mask(), (8, 14), True, 0.05).nonzero(), np.array(np.where(mask() == 3)))


def test_beside_the_mask_the_largest_sum_decides() -> None:
    assert tidied(mask(), (0, 0), True, 0.0).sum() == 46  # 46 * 1 and 8 * 3
    strong = mask()
    strong[SMALL] = 6.0
    assert tidied(strong, None, True, 0.0).sum() == 8
    assert np.array_equal(tidied(mask(), None, False, 0.0), mask() > 0)
    assert not tidied(np.full((4, 5), -1.0, dtype=np.float32), (1, 1), True, 1.0).any()


def test_background_at_the_edge_is_no_hole() -> None:
    logits = np.full((6, 9), 1.0, dtype=np.float32)
    logits[0, 3], logits[4, 6] = -1.0, -1.0
    filled = tidied(logits, None, True, 0.5)
    assert not filled[0, 3] and filled[4, 6]


def test_a_logit_that_changes_sides_keeps_its_size() -> None:
    image, object_ = scene()
    references = make_references(image, object_)
    config = PersamFConfig(fill_holes=0.05)
    found = config.tidy(torch.from_numpy(mask())[None], references, torch.tensor([[12.0, 9.0]]), (40, 72))[0]
    assert found[8, 14] == -3.0 and found[3, 4] == 0.5 and found[2, 3] == 1.0 and found[0, 0] == -2.0
    everything, given = PersamFConfig(islands=True, fill_holes=0.0), torch.from_numpy(mask())[None]
    assert everything.tidy(given, references, None, (40, 72)) is given
    with pytest.raises(ConfigError, match=r"fill_holes is 2; expected a share"):
        InContextConfig(fill_holes=2)


def test_references_say_whether_an_object_has_one_part() -> None:
    """Of two kinds the first lies in one part wherever it is, the second in two parts of one reference."""
    image, one = scene()
    _, two = scene((8, 40, 31, 55), (56, 8, 79, 31))
    masks = torch.stack([torch.cat([one[0], two[0]]), torch.cat([0 * one[0], one[0]])])
    references = make_references(image.expand(2, -1, -1, -1), masks)
    assert in_one_part(references) == [True, False]


@pytest.mark.parametrize(("islands", "parts"), [(None, 1), (True, 2)])
def test_in_context_leaves_out_what_is_beside_the_object(islands: bool | None, parts: int) -> None:
    """The reference shows one box; the picture has two that look alike, the second a little smaller."""
    backbone = toy_backbone()
    image, object_ = scene()
    _, references = shown(backbone, image, object_)
    seen, _ = scene((56, 8, 79, 31), (8, 40, 23, 55))
    config = InContextConfig(tap=0, neighbours=1, position=0.0, islands=islands)
    found = config.build(backbone).find(backbone, backbone.encode(seen, (0,)), seen, {"references": references})
    inside = found.logits[0] > 0
    assert bool(inside[6, 32]) and bool(inside[24, 6]) is (parts == 2)
