"""One-to-one matching on costs and masks that were worked out by hand."""

import pytest
import torch

from samgraft.adapters.prompts.assignment import MatchWeights, Truth, assign, match
from samgraft.adapters.prompts.objects import objects_from_labels


@pytest.mark.parametrize(
    ("cost", "rows", "columns"),
    [
        ([[1.0, 2.0], [2.0, 100.0]], [0, 1], [1, 0]),  # the cheapest pair first would cost 101
        ([[5.0, 9.0], [1.0, 3.0], [2.0, 8.0]], [1, 2], [1, 0]),  # 3 + 2; the cheapest pair first: 1 + 8
        ([[4.0, 1.0, 3.0]], [0], [1]),  # more objects than queries
        ([[float("nan"), 1.0], [2.0, float("inf")]], [0, 1], [1, 0]),
    ],
)
def test_the_sum_is_least(cost: list[list[float]], rows: list[int], columns: list[int]) -> None:
    found = assign(torch.tensor(cost))
    assert [part.tolist() for part in found] == [rows, columns]


def test_no_object_matches_nothing() -> None:
    rows, columns = assign(torch.zeros(3, 0))
    assert rows.dtype == columns.dtype == torch.int64
    assert len(rows) == len(columns) == 0


def _labels() -> torch.Tensor:
    """Image 0 without an object, image 1 with two: upper right, lower left."""
    labels = torch.zeros(2, 16, 24, dtype=torch.int64)
    labels[1, 0:8, 16:24] = 1
    labels[1, 8:16, 0:8] = 2
    return labels


def test_queries_find_their_objects_by_mask_and_class() -> None:
    truth = Truth(objects_from_labels(_labels()), (4, 6), dtype=torch.float32)
    masks = torch.full((3, 4, 6), -6.0)
    masks[0, 2:, :2] = 6.0  # lower left
    masks[1, 2:, :2] = 6.0  # the same, surer of being an object
    masks[2, :2, 4:] = 6.0  # upper right
    classes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    query, row = match(classes, masks, truth, 1, MatchWeights())
    assert query.tolist() == [1, 2]
    assert row.tolist() == [1, 0]
    assert len(match(classes, masks, truth, 0, MatchWeights())[0]) == 0


def test_what_is_unknown_decides_no_match() -> None:
    labels = _labels()
    labels[1, 8:16, 4:] = -1  # half of the lower left object is known
    truth = Truth(objects_from_labels(labels), (4, 6), dtype=torch.float32)
    masks = torch.full((2, 4, 6), -6.0)
    masks[0, 2:, :3] = 6.0
    masks[1, 2:, :1] = 6.0  # the same where it is known
    masks[1, 0, 0] = 6.0  # but one cell too many
    query, row = match(torch.zeros(2, 2), masks, truth, 1, MatchWeights())
    assert dict(zip(query.tolist(), row.tolist(), strict=True))[0] == 1


def test_losses_of_rows_are_those_of_their_masks() -> None:
    labels = _labels()
    labels[1, 12:16] = -1  # half of the second object is unknown
    truth = Truth(objects_from_labels(labels), (4, 6), points=400, dtype=torch.float64)
    logits = torch.full((2, 4, 6), -30.0, dtype=torch.float64)
    logits[0, 2, :2] = 30.0  # what is known of the second object
    logits[0, 3, 3:] = 30.0  # unknown, so it does not matter
    found = truth.losses(logits, torch.tensor([1, 0]))
    assert found.bce[0].item() == pytest.approx(0, abs=1e-9)
    assert found.dice[0].item() == pytest.approx(0, abs=1e-9)
    assert found.bce[1].item() == pytest.approx(30 * 4 / 18)  # 4 of 18 known cells are missed
    assert found.dice[1].item() == pytest.approx(1 - 1 / 5)
