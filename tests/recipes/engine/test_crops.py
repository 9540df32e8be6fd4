"""Layers of crops, points in them, masks at their edges, parts that tiles cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError
from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.crops import Crop, crop_layers, crop_points, is_cut
from samgraft.recipes.engine.ends import Piece, views
from samgraft.recipes.engine.everything import automatic_masks
from samgraft.recipes.engine.runs import runs_of
from samgraft.recipes.engine.seams import join_crops
from samgraft.recipes.engine.search import crops_of
from samgraft.recipes.everything import EverythingConfig
from tests.recipes._oracle import Oracle, squares


def test_crops_of_two_layers() -> None:
    # 300 x 500, ratio 0.2: layer 1 overlaps by int(0.2 * 300 * 2 / 2) = 60, sides ceil((60 + L) / 2) = 180, 280;
    # layer 2 by 30, sides ceil((90 + L) / 4) = 98, 148
    crops = crop_layers((300, 500), 2, 0.2)
    assert [c.box for c in crops[:4]] == [
        (0, 0, 280, 180),
        (0, 120, 280, 180),
        (220, 0, 280, 180),
        (220, 120, 280, 180),
    ]
    assert len(crops) == 4 + 16
    assert crops[4].box == (0, 0, 148, 98)
    assert crops[-1].box == (354, 204, 146, 96)  # 3 * (148 - 30), cut to 500; 3 * (98 - 30), cut to 300
    assert {c.layer for c in crops} == {1, 2}


def test_crops_of_a_picture_of_one_column() -> None:
    assert all(c.width == 1 for c in crop_layers((200, 1), 1, 0.3))
    assert crop_layers((200, 300), 0, 0.3) == []


def test_tiles_are_twice_as_large_as_the_network_input() -> None:
    """192 rows are half as much again as two inputs of 64, and are still seen whole; one more, and there are tiles."""
    assert [crop.box for crop in crops_of((192, 100), 64, EverythingConfig())] == [(0, 0, 100, 192)]
    assert [crop.box for crop in crops_of((193, 100), 64, EverythingConfig())] == [(0, 0, 100, 128), (0, 65, 100, 128)]
    assert [crop.box for crop in crops_of((193, 100), 64, EverythingConfig(tile=0))] == [(0, 0, 100, 193)]


@pytest.mark.parametrize("overlap", [0.25, 32])
def test_tiles_share_pixels_or_a_part_of_their_side(overlap: float) -> None:
    config = EverythingConfig(tile=128, overlap=overlap)
    assert [crop.box for crop in crops_of((320, 100), 64, config)] == [
        (0, 0, 100, 128),
        (0, 96, 100, 128),
        (0, 192, 100, 128),
    ]


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlap is 128; .* fewer than a tile has \(128\)"):
        EverythingConfig(tile=128, overlap=128)
    with pytest.raises(ConfigError, match=r"overlap is 200; .* fewer than a tile has \(128\)"):
        crops_of((500, 500), 64, EverythingConfig(overlap=200))  # of its own the tile is twice the network input
    with pytest.raises(ConfigError, match=r"overlap is 2\.5"):
        EverythingConfig(overlap=2.5)


def test_points_lie_at_cell_centres_and_thin_out() -> None:
    crop = Crop(top=5, left=7, height=20, width=40, layer=1)
    # 4 / 2 = 2 a side: a quarter and three quarters of 40 and 20, less half a pixel
    assert crop_points(crop, 4, 2, None).tolist() == [[9.5, 4.5], [29.5, 4.5], [9.5, 14.5], [29.5, 14.5]]
    assert crop_points(crop, 4, 9, None).tolist() == [[19.5, 9.5]]
    own = crop_points(crop, None, 1, [[(0.1, 0.1)], [(0.25, 0.5), (1.0, 0.0)]])
    assert own.tolist() == [[9.5, 9.5], [39.0, 0.0]]


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((130, 30, 160, 60), False),
        ((120, 30, 160, 60), True),  # 20 from the left edge of the crop
        ((121, 30, 160, 60), False),
        ((130, 5, 160, 60), False),  # at the top of the crop, which is that of the picture
        ((130, 30, 179, 60), False),
        ((130, 30, 180, 60), True),  # the right edge lies at 200
        ((130, 30, 160, 80), True),
    ],
)
def test_masks_near_an_inner_edge_are_cut(box: tuple[int, int, int, int], cut: bool) -> None:
    crop = Crop(top=0, left=100, height=100, width=100, layer=1)
    assert is_cut(box, crop, (300, 500), 20) is cut


def part(crop: Crop, box: tuple[int, int, int, int], *, cut: bool = True, iou: float = 0.8) -> Candidate:
    x0, y0, x1, y1 = box
    runs = runs_of(np.ones((y1 - y0 + 1, x1 - x0 + 1), dtype=bool), top=y0, left=x0, shape=(50, 100))
    return Candidate(runs=runs, iou=iou, stability=0.9, point=(0, 0), crop=crop, cut=cut)


LEFT = Crop(top=0, left=0, height=50, width=60, tile=True)
RIGHT = Crop(top=0, left=40, height=50, width=60, tile=True)


def test_parts_that_agree_where_both_tiles_look_are_joined() -> None:
    # one object from column 10 to 90; the tiles share columns 40 to 59
    joined = join_crops([part(LEFT, (10, 5, 59, 20)), part(RIGHT, (40, 6, 90, 20), iou=0.6)], 0.5, "mask")
    found = joined.kept
    assert not joined.open
    assert [one.runs.box for one in found] == [(10, 5, 90, 20)]
    assert found[0].iou == pytest.approx(0.7)
    assert found[0].runs.area == 50 * 16 + 51 * 15 - 20 * 15


def test_parts_that_do_not_agree_are_given_back_and_not_kept() -> None:
    joined = join_crops([part(LEFT, (10, 5, 59, 20)), part(RIGHT, (40, 18, 90, 40))], 0.5, "mask")
    assert joined.kept == []
    assert sorted(piece.mask.runs.box for piece in joined.open) == [(10, 5, 59, 20), (40, 18, 90, 40)]


@pytest.mark.parametrize(
    ("box", "more", "open_"),
    [
        ((10, 5, 59, 20), (40, 5, 60, 20), False),  # one column beyond the edge of LEFT is enough
        ((10, 5, 59, 20), (40, 5, 59, 20), True),  # RIGHT sees it end exactly there, and LEFT cannot know
        ((10, 5, 59, 20), (40, 5, 90, 15), True),  # only 11 of 16 rows go on
        ((10, 5, 59, 20), (40, 5, 90, 16), False),  # 12 of 16
    ],
)
def test_a_mask_is_open_where_most_of_a_straight_side_has_nothing_beyond(
    box: tuple[int, int, int, int], more: tuple[int, int, int, int], open_: bool
) -> None:
    parts = part(LEFT, box), part(RIGHT, more)
    runs = runs_of(parts[0].runs.full() | parts[1].runs.full())
    assert Piece(mask=replace(parts[0], runs=runs), parts=parts[:1]).ends_openly() is open_


def test_views_show_pieces_whole_and_are_shared() -> None:
    long, small, beside = ((10, 5, 59, 20), (50, 5, 59, 14), (62, 20, 67, 27))
    pieces = []  # 10 and 8 pixels wide share a view as wide as a tile, 50 pixels need 100: all there is
    for box, iou in ((small, 0.9), (beside, 0.8), (long, 0.7)):
        one = replace(part(LEFT, box, iou=iou), point=(float(box[0]), float(box[1])))
        pieces.append(Piece(mask=one, parts=(one, one)))
    found = views(pieces, side=60, most=9)
    assert [crop.box for crop, _ in found] == [(0, 0, 100, 50), (25, 0, 60, 50)]
    # the deepest pixels of 50 x 16, 10 x 10 and 6 x 8 pixels, and the points that were asked before
    assert [points.tolist() for _, points in found] == [[[17, 12], [10, 5]], [[29, 9], [25, 5], [39, 22], [37, 20]]]
    assert [crop.box for crop, _ in views(pieces, side=60, most=1)] == [(25, 0, 60, 50)]
    assert [crop.box for crop, _ in views(pieces, side=24, most=9)] == [
        (43, 0, 24, 24),
        (53, 12, 24, 24),
    ]  # 100 > 4 * 24


class OneSided(Oracle):
    """Sees nothing of an object that the left edge of its view cuts."""

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        logits, iou = super().decode(features, prompts, multimask=multimask)
        logits[(logits[..., 0] > 0).any(dim=-1)] = -10
        return logits, iou


def test_an_object_that_no_neighbour_completes_is_looked_at_again_until_it_is_seen_whole() -> None:
    """Tiles are 64 wide and begin at columns 0, 48 and 96; the first shows columns 40 to 63 of the object alone."""
    image = torch.from_numpy(squares((64, 160), [(40, 20, 99, 43)])).float().expand(3, -1, -1) / 255
    config = EverythingConfig(tile=64, stability_score_thresh=0.0, pred_iou_thresh=0.6, points_per_side=8)
    found = automatic_masks(OneSided(), image, config=config, depth=0)
    assert len(found) == 1
    assert np.abs(np.subtract(found.found[0].runs.box, (40, 20, 99, 43))).max() <= 2
    assert "cut by a tile" not in found.explain()
    never = automatic_masks(OneSided(), image[:, :, :80], config=config, depth=0)  # the picture ends within the object
    assert [one.runs.box[2] for one in never.found] == [79]


def test_a_part_of_a_whole_mask_goes_however_good() -> None:
    whole, small = part(LEFT, (30, 5, 50, 20), cut=False, iou=0.5), part(RIGHT, (40, 5, 50, 20), iou=0.99)
    joined = join_crops([small, whole], 0.9, "mask")
    assert joined.kept == [whole] and not joined.open


def test_the_mask_of_the_smaller_crop_stays() -> None:
    small = Crop(top=0, left=0, height=30, width=30, layer=1)
    large, inside = part(LEFT, (5, 5, 20, 20), cut=False, iou=0.99), part(small, (5, 5, 20, 21), cut=False, iou=0.8)
    assert join_crops([large, inside], 0.7, "box").kept == [inside]


def test_point_grids_are_float32() -> None:
    assert crop_points(LEFT, 3, 1, None).dtype == torch.float32
