"""Training from a mosaic: what is drawn, what is known, what never leaks, and that a killed run draws the same."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import samgraft
from samgraft.adapters.bundle import read_meta
from samgraft.domains.labels.source import UNKNOWN, ObjectLabels, window_of
from samgraft.domains.remote_sensing.georeference import transform_of
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.api import MosaicOptions, segment_mosaic
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.draws import ANYTHING, NOTHING, Draw
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.data.raster_windows import RasterWindows
from samgraft.recipes.split_map import shade
from samgraft.recipes.training import fit, load_adapted
from tests.adapters.toy import toy_backbone
from tests.data.rasters import write_raster
from tests.recipes import _mosaics as mosaics

pytestmark = pytest.mark.remote_sensing
GSD = 0.5


def config(root: Path, **options: Any) -> DataConfig:
    values = {"layout": "mosaic", "path": str(root), "window": 32, "size": 32, "batch_size": 4, "foreground": 0.75}
    return DataConfig(**{**values, **options})  # type: ignore[arg-type]


def trained_on(root: Path, kind: Any = "instance", **options: Any) -> RasterWindows:
    found = index_data(config(root, **options), kind).windows
    assert found is not None
    return found


@pytest.fixture(scope="module")
def roofs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("m") / "roofs"
    mosaics.buildings(root)
    return root


ROOFS: dict[str, Any] = {"rasters": ("west.tif", "east.tif"), "labels": "roofs.gpkg"}


def test_windows_show_what_the_files_hold(roofs: Path) -> None:
    windows = trained_on(roofs, **ROOFS, jitter=False)
    assert windows.source.scene.grid.shape == (320, 384)
    boxes = mosaics.boxes_on((320, 384))
    image = mosaics.painted((320, 384), boxes)
    truth = np.zeros((320, 384), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        truth[y0:y1, x0:x1] = True
    for number in (0, len(windows) // 2, len(windows) - 1):
        top, bottom, left, right = windows.windows[number].tolist()
        seen, label = windows[Draw(ANYTHING, number, (top, bottom, left, right))]
        assert np.array_equal(seen.numpy(), image[:, top:bottom, left:right])
        here = truth[top:bottom, left:right]
        known = label.numpy() != UNKNOWN
        assert np.array_equal((label.numpy() > 0)[known], here[known]) and known.mean() > 0.5
        assert windows.presence[number, 0] == here.any()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.sampled_from([32.0, 48.0, 64.0]), buffer=st.sampled_from([None, 20.0]))
def test_nothing_that_trains_comes_near_what_validates(roofs: Path, seed: int, block: float, buffer: float) -> None:
    windows = trained_on(roofs, **ROOFS, seed=seed, block_m=block, buffer_m=buffer, val_share=0.1)
    free = int(np.ceil((buffer or 16.0) / 0.5))
    near = np.zeros((320, 384), dtype=bool)
    parts = windows.blocks.val_parts()
    for top, bottom, left, right in parts.tolist():
        near[max(0, top - free) : bottom + free, max(0, left - free) : right + free] = True
    draws = windows.sampler(length=120, seed=seed, batch=4)
    draws.set_epoch(seed % 3)
    drawn = list(draws)
    assert not any(near[window_of(one.window)].any() for one in drawn)
    assert any(one.window != tuple(windows.windows[one.number]) for one in drawn)
    judged = windows.source.labels.touching(parts)
    assert judged is not None and np.array_equal(windows.hidden, judged)
    kinds = np.array([one.group for one in drawn])
    assert (kinds == NOTHING).sum() in (0, 30)


def test_object_on_both_sides_is_judged_and_not_learned(tmp_path: Path) -> None:
    """A long roof runs from a block that validates into the windows that train."""
    root = tmp_path / "long"
    mosaics.buildings(root)
    roof = [(4, 156, 380, 162), *mosaics.boxes_on((320, 384))]  # between two rows of roofs
    mosaics.frame(roof, GSD).to_file(root / "roofs.gpkg", driver="GPKG")
    for seed in range(30):
        windows = trained_on(root, **ROOFS, block_m=32.0, val_share=0.1, seed=seed)
        labels = windows.source.labels
        assert isinstance(labels, ObjectLabels) and windows.hidden is not None
        assert labels.geometries[0].area == pytest.approx(376 * 6)  # the largest comes first
        shown = [tuple(w) for w in windows.windows.tolist() if w[0] <= 156 and w[1] >= 162]
        if windows.hidden[0] and shown:
            break
    top, left = shown[0][0], max(0, 4 - shown[0][2])
    label = windows[Draw(ANYTHING, 0, shown[0])][1].numpy()
    assert (label[156 - top : 162 - top, left:] == UNKNOWN).all() and (label != UNKNOWN).any()
    assert windows.hidden[0]


def test_same_seed_same_split_and_other_processes(roofs: Path) -> None:
    one, two = (trained_on(roofs, **ROOFS, seed=7) for _ in range(2))
    assert np.array_equal(one.blocks.val, two.blocks.val) and np.array_equal(one.windows, two.windows)
    assert any(not np.array_equal(one.blocks.val, trained_on(roofs, **ROOFS, seed=s).blocks.val) for s in range(8, 12))
    sent = ForkingPickler.loads(ForkingPickler.dumps(one))  # as a worker process gets it
    draw = next(iter(one.sampler(length=4, seed=0, batch=4)))
    for a, b in zip(one[draw], sent[draw], strict=True):
        assert torch.equal(a, b)


def test_workers_read_the_same_batches(roofs: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = SegmentationData(config(roofs, **ROOFS, workers=workers), kind="instance", size=32, steps=3)
        loader = data.train_dataloader()
        batches.append([(image.clone(), label.clone()) for image, label in loader])
    assert len(batches[0]) == 3
    for (a, b), (c, d) in zip(*batches, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_outside_of_what_was_labelled_nothing_is_known(roofs: Path, tmp_path: Path) -> None:
    area = tmp_path / "done.geojson"
    mosaics.frame([(0, 0, 200, 320)], GSD).to_file(area, driver="GeoJSON")
    mask = np.zeros((1, 320, 384), dtype=np.uint8)
    mask[:, :, :200] = 1
    image = write_raster(tmp_path / "done.tif", mask, transform=mosaics.place(GSD), crs=mosaics.CRS)
    for path in (area, image):
        windows = trained_on(roofs, **ROOFS, labelled_area=str(path), jitter=False)
        assert (windows.windows[:, 2] < 200).all()
        edge = int(np.argmax(windows.windows[:, 2]))
        top, bottom, left, right = windows.windows[edge].tolist()
        assert left < 200 < right
        labels = windows.source.read(window_of((top, bottom, left, right)))[1]
        assert (labels[:, 200 - left :] == UNKNOWN).all() and (labels[:, : 200 - left] != UNKNOWN).any()
    inside = trained_on(roofs, **ROOFS, aoi=str(area))
    assert (inside.windows[:, 2] < 200).all()


def test_named_area_validates(roofs: Path, tmp_path: Path) -> None:
    east = tmp_path / "east.geojson"
    mosaics.frame([(250, 0, 384, 320)], GSD).to_file(east, driver="GeoJSON")
    index = index_data(config(roofs, **ROOFS, val_area=str(east), block_m=32.0, least_visible=0.0), "instance")
    assert index.windows is not None
    assert (
        index.windows.blocks.val.tolist() == [[False] * 3 + [True] * 3] * 5
    )  # blocks of 64 pixels; 250 lies in the 4th
    assert index.windows.windows[:, 3].max() <= 192 - 32
    case = index.val[0].load()
    assert case.plane == (64, 64) and case.image.shape == (1, 3, 64, 64) and case is not index.val[0].load()
    cut = next(ref.load() for ref in index.val if ref.id.endswith("-3"))
    assert (cut.labels[0, :, : 250 - 192] == UNKNOWN).all() and (cut.labels[0, :, 250 - 192 :] >= 0).all()


def test_rare_class_is_drawn_at_its_rate(roofs: Path) -> None:
    boxes = mosaics.boxes_on((320, 384))
    kinds = ["pool" if n in (3, 60, 61) else "roof" for n in range(len(boxes))]
    mosaics.frame(boxes, GSD, kind=kinds).to_file(roofs / "two.gpkg", driver="GPKG")
    options = {**ROOFS, "labels": "two.gpkg", "class_field": "kind", "rates": {"pool": 0.4}, "val_share": 0.05}
    windows = next(w for s in range(20) if (w := trained_on(roofs, "semantic", **options, seed=s)).presence[:, 0].any())
    drawn = list(windows.sampler(length=50, seed=0, batch=5))
    pools = [one for one in drawn if one.group == 0]
    assert len(pools) == 20
    for one in pools:
        assert 1 in windows[one][1]  # the moved window still shows one
    objects = index_data(config(roofs, **{**options, "rates": {}}), "instance", ["thing"])
    assert objects.classes == {1: "thing"}


def test_a_window_without_data_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "gap"
    mosaics.buildings(root)
    for name in ("west.tif", "east.tif"):
        with rasterio.open(root / name, "r+") as file:
            file.nodata = 0
            if name == "east.tif":
                file.write(np.zeros((3, 320, 192), dtype=np.uint8))
    windows = trained_on(root, **ROOFS, jitter=False)
    blank = int(np.argmax((windows.windows[:, 2] >= 192) & windows.presence.any(axis=1)))
    draw = Draw(ANYTHING, blank, tuple(windows.windows[blank].tolist()))
    image, label = windows[draw]
    assert (label != UNKNOWN).any() and image.max() > 0
    assert torch.equal(windows[draw][0], image)
    for name in ("west.tif", "east.tif"):
        with rasterio.open(root / name, "r+") as file:
            file.write(np.zeros((3, 320, 192), dtype=np.uint8))
    with pytest.raises(InputError, match="64 windows of west.tif have no pixel with data and a label"):
        windows[draw]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": None}, ConfigError, "data.window is not set"),
        ({"cases": 3}, ConfigError, "a mosaic has no cases"),
        ({"buffer_m": 10.0}, ConfigError, r"data.buffer_m is 10.0 m, which is 2\d pixels; a window has 32"),
        ({"labels": "nothing.gpkg"}, InputError, "does not exist"),
        ({"rasters": "nothing*.tif"}, InputError, "no raster there"),
        ({"block_m": 200.0}, ConfigError, "1 blocks of the raster can be used"),
        ({"bands": (0,), "band_names": ("red",)}, ConfigError, "both choose bands"),
        ({"band_names": ("swir1",)}, InputError, "has no band swir1"),
    ],
)
def test_what_cannot_work_is_named(roofs: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained_on(roofs, **{**ROOFS, **options})


def test_settings_are_checked() -> None:
    for wrong in ({"reading": {"bands": 1}}, {"rates": {"a": 0.7, "b": 0.4}}, {"val_blocks": 0}, {"block_m": 0.0}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}"):
            DataConfig(**wrong)  # type: ignore[arg-type]


def run_config(root: Path, steps: int = 6) -> FitConfig:
    return FitConfig(
        task=TaskConfig(kind="instance", grafts={"lora": {"rank": 2}}, class_names=("building",), min_area=2),
        data=config(root, **ROOFS, size=64),
        augment=AugmentConfig(flip_x=True),
        train=TrainConfig(steps=steps, val_every=2, accelerator="cpu", progress=False, cache=False),
    )


def test_header_split_and_use_on_the_same_pixels(roofs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fit(run_config(roofs, 2), run, backbone=toy_backbone(), report=False)
    meta = read_meta(result.adapter)
    recipe = meta.extra["input"]
    assert recipe["bands"] == [0, 1, 2] and recipe["window"] == 32
    assert recipe["gsd"] == pytest.approx([0.5, 0.5], rel=2e-3)
    assert meta.intensity == {"kind": "stretch", "percentiles": [2.0, 98.0]}
    assert meta.training["blocks"] == 9 and meta.training["val_blocks"] == 2 and meta.training["windows"] > 20
    frame = pyogrio.read_dataframe(run / "split.gpkg")
    assert frame.side.tolist().count("val") == 2 and frame.crs.to_epsg() == 32645
    assert frame.area.max() == pytest.approx(64 * 64) and frame[frame.side == "val"].windows.max() == 0
    picture = np.asarray(Image.open(run / "split.png"))
    assert picture.shape[0] / picture.shape[1] == pytest.approx(320 / 384, rel=0.01)


def test_picture_of_a_split(roofs: Path) -> None:
    windows = trained_on(roofs, **ROOFS, jitter=False)
    picture = shade(windows, side=384).astype(int)
    assert picture.shape == (320, 384, 3)
    val = windows.blocks.val_parts()[0]
    blue = picture[val[0] : val[1], val[2] : val[3]].reshape(-1, 3).mean(axis=0)
    assert blue[2] > blue[0] + 40
    top, bottom, left, right = windows.windows[0]
    seen = windows.source.read(window_of(windows.windows[0]))[0]
    assert np.abs(picture[top:bottom, left:right] - np.moveaxis(seen, 0, -1)).max() <= 1


def _cut_off(root: Path, run: Path) -> None:
    """A run whose process dies in the middle of its third epoch."""
    left, read = iter(range(4 * 5)), RasterWindows.__getitem__

    def get(self: RasterWindows, draw: Draw) -> Any:
        if next(left, None) is None:
            os._exit(9)
        return read(self, draw)

    RasterWindows.__getitem__ = get  # type: ignore[method-assign]
    fit(run_config(root), run, backbone=toy_backbone(), report=False)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(roofs: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(run_config(roofs), whole, backbone=toy_backbone(), report=False)
    process = multiprocessing.get_context("fork").Process(target=_cut_off, args=(roofs, cut))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    fit(run_config(roofs), cut, resume=True, backbone=toy_backbone(), report=False)
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, cut)]
    assert [end["global_step"] for end in ends] == [6, 6]
    one, two = (end["state_dict"] for end in ends)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


_PEAK = """
import resource, sys
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.module import SegmentationData
data = SegmentationData(
    DataConfig(layout="mosaic", path=sys.argv[1], labels=sys.argv[2], window=512, size=256, batch_size=4, val_blocks=4),
    kind="instance", size=256, steps=12, val_cases=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for image, label in data.train_dataloader():
    assert image.shape == (4, 3, 256, 256)
for case in data.val_dataloader():
    assert case.plane == (2048, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(data.index.windows))
"""


@pytest.mark.slow
def test_memory_follows_the_window_and_not_the_raster(tmp_path: Path) -> None:
    peaks = []
    for side in (6_144, 40_960):
        path, labels = tmp_path / f"{side}.tif", tmp_path / f"{side}.gpkg"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": side, "width": side, "crs": mosaics.CRS}
        with rasterio.open(
            path, "w", transform=mosaics.place(GSD), tiled=True, SPARSE_OK=True, compress="deflate", **profile
        ) as file:
            file.write(np.full((3, 512, 512), 90, dtype=np.uint8), window=((0, 512), (0, 512)))
        places = np.random.default_rng(0).integers(0, side - 20, (3000, 2)).tolist()
        mosaics.frame([(x, y, x + 20, y + 15) for x, y in places], GSD).to_file(labels, driver="GPKG")
        words = [sys.executable, "-c", _PEAK, str(path), str(labels)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603
        peaks.append([int(word) for word in done.stdout.split()])
    assert peaks[1][1] > 30 * peaks[0][1]
    assert peaks[1][0] < 1.1 * peaks[0][0], peaks  # KB; 5 GB of pixels against 113 MB


@pytest.mark.slow
def test_adapter_is_used_on_the_raster(roofs: Path, tmp_path: Path) -> None:
    """A few more steps, and objects are found where they are on blocks that were never seen."""
    base = run_config(roofs, 60)
    small = replace(base, train=replace(base.train, val_every=60), task=replace(base.task, lr=5e-3))
    result = fit(small, tmp_path / "run", report=False)
    figures = {s.name: s.mean for s in result.summaries}
    found = segment_mosaic(
        [roofs / "west.tif", roofs / "east.tif"],
        tmp_path / "out.gpkg",
        adapter=result.adapter,
        options=MosaicOptions(tile=128, overlap=32),
    )
    assert figures["dice/building"] > 0.8
    task, data = load_adapted(small, result.adapter)
    case = data.val_refs[0].load()
    block = write_raster(tmp_path / "block.tif", case.image[0], transform=transform_of(case.grid), crs=mosaics.CRS)
    used = samgraft.segment(samgraft.open(block), adapter=result.adapter, progress=False)
    assert np.array_equal(used.labels > 0, task.objects(case)[0] > 0) and used.labels.any()
    frame = pyogrio.read_dataframe(tmp_path / "out.gpkg")
    assert frame.crs.to_epsg() == 32645 and found.tiles > 4
    truth = mosaics.frame(mosaics.boxes_on((320, 384)), GSD)
    covered = frame.union_all().intersection(truth.union_all()).area / truth.union_all().area
    assert covered > 0.8
