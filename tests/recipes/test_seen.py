"""What an adapter's header remembers of its training images, and the names of their bands."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import samgraft
from samgraft.adapters.bundle import BundleMeta, read_meta
from samgraft.domains.shift.statistics import ImageStatistics, image_statistics
from samgraft.errors import InputError
from samgraft.grid import Grid
from samgraft.recipes.alignment import recorded_source
from samgraft.recipes.band_names import bands_by_name, common_bands
from samgraft.recipes.config import DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data import seen
from samgraft.recipes.data.cases import CaseArrays, CaseRef
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.data.seen import Seen
from samgraft.recipes.engine.run import load_adapter, segment
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone
from tests.data.rasters import write_raster
from tests.recipes._sets import write_pictures, write_rasters, write_volumes


def prepared(config: DataConfig, kind: Any = "semantic") -> SegmentationData:
    data = SegmentationData(config, kind=kind)
    data.setup("fit")
    return data


def pictures_of(case: CaseArrays) -> list[NDArray[np.float32]]:
    return [case.picture(i).astype(np.float32) / 255 for i in range(case.num_slices)]


def same(one: ImageStatistics | None, other: ImageStatistics) -> None:
    assert one is not None and one.count == other.count and one.spacing == pytest.approx(other.spacing)
    for name in ("histogram", "mean", "std", "lab_mean", "amplitude"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)


def test_volumes_give_their_slices_and_millimetres(tmp_path: Path) -> None:
    data = prepared(DataConfig(path=str(write_volumes(tmp_path / "v")), size=64))
    cases = [ref.load() for ref in data.index.train]
    slices = [picture for case in cases for picture in pictures_of(case)]
    same(data.seen.statistics(), image_statistics(slices, [(1.0, 1.0)] * len(slices)))
    assert data.seen.network_spacing(64) == 40 / 64
    windows = prepared(DataConfig(path=str(tmp_path / "v"), size=64, window=32))
    assert windows.seen.network_spacing(64) == 0.5


def test_validation_cases_are_not_remembered(tmp_path: Path) -> None:
    data = prepared(DataConfig(layout="image_mask", path=str(write_pictures(tmp_path / "p"))))
    train = [picture for ref in data.index.train for picture in pictures_of(ref.load())]
    same(data.seen.statistics(), image_statistics(train))
    assert data.seen.network_spacing(64) is None and len(train) == 4


def test_pixels_without_data_are_not_remembered(tmp_path: Path) -> None:
    data = prepared(DataConfig(layout="raster_vector", path=str(write_rasters(tmp_path / "r"))), "instance")
    expected = []
    for ref in data.index.train:
        case = ref.load()
        image = pictures_of(case)[0]
        image[:, case.labels[0] < 0] = np.nan
        expected.append(image)
    found = data.seen.statistics()
    assert found is not None and found.spacing == pytest.approx((0.5, 0.5), rel=1e-3)
    same(found, image_statistics(expected, [found.spacing] * len(expected)))
    assert np.isnan(expected[0][:, :6, :6]).all() and found.histogram[:, 0].max() == 0


def test_large_sets_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(shape=(10, 10), affine=np.eye(3), world="pixel")
    monkeypatch.setattr(seen, "KEPT_BYTES", 6 * 300)  # six colour pictures of 10 x 10

    def case(value: int) -> CaseArrays:
        image = np.full((1, 3, 10, 10), value, np.uint8)
        image[:, 1] += 1
        return CaseArrays(id=str(value), image=image, labels=np.zeros((1, 10, 10), np.int8), grid=grid)

    sample = Seen(window=None, rasters=False)
    refs = [CaseRef(id=str(v), read=lambda v=v: case(v)) for v in range(0, 200, 10)]  # type: ignore[misc]
    assert [ref.read().id for ref in sample.watching(refs)] == [str(v) for v in range(0, 200, 10)]
    found = sample.statistics()
    assert found is not None
    assert np.flatnonzero(found.histogram[0]).tolist() == [0, 40, 80, 120, 160]


def test_nothing_read_is_nothing_remembered() -> None:
    assert Seen(window=None, rasters=True).statistics() is None


@pytest.mark.parametrize("align", ["auto", "histogram"])
def test_a_run_writes_it_and_segment_uses_it(tmp_path: Path, align: str) -> None:
    config = FitConfig(
        task=TaskConfig(grafts={"lora": {}}),
        data=DataConfig(path=str(write_volumes(tmp_path / "v")), size=32, batch_size=2),
        train=TrainConfig(steps=2, val_every=2, progress=False, accelerator="cpu"),
    )
    result = fit(config, tmp_path / "run", backbone=toy_backbone(), report=False)
    meta = read_meta(result.adapter)
    assert recorded_source(meta).count == 18 and InputRecipe.from_meta(meta).spacing == 1.25
    scene = tmp_path / "v" / "imagesTr" / "case_03_0000.nii.gz"
    grafted = load_adapter(result.adapter, toy_backbone())
    found = segment(scene, adapter=grafted, align=align, spacing="adapter", progress=False)
    assert found.meta["align"].startswith(align if align == "histogram" else "none (auto: histograms differ by")
    assert "spacing" not in found.meta  # the same scanner


# --- bands by name


def test_bands_are_found_by_name_on_another_sensor(tmp_path: Path) -> None:
    image = np.arange(4 * 20 * 30, dtype=np.uint8).reshape(4, 20, 30)
    naip = samgraft.open(write_raster(tmp_path / "naip.tif", image, names=["red", "green", "blue", "nir"]))
    planet = samgraft.open(write_raster(tmp_path / "planet.tif", image), sensor="planetscope")  # blue green red nir
    assert common_bands([naip], None) == ("red", "green", "blue")
    names = common_bands([naip, naip], (3, 0, 1))
    assert names == ("nir", "red", "green")
    assert bands_by_name(naip, (3, 0, 1), names) == (3, 0, 1)
    assert bands_by_name(planet, (3, 0, 1), names) == (3, 2, 1)
    assert common_bands([naip, planet], (0, 1, 2)) is None  # the same numbers, other colours
    unnamed = samgraft.open(write_raster(tmp_path / "n.tif", image, photometric="MINISBLACK"))
    assert bands_by_name(unnamed, (3, 0, 1), names) == (3, 0, 1)


def test_panchromatic_stands_for_visible_bands_and_infrared_is_missed(tmp_path: Path) -> None:
    image = np.arange(2 * 20 * 30, dtype=np.uint8).reshape(2, 20, 30)
    pan = samgraft.open(write_raster(tmp_path / "p.tif", image, names=["pan", "nir"]))
    assert bands_by_name(pan, (4, 2, 1), ("red", "green", "blue")) == (0,)
    with pytest.raises(InputError, match="has the bands pan, nir; the adapter was trained on swir1, nir, red"):
        bands_by_name(pan, (5, 3, 2), ("swir1", "nir", "red"))
    assert bands_by_name(pan, None, ("swir1", "nir", "red")) is None


def test_the_header_keeps_the_names(tmp_path: Path) -> None:
    recipe = InputRecipe(size=64, band_names=("nir", "red", "green"), bands=(3, 0, 1), spacing=0.7)
    stored = recipe.__dict__ | {"band_names": ["nir", "red", "green"]}
    assert InputRecipe.from_meta(BundleMeta(extra={"input": stored})) == recipe
    config = DataConfig(layout="raster_vector", path=str(write_rasters(tmp_path / "r")))
    names = SegmentationData(config, kind="instance").index.band_names
    assert names == ("red", "green", "blue")  # the colours that GDAL gives to three bands of bytes
