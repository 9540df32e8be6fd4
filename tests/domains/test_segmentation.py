"""Segmentation: checks, suffixes, and grids that a format cannot keep."""

from pathlib import Path

import numpy as np
import pytest

from samgraft.domains import segmentation
from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.provenance import read_provenance
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import rasterise, read_vectors
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError, GeometryError, OutputError, ShapeError
from samgraft.grid import Grid
from tests.data import rasters

OBLIQUE = np.array([[0.1, -0.2, 0.9, 5.0], [0.0, 0.8, 0.2, -7.0], [3.3, 0.0, 0.1, 11.0], [0.0, 0.0, 0.0, 1.0]])
PICTURE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def semantic(grid: Grid, top: int = 2) -> Segmentation:
    labels = np.zeros(grid.shape, dtype=np.int32)
    labels[..., 1:3, 2:5] = top
    return Segmentation(labels=labels, grid=grid, kind="semantic", classes={1: "a", top: "b"})


def volume_grid() -> Grid:
    affine = OBLIQUE.astype(np.float32).astype(np.float64)  # what a NIfTI sform holds
    return Grid(shape=(3, 4, 6), affine=affine, world="RAS")


@pytest.mark.medical
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_volume_formats_keep_place_and_labels(tmp_path: Path, suffix: str) -> None:
    result = semantic(volume_grid(), top=300)
    written = open_scene(result.save(tmp_path / f"out{suffix}"))
    np.testing.assert_array_equal(written.read_labels(), result.labels)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0]) if written.grid.world == "LPS" else np.eye(4)
    np.testing.assert_allclose(flip @ written.grid.affine, result.grid.affine, atol=1e-6)


def test_picture_goes_to_png_and_tif(tmp_path: Path) -> None:
    result = semantic(Grid(shape=(8, 9), affine=PICTURE), top=400)
    for suffix in (".png", ".tif"):
        written = open_scene(result.save(tmp_path / f"out{suffix}"))
        np.testing.assert_array_equal(written.read_labels(), result.labels)
        np.testing.assert_array_equal(written.grid.affine, PICTURE)
    back = read_vectors(result.save(tmp_path / "out.geojson"), result.grid)
    assert back[0].geometry.bounds == (2.0, 1.0, 5.0, 3.0)


def test_raster_goes_to_tif_and_polygons(tmp_path: Path) -> None:
    source = RasterScene(
        rasters.write_raster(tmp_path / "a.tif", rasters.pixels(), transform=rasters.TRANSFORMS["rotated"])
    )
    result = semantic(source.grid)
    assert RasterScene(result.save(tmp_path / "out.tif")).grid == source.grid
    for suffix in (".geojson", ".gpkg", ".fgb"):
        back = read_vectors(result.save(tmp_path / f"out{suffix}"), source.grid)
        np.testing.assert_array_equal(rasterise(back, source.grid.shape) > 0, result.labels > 0)
    frame = pytest.importorskip("geopandas").read_parquet(result.save(tmp_path / "out.parquet"))
    assert frame.crs.to_epsg() == 32618 and frame.area_px.tolist() == [(result.labels > 0).sum()]
    for suffix in (".tif", ".geojson", ".gpkg", ".fgb", ".parquet"):
        told = read_provenance(tmp_path / f"out{suffix}")
        assert told is not None and (told["kind"], told["from_ground_truth"]) == ("semantic", "false")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".geojson", ".gpkg", ".fgb", ".parquet"])
def test_volume_is_refused_by_flat_formats(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(GeometryError, match=rf"out\{suffix}: \{suffix} cannot keep the grid of a volume; .*\.nii\.gz"):
        semantic(volume_grid()).save(tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".mha"])
def test_raster_is_refused_by_formats_without_a_crs(tmp_path: Path, suffix: str) -> None:
    grid = RasterScene(rasters.write_raster(tmp_path / "a.tif", rasters.pixels())).grid
    with pytest.raises(GeometryError, match="cannot keep the grid of a raster; write one of .tif"):
        semantic(grid).save(tmp_path / f"out{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_unknown_suffix_and_missing_folder(tmp_path: Path) -> None:
    result = semantic(Grid(shape=(8, 9), affine=PICTURE))
    with pytest.raises(ConfigError, match=r"unknown suffix '.jpg'"):
        result.save(tmp_path / "out.jpg")
    for suffix in (".png", ".tif", ".gpkg", ".geojson"):
        with pytest.raises(OutputError, match="does not exist"):
            result.save(tmp_path / "no" / f"out{suffix}")


def test_labels_must_mean_something() -> None:
    grid = Grid(shape=(2, 3), affine=PICTURE)
    labels = np.array([[0, 1, 1], [0, 5, 0]])
    with pytest.raises(ShapeError, match=r"labels are \(3, 2\); the grid is \(2, 3\)"):
        Segmentation(labels=labels.T, grid=grid, kind="semantic", classes={})
    with pytest.raises(ShapeError, match="dtype float64"):
        Segmentation(labels=labels * 1.0, grid=grid, kind="semantic", classes={})
    with pytest.raises(ShapeError, match="smallest label is -5"):
        Segmentation(labels=-labels, grid=grid, kind="semantic", classes={})
    with pytest.raises(ConfigError, match=r"labels \[5\] have no class name"):
        Segmentation(labels=labels, grid=grid, kind="semantic", classes={1: "a"})
    one = InstanceRecord(id=1, class_id=1, score=0.5, box=(1, 0, 2, 0))
    with pytest.raises(ConfigError, match=r"labels \[5\] have no instance record"):
        Segmentation(labels=labels, grid=grid, kind="instance", classes={1: "a"}, instances=(one,))
    five = InstanceRecord(id=5, class_id=3, score=0.5, box=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match=r"refer to the classes \[3\]"):
        Segmentation(labels=labels, grid=grid, kind="instance", classes={1: "a"}, instances=(one, five))
    with pytest.raises(ConfigError, match="instance ids repeat"):
        Segmentation(labels=labels, grid=grid, kind="instance", classes={1: "a"}, instances=(one, one))
    with pytest.raises(ConfigError, match="expected x0 <= x1"):
        InstanceRecord(id=1, class_id=1, score=0.5, box=(2, 0, 1, 0))


def test_labels_are_looked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((5, 4, 3), np.uint16)
    labels[0, 0, 0], labels[2, 1, 1], labels[4, 3, 2] = 700, 3, 9
    names = {3: "a", 9: "b", 700: "c"}
    for at_once in (1, 13, 10**6):
        monkeypatch.setattr(segmentation, "_SORTED_AT_ONCE", at_once)
        result = Segmentation(
            labels=labels, grid=Grid(shape=labels.shape, affine=np.eye(4), world="RAS"), kind="semantic", classes=names
        )
        assert result.label_values() == (3, 9, 700)
