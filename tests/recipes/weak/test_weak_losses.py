"""Weak losses by values worked out by hand."""

import math

import pytest
import torch

from samgraft.errors import ShapeError
from samgraft.recipes.representations import BorderMaps, ClassMaps, DistanceMaps
from samgraft.recipes.weak_learning.learning import at_places, foreground
from samgraft.recipes.weak_learning.losses import Bags, alike_loss, marks_loss, smooth_maximum, tightness_loss


def bags(*entries: tuple[int, int, int, int, int]) -> Bags:
    """(image, channel, line, first, last) of each."""
    columns = torch.tensor(entries, dtype=torch.int64).reshape(-1, 5).unbind(1)
    return Bags(**dict(zip(("image", "label", "line", "first", "last"), columns, strict=True)))


VALUES = torch.tensor([[[[0.2, 0.6, 0.1], [0.9, 0.3, 0.5]]]])


@pytest.mark.parametrize(("sharpness", "expected"), [(math.log(3.0), 0.75), (0.0, 0.5), (20.0, 1.0)])
def test_smooth_maximum_lies_between_mean_and_maximum(sharpness: float, expected: float) -> None:
    values = torch.tensor([[[[1.0, 0.0, 1.0]]]])  # the bag leaves out the first pixel
    found = smooth_maximum(values, torch.ones(1, 1, 3), bags((0, 0, 0, 1, 2)), sharpness)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_every_row_and_column_of_a_box_asks_for_a_pixel() -> None:
    rows, columns = bags((0, 0, 0, 0, 2), (0, 0, 1, 0, 2)), bags((0, 0, 0, 0, 1), (0, 0, 1, 0, 1), (0, 0, 2, 0, 1))
    means = tightness_loss(VALUES, rows, columns, sharpness=0.0)
    assert means.item() == pytest.approx(-sum(math.log(v) for v in (0.3, 1.7 / 3, 0.55, 0.45, 0.3)) / 5, rel=1e-5)
    part = tightness_loss(VALUES, bags((0, 0, 1, 1, 2)), bags(), sharpness=math.log(3.0) / 0.2)
    assert part.item() == pytest.approx(-math.log((0.3 + 3 * 0.5) / 4), rel=1e-5)
    assert tightness_loss(VALUES, bags(), bags()).item() == 0.0


def test_lines_that_are_not_shown_say_nothing() -> None:
    values = VALUES.repeat(1, 1, 2, 2)  # (1, 1, 4, 6)
    seen = torch.ones(1, 4, 6, dtype=torch.bool)
    seen[:, :, 3:] = False
    rows, columns = bags((0, 0, 1, 0, 5)), bags((0, 0, 1, 0, 3), (0, 0, 5, 0, 3))
    found = tightness_loss(values, rows, columns, seen=seen, sharpness=0.0)
    assert found.item() == pytest.approx(-math.log(0.45), rel=1e-5)  # column 1 only
    gap = torch.ones(1, 4, 6, dtype=torch.bool)
    gap[:, 1, 0] = False  # a single pixel that shrinking left out
    found = tightness_loss(values, rows, bags(), seen=gap, sharpness=0.0)
    assert found.item() == pytest.approx(-math.log(2.5 / 5), rel=1e-5)  # the mean of the five that are shown
    with pytest.raises(ShapeError, match=r"seen is \(1, 2, 2\)"):
        tightness_loss(values, rows, columns, seen=torch.ones(1, 2, 2, dtype=torch.bool))


def test_marks_count_alike_per_class() -> None:
    probability = torch.tensor([[[[0.25, 0.5, 0.125, 0.9]]]])
    marks = torch.tensor([[[0, 1, 1, -1]]])
    expected = (-math.log(0.75) + 2 * math.log(2.0)) / 2
    assert marks_loss(probability, marks).item() == pytest.approx(expected, rel=1e-5)
    assert marks_loss(probability, torch.full_like(marks, -1)).item() == 0.0


def test_neighbours_that_look_alike_get_the_same_class() -> None:
    probability = torch.tensor([[[[0.2, 0.7, 0.1]]]])
    image = torch.tensor([0.5, 0.5, 0.7]).expand(1, 3, 1, 3)
    shown = torch.ones(1, 1, 3, dtype=torch.bool)
    first, second = 1 - (0.8 * 0.3 + 0.2 * 0.7), 1 - (0.3 * 0.9 + 0.7 * 0.1)
    weight = math.exp(-0.04 / 0.02)
    found = alike_loss(probability, image, shown, radius=1, colour=0.1)
    assert found.item() == pytest.approx((first + weight * second) / (1 + weight), rel=1e-5)
    shown[..., 2] = False
    assert alike_loss(probability, image, shown, radius=1, colour=0.1).item() == pytest.approx(first, rel=1e-5)


def test_probabilities_go_back_to_where_their_pixels_come_from() -> None:
    places = torch.tensor([[[4 * 9 + 3, 4 * 9 + 3], [-1, 4 * 9 + 2]]])  # tile 9 of 2 x 2 pixels
    probability = torch.tensor([[[[0.2, 0.6], [0.9, 0.1]]]], requires_grad=True)
    found, seen = at_places(probability, places, 2)
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 0.0], [0.1, 0.6]]))
    assert seen.tolist() == [[[False, False], [True, True]]]
    found.sum().backward()
    assert probability.grad is not None and probability.grad[0, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_foreground_of_each_representation() -> None:
    logits = torch.tensor([0.1, 0.3, 0.6]).log().view(1, 3, 1, 1)
    assert foreground(ClassMaps(classes=2), logits).flatten().tolist() == pytest.approx([0.3, 0.6])
    assert foreground(BorderMaps(), logits).flatten().tolist() == pytest.approx([0.9])
    distances = torch.tensor([math.log(4.0), 0.0, 0.0]).view(1, 3, 1, 1)
    assert foreground(DistanceMaps(), distances).flatten().tolist() == pytest.approx([0.8])
