"""Coordinates, deltas, suppression, anchors and matching, against cases worked out by hand."""

import math

import pytest
import torch
from monai.data.box_utils import batched_nms

from samgraft.adapters.detection import boxes as box_module
from samgraft.adapters.detection.anchors import AnchorGrid
from samgraft.adapters.detection.boxes import (
    MAX_LOG_RATIO,
    clip_edges,
    decode_deltas,
    edges_of,
    encode_deltas,
    inclusive_of,
    suppress,
)
from samgraft.adapters.detection.matching import (
    IGNORED,
    NEGATIVE,
    ignore_unknown,
    known_share,
    match_boxes,
    sample_balanced,
)

STDS = (0.1, 0.1, 0.2, 0.2)


def test_an_inclusive_box_reaches_to_the_far_side_of_its_last_pixel() -> None:
    inclusive = torch.tensor([[3.0, 4, 7, 4]])  # five columns, one row
    assert edges_of(inclusive).tolist() == [[3, 4, 8, 5]]
    assert torch.equal(inclusive_of(edges_of(inclusive)), inclusive)


def test_deltas_by_hand_and_back() -> None:
    reference = torch.tensor([[10.0, 20, 30, 60]])  # centre (20, 40), 20 x 40
    edges = torch.tensor([[15.0, 10, 25, 90]])  # centre (20, 50), 10 x 80
    deltas = encode_deltas(reference, edges, STDS)
    expected = [0.0, 0.25 / 0.1, math.log(0.5) / 0.2, math.log(2) / 0.2]
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(decode_deltas(reference, deltas, STDS), edges)


def test_a_delta_out_of_range_grows_a_box_by_a_bounded_factor() -> None:
    found = decode_deltas(torch.tensor([[0.0, 0, 2, 4]]), torch.tensor([[0.0, 0, 1e9, 0]]), (1.0, 1.0, 1.0, 1.0))
    assert (found[0, 2] - found[0, 0]).item() == pytest.approx(2 * math.exp(MAX_LOG_RATIO))
    assert found[0, 1::2].tolist() == [0, 4]


def test_clipping_tells_height_from_width() -> None:
    assert clip_edges(torch.tensor([[-3.0, -2, 99, 98]]), (6, 9)).tolist() == [[0, 0, 9, 6]]


@pytest.mark.parametrize(
    ("groups", "most", "kept"), [([0, 0, 0], 9, [1, 2]), ([0, 1, 0], 9, [1, 0, 2]), ([0, 0, 0], 1, [1]), ([], 9, [])]
)
def test_suppression_within_groups(groups: list[int], most: int, kept: list[int]) -> None:
    edges = torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 10], [20, 5, 30, 9]])[: len(groups)]  # IoU of the first two: 0.8
    scores = torch.tensor([0.8, 0.9, 0.7])[: len(groups)]
    assert suppress(edges, scores, torch.tensor(groups, dtype=torch.int64), 0.7, most).tolist() == kept


def test_suppression_keeps_what_monai_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "BLOCK", 16)
    generator = torch.Generator().manual_seed(2)
    low = 60 * torch.rand(200, 2, generator=generator)
    edges = torch.cat([low, low + 5 + 25 * torch.rand(200, 2, generator=generator)], dim=1)
    scores, groups = torch.rand(200, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    expected = batched_nms(edges, scores, groups, 0.4)
    assert 40 < len(expected) < 190
    assert torch.equal(suppress(edges, scores, groups, 0.4, 999), expected)
    assert torch.equal(suppress(edges, scores, groups, 0.4, 25), expected[:25])


def test_anchors_stand_on_cell_centres() -> None:
    anchors = AnchorGrid((4.0, 8.0), (2.0,), (1.0, 4.0))
    fine, coarse = anchors([(2, 3), (1, 2)], (24, 40), like=torch.zeros(1))
    assert anchors.per_cell == 2 and fine.shape == (12, 4)
    assert fine[2 * 5].tolist() == [6, 2, 14, 10]  # row 1, column 2: centre (10, 6), side 8
    assert fine[2 * 5 + 1].tolist() == [8, -2, 12, 14]  # four times as high as wide
    assert coarse[0].tolist() == [-8, -8, 16, 16]  # the coarsest level reaches the shorter side, 24


TRUTH = torch.tensor([[0.0, 0, 10, 8], [30, 30, 40, 40]])
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60], [36, 30, 46, 40]])
"""IoU with the first object 0.8, 0.4, 0, 0; with the second 0, 0, 0, 0.25."""


@pytest.mark.parametrize(("every_object", "last"), [(True, 1), (False, NEGATIVE)])
@pytest.mark.parametrize("pairs", [1, 2**21])
def test_matching_by_overlap(every_object: bool, last: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "PAIRS", pairs)
    matched = match_boxes(BOXES, TRUTH, positive=0.7, negative=0.3, every_object=every_object)
    assert matched.tolist() == [0, IGNORED, NEGATIVE, last]


def test_without_objects_everything_is_negative() -> None:
    matched = match_boxes(BOXES, TRUTH[:0], positive=0.7, negative=0.3, every_object=True)
    assert matched.tolist() == [NEGATIVE] * 4


def test_boxes_on_unknown_pixels_are_no_negatives() -> None:
    known = torch.zeros(4, 6, dtype=torch.bool)
    known[:, :3] = True
    edges = torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 2], [7, 1, 9, 3], [-5, -5, 1, 1], [4, 0, 6, 4]])
    assert known_share(edges, known).tolist() == [0.25, 0.75, 0, 1, 0]
    matched = torch.tensor([NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE, 3])
    assert ignore_unknown(matched, edges, known).tolist() == [IGNORED, NEGATIVE, IGNORED, NEGATIVE, 3]
    assert torch.equal(ignore_unknown(matched, edges, torch.ones_like(known)), matched)


def test_sampling_is_balanced_and_follows_its_generator() -> None:
    matched = torch.tensor([2] * 10 + [NEGATIVE] * 20 + [IGNORED] * 5)[torch.randperm(35)]

    def draw(seed: int, number: int = 8) -> tuple[list[int], list[int]]:
        found = sample_balanced(matched, number, 0.25, torch.Generator().manual_seed(seed))
        return found[0].tolist(), found[1].tolist()

    positive, negative = draw(1)
    assert (len(positive), len(negative)) == (2, 6)
    assert all(matched[row] == 2 for row in positive) and all(matched[row] == NEGATIVE for row in negative)
    assert draw(1) == (positive, negative)
    assert any(draw(seed) != (positive, negative) for seed in range(2, 6))
    assert [len(rows) for rows in draw(1, 100)] == [10, 20], "too few of both: all of them, and nothing ignored"
