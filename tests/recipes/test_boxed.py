"""How well a frozen decoder draws true objects from their boxes: by hand, in a header, and what comes of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.bundle import BundleMeta, read_header, read_meta, replace_meta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.adapters.prompts.base import Prompts
from samgraft.recipes.boxed import MOST_OBJECTS, ask_boxes, largest_objects, remember_boxes
from samgraft.recipes.config import DataConfig, FitConfig, TrainConfig
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.starting import settle_weak
from samgraft.recipes.weak_config import WeakConfig
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_volumes
from tests.recipes.adaptation._sets import train_source, write_discs
from tests.recipes.test_tasks import small_config

CPU = torch.device("cpu")


def filling(height: int, width: int) -> Any:
    """A backbone that fills every box, at half the size of the image, and believes 0.7 of it."""

    def decode(features: Features, prompts: Prompts) -> tuple[Tensor, Tensor]:
        rows, cols = torch.meshgrid(torch.arange(height // 2) + 0.5, torch.arange(width // 2) + 0.5, indexing="ij")
        found = []
        for x0, y0, x1, y1 in prompts.boxes.tolist():  # type: ignore[union-attr]
            inside = (cols * 2 > x0) & (cols * 2 < x1 + 1) & (rows * 2 > y0) & (rows * 2 < y1 + 1)
            found.append(torch.where(inside, 8.0, -8.0))
        return torch.stack(found)[:, None], torch.full((len(found), 1), 0.7)

    return SimpleNamespace(decode=decode)


def test_objects_are_weighed_by_the_root_of_their_area() -> None:
    labels = torch.zeros(2, 24, 40, dtype=torch.int64)
    labels[0, 4:8, 20:36] = 1  # 64 pixels, as its box
    labels[1, 2:14, 6:18] = 2  # 144 pixels in its box ...
    labels[1, 2:8, 6:12] = 0  # ... of which 36 are missing: IoU 0.75
    labels[1, 20:22, 30:32] = 5  # too small to be asked
    features = [Features(neck=torch.zeros(1, 4, 3, 5)) for _ in range(2)]
    found, asked = ask_boxes(filling(24, 40), features, labels, apart=True, device=CPU)
    root = 108**0.5
    assert asked == 2 and found["predicted_iou"] == pytest.approx(0.7)
    assert found["box_iou"] == pytest.approx((8 * 1.0 + root * 0.75) / (8 + root), abs=1e-6)


def test_the_largest_objects_are_asked_about() -> None:
    labels = torch.zeros(2, 12, 12, dtype=torch.int64)
    labels[0, :4, :4], labels[0, 6:12, 6:12], labels[0, 0, 11] = 1, 1, 1
    labels[1, 2:6, 3:9] = 2
    index, masks = largest_objects(labels, apart=False)
    assert index.tolist() == [0, 0, 1] and masks.flatten(1).sum(1).tolist() == [36, 16, 24]
    whole = largest_objects(labels, apart=True)
    assert whole[1].flatten(1).sum(1).tolist() == [36 + 16 + 1, 24]
    assert len(largest_objects(labels * 0, apart=True)[0]) == 0


def test_classes_are_cut_into_their_connected_parts_and_unknown_is_no_object() -> None:
    labels = torch.full((1, 20, 30), -1, dtype=torch.int64)
    labels[0, :, 15:] = 0
    labels[0, 2:6, 18:24] = labels[0, 10:14, 18:24] = 1
    labels[0, 2:6, 24:28] = 2
    index, masks = largest_objects(labels, apart=False)
    assert index.tolist() == [0, 0, 0] and masks.flatten(1).sum(1).tolist() == [24, 24, 16]
    assert largest_objects(labels, apart=True)[1].flatten(1).sum(1).tolist() == [48, 16]
    many = torch.arange(1, 13)[None].repeat_interleave(5, dim=1).reshape(1, 3, 20).repeat_interleave(4, dim=1)
    assert len(largest_objects(many, apart=True)[0]) == MOST_OBJECTS
    assert len(largest_objects(labels.clamp_max(0), apart=False)[0]) == 0


def adapter(folder: Path, **training: float) -> Path:
    grafted = attach(toy_backbone(), [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=1))
    return save_bundle(folder / "a.graft", grafted, meta=BundleMeta(classes={1: "a"}, training=dict(training)))


def test_the_frozen_backbone_is_asked_and_the_graft_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grafted = attach(toy_backbone(), [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=1))
    images, labels = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8), torch.zeros(3, 64, 64).int()
    labels[:, 10:30, 8:20], labels[:, 40:50, 30:60] = 1, 2
    file = adapter(tmp_path, steps=3)
    remember_boxes(file, grafted, images, labels, apart=True)
    known = read_meta(file).training
    with torch.no_grad():
        for tensor in grafted.grafts.parameters():
            tensor.normal_()
    remember_boxes(file, grafted, images, labels, apart=True)  # whatever the graft says
    assert read_meta(file).training == known and known["steps"] == 3 and 0 <= known["box_iou"] <= 1 and grafted.attached
    other = adapter(tmp_path)
    remember_boxes(other, grafted, images[:2], labels[:2], apart=True)  # four objects say nothing
    assert "box_iou" not in read_meta(other).training


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_a_fit_remembers_it(tmp_path: Path, kind: str) -> None:
    root = write_discs(tmp_path / "d", cases=12)
    if kind == "instance":
        (root / "masks").rename(root / "instances")
    path = train_source(root, tmp_path / "run", toy_backbone(), steps=2, kind=kind)
    assert 0 <= read_meta(path).training["box_iou"] <= 1 and "features" in read_meta(path).extra


@pytest.mark.parametrize(("known", "changed"), [(0.2, True), (0.5, False), (None, False)])
def test_weak_labels_do_without_prompts_where_the_structure_is_not_drawn(
    tmp_path: Path, known: float | None, changed: bool
) -> None:
    file = adapter(tmp_path, **({} if known is None else {"box_iou": known}))
    before = read_header(file)
    config = FitConfig(data=DataConfig(path="d", supervision="boxes"), train=TrainConfig(start_from=str(file)))
    said: list[str] = []
    found = settle_weak(config, said.append)
    assert (found != config) == changed == bool(said) and read_header(file) == before
    if changed:
        assert found == replace(config, weak=WeakConfig(prompts=False, first_round=0.0))
        assert "IoU of 0.20" in said[0] and "least_box_iou 0.5" in said[0]
        assert settle_weak(replace(config, weak=WeakConfig(least_box_iou=0.1))).weak.prompts
    for other in (
        replace(config, data=DataConfig(path="d")),
        replace(config, train=TrainConfig()),
        replace(config, weak=WeakConfig(prompts=False)),
    ):
        assert settle_weak(other, said.append) is other
    replace_meta(file, BundleMeta())
    assert settle_weak(config) is config


@pytest.mark.parametrize("slab", [None, 3])
def test_samples_show_something_and_slabs_come_slice_by_slice(tmp_path: Path, slab: int | None) -> None:
    config = small_config(write_volumes(tmp_path / "v"), slab=slab)
    data = SegmentationData(config.data, kind="semantic", size=64)
    images, labels = data.samples(4)
    assert images.shape == (4 * (slab or 1), 3, 64, 64) and labels.shape == (4 * (slab or 1), 64, 64)
    assert images.dtype == torch.uint8 and set(labels.unique().tolist()) == {-1, 0, 1, 2}
    if slab is None:
        assert bool((labels > 0).flatten(1).any(dim=1).all())
