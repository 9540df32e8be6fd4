"""Data sets with torchgeo's samples, by a stand-in that keeps to the same protocol (torchgeo needs torchvision)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio.crs import CRS

from samgraft.adapters.bundle import read_meta
from samgraft.errors import ConfigError, InputError, MissingDependencyError
from samgraft.recipes.config import DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone

pytestmark = pytest.mark.remote_sensing
HERE = "tests.recipes.test_samples"


class ByNumber:
    """Like NonGeoDataset: samples by number; masks of classes, of objects, or boxes."""

    classes = ("background", "field", "water")

    def __init__(self, form: str = "mask", count: int = 10, high: float = 255.0) -> None:
        self.form, self.count, self.high = form, count, high

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.zeros(40, 50, dtype=torch.long)
        mask[5:15, 10:30], mask[20:30, 5 : 20 + index], mask[0, 0] = 1, 2, 255
        image = torch.stack([torch.where((mask > 0) & (mask < 9), self.high, 10.0)] * 3 + [mask.float()])
        sample: dict[str, Any] = {"image": image}
        objects = torch.stack([mask == 1, mask == 2])
        if self.form == "mask":
            sample["mask"] = mask
        elif self.form == "objects":
            sample |= {"mask": objects.to(torch.uint8), "label": torch.tensor([1, 2])}
        elif self.form == "boxes":
            boxes = torch.tensor([[10.0, 5.0, 30.0, 15.0], [5.0, 20.0, 20.0 + index, 30.0]])
            sample |= {"bbox_xyxy": boxes, "label": torch.tensor([1, 2])}
        return sample


class ByPlace(ByNumber):
    """Like RasterDataset: asked by slices x, y, t, which it gives back as bounds."""

    bounds = (slice(0, 1), slice(0, 1), slice(0, 1))

    def __getitem__(self, query: Any) -> dict[str, Any]:  # type: ignore[override]
        x, y, _ = query
        return super().__getitem__(0) | {"crs": CRS.from_epsg(32645), "bounds": (x, y, slice(0, 1))}


class Places:
    """Like GridGeoSampler."""

    def __init__(self, dataset: ByPlace, size: float) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for number in range(6):
            x, y = 300_000 + self.size * number, 3_000_000
            yield slice(x, x + 50 * 2.0, 2.0), slice(y, y + 40 * 2.0, 2.0), slice(0, 1)


def named(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"{HERE}.{name}", "init_args": options}


def config(dataset: dict[str, Any], **options: Any) -> DataConfig:
    return DataConfig(layout="samples", dataset=dataset, size=64, batch_size=2, **options)


@pytest.mark.parametrize("form", ["mask", "objects", "boxes"])
def test_three_forms_give_the_same_classes(form: str) -> None:
    index = index_data(config(named("ByNumber", form=form)), "semantic", ["field", "water"])
    assert [len(index.train), len(index.val)] == [8, 2] and index.classes == {1: "field", 2: "water"}
    case = index.train[3].load()
    assert case.image.shape == (1, 3, 40, 50) and case.image.max() == 255 and case.image.min() == 10
    assert (case.labels[0, 5:15, 10:30] == 1).all() and (case.labels[0, 20:30, 5:23] == 2).all()
    assert (case.labels == 1).sum() == 200 and (case.labels == 2).sum() == 180
    assert case.labels[0, 0, 0] == (-1 if form == "mask" else 0)
    assert index.intensity == {"kind": "range", "lower": 0.0, "upper": 255.0, "note": "fixed for all samples"}


@pytest.mark.parametrize("form", ["mask", "objects", "boxes"])
def test_objects_are_told_apart(form: str) -> None:
    case = index_data(config(named("ByNumber", form=form)), "instance").train[0].load()
    one, two = case.labels[0, 6, 11], case.labels[0, 21, 6]
    assert one > 0 and two > 0 and one != two and (case.labels == two).sum() == 150


def test_names_and_scale_come_from_the_data_set() -> None:
    index = index_data(config(named("ByNumber", high=3000.0)), "semantic")
    assert index.classes == {1: "field", 2: "water"}
    assert index.intensity is not None and (index.intensity["lower"], index.intensity["upper"]) == (10.0, 3000.0)
    fixed = index_data(config(named("ByNumber", high=3000.0), intensity=(0.0, 6000.0)), "semantic")
    assert fixed.train[0].load().image.max() == 128


def test_data_set_asked_by_place_has_a_grid() -> None:
    with pytest.raises(ConfigError, match="ByPlace is asked by place; name its places: data.sampler"):
        index_data(config(named("ByPlace")), "semantic")
    index = index_data(config(named("ByPlace"), sampler=named("Places", size=100.0)), "semantic")
    assert index.gsd == pytest.approx((2.0, 2.0), rel=1e-3)
    grid = index.train[2].load().grid
    assert np.allclose(grid.affine[:2], [[0, 2.0, 300_200.0], [-2.0, 0, 3_000_080.0]]) and "32645" in grid.world


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ({}, ConfigError, "data.dataset is empty"),
        ({"class_path": "ByNumber"}, ConfigError, "expected class_path such as"),
        ({"class_path": f"{HERE}.Nobody"}, ConfigError, "has no Nobody"),
        ({"class_path": "torchgeo_that_is_not_there.X"}, MissingDependencyError, r"pip install 'samgraft\[torchgeo\]'"),
        (named("ByNumber", wrong=1), ConfigError, "cannot be made"),
        (named("ByNumber", form="none"), InputError, "expected mask or bbox_xyxy"),
    ],
)
def test_what_cannot_be_used_is_named(dataset: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        index_data(config(dataset), "semantic", ["a"]).train[0].load()


def test_it_trains(tmp_path: Path) -> None:
    run = FitConfig(
        task=TaskConfig(grafts={"lora": {"rank": 2}}),
        data=replace(config(named("ByPlace"), sampler=named("Places", size=100.0)), modality="satellite"),
        train=TrainConfig(steps=2, val_every=2, accelerator="cpu", progress=False, cache=False),
    )
    meta = read_meta(fit(run, tmp_path / "run", backbone=toy_backbone(), report=False).adapter)
    assert meta.classes == {1: "field", 2: "water"} and meta.extra["input"]["gsd"] == pytest.approx([2, 2], rel=1e-3)
