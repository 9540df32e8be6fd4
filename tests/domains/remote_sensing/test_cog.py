"""Label and score COGs: painted in any order, exactly on the input's grid, validated by others."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.cog import BLOCK, CogFile, Layout, layout_of
from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.domains.remote_sensing.palette import class_color
from samgraft.domains.remote_sensing.provenance import read_provenance
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import ConfigError, GeometryError, OutputError, ShapeError
from samgraft.grid import Grid
from tests.data import rasters

pytestmark = pytest.mark.remote_sensing
SHAPE = (1100, 1300)
CLASSES = {1: "roof", 2: "road"}
Part = tuple[slice, slice]


def utm(name: str = "north_up", shape: tuple[int, int] = SHAPE, crs: str | None = rasters.UTM) -> Grid:
    return grid_of(rasters.TRANSFORMS[name], CRS.from_user_input(crs) if crs else None, shape)


def tiles(shape: tuple[int, int], side: int) -> Iterator[Part]:
    """Parts that cover a raster, in raster scan order."""
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield slice(top, min(top + side, shape[0])), slice(left, min(left + side, shape[1]))


def blobs(shape: tuple[int, int] = SHAPE, top: int = 2) -> NDArray[np.int64]:
    """Rectangles of labels 1 to ``top`` on 0."""
    rng = np.random.default_rng(1)
    labels = np.zeros(shape, dtype=np.int64)
    for _ in range(60):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        labels[y : y + 40, x : x + 70] = rng.integers(1, top + 1)
    return labels


def written(path: Path, grid: Grid, layout: Layout, labels: NDArray[Any], side: int, **options: Any) -> Path:
    file = CogFile(path, grid, layout, **options)
    file.start()
    for part in tiles((grid.shape[0], grid.shape[1]), side):
        file.paint(part, labels[part])
    assert not path.exists()
    return file.commit({"model": "x"})


@pytest.mark.parametrize("name", rasters.TRANSFORMS)
def test_labels_lie_exactly_on_the_grid(tmp_path: Path, name: str) -> None:
    grid, labels = utm(name), blobs()
    path = written(tmp_path / "out.tif", grid, layout_of("classes", CLASSES), labels, 300, classes=CLASSES)
    scene = RasterScene(path)
    assert (scene.grid.affine == grid.affine).all() and scene.grid.world == grid.world
    np.testing.assert_array_equal(scene.read()[0], labels)
    with rasterio.open(path) as stored:
        assert (stored.dtypes, stored.nodata) == (("uint8",), 255)
        assert stored.block_shapes == [(BLOCK, BLOCK)]
        assert stored.overviews(1) == [2, 4]
        assert stored.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert stored.colormap(1)[1] == class_color(1) and stored.colormap(1)[2] == class_color(2)
        smaller = stored.read(1, out_shape=(SHAPE[0] // 2, SHAPE[1] // 2))
    assert set(np.unique(smaller)) <= {0, 1, 2}
    assert read_provenance(path) == {"model": "x", "classes": {"1": "roof", "2": "road"}}
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


@pytest.mark.parametrize("side", [97, 512, 2000])
def test_order_and_size_of_parts_do_not_change_a_byte(tmp_path: Path, side: int) -> None:
    grid, labels = utm(), blobs(top=70_000)
    layout = layout_of("ids", {}, None)
    first = written(tmp_path / "a.tif", grid, layout, labels, 300)
    parts = list(tiles(SHAPE, side))
    file = CogFile(tmp_path / "b.tif", grid, layout)
    file.start()
    for place in np.random.default_rng(2).permutation(len(parts)).tolist():
        file.paint(parts[place], labels[parts[place]] if labels[parts[place]].any() else None)
    second = file.commit({"model": "x"})
    with rasterio.open(second) as stored:
        assert (stored.dtypes, stored.nodata) == (("uint32",), 0)
        np.testing.assert_array_equal(stored.read(1), labels)
    assert first.read_bytes() == second.read_bytes()


def test_what_is_not_painted_is_nodata_and_takes_no_space(tmp_path: Path) -> None:
    grid = utm(shape=(20_000, 30_000))
    file = CogFile(tmp_path / "out.tif", grid, layout_of("classes", CLASSES), classes=CLASSES)
    file.start()
    file.paint((slice(700, 800), slice(900, 1000)), None)
    valid = np.ones((100, 100), dtype=bool)
    valid[:50] = False
    file.paint((slice(19_900, 20_000), slice(29_900, 30_000)), np.full((100, 100), 2), valid)
    path = file.commit()
    assert path.stat().st_size < 300_000
    with rasterio.open(path) as stored:
        corner = stored.read(1, window=((19_800, 20_000), (29_800, 30_000)))
        assert (corner[:150] == 255).all() and (corner[150:, 100:] == 2).all() and (corner[150:, :100] == 255).all()
        assert (stored.read(1, window=((700, 800), (900, 1000))) == 0).all()
        assert (stored.read(1, window=((0, 512), (0, 512))) == 255).all()


def test_scores_are_read_as_shares(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), dtype=np.uint8)
    labels[3, 5], labels[4, 6] = 255, 51
    path = written(tmp_path / "out.tif", utm(shape=(30, 40)), layout_of("scores", {}), labels, 16, name="score")
    scene = RasterScene(path)
    np.testing.assert_allclose(scene.read()[0, 3:5, 5:7], [[1, 0], [0, 0.2]], atol=1e-7)
    assert scene.channel_names == ("score",)


@pytest.mark.parametrize(
    ("content", "top", "count", "dtype", "nodata"),
    [
        ("classes", 254, None, "uint8", 255),
        ("classes", 255, None, "uint16", 65535),
        ("ids", 1, None, "uint32", 0),
        ("ids", 1, 255, "uint8", 0),
        ("ids", 1, 256, "uint16", 0),
        ("ids", 1, 65_536, "uint32", 0),
        ("scores", 1, None, "uint8", 0),
    ],
)
def test_dtype_follows_what_is_stored(content: Any, top: int, count: int | None, dtype: str, nodata: int) -> None:
    layout = layout_of(content, {top: "a"}, count)
    assert (layout.dtype.name, layout.nodata) == (dtype, nodata)


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class label 65535 cannot be stored; expected 1 to 65534"):
        layout_of("classes", {65_535: "a"})
    layout = layout_of("classes", CLASSES)
    with pytest.raises(ConfigError, match=r"out.png: label rasters go to .tif or .tiff"):
        CogFile(tmp_path / "out.png", utm(), layout)
    with pytest.raises(GeometryError, match="3D grid"):
        CogFile(tmp_path / "out.tif", Grid(shape=(2, 3, 4), affine=np.eye(4), world="RAS"), layout)
    with pytest.raises(OutputError, match="does not exist"):
        CogFile(tmp_path / "no" / "out.tif", utm(), layout).start()
    file = CogFile(tmp_path / "out.tif", utm(), layout)
    with pytest.raises(OutputError, match="was not started"):
        file.paint((slice(0, 1), slice(0, 1)), None)
    file.start()
    with pytest.raises(OutputError, match="value 255 does not fit uint8 with nodata 255"):
        file.paint((slice(0, 1), slice(0, 1)), np.full((1, 1), 255))
    with pytest.raises(ShapeError, match=r"painting \(1, 2\) at rows"):
        file.paint((slice(0, 1), slice(0, 1)), np.ones((1, 2), dtype=int))
    with pytest.raises(ShapeError, match=r"of a raster of \(1100, 1300\)"):
        file.paint((slice(1099, 1101), slice(0, 1)), None)
    file.abort()
    assert list(tmp_path.iterdir()) == []


def test_others_find_the_file_valid(tmp_path: Path) -> None:
    grid, labels = utm(), blobs()
    path = written(tmp_path / "out.tif", grid, layout_of("classes", CLASSES), labels, 512, classes=CLASSES)
    cogeo = pytest.importorskip("rio_cogeo.cogeo", reason="no rio-cogeo (pip install rio-cogeo)")
    assert cogeo.cog_validate(path, strict=True) == (True, [], [])
    if shutil.which("gdalinfo") is None:
        pytest.skip("no gdalinfo on this machine (apt install gdal-bin)")
    done = subprocess.run(["gdalinfo", "-mdd", "all", str(path)], capture_output=True, text=True, check=True)
    assert "LAYOUT=COG" in done.stdout and "NoData Value=255" in done.stdout and "Overviews: 650x550" in done.stdout
    assert done.stderr == ""


def test_tiny_and_unreferenced_rasters(tmp_path: Path) -> None:
    for shape in ((1, 1), (1, 700), (700, 1)):
        labels = np.ones(shape, dtype=np.uint8)
        grid = Grid(shape=shape, affine=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), anchor="corner")
        path = written(tmp_path / f"{shape[0]}_{shape[1]}.tif", grid, layout_of("classes", CLASSES), labels, 300)
        scene = RasterScene(path)
        assert (scene.read() == 1).all() and scene.grid.world == "pixel"


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from samgraft.errors import OutputError
sys.path.insert(0, sys.argv[3])
from tests.domains.remote_sensing.test_cog import layout_of, utm, written
noise = np.random.default_rng(0).integers(1, 255, (1100, 1300))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    written(Path(sys.argv[1]) / "out.tif", utm(), layout_of("classes", {254: "x"}), noise, 300)
except OutputError as error:
    print("OutputError", str(error)[:40])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file size")
@pytest.mark.parametrize("limit", [300_000, 1_600_000])  # while painting; in the last pass, with its overviews
def test_full_disk_leaves_nothing(tmp_path: Path, limit: int, repo_root: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path), str(limit), str(repo_root)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.startswith("OutputError cannot write"), done.stdout + done.stderr[-800:]
    assert list(tmp_path.iterdir()) == []
