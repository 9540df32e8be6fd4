"""Parts of distillation: tiles and splits from folders, prompts from the teacher's masks, figures."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.clicks import random_error_clicks, with_click
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.distill.config import DistillConfig
from samgraft.recipes.distill.data import find_images, read_tiles, split_files, spread
from samgraft.recipes.distill.judge import Judge, fill_boxes, mask_iou
from samgraft.recipes.distill.phases import mask_loss
from samgraft.recipes.distill.prompting import (
    INNER_POINTS,
    box_prompts,
    choose_objects,
    first_prompts,
    scale_prompts,
)
from tests.recipes._sets import disc, write_rasters


def squares(side: int = 32, *corners: tuple[int, int, int, int]) -> torch.Tensor:
    """(n, side, side) logits: +5 inside (x0, y0, x1, y1), ends included, -5 outside."""
    logits = torch.full((len(corners), side, side), -5.0)
    for row, (x0, y0, x1, y1) in enumerate(corners):
        logits[row, y0 : y1 + 1, x0 : x1 + 1] = 5.0
    return logits


def test_objects_are_the_teachers_masks_once_each_the_best_first() -> None:
    logits = squares(32, (2, 4, 9, 11), (2, 4, 9, 12), (20, 3, 27, 30), (0, 0, 31, 31), (5, 5, 5, 6))
    iou = torch.tensor([0.7, 0.8, 0.9, 1.0, 1.0])  # the fourth is background, the fifth too small
    found = choose_objects(logits, iou, 8, torch.Generator().manual_seed(0))
    assert found.boxes.tolist() == [[20, 3, 27, 30], [2, 4, 9, 12]] and found.cells == 32
    for box, points in zip(found.boxes, found.points, strict=True):
        assert len(points) == INNER_POINTS
        assert bool(((points >= box[:2]) & (points <= box[2:])).all())
    assert found.pixel_boxes(64)[1].tolist() == [4, 8, 19, 25]  # outer edges: 2 * 2, 4 * 2, (9 + 1) * 2 - 1, 13 * 2 - 1
    assert torch.equal(found.pixel_points(64), found.points * 2 + 0.5)
    assert len(choose_objects(logits, iou, 1, torch.Generator().manual_seed(0))) == 1


def test_without_a_usable_mask_the_middle_stands_in() -> None:
    found = choose_objects(squares(16, (0, 0, 15, 15)), torch.ones(1), 4, torch.Generator().manual_seed(0))
    assert found.boxes.tolist() == [[4, 4, 11, 11]] and found.points.shape == (1, INNER_POINTS, 2)


@pytest.mark.parametrize("by_box", [True, False])
def test_first_prompts_lie_on_their_objects(by_box: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    objects = [
        choose_objects(squares(32, (2, 4, 9, 11)), torch.ones(1), 8, draw),
        choose_objects(squares(32, (1, 1, 6, 6), (20, 3, 27, 30)), torch.ones(2), 8, draw),
    ]
    prompts = first_prompts(objects, side=64, count=3, by_box=by_box, generator=draw)
    assert prompts.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    if by_box:
        assert prompts.points is None and prompts.boxes is not None
        assert prompts.boxes[:3].tolist() == [[4, 8, 19, 23]] * 3
        assert sorted(map(tuple, prompts.boxes[3:5].tolist())) == [(2, 2, 13, 13), (40, 6, 55, 61)]
    else:
        assert prompts.boxes is None and prompts.points is not None and prompts.labels is not None
        assert prompts.points.shape == (6, 1, 2) and prompts.labels.eq(1).all()
        assert bool((prompts.points[:3, 0] >= torch.tensor([4.0, 8.0])).all())
        assert bool((prompts.points[:3, 0] <= torch.tensor([19.0, 23.0])).all())
    assert box_prompts(objects, side=64, most=1).image_index.tolist() == [0, 1]


def test_clicks_lie_where_the_masks_differ_with_the_teachers_label() -> None:
    teacher = squares(32, (4, 4, 11, 11), (4, 4, 11, 11), (4, 4, 11, 11))
    student = squares(32, (4, 4, 7, 11), (4, 4, 19, 11), (4, 4, 11, 11))  # too little, too much, equal
    for seed in range(20):
        points, labels = random_error_clicks(student, teacher, 64, torch.Generator().manual_seed(seed))
        assert points.shape == (3, 1, 2) and labels.flatten().tolist() == [1, 0, 1]
        cells = ((points[:, 0] + 0.5) / 2).floor()
        assert 8 <= cells[0, 0] <= 11 and 12 <= cells[1, 0] <= 19
        assert bool(((cells >= 4) & (cells <= 11))[[0, 2]].all())
    twice = with_click(with_click(_box(), points[:1], labels[:1]), points[:1], labels[:1])
    assert twice.points is not None and twice.points.shape == (1, 2, 2)


def _box() -> Prompts:
    objects = [choose_objects(squares(32, (2, 4, 9, 11)), torch.ones(1), 8, torch.Generator().manual_seed(0))]
    return box_prompts(objects, side=64, most=1)


def test_scaling_moves_edges_of_boxes_and_centres_of_points() -> None:
    prompts = with_click(_box(), torch.tensor([[[3.0, 7.0]]]), torch.tensor([[1]]))
    half = scale_prompts(prompts, 0.5)
    assert half.boxes is not None and half.boxes.tolist() == [[2, 4, 9, 11]]
    assert half.points is not None and half.points.tolist() == [[[1.25, 3.25]]]
    assert scale_prompts(prompts, 1.0) is prompts


def test_iou_and_filled_boxes() -> None:
    masks = squares(8, (0, 0, 3, 3), (0, 0, 3, 7)) > 0
    assert mask_iou(masks[:1], masks[1:]).tolist() == [0.5]
    assert torch.equal(fill_boxes(torch.tensor([[0.0, 0, 15, 15]]), 8, 32)[0], masks[0])
    with pytest.raises(RuntimeError, match="nothing was judged"):
        Judge().figures()


def test_mask_loss_is_least_where_the_teacher_is() -> None:
    wanted = squares(16, (2, 2, 9, 9))[None]
    near, same, far = (mask_loss(x, wanted, bce=0, dice=1) for x in (squares(16, (2, 2, 8, 9))[None], wanted, -wanted))
    assert same == 0 and 0.04 < near < 0.1 and far > 0.9
    for bce, dice in ((1, 0), (0, 1)):  # also for a teacher that is not sure, any step away costs
        doubt = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
        least = mask_loss(doubt, doubt, bce=bce, dice=dice)
        assert all(mask_loss(doubt * factor, doubt, bce=bce, dice=dice) > least for factor in (0.5, 0.9, 1.1, 3.0))


def write_mixture(root: Path) -> Path:
    """A wide picture, a volume with one blank slice, rasters, a damaged file and things that are no images."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 300, 3), dtype=np.uint8)).save(root / "wide.png")
    volume = np.where(disc(24, 20, 10, 10, 6), 200.0, 20.0)[..., None] * np.array([1.0, 0.0, 2.0])
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([1.0, 1.0, 4.0, 1.0])), root / "volume.nii.gz")
    write_rasters(root / "geo", cases=2)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("text")
    (root / ".hidden.png").write_bytes(b"")
    return root


def test_tiles_of_pictures_volumes_and_rasters(tmp_path: Path) -> None:
    files = find_images(write_mixture(tmp_path))
    assert [path.name for path in files if path.suffix != ".tif"] == ["broken.png", "volume.nii.gz", "wide.png"]
    config = DistillConfig(images=str(tmp_path), crops=0)
    tiles = read_tiles(files, 32, config, crops=0)
    counts = {name: tiles.files.count(name) for name in set(tiles.files)}
    assert counts["volume.nii.gz"] == 2  # the blank slice is no tile
    assert counts["wide.png"] == 5  # windows of 64 pixels over 300
    assert tiles.images.shape == (len(tiles), 3, 32, 32) and tiles.images.dtype == torch.uint8
    assert [line.split(":")[0] for line in tiles.skipped] == ["broken.png"]
    more = read_tiles(files, 32, config, crops=1)
    assert len(more) > 1.5 * len(tiles)
    assert torch.equal(more.images, read_tiles(files, 32, config, crops=1).images)
    assert len(tiles.some(3)) == 3
    with pytest.raises(InputError, match=r"no tile could be made from 1 files.*broken\.png"):
        read_tiles([tmp_path / "broken.png"], 32, config, crops=0)


def test_split_is_by_file_or_by_group_and_seeded() -> None:
    files = [Path(f"/d/P{i // 5}-{i}.png") for i in range(40)]
    config = DistillConfig(images="/d")
    train, held = split_files(files, config)
    assert len(held) == 4 and sorted((*train, *held)) == sorted(files)
    assert split_files(files[::-1], config) == (train, held)
    assert split_files(files, DistillConfig(images="/d", seed=1))[1] != held
    train, held = split_files(files, DistillConfig(images="/d", group_pattern=r"(P\d+)-"))
    assert len(held) == 5 and len({path.name[:2] for path in held}) == 1
    assert not {path.name[:2] for path in held} & {path.name[:2] for path in train}
    with pytest.raises(ConfigError, match="matches nothing"):
        split_files(files, DistillConfig(images="/d", group_pattern="(Q)"))


def test_spread() -> None:
    assert spread(3, 5) == [0, 1, 2] and spread(10, 5) == [1, 3, 5, 7, 9]
