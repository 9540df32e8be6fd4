"""Maps of object centres: places, widths and losses by hand."""

import math

import pytest
import torch

from samgraft.adapters.prompts.centre_map import best_cells, centre_loss, centre_map, centres
from samgraft.adapters.prompts.objects import Objects, objects_from_labels


def _objects() -> Objects:
    """An image without an object, and one with a block of 8 x 8 pixels whose centre is (x, y) = (20, 4)."""
    labels = torch.zeros(2, 16, 24, dtype=torch.int64)
    labels[1, 0:8, 16:24] = 5
    return objects_from_labels(labels)


def test_centres_are_in_x_and_y() -> None:
    middle, area = centres(_objects().masks, torch.float32)
    assert middle.tolist() == [[20.0, 4.0]]
    assert area.tolist() == [64.0]


def test_an_object_is_a_bell_around_its_centre() -> None:
    found = centre_map(_objects(), (4, 6), torch.float64)  # cells of 4 pixels; the centre is the corner (5, 1)
    assert not bool(found[0].any())
    spread = math.sqrt(64 / math.pi) / 4 / 2  # cells
    assert found[1, 1, 5].item() == 1  # the cell that begins at (5, 1)
    assert found[1, 0, 4].item() == pytest.approx(math.exp(-0.5 / (2 * spread**2)))
    assert found[1, 3, 5].item() == pytest.approx(math.exp(-(0.25 + 6.25) / (2 * spread**2)))
    coarse = centre_map(_objects(), (2, 3), torch.float64)  # the least spread, half a cell
    assert coarse[1, 0, 2].item() == 1
    assert coarse[1, 0, 1].item() == pytest.approx(math.exp(-2))


def test_only_known_cells_count_and_empty_images_teach_that_nothing_is_there() -> None:
    objects = _objects()
    logits = torch.full((2, 4, 6), -40.0, dtype=torch.float64)
    assert centre_loss(logits, objects).item() == pytest.approx(40)  # the one centre is missed
    logits[1, 1, 5] = 40.0
    assert centre_loss(logits, objects).item() == pytest.approx(0, abs=1e-9)
    logits[0, 2, 1] = 10.0
    assert centre_loss(logits, objects).item() == pytest.approx(10, rel=1e-3)
    objects.known[0, 8:12, 4:8] = False
    assert centre_loss(logits, objects).item() == pytest.approx(0, abs=1e-9)


def test_peaks_come_before_their_neighbours() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 0], logits[0, 0, 1], logits[0, 2, 4], logits[0, 1, 3] = 5.0, 4.0, 3.0, 2.0
    assert best_cells(logits, 2).tolist() == [[0, 14]]
    assert best_cells(logits, 99).shape == (1, 15)
