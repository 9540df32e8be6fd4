"""Slabs of slices: where they lie, that blending puts slices back exactly, and a run from data to masks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samgraft.adapters.bundle import read_meta
from samgraft.errors import ConfigError
from samgraft.grid import Grid
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.cases import CaseArrays, CaseRef
from samgraft.recipes.data.fit import windows
from samgraft.recipes.data.slabs import Slabs, SlabSet, flat_slabs, slab_maps, slab_squares
from samgraft.recipes.engine.propagated import VolumeOptions
from samgraft.recipes.engine.run import load_adapter, segment
from samgraft.recipes.inference import predict_semantic
from samgraft.recipes.losses import IGNORE, SegmentationLoss
from samgraft.recipes.plan.network import sam_config, trace_step
from samgraft.recipes.training import fit, load_adapted, require_slab
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_volumes


def case(depth: int, height: int = 12, width: int = 12, seed: int = 0) -> CaseArrays:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (depth, 1, height, width)).astype(np.uint8)
    labels = np.zeros((depth, height, width), dtype=np.int8)
    labels[depth // 2, 3:6, 2:9] = 1
    grid = Grid(shape=(depth, height, width), affine=np.diag([3.0, 1.0, 1.0, 1.0]), world="LPS")
    return CaseArrays(id="a", image=image, labels=labels, grid=grid, axis=0)


@pytest.mark.parametrize(
    ("count", "slab", "overlap", "starts", "first", "inside"),
    [
        (10, 4, 0.5, [0, 2, 4, 6], [0, 1, 2, 3], slice(0, 4)),
        (9, 4, 0.0, [0, 2, 5], [0, 1, 2, 3], slice(0, 4)),  # covers, evenly
        (4, 4, 0.5, [0], [0, 1, 2, 3], slice(0, 4)),
        (3, 6, 0.5, [-1], [0, 0, 1, 2, 2, 2], slice(1, 4)),  # shorter: the outermost slices repeat
        (1, 4, 0.5, [-1], [0, 0, 0, 0], slice(1, 2)),
    ],
)
def test_slabs_cover_a_volume(
    count: int, slab: int, overlap: float, starts: list[int], first: list[int], inside: slice
) -> None:
    cut = Slabs(count=count, slab=slab, overlap=overlap)
    assert cut.starts == starts
    assert cut.slices(starts[0]) == first and cut.inside(starts[0]) == inside
    covered = {z for start in starts for z in range(start + cut.inside(start).start, start + cut.inside(start).stop)}
    assert covered == set(range(count))


@pytest.mark.parametrize("slab", [1, 3, 4, 20])
@pytest.mark.parametrize("window", [None, 8])
def test_blending_puts_every_slice_back(slab: int, window: int | None) -> None:
    """A network that answers with its own input gives the pictures back, whatever overlaps."""
    arrays = case(7)
    cut, places = Slabs(count=7, slab=slab), windows(arrays.plane, window, 0.25)
    size = window or 12
    source = slab_squares(map(arrays.picture, range(7)), cut, places, size=size)
    answers = (square[0, :2].transpose(0, 1) for square in source)  # (D, 2, s, s)
    found = torch.stack(list(slab_maps(answers, arrays.plane, cut, places, size=size, maps=lambda x: x)))
    expected = torch.from_numpy(arrays.image).float() / 255
    torch.testing.assert_close(found, expected.expand(-1, 2, -1, -1))


def test_slabs_count_most_in_their_middle() -> None:
    """Slabs of 4 at 0 and 2; each answers with its number. Weights along a slab: 0.25, 0.75, 0.75, 0.25."""
    cut = Slabs(count=6, slab=4)
    answers = iter([torch.full((4, 1, 2, 2), 0.0), torch.full((4, 1, 2, 2), 1.0)])
    place = [(slice(0, 2), slice(0, 2))]
    found = [float(m[0, 0, 0]) for m in slab_maps(answers, (2, 2), cut, place, size=2, maps=lambda x: x)]
    assert found == pytest.approx([0, 0, 0.25, 0.75, 1, 1])


def test_only_what_a_slab_needs_is_read_and_held() -> None:
    read: list[int] = []

    def pictures() -> Iterator[Any]:
        for z in range(10):
            read.append(z)
            yield np.zeros((3, 4, 4), dtype=np.uint8)

    squares = slab_squares(pictures(), Slabs(count=10, slab=4), [(slice(0, 4), slice(0, 4))], size=4)
    assert next(squares).shape == (1, 3, 4, 4, 4) and read == [0, 1, 2, 3]
    next(squares)
    assert read == [0, 1, 2, 3, 4, 5]


def test_training_slabs_hold_consecutive_slices() -> None:
    arrays = case(6)
    slabs = SlabSet([CaseRef(id="a", read=lambda: arrays)], slab=4, size=12, window=None, overlap=0.0)
    assert len(slabs) == 3 and slabs.foreground == [True, True, True]
    image, label = slabs[1]
    assert image.shape == (3, 4, 12, 12) and image.dtype == torch.uint8
    assert torch.equal(image[0], torch.from_numpy(arrays.image[1:5, 0])) and torch.equal(image[0], image[2])
    assert torch.equal(label, torch.from_numpy(arrays.labels[1:5].astype(np.int32)))
    short = SlabSet([CaseRef(id="a", read=lambda: case(2))], slab=5, size=12, window=None, overlap=0.0)
    image, label = short[0]
    assert len(short) == 1 and torch.equal(image[:, 0], image[:, 1])
    assert (label[[0, 3, 4]] == IGNORE).all() and (label[1:3] >= 0).all()


def test_neighbours_are_channels_of_slabs_too() -> None:
    arrays = case(5)
    object.__setattr__(arrays, "neighbours", True)
    slabs = SlabSet([CaseRef(id="a", read=lambda: arrays)], slab=3, size=12, window=None, overlap=0.0)
    image, _ = slabs[1]
    assert torch.equal(image[0, 1], torch.from_numpy(arrays.image[1, 0]))  # before slice 2
    assert torch.equal(image[2, 1], torch.from_numpy(arrays.image[3, 0]))


def test_slabs_become_slices_in_order() -> None:
    image, label = torch.arange(24.0).reshape(2, 1, 3, 2, 2), torch.arange(24).reshape(2, 3, 2, 2)
    flat, labels, depth = flat_slabs(image, label)
    assert depth == 3 and torch.equal(flat[4, 0], image[1, 0, 1]) and labels is not None
    assert torch.equal(labels[4], label[1, 1])
    assert flat_slabs(image[:, :, 0], None)[2] == 1


def test_augmentation_moves_all_slices_of_a_slab_alike() -> None:
    """A slab of equal slices stays one; without random intensity it is what a picture becomes with the same draws."""
    config = AugmentConfig(flip_x=True, quarter_turns=True, elastic=0.05, noise=0, blur=0, gamma=0, contrast=0)
    config = AugmentConfig(**{**vars(config), "brightness": 0.0})
    picture, label = torch.rand(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    image, labels = augment(
        picture[:, :, None].expand(-1, -1, 4, -1, -1),
        label[:, None].expand(-1, 4, -1, -1),
        torch.Generator().manual_seed(2),
        config,
    )
    one, own = augment(picture, label, torch.Generator().manual_seed(2), config)
    for z in range(4):
        torch.testing.assert_close(image[:, :, z], one)
        assert torch.equal(labels[:, z], own)


def test_loss_of_a_volume_is_that_of_its_slices_together() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(-1, 3, (2, 4, 5, 6))
    whole = SegmentationLoss()(logits, labels)
    flat = SegmentationLoss()(logits.transpose(1, 2).flatten(0, 1), labels.flatten(0, 1))
    torch.testing.assert_close(whole, flat)


def settings(data: Path, **task: Any) -> FitConfig:
    return FitConfig(
        task=TaskConfig(**{"grafts": {"ma_sam": {"hidden": 8, "rank": 4}}, "lr": 1e-3, **task}),
        data=DataConfig(path=str(data), modality="MR", size=32, slab=4, batch_size=2),
        augment=AugmentConfig(),
        train=TrainConfig(steps=4, val_every=2, accelerator="cpu", progress=False, cache=False),
    )


@pytest.mark.medical
@pytest.mark.parametrize(
    "task",
    [
        {},
        {"grafts": {"adapter_3dsam": {"depth_patch": 2}}, "head": "mla_3d"},
        {"grafts": {}, "head": "detail_3d"},
        {"grafts": {"sd_trans": {"blocks": "last:1"}}, "head": "progressive"},
    ],
    ids=["ma_sam", "adapter_3dsam", "detail_3d", "sd_trans"],
)
def test_from_volumes_to_masks(task: dict[str, Any], tmp_path: Path) -> None:
    """Trained by name; the file knows its slabs; a scene is segmented as the validation case was, bit by bit."""
    data = write_volumes(tmp_path / "data")
    result = fit(settings(data, **task), tmp_path / "run", backbone=toy_backbone(), report=False)
    assert all(s.n == 1 and s.mean == s.mean for s in result.summaries)
    recipe = read_meta(result.adapter).extra["input"]
    assert recipe["slab"] == 4 and recipe["slab_overlap"] == 0.5
    network, module = load_adapted(settings(data), result.adapter, backbone=toy_backbone())
    network.eval()
    validated = module.val_refs[0].load()
    labels = predict_semantic(network, validated, size=32, slab=4)
    grafted = load_adapter(result.adapter, toy_backbone())
    found = segment(data / "imagesTr" / "case_03_0000.nii.gz", adapter=grafted, progress=False)
    assert np.array_equal(found.labels, validated.on_grid(labels))
    assert found.labels.shape == validated.grid.shape and np.array_equal(found.grid.affine, validated.grid.affine)
    alone = segment(data / "imagesTr" / "case_03_0000.nii.gz", adapter=grafted, progress=False, pipeline=0)
    assert np.array_equal(alone.labels, found.labels)
    as_volume = segment(
        data / "imagesTr" / "case_03_0000.nii.gz", adapter=grafted, volume=VolumeOptions(), progress=False
    )
    assert np.array_equal(as_volume.labels, found.labels), "options of volumes see slabs, too"


def test_a_graft_across_slices_asks_for_slabs() -> None:
    config = FitConfig(task=TaskConfig(grafts={"lora": {}, "sd_trans": {}}))
    with pytest.raises(ConfigError, match="graft 'sd_trans' looks across the slices of a volume; set data.slab"):
        require_slab(config)
    require_slab(FitConfig(task=config.task, data=DataConfig(slab=8)))
    require_slab(FitConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slab": 0}, "data.slab is 0; expected at least 1"),
        ({"slab": 4, "layout": "image_mask"}, "slabs are for volumes"),
        ({"slab_overlap": 1.0}, "data.slab_overlap is 1.0"),
    ],
)
def test_wrong_slabs_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize("task", [{}, {"grafts": {"adapter_3dsam": {"depth_patch": 2}}, "head": "mla_3d"}])
def test_a_plan_counts_the_slices_of_slabs(task: dict[str, Any], tmp_path: Path) -> None:
    shape, found = sam_config("graft-tiny"), []
    for slab in (4, 8):
        config = settings(tmp_path, **task)
        config = replace(config, data=replace(config.data, slab=slab, batch_size=1))
        found.append(trace_step(config, shape, num_classes=2).activations)
    assert found[1] == pytest.approx(2 * found[0], rel=0.1)
