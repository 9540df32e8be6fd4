"""``segment_mosaic`` and the command line: the same map as without tiles, whoever computes, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyogrio import raw
from scipy import ndimage

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.provenance import read_provenance
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.api import MosaicOptions, segment, segment_mosaic
from samgraft.recipes.commands import mosaic as command
from samgraft.recipes.mosaic.journal import work_folder
from samgraft.recipes.mosaic.run import Progress
from samgraft.recipes.mosaic.segment import LEAST_SIDE, planned
from tests.data.rasters import NORTH_UP, write_raster
from tests.recipes.mosaic._scenes import tiny_adapter

SHAPE = (150, 230)


def colours(shape: tuple[int, int] = SHAPE, seed: int = 3) -> NDArray[np.uint8]:
    """(3, H, W) soft blobs of a few colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 255, (3, shape[0] // 16 + 2, shape[1] // 16 + 2)).astype(np.float32)
    return ndimage.zoom(coarse, (1, 16, 16), order=1)[:, : shape[0], : shape[1]].astype(np.uint8)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for two classes."""
    return tiny_adapter(tmp_path_factory.mktemp("a") / "classes.graft", window=64)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for objects."""
    return tiny_adapter(tmp_path_factory.mktemp("a") / "objects.graft", kind="instance", window=64)


def labels_of(path: Path) -> NDArray[np.int64]:
    with rasterio.open(path) as source:
        values = source.read(1).astype(np.int64)
        return np.where(values == source.nodata, 0, values)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("options", [MosaicOptions(), MosaicOptions(tile=100), MosaicOptions(tile=70, overlap=30)])
def test_the_same_classes_with_and_without_tiles(tmp_path: Path, classes: Path, options: MosaicOptions) -> None:
    image = colours()
    image[:, 40:60, 100:150] = 0
    path = write_raster(tmp_path / "r.tif", image, nodata=0)
    whole = segment(path, adapter=classes, progress=False)
    summary = segment_mosaic(path, tmp_path / "out.tif", adapter=classes, options=options)
    assert len(np.unique(whole.labels)) >= 2
    assert np.array_equal(labels_of(tmp_path / "out.tif"), whole.labels)
    with rasterio.open(tmp_path / "out.tif") as written, rasterio.open(path) as given:
        assert written.transform == given.transform and written.crs == given.crs
        assert (written.read(1)[40:60, 100:150] == 255).all()  # nodata, not background
    assert summary.kind == "semantic" and not work_folder(tmp_path / "out.tif").exists()


def test_one_tile_gives_the_objects_of_the_whole(tmp_path: Path, objects: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    whole = segment(path, adapter=objects, progress=False)
    summary = segment_mosaic(path, [tmp_path / "out.tif", tmp_path / "out.gpkg"], adapter=objects)
    assert summary.objects == len(whole.instances) > 2
    found = labels_of(tmp_path / "out.tif")
    assert np.array_equal(found > 0, whole.labels > 0)
    pairs = {(int(a), int(b)) for a, b in zip(found[found > 0], whole.labels[found > 0], strict=True)}
    assert len(pairs) == summary.objects  # the same objects, numbered by their first pixel
    names = raw.read(tmp_path / "out.gpkg")[0]["fields"].tolist()
    assert {"id", "class_name", "score", "area", "tiles"} <= set(names)


def test_other_pixel_sizes_than_in_training_are_a_choice(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours())  # pixels of half a metre in UTM
    adapter = tiny_adapter(tmp_path / "coarse.graft", window=64, gsd=(1.0, 1.0))
    with pytest.raises(ConfigError, match=r"pixels of 0\.5\d* m, .* trained on pixels of 1 m.* --gsd 1 .* --gsd 0\.5"):
        segment_mosaic(path, tmp_path / "out.tif", adapter=adapter)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coarse.graft", "r.tif"]
    for gsd in (1.0, 0.5):
        segment_mosaic(path, tmp_path / "out.tif", adapter=adapter, reading={"gsd": gsd})
        with rasterio.open(tmp_path / "out.tif") as written, rasterio.open(path) as given:
            assert written.shape == SHAPE and written.transform == given.transform


@pytest.mark.parametrize(("gsd", "shape"), [(1.0, (75, 115)), (0.7, (107, 164)), (0.3, (250, 383))])
def test_what_was_seen_at_another_pixel_size_comes_back_to_the_pixels_of_the_file(
    tmp_path: Path, classes: Path, gsd: float, shape: tuple[int, int]
) -> None:
    image = colours()
    image[:, 40:61, 100:151] = 0
    path = write_raster(tmp_path / "r.tif", image, nodata=0)
    view = open_scene(path, gsd=gsd)
    assert view.grid.shape == shape and isinstance(view, ResampledScene)
    expected = view.to_source(segment(view, adapter=classes, progress=False).labels) * (image[0] > 0)
    found = []
    for tile in (64, 100, 400):
        options, scores = MosaicOptions(tile=tile), tmp_path / "s.tif"
        outputs = [tmp_path / "out.tif", tmp_path / "out.gpkg"]
        segment_mosaic(path, outputs, adapter=classes, options=options, reading={"gsd": gsd}, scores=scores)
        assert np.array_equal(labels_of(tmp_path / "out.tif"), expected) and len(np.unique(expected)) >= 2
        with rasterio.open(tmp_path / "out.tif") as written, rasterio.open(path) as given:
            assert written.transform == given.transform and written.crs == given.crs
            nothing = written.read(1) == 255
            near = ndimage.binary_dilation(image[0] == 0, iterations=2)
            assert nothing[image[0] == 0].all() and not nothing[~near].any()
        with rasterio.open(scores) as written:
            found.append(written.read(1))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2]) and found[0].any()


def test_numbers_of_objects_come_back_too_and_the_page_shows_them(
    tmp_path: Path, objects: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    words = ["segment", str(path), "--adapter", str(objects), "-o", str(tmp_path / "out.tif"), "--gsd", "1"]
    assert cli.main([*words, "--tile", "64", "--overlap", "32", "--report"]) == 0
    found = labels_of(tmp_path / "out.tif")
    assert found.shape == SHAPE and found.max() > 2
    assert (found[::2, ::2] == found[1::2, 1::2]).all()  # four pixels of half a metre are one of a metre
    assert "Segmentation of r.tif" in (tmp_path / "out.tif.report.html").read_text()
    whole = [*words[:5], str(tmp_path / "whole.tif"), "--gsd", "1"]
    assert cli.main(whole) == 0
    assert labels_of(tmp_path / "whole.tif").shape == SHAPE


def test_provenance_is_in_the_file_and_knows_no_machine(tmp_path: Path, objects: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    segment_mosaic(path, tmp_path / "out.gpkg", adapter=objects, options=MosaicOptions(tile=128, overlap=64))
    said = read_provenance(tmp_path / "out.gpkg")
    assert said is not None and said["source"] == "r.tif" and said["adapter"] == "objects.graft"
    assert said["tiles"]["side"] == 128 and said["failed_tiles"] == [] and len(said["weights_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(said)


def test_two_processes_write_the_same_bytes(
    tmp_path: Path, objects: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo_root))
    path = write_raster(tmp_path / "r.tif", colours())
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        outputs = [tmp_path / str(workers) / name for name in ("out.gpkg", "out.tif", "out.geojson")]
        options = MosaicOptions(tile=100, overlap=40, workers=workers)
        segment_mosaic(path, outputs, adapter=objects, options=options)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 4  # a style beside them


@pytest.mark.slow
def test_dask_writes_the_same_bytes(
    tmp_path: Path, classes: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", f"{repo_root / '.src'}:{repo_root}")
    path = write_raster(tmp_path / "r.tif", colours())
    for engine in ("local", "dask"):
        (tmp_path / engine).mkdir()
        options = MosaicOptions(tile=100, engine=engine, workers=2 if engine == "dask" else 1)  # type: ignore[arg-type]
        outputs = [tmp_path / engine / name for name in ("out.gpkg", "out.tif")]
        segment_mosaic(path, outputs, adapter=classes, options=options)
    assert contents(tmp_path / "local") == contents(tmp_path / "dask")


def test_an_area_of_interest(tmp_path: Path, classes: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    x0, y0 = NORTH_UP @ (20, 30)
    x1, y1 = NORTH_UP @ (90, 110)
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32618"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    options = MosaicOptions(tile=50, aoi=tmp_path / "a.geojson")
    summary = segment_mosaic(path, tmp_path / "out.tif", adapter=classes, options=options)
    everywhere = segment(path, adapter=classes, progress=False).labels
    expected = np.zeros(SHAPE, dtype=np.int64)
    expected[30:110, 20:90] = everywhere[30:110, 20:90]
    assert np.array_equal(labels_of(tmp_path / "out.tif"), expected)
    assert summary.tiles == 3 * 2  # of 4 x 5


def test_several_files_are_one_mosaic(tmp_path: Path, classes: Path) -> None:
    image = colours()
    whole = write_raster(tmp_path / "whole.tif", image)
    left = write_raster(tmp_path / "left.tif", image[:, :, :96])
    moved = NORTH_UP @ Affine.translation(96, 0)
    right = write_raster(tmp_path / "right.tif", image[:, :, 96:], transform=moved)
    segment_mosaic(whole, tmp_path / "a.tif", adapter=classes, options=MosaicOptions(tile=64))
    segment_mosaic([left, right], tmp_path / "b.tif", adapter=classes, options=MosaicOptions(tile=64))
    assert np.array_equal(labels_of(tmp_path / "a.tif"), labels_of(tmp_path / "b.tif"))


def interrupted(after: int) -> Callable[[Progress], None]:
    def tell(now: Progress) -> None:
        if now.what == "tiles" and now.done >= after:
            raise KeyboardInterrupt

    return tell


def test_another_configuration_is_refused_until_restart(tmp_path: Path, classes: Path) -> None:
    path, output = write_raster(tmp_path / "r.tif", colours()), tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        segment_mosaic(path, output, adapter=classes, options=MosaicOptions(tile=64), tell=interrupted(3))
    with pytest.raises(ConfigError, match=r"another plan \(side: 64 then, 80 now\)"):
        segment_mosaic(path, output, adapter=classes, options=MosaicOptions(tile=80))
    write_raster(path, colours(seed=4))
    with pytest.raises(ConfigError, match="another input"):
        segment_mosaic(path, output, adapter=classes, options=MosaicOptions(tile=64))
    assert not output.exists()
    options = MosaicOptions(tile=64, restart=True, keep_work=True)
    summary = segment_mosaic(path, output, adapter=classes, options=options)
    assert summary.computed == summary.tiles and work_folder(output).is_dir()
    assert np.array_equal(labels_of(output), segment(path, adapter=classes, progress=False).labels)


def test_an_adapter_for_whole_pictures_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "whole.graft", window=None)
    path = write_raster(tmp_path / "r.tif", colours())
    with pytest.raises(ConfigError, match="trained on whole pictures"):
        segment_mosaic(path, tmp_path / "out.tif", adapter=adapter)
    assert not work_folder(tmp_path / "out.tif").exists()


def test_tiles_by_window_object_and_area(tmp_path: Path) -> None:
    scene = open_scene(write_raster(tmp_path / "r.tif", np.zeros((1, 3000, 5000), np.uint8)))
    plan = planned(scene, 128, MosaicOptions(), kind="semantic")
    assert (plan.side, plan.overlap) == (2048, 2)
    plan = planned(scene, 128, MosaicOptions(), kind="instance")
    assert (plan.side, plan.overlap) == (2048, 128)
    assert planned(scene, 32, MosaicOptions(), kind="instance").side == LEAST_SIDE
    plan = planned(scene, 128, MosaicOptions(largest_m=100.0), kind="instance")  # 200 pixels of half a metre
    assert plan.overlap >= 200 and plan.side >= 4 * 200
    plan = planned(scene, 128, MosaicOptions(tile=300), kind="instance")
    assert (plan.side, plan.overlap) == (300, 128)
    plan = planned(scene, 128, MosaicOptions(tile=300, overlap=0.25), kind="instance")
    assert (plan.side, plan.overlap) == (300, 75)
    nowhere = open_scene(write_raster(tmp_path / "n.tif", np.zeros((1, 300, 500), np.uint8), crs=None))
    with pytest.raises(ConfigError, match="has no CRS, so nothing is known about metres"):
        planned(nowhere, 128, MosaicOptions(largest_m=10.0), kind="instance")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ray"}, "expected one of local, dask"),
        ({"on_bad_tile": "ignore"}, "fail or skip"),
        ({"scheduler": "tcp://a:1"}, "belongs to the Dask engine"),
        ({"largest_m": 5.0, "tile": 512}, "leave these two out, or largest_m"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MosaicOptions(**options)  # type: ignore[arg-type]


# --- the command line


def test_one_command_writes_polygons_and_a_report(
    tmp_path: Path, objects: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samgraft.recipes.mosaic.report.SIDE", 60)
    path, output = write_raster(tmp_path / "r.tif", colours()), tmp_path / "out.gpkg"
    words = ["segment", str(path), "--adapter", str(objects), "-o", str(output), "--report", "--tile", "128"]
    assert cli.main([*words, "--overlap", "48"]) == 0
    text = capsys.readouterr().out
    assert "object in 6 tiles (0 without data)" in text and f"wrote {output}" in text
    page = (tmp_path / "out.gpkg.report.html").read_text()
    assert "Segmentation of r.tif" in page and "Full size: rows" in page and page.count("data:image/png") == 5
    assert len(raw.read(output)[2]) == int(text.split(" object in")[0].replace(",", ""))


def test_small_rasters_without_such_options_stay_as_they_are(
    tmp_path: Path, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    went: list[str] = []
    monkeypatch.setattr("samgraft.recipes.commands.segment.run_tiles", lambda *_: went.append("tiles"))
    words = ["segment", str(path), "--adapter", str(classes), "-o", str(tmp_path / "m.tif")]
    assert cli.main(words) == 0 and not went
    assert cli.main([*words[:-1], str(tmp_path / "m.fgb")]) == 0 and len(went) == 1
    assert cli.main([*words, "--workers", "1"]) == 0 and len(went) == 2
    assert cli.main([words[0], str(path), *words[1:]]) == 0 and len(went) == 3
    monkeypatch.setattr(command, "LARGE", SHAPE[0] * SHAPE[1] - 1)
    assert cli.main(words) == 0 and len(went) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1", "1", "9", "9", "--aoi", "a.geojson"], "--aoi: for rasters with --adapter or --everything, not"),
        (["--adapter", "a.graft", "--overlap", "64.5"], "overlap is 64.5; expected whole pixels"),
        (["--everything", "--tile", "64", "--overlap", "64"], "fewer than a tile has (64)"),
        (["--box", "1", "1", "9", "9", "--gsd", "1"], "count pixels of the file, and --gsd makes other ones"),
        (["--adapter", "a.graft", "--scheduler", "tcp://x:1"], "belongs to the Dask engine"),
        (["--adapter", "/nowhere/a.graft", "--keep-work"], "CheckpointError"),
    ],
)
def test_calls_that_cannot_work(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(tmp_path / "r.tif", colours())
    assert cli.main(["segment", str(path), "-o", str(tmp_path / "o.gpkg"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not work_folder(tmp_path / "o.gpkg").exists()


def test_a_truncated_file_skipped_by_the_command_is_told(
    tmp_path: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (3, *SHAPE), dtype=np.uint8)
    path = write_raster(tmp_path / "r.tif", noise, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    size = path.stat().st_size
    with path.open("r+b") as file:  # the last blocks are cut off, the header is whole
        file.truncate(size - size // 10)
    words = ["segment", str(path), "--adapter", str(classes), "-o", str(tmp_path / "o.tif"), "--tile", "64"]
    assert cli.main(words) == 2
    assert "InputError: tile" in capsys.readouterr().err and not (tmp_path / "o.tif").exists()
    assert cli.main([*words, "--on-bad-tile", "skip", "--report"]) == 0
    text = capsys.readouterr().out
    assert "skipped tile" in text and "were finished before" in text
    said = read_provenance(tmp_path / "o.tif")
    assert said is not None and said["failed_tiles"]
    first = said["failed_tiles"][0]
    with rasterio.open(tmp_path / "o.tif") as source:
        assert (source.read(1)[first["rows"][0], first["cols"][0]]) == source.nodata
    assert "Skipped tiles" in (tmp_path / "o.tif.report.html").read_text()


def test_everything_goes_through_tiles(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "r.tif", colours((100, 140)))
    words = ["segment", str(path), "--everything", "--points-per-side", "4", "-o", str(tmp_path / "o.parquet")]
    pytest.importorskip("pyarrow")
    assert cli.main([*words, "--pred-iou-thresh", "0.3", "--stability-score-thresh", "0.3"]) == 0
    assert (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize(("overlap", "tiles"), [("48", 6), ("0.375", 6), ("64", 6), ("16", 4)])
def test_everything_takes_the_overlap_in_pixels_and_as_a_share(
    tmp_path: Path, overlap: str, tiles: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 x 230 pixels in tiles of 128: a stride of 80 or 64 needs 2 x 3 tiles, one of 112 only 2 x 2."""
    path = write_raster(tmp_path / "r.tif", colours())
    words = ["segment", str(path), "--everything", "--points-per-side", "2", "-o", str(tmp_path / "o.fgb")]
    assert cli.main([*words, "--tile", "128", "--overlap", overlap]) == 0
    assert f"in {tiles} tiles" in capsys.readouterr().out


def test_volumes_are_refused(tmp_path: Path) -> None:
    from tests.recipes._sets import write_volumes

    volume = write_volumes(tmp_path / "v") / "imagesTr" / "case_00_0000.nii.gz"
    with pytest.raises(InputError, match="is a volume"):
        segment_mosaic(volume, tmp_path / "o.gpkg")
