"""Similarities and assignments on features whose answer is worked out by hand."""

import math

import pytest
import torch

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts import InContextConfig, MatcherConfig, PersamConfig, make_references
from samgraft.adapters.prompts.matcher import Matches, around, centres, earth_mover, match, padded, subsets, thinned
from samgraft.adapters.prompts.matching import (
    allowed_cells,
    cell_centres,
    image_major,
    look_code,
    nearest,
    place_code,
    valid_cells,
)
from samgraft.errors import ConfigError
from tests.adapters.prompts.one_shot import BOX, SIZE, inside, overlap, scene, shown
from tests.adapters.toy import toy_backbone
from tests.recipes._oracle import Oracle


def test_places_are_compared_by_their_distance() -> None:
    """Centres of 2 x 4 cells: half the height apart cos is cos(pi / 2) = 0, a quarter of the width cos(pi / 4)."""
    code = place_code((2, 4))[0]
    assert torch.allclose(code.square().sum(dim=-1), torch.ones(2, 4))
    assert float(code[0, 1] @ code[1, 1]) == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert float(code[0, 1] @ code[0, 2]) == pytest.approx((math.cos(math.pi / 4) + 1) / 2, abs=1e-6)
    assert float(code[0, 0] @ code[1, 2]) == pytest.approx(0, abs=1e-6)


def test_looks_are_compared_by_mean_and_spread() -> None:
    image = torch.zeros(1, 3, 8, 16)
    image[..., 8:] = 0.5
    code = look_code(image, (1, 2))[0, 0]
    assert float(code[0] @ code[1]) == pytest.approx((3 * 0 + 3 * 1) / 6, abs=1e-5)  # means half apart, spreads alike


def test_weights_of_place_and_look_make_a_mean_of_cosines() -> None:
    backbone = toy_backbone()
    image, mask = scene()
    features, references = shown(backbone, image, mask)
    plain = PersamConfig(centre=False, position=0.0, appearance=0.0).build(backbone).cells(features, image, references)
    mixed = PersamConfig(centre=False, position=2.0, appearance=0.5).build(backbone).cells(features, image, references)
    place, look = place_code((8, 12))[0], look_code(image, (8, 12))[0]
    for (a, b), (c, d) in (((1, 9), (6, 2)), ((0, 0), (7, 11))):
        expected = plain[0][0, a, b] @ plain[1][0, c, d] + 2 * place[a, b] @ place[c, d] + 0.5 * look[a, b] @ look[c, d]
        assert float(mixed[0][0, a, b] @ mixed[1][0, c, d]) == pytest.approx(float(expected) / 3.5, abs=1e-5)


def test_nearest_in_tiles_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, memory = (torch.randn(n, 5, generator=generator) for n in (17, 41))
    values, rows = (queries @ memory.T).topk(7, dim=1)
    for bound in (10, 60, 10**6):
        found = nearest(queries, memory, 7, bound=bound)
        assert torch.allclose(found[0], values, atol=1e-6) and torch.equal(found[1], rows)
    assert nearest(queries, memory[:3], 7)[0].shape == (17, 3)


def test_cell_centres_and_valid_cells() -> None:
    assert cell_centres((2, 3), 8).tolist() == [
        [3.5, 3.5],
        [11.5, 3.5],
        [19.5, 3.5],
        [3.5, 11.5],
        [11.5, 11.5],
        [19.5, 11.5],
    ]
    valid = torch.zeros(1, 16, 24, dtype=torch.bool)
    valid[0, :8, :9] = True
    features = Features(neck=torch.zeros(1, 4, 2, 3))
    assert valid_cells({"valid": valid}, features)[0].tolist() == [[True, True, False], [False, False, False]]


def test_an_image_of_padding_alone_is_searched_everywhere() -> None:
    valid = torch.zeros(2, 16, 24, dtype=torch.bool)
    valid[0, 8:, 16:] = True
    features = Features(neck=torch.zeros(2, 4, 2, 3))
    assert allowed_cells({"valid": valid}, features).tolist() == [[False] * 5 + [True], [True] * 6]
    assert image_major(2, 3, valid.device).tolist() == [0, 0, 0, 1, 1, 1]


def test_unknown_taps_are_refused() -> None:
    with pytest.raises(ConfigError, match="tap is 'nck'"):
        PersamConfig(tap="nck")
    with pytest.raises(ConfigError, match="tap 3 is no block; the backbone has 0..2"):
        PersamConfig(tap=3).build(toy_backbone())
    assert PersamConfig(tap=-1).build(toy_backbone()).taps == (2,)
    with pytest.raises(ConfigError, match="position is -1"):
        InContextConfig(position=-1.0)


def unit(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[a, b, math.sqrt(1 - a * a - b * b)] for a, b in rows])


def test_assignment_where_greed_is_wrong() -> None:
    """Greedy takes (0, 0) at 0.70 and is left with 0.10; the other way round gives 0.65 + 0.68."""
    memory, cells = unit((0.70, 0.65), (0.68, 0.10)), torch.eye(3)[:2]
    chosen, similarity = match(memory, torch.ones(2), cells, torch.ones(2, dtype=torch.bool))
    assert chosen.tolist() == [1, 0]
    assert similarity.tolist() == pytest.approx([0.65, 0.68])


def test_matches_that_come_back_outside_are_dropped() -> None:
    """A cell of the background is exactly the cell that the first one matched."""
    memory = torch.cat([unit((0.70, 0.65), (0.68, 0.10)), torch.eye(3)[1:2]])
    shares = torch.tensor([1.0, 0.2, 0.0])
    allowed = torch.ones(2, dtype=torch.bool)
    assert match(memory, shares, torch.eye(3)[:2], allowed)[0].tolist() == [0]
    allowed[0] = False  # only the cell that comes back outside is left: then all matches are kept
    assert match(memory, shares, torch.eye(3)[:2], allowed)[0].tolist() == [1]


def test_many_matches_are_halved_and_large_objects_thinned() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.nn.functional.normalize(torch.randn(60, 80, generator=generator), dim=1)
    everywhere = torch.ones(60, dtype=torch.bool)
    assert len(match(cells, torch.ones(60), cells, everywhere)[0]) == 30
    assert match(cells, torch.ones(60), cells, everywhere, max_cells=4)[0].tolist() == [0, 20, 39, 59]
    assert thinned(torch.arange(9), 3).tolist() == [0, 4, 8]


def test_points_are_matched_places_far_from_each_other() -> None:
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [50.0, 9.0], [51.0, 9.0], [52.0, 9.0]])
    assert sorted(centres(places, 2).tolist()) == [[1.0, 0.0], [51.0, 9.0]]
    assert torch.equal(centres(places, 6), places)
    assert len(centres(places[:1].expand(9, 2), 4)) == 1
    chosen = subsets(places, (1, 6), 4)
    assert [len(one) for one in chosen].count(6) == 1 and 2 <= len(chosen) <= 5
    rows, labels = padded([places[:1], places[:3]])
    assert labels.tolist() == [[1, -10, -10], [1, 1, 1]] and rows[1].tolist() == places[:3].tolist()


def test_box_and_earth_mover() -> None:
    matches = Matches(cells=torch.tensor([9, 10, 21]), similarity=torch.ones(3), grid=(8, 12), patch=8)  # rows 0, 0, 1
    assert around(matches).tolist() == [72.0, 0.0, 87.0, 15.0]
    a = torch.eye(3)
    assert float(earth_mover(a, a.flip(0))) == 0
    assert float(earth_mover(a[:1], -a[:1])) == 1
    assert float(earth_mover(a[:2], a[1:])) == pytest.approx(0.25)  # one pair alike, one at a right angle


def test_matcher_finds_the_object_of_its_own_reference() -> None:
    backbone = toy_backbone()
    image, mask = scene()
    features, references = shown(backbone, image, mask)
    prompts = MatcherConfig(tap=1, position=0.0).build(backbone)(features, image, {"references": references})
    kept = prompts.labels[0] == 1
    assert 1 <= int(kept.sum()) <= 8 and all(inside(prompts.points[0, kept]))


def test_matcher_joins_the_masks_that_fit() -> None:
    backbone = Oracle()
    image, mask = scene(BOX, (8, 40, 31, 55))
    reference, own = scene(BOX, seed=1)
    references = make_references(reference, own).encode(backbone)
    prompter = MatcherConfig(tap="neck", centre=True, position=4.0).build(backbone)
    found = prompter.find(backbone, backbone.encode(image), image, {"references": references})
    truth = scene(BOX)[1][0, 0, ::2, ::2] > 0
    assert found.logits.shape == (1, SIZE[0] // 2, SIZE[1] // 2)
    assert overlap(found.logits[0] > 0, truth) > 0.9
    assert found.classes.tolist() == [0] and 0 < float(found.scores) <= 1
