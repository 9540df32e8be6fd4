"""Places of pixels: what is known of them survives augmentation; boxes on tiles by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samgraft.grid import Grid
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.weak_config import Supervision
from samgraft.recipes.weak_labels.labels import WeakLabels, WeakObject
from samgraft.recipes.weak_learning.tiles import WeakTiles, tile_numbers, tile_object


def case_of(
    labels: np.ndarray, *objects: WeakObject, kind: Supervision = "boxes", drawn: np.ndarray | None = None
) -> CaseArrays:
    """A picture with labels (h, w)."""
    grid = Grid(shape=labels.shape, affine=np.eye(3), world="pixel")
    image = np.zeros((1, 3, *labels.shape), np.uint8)
    weak = WeakLabels(kind=kind, objects=objects, drawn=None if drawn is None else drawn[None])
    return CaseArrays(id="c", image=image, labels=labels[None], grid=grid, weak=weak)


def tiles_of(case: CaseArrays, *, size: int, window: int | None = None, instance: bool = False) -> WeakTiles:
    tiles = WeakTiles(size=size, window=window, overlap=0.0, classes=2, instance=instance)
    tiles.add(case)
    return tiles


def test_places_lead_back_to_labels_whatever_happens_to_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (24, 40)).astype(np.int16)
    tiles = tiles_of(case_of(labels, WeakObject(label=1, box=(1, 1, 9, 9))), size=40)
    tiles.add(case_of(labels[:, ::-1].copy(), WeakObject(label=2, box=(1, 1, 9, 9))))
    image, places = torch.stack([tiles[1][0]]), torch.stack([tiles[1][1]])
    known = tiles.known(places).labels
    assert (known[0, 8:32].numpy() == labels[:, ::-1]).all() and (known[0, :8] == IGNORE).all()
    config = AugmentConfig(quarter_turns=True, rotate=25, scale=0.3, elastic=0.05, flip_x=True, noise=0, blur=0)
    seed = torch.Generator().manual_seed(4)
    _, moved = augment(image.float(), places, seed, config)
    _, expected = augment(image.float(), known, torch.Generator().manual_seed(4), config)
    assert tile_numbers(moved, 40) == [1] and (moved != places).float().mean() > 0.5
    assert torch.equal(tiles.known(moved).labels, expected)
    assert tile_numbers(torch.full((1, 2, 2), IGNORE), 40) == [-1]


def test_boxes_on_a_tile() -> None:
    fit, place = Fit(source=(20, 40), size=20), (slice(10, 30), slice(0, 40))
    whole = tile_object(7, WeakObject(label=2, box=(4, 12, 11, 19)), fit, place)
    assert whole is not None and (whole.number, whole.label) == (7, 2)
    assert (whole.rows, whole.cols, whole.whole_rows, whole.whole_cols) == ((6, 9), (2, 5), True, True)
    cut = tile_object(1, WeakObject(label=1, box=(4, 5, 11, 12)), fit, place)
    assert cut is not None and (cut.rows, cut.whole_rows, cut.whole_cols) == ((5, 5), False, True)
    assert tile_object(1, WeakObject(label=1, box=(4, 2, 11, 9)), fit, place) is None
    point = tile_object(1, WeakObject(label=1, points=((5, 13, 1), (39, 29, 0), (5, 3, 0))), fit, place)
    assert point is not None and point.points == ((6, 2, 1), (14, 19, 0))


def test_bags_are_lines_of_boxes_that_are_shown_from_end_to_end() -> None:
    labels = np.zeros((8, 16), np.int16)
    case = case_of(labels, WeakObject(label=2, box=(1, 2, 2, 4)), WeakObject(label=1, box=(6, 1, 9, 2)))
    tiles = tiles_of(case, size=8, window=8)
    assert len(tiles) == 2
    rows, cols = tiles.bags([0, 1])
    one = list(zip(rows.image, rows.label, rows.line, rows.first, rows.last, strict=True))
    assert [tuple(map(int, bag)) for bag in one] == [(0, 1, 2, 1, 2), (0, 1, 3, 1, 2), (0, 1, 4, 1, 2)]
    down = [tuple(map(int, bag)) for bag in zip(cols.image, cols.label, cols.line, cols.first, cols.last, strict=True)]
    assert down == [
        (0, 1, 1, 2, 4), (0, 1, 2, 2, 4), (0, 0, 6, 1, 2), (0, 0, 7, 1, 2), (1, 0, 0, 1, 2), (1, 0, 1, 1, 2),
    ]  # fmt: skip
    assert len(tiles.bags([-1])[0]) == 0


@pytest.mark.parametrize("shrink", [1, 4])
def test_thin_marks_survive_shrinking(shrink: int) -> None:
    drawn = np.full((16, 16), IGNORE, np.int32)
    drawn[5, 2:14], drawn[:, 15] = 1, 0
    tiles = tiles_of(case_of(np.zeros((16, 16), np.int16), kind="scribbles", drawn=drawn), size=16 // shrink)
    marks = tiles.marks[0].numpy()
    assert (marks[5 // shrink, 2 // shrink : 14 // shrink] == 1).all() and (marks[:, -1] == 0).all()
    assert (marks >= 0).sum() == {1: 28, 4: 7}[shrink]


def test_nodata_teaches_nothing() -> None:
    case = case_of(np.zeros((8, 8), np.int16), WeakObject(label=1, box=(1, 1, 6, 6)))
    assert case.weak is not None
    nodata = np.zeros((1, 8, 8), bool)
    nodata[0, :2] = True
    tiles = tiles_of(replace(case, weak=replace(case.weak, nodata=nodata)), size=8)
    assert (tiles[0][1][:2] == IGNORE).all() and (tiles[0][1][2:] >= 0).all()
