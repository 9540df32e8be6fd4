"""Data modules: splits, geometry, label values, sampling, augmentation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from samgraft.errors import ConfigError, InputError, ShapeError
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig, DataConfig
from samgraft.recipes.data.cases import CaseArrays, CaseRef, choose_cases
from samgraft.recipes.data.fit import Fit, blend_weight, round_up, window_starts, windows
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.data.module import BalancedSampler, SegmentationData
from samgraft.recipes.losses import IGNORE
from tests.recipes._sets import write_pictures, write_rasters, write_volumes


def test_volumes_are_cut_along_the_coarsest_axis(tmp_path: Path) -> None:
    config = DataConfig(path=str(write_volumes(tmp_path / "v")), size=64, neighbours=True)
    index = index_data(config, "semantic")
    assert [r.id for r in index.train] == ["case_00", "case_01", "case_02"]
    assert index.classes == {1: "left", 2: "right"}
    assert index.modality == "MR" and index.intensity == {"kind": "percentile", "low": 0.5, "high": 99.5}
    case = index.val[0].load()
    assert case.image.shape == (6, 1, 36, 40) and case.axis == 0
    assert case.grid.shape == (6, 36, 40)
    assert case.foreground().tolist() == [False, True, True, True, True, False]
    assert sorted(np.unique(case.labels)) == [0, 1, 2]
    assert case.labels[2, 14, 18] == 1  # file index (i, j, k) = (18, 14, 2)
    around = case.picture(0)
    np.testing.assert_array_equal(around[0], around[1])
    np.testing.assert_array_equal(around[2], case.image[1, 0])
    np.testing.assert_array_equal(case.on_grid(case.labels), case.labels)


def test_slice_axis_and_ct_window(tmp_path: Path) -> None:
    root = str(write_volumes(tmp_path / "v", modality="CT"))
    index = index_data(DataConfig(path=root, slice_axis=2), "semantic")
    assert index.intensity is not None and index.intensity["lower"] == -160.0
    case = index.val[0].load()
    assert case.image.shape == (40, 1, 6, 36)
    np.testing.assert_array_equal(case.on_grid(case.labels).shape, case.grid.shape)
    fixed = index_data(DataConfig(path=root, intensity=(-1000.0, 1000.0)), "semantic").val[0].load()
    background = fixed.image[fixed.labels[:, None] == 0]
    assert 0 < background.mean() < 30  # -900 HU of [-1000, 1000] is 5 %


def test_pictures_keep_patients_together_and_translate_255(tmp_path: Path) -> None:
    config = DataConfig(layout="image_mask", path=str(write_pictures(tmp_path / "p")))
    index = index_data(config, "semantic", ["ventricle"])
    assert [r.id for r in index.val] == ["P2-004", "P2-005"]
    assert index.classes == {1: "ventricle"}
    case = index.val[0].load()
    assert case.group == "P2" and case.image.shape == (1, 3, 60, 70)
    assert sorted(np.unique(case.labels)) == [0, 1]


def test_instances_from_masks_and_numbers(tmp_path: Path) -> None:
    numbered = DataConfig(layout="image_mask", path=str(write_pictures(tmp_path / "i", instances=True)))
    assert sorted(np.unique(index_data(numbered, "instance").val[0].load().labels)) == [0, 1, 2]
    masks = DataConfig(layout="image_mask", path=str(write_pictures(tmp_path / "m")))
    assert sorted(np.unique(index_data(masks, "instance").val[0].load().labels)) == [0, 1, 2]
    assert sorted(np.unique(index_data(numbered, "semantic").val[0].load().labels)) == [0, 1]


def test_rasters_split_by_place_and_ignore_nodata(tmp_path: Path) -> None:
    root = str(write_rasters(tmp_path / "r"))
    index = index_data(DataConfig(layout="raster_vector", path=root), "instance")
    assert [r.id for r in index.val] == ["tile-2"]  # the east
    case = index.val[0].load()
    assert (case.labels[0, :6, :6] == IGNORE).all()
    assert sorted(np.unique(case.labels)) == [-1, 0, 1, 2, 3]
    number = case.labels[0, 60, 30]
    assert number > 0 and (case.labels[0, 50:70, 20:44] == number).all() and (case.labels == number).sum() == 20 * 24
    by_name = DataConfig(layout="raster_vector", path=root, split_pattern=r"tile-(\d+)", split_last_train=0)
    assert [r.id for r in index_data(by_name, "instance").val] == ["tile-1", "tile-2"]
    with pytest.raises(ConfigError, match="split_last_train"):
        index_data(DataConfig(layout="raster_vector", path=root, split_pattern="x"), "instance")


def test_subsets_are_nested_and_repeatable() -> None:
    refs = [CaseRef(id=str(i), read=lambda: None) for i in range(10)]  # type: ignore[arg-type, return-value]
    five = {r.id for r in choose_cases(refs, 5, 3)}
    assert five == {r.id for r in choose_cases(refs[::-1], 5, 3)}
    assert five < {r.id for r in choose_cases(refs, 7, 3)}
    with pytest.raises(InputError, match="11 training cases asked; there are 10"):
        choose_cases(refs, 11, 0)


@pytest.mark.parametrize("source", [(60, 70), (70, 60), (30, 200), (64, 64), (63, 41)])
def test_fit_and_back_return_a_smooth_image(source: tuple[int, int]) -> None:
    fit = Fit(source=source, size=64)
    y, x = torch.meshgrid(torch.arange(source[0]) / source[0], torch.arange(source[1]) / source[1], indexing="ij")
    ramp = (0.3 * y + 0.5 * x)[None]
    back = fit.back(fit.image(ramp)[None])[0]
    border = 4
    inner = (slice(None), slice(border, -border), slice(border, -border))
    assert (back - ramp)[inner].abs().max() < 0.02
    labels = torch.zeros(source, dtype=torch.int32)
    labels[source[0] // 3 :, source[1] // 3 :] = 300
    fitted = fit.labels(labels)
    assert set(fitted.unique().tolist()) <= {IGNORE, 0, 300}
    share = (fitted == IGNORE).float().mean().item()
    assert share == pytest.approx(1 - min(source) / max(source), abs=0.03)
    with pytest.raises(ShapeError, match="this fit is for"):
        fit.image(torch.zeros(3, 5, 5))


def test_windows_cover_everything_and_stay_inside() -> None:
    assert window_starts(100, 40, 0.25) == [0, 30, 60]
    assert window_starts(30, 40, 0.25) == [0]
    seen = torch.zeros(95, 130)
    for rows, cols in windows((95, 130), 48, 0.25):
        assert rows.stop <= 95 and cols.stop <= 130 and rows.start >= 0
        seen[rows, cols] += blend_weight(48, 48)
    assert seen.min() > 0
    assert round_up(100, 16) == 112 and round_up(96, 16) == 96


def test_sampler_holds_its_share_and_repeats() -> None:
    flags = [True] * 3 + [False] * 27
    sampler = BalancedSampler(flags, share=0.5, length=60, seed=4)
    sampler.set_epoch(2)
    drawn = list(sampler)
    assert sum(flags[i] for i in drawn) == 30
    assert sorted(set(drawn)) == list(range(30))
    assert drawn == list(sampler)
    sampler.set_epoch(3)
    assert drawn != list(sampler)
    assert list(BalancedSampler([True], share=0.5, length=3, seed=0)) == [0, 0, 0]
    assert list(BalancedSampler([False], share=0.5, length=3, seed=0)) == [0, 0, 0]


def test_module_gives_bytes_and_cases(tmp_path: Path) -> None:
    config = DataConfig(path=str(write_volumes(tmp_path / "v")), size=64, batch_size=5, cases=2)
    data = SegmentationData(config, kind="semantic", steps=3)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    image, label = batches[0]
    assert image.shape == (5, 3, 64, 64) and image.dtype == torch.uint8
    assert label.shape == (5, 64, 64) and label.min() == IGNORE and label.max() == 2
    cases = list(data.val_dataloader())
    assert isinstance(cases[0], CaseArrays) and cases[0].id == "case_03"
    assert data.describe()["train_cases"] == 2


def test_case_arrays_check_their_shapes(tmp_path: Path) -> None:
    case = index_data(DataConfig(path=str(write_volumes(tmp_path / "v"))), "semantic").val[0].load()
    with pytest.raises(ShapeError, match="one label per pixel"):
        CaseArrays(id="x", image=case.image, labels=case.labels[:, :5], grid=case.grid)
    with pytest.raises(InputError, match="imagesTr|labelsTr"):
        index_data(DataConfig(path=str(tmp_path)), "semantic")
    with pytest.raises(ConfigError, match="data.path is empty"):
        index_data(DataConfig(), "semantic")


NOTHING = AugmentConfig(
    rotate=0, scale=0, shift=0, elastic=0, gamma=0, contrast=0, brightness=0, colour=0, noise=0, blur=0, probability=1
)


def test_augment_without_strength_changes_nothing() -> None:
    image, label = torch.rand(2, 3, 32, 40), torch.randint(0, 3, (2, 32, 40))
    for config in (NOTHING, AugmentConfig(enabled=False)):
        moved, picked = augment(image, label, torch.Generator(), config)
        torch.testing.assert_close(moved, image)
        assert torch.equal(picked, label)


def test_augment_moves_image_and_label_together() -> None:
    label = torch.zeros(8, 64, 64, dtype=torch.int32)
    label[:, 20:44, 12:40] = 70000  # instance numbers survive
    image = (label > 0).float()[:, None].repeat(1, 3, 1, 1)
    config = AugmentConfig(
        rotate=30,
        scale=0.3,
        shift=0.1,
        elastic=0.03,
        flip_x=True,
        quarter_turns=True,
        gamma=0,
        contrast=0,
        brightness=0,
        colour=0,
        noise=0,
        blur=0,
        probability=1,
    )
    moved, picked = augment(image, label, torch.Generator().manual_seed(1), config)
    assert set(picked.unique().tolist()) == {IGNORE, 0, 70000} and picked.dtype == torch.int32
    agree = ((moved[:, 0] > 0.5) == (picked > 0))[picked != IGNORE]
    assert agree.float().mean() > 0.985
    assert (picked != label).float().mean() > 0.1
    again = augment(image, label, torch.Generator().manual_seed(1), config)
    assert torch.equal(again[0], moved) and torch.equal(again[1], picked)


def test_rotation_keeps_angles_on_a_wide_image() -> None:
    """A disc stays a disc: its area and its width-to-height ratio survive on a 32 x 96 picture."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(96.0), indexing="ij")
    label = ((y - 15.5) ** 2 + (x - 47.5) ** 2 < 100).long()[None].repeat(4, 1, 1)
    config = AugmentConfig(**{**NOTHING.__dict__, "rotate": 90.0})
    _, picked = augment(torch.zeros(4, 3, 32, 96), label, torch.Generator().manual_seed(0), config)
    for one in picked:
        rows, cols = torch.where(one == 1)
        assert abs(len(rows) - int(label[0].sum())) < 25
        assert abs((rows.max() - rows.min()) - (cols.max() - cols.min())) <= 2


def test_intensity_changes_stay_in_range_and_keep_labels() -> None:
    config = AugmentConfig(rotate=0, scale=0, shift=0, noise=0.3, colour=0.3, brightness=0.5, probability=1)
    image, label = torch.rand(4, 3, 24, 24), torch.randint(0, 4, (4, 24, 24))
    moved, picked = augment(image, label, torch.Generator().manual_seed(0), config)
    assert torch.equal(picked, label)
    assert moved.min() >= 0 and moved.max() <= 1 and math.isfinite(moved.sum())
    assert (moved - image).abs().mean() > 0.02
    with pytest.raises(ShapeError, match=r"expected \(B, C, H, W\)"):
        augment(image, label[0], torch.Generator(), config)
    with pytest.raises(ConfigError, match="augment.noise is -1"):
        AugmentConfig(noise=-1)
