"""Mask losses: places are exact, unknown pixels count nowhere, values by hand."""

import math

import pytest
import torch
from torch import Tensor

from samgraft.adapters.prompts.mask_losses import (
    mask_bce,
    mask_dice,
    mask_losses,
    pairwise_losses,
    pixels_at,
    read_at,
    resize_targets,
    uncertain_points,
)
from samgraft.errors import ShapeError


def _block(rows: slice, columns: slice, size: tuple[int, int] = (8, 12)) -> Tensor:
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(slice(8, 12), (0.0, 0.0, 1.0)), (slice(7, 12), (0.0, 0.25, 1.0)), (slice(10, 12), (0.0, 0.0, 0.5))],
)
def test_a_quarter_size_target_is_the_share_of_each_cell(columns: slice, expected: tuple[float, ...]) -> None:
    mask = _block(slice(4, 8), columns)
    target, weight = resize_targets(mask, torch.ones_like(mask), (2, 3), torch.float64)
    assert target[0].tolist() == [[0.0, 0.0, 0.0], list(expected)]
    assert torch.equal(weight, torch.ones_like(weight))


def test_unknown_pixels_are_left_out_of_a_cell() -> None:
    mask = _block(slice(4, 6), slice(8, 12))  # upper half of the last cell
    known = ~_block(slice(6, 8), slice(8, 12)) & ~_block(slice(0, 4), slice(0, 4))
    target, weight = resize_targets(mask, known, (2, 3), torch.float32)
    assert target[0].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert weight[0].tolist() == [[0, 1, 1], [1, 1, 0.5]]


def test_a_finer_target_takes_the_pixel_under_each_centre() -> None:
    mask = _block(slice(1, 2), slice(2, 3), (2, 3))
    target, _ = resize_targets(mask, torch.ones_like(mask), (4, 6), torch.float32)
    assert target[0].nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_masks_and_known_must_agree() -> None:
    with pytest.raises(ShapeError, match="one plane per mask"):
        resize_targets(
            torch.ones(2, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool), (1, 1), torch.float
        )


def test_cross_entropy_and_dice_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), 50.0]])  # probabilities 1/2, 3/4, 1
    targets, weights = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert mask_bce(logits, targets, weights).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert mask_dice(logits, targets, weights).item() == pytest.approx(1 - (2 * 0.75 + 1) / (1.25 + 1 + 1))
    nothing = torch.zeros(1, 3)
    assert mask_bce(logits, targets, nothing).item() == 0
    assert mask_dice(logits, targets, nothing).item() == 0


def test_every_pair_has_the_losses_of_that_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    targets = torch.rand(2, 20, generator=generator, dtype=torch.float64)
    weights = torch.rand(20, generator=generator, dtype=torch.float64)
    pairs = pairwise_losses(logits, targets, weights)
    for query in range(3):
        for row in range(2):
            one = (logits[query : query + 1], targets[row : row + 1], weights[None])
            assert pairs.bce[query, row].item() == pytest.approx(mask_bce(*one).item())
            assert pairs.dice[query, row].item() == pytest.approx(mask_dice(*one).item())


@pytest.mark.parametrize("points", [0, 500])
def test_unknown_pixels_do_not_matter_and_known_ones_do(points: int) -> None:
    mask = _block(slice(0, 4), slice(4, 12))
    known = torch.ones_like(mask)
    known[0, :, :4] = False

    def losses(logits: Tensor) -> tuple[float, float]:
        found = mask_losses(logits, mask, known, points=points, generator=torch.Generator().manual_seed(0))
        return found.bce.item(), found.dice.item()

    right = torch.full((1, 8, 12), -9.0)
    right[0, :4, 4:] = 9.0
    changed, wrong = right.clone(), right.clone()
    changed[0, :, :2] = 9.0  # further than interpolation reaches
    wrong[0, 6:, 6:] = 9.0
    assert losses(right)[0] < 0.3
    assert losses(wrong)[0] > losses(right)[0] + 0.3
    assert losses(wrong)[1] > losses(right)[1] + 0.03
    if points == 0:
        assert losses(changed) == losses(right)
        assert losses(right)[0] == pytest.approx(math.log1p(math.exp(-9)), rel=0.01)


def test_points_read_between_cell_centres_of_a_non_square_map() -> None:
    y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    ramp = (10 * y + x)[None]
    points = torch.tensor([[[1.0 / 8, 1.5 / 4], [6.25 / 8, 2.0 / 4], [0.0, 0.0]]])  # (x, y)
    assert torch.allclose(read_at(ramp, points), torch.tensor([[16.0, 26.25, 5.5]]))  # the corner reads the first cell
    pixels = _block(slice(2, 3), slice(6, 7), (4, 8))
    at = torch.tensor([[[6.9 / 8, 2.1 / 4], [7.1 / 8, 2.1 / 4], [6.1 / 8, 1.9 / 4]]])
    assert pixels_at(pixels, at, torch.float32).tolist() == [[1, 0, 0]]


def test_most_points_lie_where_the_logits_change_sign() -> None:
    x = torch.arange(64) + 0.5
    logits = (x - 48.0).expand(2, 16, 64)  # 0 at three quarters of the width
    points = uncertain_points(logits, 400, generator=torch.Generator().manual_seed(0))
    again = uncertain_points(logits, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(points, again)
    distance = (points[..., 0] - 0.75).abs()
    # 300 of 1200 uniform candidates: those within an eighth of the width
    assert float(distance[:, :300].max()) < 0.16
    assert float(distance[:, 300:].max()) > 0.6


@pytest.mark.parametrize("points", [0, 7])
def test_no_mask_at_all_keeps_the_graph(points: int) -> None:
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    none = torch.zeros(0, 8, 8, dtype=torch.bool)
    found = mask_losses(logits, none, none, points=points)
    total = found.bce.sum() + found.dice.sum()
    total.backward()
    assert total.item() == 0
    assert logits.grad is not None
