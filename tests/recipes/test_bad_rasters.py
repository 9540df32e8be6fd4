"""The bad inputs that break other tools, one test each: the right result, or a named error before the first model call.

A graft that marks bright pixels stands for a model; what the engine does to its answers is then all there is to see.
"""

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

import samgraft
from samgraft.domains.remote_sensing.georeference import UNKNOWN_CRS, transform_of
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import InputError, OutputError
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from tests.data import rasters
from tests.recipes._oracle import OracleGraft, squares

pytestmark = pytest.mark.remote_sensing

BOXES = [(10, 10, 41, 41), (80, 20, 111, 51), (20, 100, 99, 131)]
SHAPE = (150, 160)


def truth(shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    return squares(SHAPE, BOXES)[: shape[0], : shape[1]] > 100


def image(dtype: str = "uint8", shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    return squares(SHAPE, BOXES)[None, : shape[0], : shape[1]].astype(dtype)


def run(scene: Scene, graft: OracleGraft | None = None) -> Segmentation:
    recipe = InputRecipe(size=64, window=64)
    return segment_automatic(scene, graft or OracleGraft(), Recorded(recipe=recipe, classes={1: "roof"}))


def found(path: Path, expected: NDArray[np.bool_], **options: Any) -> Segmentation:
    """Segment a file and check the labels; pixels on edges may go either way."""
    scene = samgraft.open(path, **options)
    result = run(scene)
    assert result.grid == scene.grid
    union = ((result.labels > 0) | expected).sum()
    assert ((result.labels > 0) & expected).sum() > 0.97 * union
    return result


def test_no_crs(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", image(), crs=None)
    result = found(path, truth())
    assert result.grid.world == UNKNOWN_CRS and transform_of(result.grid) == rasters.NORTH_UP
    with rasterio.open(result.save(tmp_path / "out.tif")) as written:
        assert written.crs is None and written.transform == rasters.NORTH_UP


def test_no_geotransform(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", image(), transform=Affine.identity())
    result = found(path, truth())
    assert transform_of(result.grid) == Affine.identity()
    picture = rasters.write_raster(tmp_path / "b.tif", image(), transform=Affine.identity(), crs=None)
    assert found(picture, truth()).grid.world == "pixel"


@pytest.mark.parametrize("name", ["rotated", "sheared"])
def test_rotated_affine(tmp_path: Path, name: str) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", image(), transform=rasters.TRANSFORMS[name])
    result = found(path, truth())
    with rasterio.open(path) as source, rasterio.open(result.save(tmp_path / "out.tif")) as written:
        assert written.transform == source.transform and written.crs == source.crs


def test_south_up(tmp_path: Path) -> None:
    path = rasters.write_raster(tmp_path / "a.tif", image(), transform=rasters.TRANSFORMS["south_up"])
    result = found(path, truth())
    with rasterio.open(result.save(tmp_path / "out.tif")) as written:
        assert written.transform == rasters.TRANSFORMS["south_up"]
        np.testing.assert_array_equal(written.read(1), result.labels)


@pytest.mark.parametrize("tagged", [True, False])
def test_nodata_nan(tmp_path: Path, tagged: bool) -> None:
    array, known = image("float32"), np.ones(SHAPE, bool)
    known[15:60, 90:120] = False
    array[:, ~known] = np.nan
    path = rasters.write_raster(tmp_path / "a.tif", array, nodata=float("nan") if tagged else None)
    result = found(path, truth() & known)
    assert not result.labels[~known].any()
    with rasterio.open(result.save(tmp_path / "out.tif")) as written:
        assert written.dtypes == ("uint8",)  # the nodata value of the input is no nodata value of labels


def test_nodata_minus_9999(tmp_path: Path) -> None:
    array, known = image("float32"), np.ones(SHAPE, bool)
    known[15:60, 90:120] = False
    array[:, ~known] = -9999
    result = found(rasters.write_raster(tmp_path / "a.tif", array, nodata=-9999), truth() & known)
    assert not result.labels[~known].any()
    result.save(tmp_path / "out.tif")
    eight_bit = rasters.write_raster(tmp_path / "b.tif", image())
    with pytest.raises(InputError, match="nodata -9999 cannot occur in uint8 pixels"):
        samgraft.open(eight_bit, nodata=-9999)


def test_nodata_out_of_the_files_own_range(tmp_path: Path) -> None:
    vrt = tmp_path / "a.vrt"
    source = rasters.write_raster(tmp_path / "a.tif", image())
    rasterio.shutil.copy(source, vrt, driver="VRT")
    vrt.write_text(vrt.read_text().replace("<ColorInterp>", "<NoDataValue>-9999</NoDataValue><ColorInterp>"))
    assert "-9999" in vrt.read_text()
    assert found(vrt, truth()).grid.nodata is None


def test_alpha_band(tmp_path: Path) -> None:
    known = np.ones(SHAPE, bool)
    known[:, 90:] = False
    array = np.concatenate([image()] * 3 + [known[None].astype(np.uint8) * 255])
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    result = found(rasters.write_raster(tmp_path / "a.tif", array, colors=colors), truth() & known)
    assert not result.labels[~known].any()


def test_uint16(tmp_path: Path) -> None:
    # 220 and 20 become 56,340 and 5,140; modulo 256 both would be the same
    array = image("uint16") * np.uint16(257) - np.uint16(200)
    result = found(rasters.write_raster(tmp_path / "a.tif", array), truth())
    assert result.meta["stretch"] == "gray 4940 to 56340"
    assert result.meta["stretch_from"].startswith("percentiles 2 and 98 of 24,000 pixels")


def test_complex64(tmp_path: Path) -> None:
    array = image("float32") * np.exp(1j * np.linspace(0, 6, SHAPE[1])).astype(np.complex64)
    path = rasters.write_raster(tmp_path / "a.tif", array.astype(np.complex64))
    with pytest.raises(InputError, match=r"bands \[1\] hold complex numbers; open it with magnitude=True"):
        samgraft.open(path)
    scene = samgraft.open(path, magnitude=True)
    assert scene.dtype == np.float32
    np.testing.assert_allclose(scene.read(), image("float32"), rtol=1e-6)
    found(path, truth(), magnitude=True)


@pytest.mark.parametrize("shape", [(150, 1), (1, 160), (1, 1)])
def test_one_pixel_wide(tmp_path: Path, shape: tuple[int, int]) -> None:
    bright = rasters.write_raster(tmp_path / "a.tif", np.full((1, *shape), 220, np.uint8))
    dark = rasters.write_raster(tmp_path / "b.tif", np.full((1, *shape), 20, np.uint8))
    assert (run(samgraft.open(bright)).labels == 1).all()
    assert not run(samgraft.open(dark)).labels.any()


def test_smaller_than_window(tmp_path: Path) -> None:
    shape = (46, 50)
    assert found(rasters.write_raster(tmp_path / "a.tif", image(shape=shape)), truth(shape)).labels.any()


def test_corrupt_block(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 160, 160), dtype=np.uint8)
    path = rasters.write_raster(tmp_path / "a.tif", noise, compress="deflate", tiled=True, blockxsize=32, blockysize=32)
    with rasterio.open(path) as source:
        offset = int(source.get_tag_item("BLOCK_OFFSET_3_2", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    scene = samgraft.open(path)
    assert scene.read((slice(0, 64), slice(0, 160))).shape == (1, 64, 160)
    with pytest.raises(InputError, match=rf"a\.tif: .*rows 64 to 96, columns 96 to 128, byte {offset:,} of the file"):
        scene.read((slice(40, 100), slice(0, 160)))
    graft = OracleGraft()
    with pytest.raises(InputError, match="the block of band 1 at rows 64 to 96, columns 96 to 128"):
        run(scene, graft)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 160, 160), dtype=np.uint8)
    path = rasters.write_raster(tmp_path / "a.tif", noise, tiled=True, blockxsize=32, blockysize=32)
    rasters.truncate(path, keep)
    graft = OracleGraft()
    with pytest.raises(InputError, match=r"a\.tif.*(is truncated or damaged|cannot be|no picture)"):
        run(samgraft.open(path), graft)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file size")
def test_disk_full(tmp_path: Path) -> None:
    result = found(rasters.write_raster(tmp_path / "a.tif", image()), truth())
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write .*out.tif"):
            result.save(tmp_path / "out.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
folder = Path(sys.argv[1])
grid = RasterScene(folder / "a.tif").grid
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # everything is written, nothing is in place
Segmentation(labels=np.ones(grid.shape, np.uint8), grid=grid, kind="semantic", classes={1: "a"}).save(folder / "o.tif")
"""


def test_sigkill_in_the_middle(tmp_path: Path) -> None:
    rasters.write_raster(tmp_path / "a.tif", image())
    (tmp_path / "o.tif").write_text("old")
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False, env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    assert (tmp_path / "o.tif").read_text() == "old"


def test_tile_exception(tmp_path: Path) -> None:
    class Failing(OracleGraft):
        def predict(self, image: Any, **options: Any) -> Any:
            if self.calls:
                raise RuntimeError("out of memory in tile 2")
            return super().predict(image, **options)

    scene = samgraft.open(rasters.write_raster(tmp_path / "a.tif", image()))
    recipe = InputRecipe(size=64, window=64)
    with pytest.raises(RuntimeError, match="out of memory in tile 2"):
        segment_automatic(scene, Failing(), Recorded(recipe=recipe, classes={1: "roof"}), batch=1)


CASES = {
    "RGB.byte.tif": 3, "RGBA.uint16.tif": 3, "all-nodata.tif": 4, "alpha.tif": 3, "float_nan.tif": 1,
    "float_raster_with_nodata.tif": 1, "rotated.tif": 1, "sentinel2_8band_uint16.tif": 8, "shade.tif": 1,
    "world.rgb.tif": 3,
}  # fmt: skip
"""Every file of geotiff_cases, and its channels."""


@pytest.mark.parametrize("name", CASES)
def test_every_file_of_geotiff_cases(shared_data: Path, name: str) -> None:
    folder = shared_data / "geo" / "geotiff_cases"
    assert sorted(p.name for p in folder.iterdir()) == sorted(CASES)
    scene = samgraft.open(folder / name)
    assert (scene.kind, scene.channels) == ("raster", CASES[name])
    array, valid = scene.read_valid()
    assert array.shape == (CASES[name], *scene.grid.shape)
    assert valid.any() == (name != "all-nodata.tif")
    assert np.isfinite(array[:, valid]).all()
    graft = OracleGraft()
    result = run(scene, graft)
    assert not result.labels[~valid].any() and result.grid == scene.grid
    assert (graft.calls > 0) == bool(valid.any())


def test_chips_of_banepa_are_one_mosaic(shared_data: Path) -> None:
    folder = shared_data / "geo" / "buildings_banepa" / "train" / "oam"
    paths = sorted(folder.glob("*.tif"))
    scene = samgraft.open(paths)
    assert len(paths) == 48 and scene.format == "mosaic of 48 JPEG files"
    alone = samgraft.open(paths[17])
    place = scene.grid.to_index(alone.grid.to_world(np.array([256.0, 256.0])))
    row, col = (int(round(float(v))) for v in place)
    there = scene.read((slice(row - 50, row + 50), slice(col - 50, col + 50))).astype(float)
    here = alone.read((slice(206, 306), slice(206, 306))).astype(float)
    # interpolated by less than half a pixel at most: the same picture
    assert np.abs(there - here).mean() < 12.0 and np.corrcoef(there.ravel(), here.ravel())[0, 1] > 0.95
