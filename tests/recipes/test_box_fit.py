"""A mask is cut where it fills its box; looks of several sizes are averaged on their common pixels."""

import torch

from samgraft.recipes.engine.box_fit import OUTSIDE, fit_logits, mean_logits

WHOLE = (slice(0, 40), slice(0, 40))


def cone(radius: float) -> torch.Tensor:
    """Logits that fall by half a unit per pixel and cross 0 at ``radius`` pixels from (20, 20)."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    return (radius - torch.hypot(y - 20, x - 20)) * 0.5


def test_mask_grows_until_it_fills_the_box() -> None:
    fitted = fit_logits(cone(7.0), WHOLE, (10, 10, 30, 30))
    found = fitted > 0
    assert torch.nonzero(found.any(0)).flatten()[[0, -1]].tolist() == [10, 30]
    assert found[12, 12] == (cone(10.1) > 0)[12, 12] == False  # noqa: E712 - still round, not the box itself
    assert (cone(7.0) > 0).sum() < (cone(10.1) > 0).sum() <= found.sum() < (cone(11.0) > 0).sum()


def test_mask_shrinks_to_the_box_and_never_leaves_it() -> None:
    fitted = fit_logits(cone(16.0), WHOLE, (12, 12, 28, 28)) > 0
    assert torch.nonzero(fitted.any(0)).flatten()[[0, -1]].tolist() == [12, 28]


def test_good_mask_is_left_alone() -> None:
    logits = cone(10.1)
    fitted = fit_logits(logits, WHOLE, (10, 10, 30, 30))
    assert torch.equal(fitted > 0, logits > 0)


def test_box_is_in_picture_pixels_and_logits_on_their_window() -> None:
    shifted = fit_logits(cone(10.1), (slice(100, 140), slice(50, 90)), (60, 110, 80, 130))
    assert torch.equal(shifted > 0, cone(10.1) > 0)


def test_nothing_found_stays_nothing() -> None:
    assert not (fit_logits(torch.full((40, 40), -9.0), WHOLE, (10, 10, 30, 30)) > 0).any()


def test_outside_of_the_box_is_cleared() -> None:
    assert fit_logits(torch.full((40, 40), 3.0), WHOLE, (10, 10, 30, 30))[0, 0] == OUTSIDE


def test_looks_are_averaged_where_both_saw() -> None:
    small = ((slice(10, 20), slice(10, 20)), torch.full((10, 10), 2.0))
    large = ((slice(0, 15), slice(0, 40)), torch.full((15, 40), 4.0))
    index, mean = mean_logits([large, small])
    assert index == 1
    assert mean.shape == (10, 10)
    assert mean[0, 0] == 3.0
    assert mean[9, 9] == 2.0
