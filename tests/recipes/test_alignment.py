"""An adapter on a scene that was moved: measured once, moved back, the same in every window, said in the result."""

import json
from copy import deepcopy
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import samgraft
from samgraft.adapters.bundle import BundleMeta, read_header
from samgraft.domains.remote_sensing.provenance import read_provenance
from samgraft.domains.shift.alignment import fit_alignment
from samgraft.domains.shift.statistics import ImageStatistics, image_statistics
from samgraft.errors import ConfigError, InputError, NoMatchError
from samgraft.recipes import alignment, cli
from samgraft.recipes.alignment import BLOCKS, evenly, fit_scene, scene_statistics
from samgraft.recipes.api import MosaicOptions, segment, segment_mosaic
from samgraft.recipes.engine.aligned import aligned, at_trained_spacing
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.planes import Plane, Rows
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import look_at
from samgraft.recipes.predicting import predict
from tests.data.rasters import write_raster
from tests.recipes._oracle import OracleGraft, squares
from tests.recipes.mosaic._scenes import tiny_adapter
from tests.recipes.mosaic.test_segment import colours, labels_of

SPEC = OracleGraft().backbone.spec
"""Of a backbone with patches of 8 pixels."""
BOXES = [(16, 24, 31, 39), (40, 8, 55, 31)]
BRIGHT = squares((64, 64), BOXES)
"""What the oracle was "trained" on: 220 on 20; it calls values above one half an object."""


def dark(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The same by a camera with a third of the light and an offset: 83 on 17."""
    return np.round(image * 0.33 + 10).astype(np.uint8)


def source_of(image: NDArray[Any]) -> ImageStatistics:
    """Statistics of one gray picture, or of a colour one (3, h, w), of bytes."""
    shown = np.repeat(image[None], 3, axis=0) if image.ndim == 2 else image
    return image_statistics([shown.astype(np.float32) / 255], stained=False)


def header(source: ImageStatistics | None = None) -> BundleMeta:
    return BundleMeta(extra={} if source is None else {"source": json.loads(json.dumps(source.to_json()))})


def said(**options: Any) -> Recorded:
    return Recorded(recipe=InputRecipe(**{"size": 64} | options), classes={1: "bright"})


def scene_of(kind: str, image: NDArray[np.uint8], folder: Path) -> Any:
    if kind == "picture":
        Image.fromarray(image).save(folder / "p.png")
        return samgraft.open(folder / "p.png")
    if kind == "raster":
        return samgraft.open(write_raster(folder / "r.tif", image[None], nodata=0))
    path = folder / "v.nii.gz"
    stack = np.stack([image, image]).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(stack, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return samgraft.open(path)


@pytest.mark.parametrize("name", ["histogram", "moments", "reinhard", "auto"])
@pytest.mark.parametrize("kind", ["picture", "raster", "volume"])
@pytest.mark.parametrize("window", [None, 48])
def test_a_darker_camera_is_undone(tmp_path: Path, name: str, kind: str, window: int | None) -> None:
    (tmp_path / "b").mkdir()
    scene, graft = scene_of(kind, dark(BRIGHT), tmp_path), OracleGraft()
    plain = said(window=window)
    wanted = segment_automatic(scene_of(kind, BRIGHT, tmp_path / "b"), graft, plain).labels
    assert wanted.any() and not segment_automatic(scene, graft, plain).labels.any()
    ready = aligned(plain, scene, header(source_of(BRIGHT)), name)
    found = segment_automatic(scene, graft, ready)
    np.testing.assert_array_equal(found.labels, wanted)
    assert found.meta["align"].startswith("moments (auto: gray values of few images" if name == "auto" else name)
    again = aligned(plain, scene, header(source_of(BRIGHT)), name)
    np.testing.assert_array_equal(segment_automatic(scene, graft, again).labels, found.labels)


def test_near_scenes_are_left_alone_by_auto_and_none_asks_nothing(tmp_path: Path) -> None:
    scene = scene_of("picture", BRIGHT, tmp_path)
    ready = aligned(said(), scene, header(source_of(BRIGHT)), "auto")
    assert ready.alignment is None and ready.about["align"].startswith("none (auto: histograms differ by 0.000 only")
    assert aligned(said(), scene, header(), "none").about["align"] == "none"  # an old header is enough
    assert aligned(said(), scene, header(), None) == said()


def test_what_cannot_be_aligned_is_named(tmp_path: Path) -> None:
    picture, raster = scene_of("picture", dark(BRIGHT), tmp_path), scene_of("raster", dark(BRIGHT), tmp_path)
    known = header(source_of(BRIGHT))
    with pytest.raises(ConfigError, match="says nothing about its training images.* --align-source FOLDER"):
        aligned(said(), picture, header(), "auto")
    with pytest.raises(NoMatchError, match="unknown alignment 'histgram'; did you mean 'histogram'"):
        aligned(said(), picture, header(), "histgram")
    with pytest.raises(ConfigError, match=r"r\.tif is a raster, which is read window by window; 'fourier'"):
        aligned(said(window=32), raster, known, "fourier")
    with pytest.raises(InputError, match="'macenko' is for stained tissue"):
        aligned(said(), picture, known, "macenko")
    with pytest.raises(ConfigError, match="align_source says what to align with"):
        aligned(said(), picture, known, None, source=tmp_path)
    with pytest.raises(ConfigError, match="align=.* says how an adapter that works by itself sees a scene"):
        segment(picture, align="auto")
    with pytest.raises(ConfigError, match="align brings a raster"):
        segment_mosaic(raster.path, tmp_path / "o.tif", options=MosaicOptions(align="auto"))


def test_fourier_sees_the_whole_picture(tmp_path: Path) -> None:
    scene = scene_of("picture", dark(BRIGHT), tmp_path)
    for window in (None, 48):
        ready = aligned(said(window=window), scene, header(source_of(BRIGHT)), "fourier")
        plane = Plane(scene, ready.look(scene))
        assert ready.alignment is not None
        seen = ready.alignment.apply(np.repeat(dark(BRIGHT)[None], 3, axis=0).astype(np.float32) / 255)
        np.testing.assert_array_equal(Rows(plane).read(slice(8, 40), slice(3, 50))[0], seen[:, 8:40, 3:50])


def test_source_images_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    scene = scene_of("picture", dark(BRIGHT), tmp_path)
    Image.fromarray(BRIGHT).save(tmp_path / "train" / "a.png")
    ready = aligned(said(), scene, header(), "moments", source=tmp_path / "train")
    told = aligned(said(), scene, header(source_of(BRIGHT)), "moments")
    assert ready.about == told.about and ready.alignment is not None
    with pytest.raises(InputError, match="holds no image"):
        (tmp_path / "empty").mkdir()
        aligned(said(), scene, header(), "moments", source=tmp_path / "empty")


# --- what is measured


def test_missing_pixels_of_a_raster_do_not_count(tmp_path: Path) -> None:
    image = colours((96, 120))
    holes = image.copy()
    holes[:, :40, 30:] = 0
    scene = samgraft.open(write_raster(tmp_path / "r.tif", holes, nodata=0))
    found = scene_statistics(scene, look_at(scene))
    assert found is not None
    known = image.astype(np.float32) / 255
    known[:, :40, 30:] = np.nan
    np.testing.assert_allclose(found.histogram, image_statistics([known]).histogram, atol=1e-12)
    assert found.spacing is not None and found.spacing[0] == pytest.approx(0.5, rel=1e-3)
    empty = samgraft.open(write_raster(tmp_path / "e.tif", np.zeros((3, 20, 20), np.uint8), nodata=0))
    assert fit_scene("auto", empty, look_at(empty), found).words == "none (no valid pixel was found)"


def test_blocks_are_spread_and_a_raster_with_little_data_is_still_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "SMALL", 0)
    image = np.zeros((1, 320, 320), np.uint8)
    image[:, 305:312, 290:300] = 200
    scene = samgraft.open(write_raster(tmp_path / "r.tif", image, nodata=0))
    found = scene_statistics(scene, look_at(scene), window=16)  # 400 blocks, of which 64 have nothing
    assert BLOCKS == 64 and found is not None and found.mean[0] == pytest.approx(200 / 255, abs=1e-6)


def test_slices_of_a_volume_are_the_middles_of_equal_parts(tmp_path: Path) -> None:
    assert evenly(5, 8) == [0, 1, 2, 3, 4] and evenly(100, 4) == [12, 37, 62, 87]
    stack = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None], 16, axis=1).repeat(12, axis=2)
    nib.save(nib.Nifti1Image(stack.transpose(2, 1, 0), np.diag([0.7, 0.9, 4.0, 1.0])), tmp_path / "v.nii.gz")
    scene = samgraft.open(tmp_path / "v.nii.gz")
    found = scene_statistics(scene, look_at(scene), axis=0)
    assert found is not None and found.count == 24 and found.spacing == pytest.approx((0.9, 0.7))
    levels = np.flatnonzero(found.histogram[0])
    assert levels.tolist() == evenly(60, 24)


# --- rasters: one map for the whole


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[Path, Path]:
    """A raster with a cast and a hole, and an adapter that remembers pictures without."""
    image = colours()
    cast = np.clip(image * np.array([0.5, 0.8, 0.6])[:, None, None] + 5, 1, 255).astype(np.uint8)
    cast[:, 40:60, 100:150] = 0
    path = write_raster(tmp_path / "r.tif", cast, nodata=0, tiled=True, blockxsize=16, blockysize=16)
    adapter = tiny_adapter(tmp_path / "a.graft", window=64, source=source_of(image).to_json())
    return path, adapter


@pytest.mark.parametrize("name", ["histogram", "moments", "reinhard"])
def test_a_pixel_has_one_value_whatever_the_window(
    shifted: tuple[Path, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "SMALL", 0)
    scene = samgraft.open(shifted[0])
    source = ImageStatistics.from_json(read_header(shifted[1])["meta"]["extra"]["source"])
    fitted = fit_scene(name, scene, look_at(scene), source, window=64)
    plane = Plane(scene, replace(look_at(scene), alignment=fitted.alignment))
    plane.lazy = True
    whole = plane.read(slice(0, 150), slice(0, 230))
    assert (whole[:, 40:60, 100:150] == 0).all()  # missing stays missing
    rows, rng = Rows(plane), np.random.default_rng(0)
    for top in range(0, 140, 9):
        left, right = int(rng.integers(0, 100)), int(rng.integers(101, 231))
        part = slice(top, int(rng.integers(top + 1, 151))), slice(left, right)
        np.testing.assert_array_equal(plane.read(*part), whole[:, part[0], part[1]])
        np.testing.assert_array_equal(rows.read(*part)[0], whole[:, part[0], part[1]])


def test_tiles_agree_with_the_whole_bit_for_bit(tmp_path: Path, shifted: tuple[Path, Path]) -> None:
    path, adapter = shifted
    whole = segment(path, adapter=adapter, align="reinhard", progress=False)
    plain = segment(path, adapter=adapter, progress=False)
    assert (whole.labels != plain.labels).any() and whole.meta["align"].startswith("reinhard: L, a, b: gains ")
    options = MosaicOptions(tile=90, overlap=20, align="reinhard")
    segment_mosaic(path, tmp_path / "out.tif", adapter=adapter, options=options)
    np.testing.assert_array_equal(labels_of(tmp_path / "out.tif"), whole.labels)
    told = read_provenance(tmp_path / "out.tif")
    assert told is not None and told["scaling"]["alignment"]["name"] == "reinhard"
    assert told["method"]["align"] == whole.meta["align"]


def test_the_look_travels_with_its_map(shifted: tuple[Path, Path]) -> None:
    scene = samgraft.open(shifted[0])
    source = ImageStatistics.from_json(read_header(shifted[1])["meta"]["extra"]["source"])
    for name in ("histogram", "moments", "reinhard"):
        look = replace(look_at(scene), alignment=fit_scene(name, scene, look_at(scene), source).alignment)
        assert len(ForkingPickler.dumps(look)) < 20_000  # sent to every worker
        other = deepcopy(look)
        assert other.facts() == look.facts() and look.facts()["alignment"]["name"] == name
        raw = scene.read(channels=look.channels)
        np.testing.assert_array_equal(other.apply(raw), look.apply(raw))


@pytest.mark.slow
def test_workers_get_the_same_map(
    tmp_path: Path, shifted: tuple[Path, Path], repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo_root))
    written = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.tif"
        options = MosaicOptions(tile=100, workers=workers, align="auto")
        segment_mosaic(shifted[0], out, adapter=shifted[1], options=options)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_the_command_says_what_it_did(tmp_path: Path, shifted: tuple[Path, Path], capsys: Any) -> None:
    path, adapter = shifted
    out = tmp_path / "o.tif"
    code = cli.main(["segment", str(path), "-a", str(adapter), "--align", "auto", "-o", str(out)])
    assert code in (0, None) and "align: reinhard (auto: both have colours" in capsys.readouterr().out
    assert cli.main(["segment", str(path), "-a", str(adapter), "--align", "fourier", "-o", str(out)]) != 0
    assert "'fourier' changes whole pictures" in capsys.readouterr().err
    cli.main(["info", str(adapter)])
    shown = capsys.readouterr().out
    assert '"histogram": "768 values"' in shown and len(shown) < 6000


def test_many_files_are_aligned_each_by_itself_and_folders_are_kept_apart(
    tmp_path: Path, shifted: tuple[Path, Path]
) -> None:
    path, adapter = shifted
    (written,) = predict([path], tmp_path / "out", adapter=adapter, align="histogram", device="cpu")
    whole = segment(path, adapter=adapter, align="histogram", progress=False)
    assert written.state == "written", written.error
    np.testing.assert_array_equal(samgraft.open(tmp_path / "out" / "r.tif").read_labels(), whole.labels)
    with pytest.raises(ConfigError, match="of another alignment"):
        predict([path], tmp_path / "out", adapter=adapter, align="moments", device="cpu")
    (kept,) = predict([path], tmp_path / "out", adapter=adapter, align="histogram", device="cpu")
    assert kept.state == "skipped"


# --- pixel size of volumes


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        (0.5, (256, 200), {"window": 128, "size": 64}),  # 128 mm wide: two views of the 64 mm of training
        (1.0, (64, 50), {"window": None, "size": 64}),  # as in training
        (1.04, (64, 50), {"window": None, "size": 64}),  # within a tenth
        (0.5, (64, 64), {"window": None, "size": 32}),  # half as wide: half as many network pixels
        (0.5, (90, 60), {"window": None, "size": 48}),  # 45 mm: the next multiple of the patch
    ],
)
def test_volumes_are_shown_at_the_millimetres_of_training(
    tmp_path: Path, spacing: float, shape: tuple[int, int], expected: dict[str, Any]
) -> None:
    values = np.zeros((shape[1], shape[0], 3), np.uint8)
    nib.save(nib.Nifti1Image(values, np.diag([spacing, spacing, 5.0, 1.0])), tmp_path / "v.nii.gz")
    scene = samgraft.open(tmp_path / "v.nii.gz")
    found = at_trained_spacing(said(spacing=1.0), scene, "adapter", SPEC)
    assert {name: getattr(found.recipe, name) for name in expected} == expected
    plane = scene.grid.shape[1:]
    now = found.scale(plane) * spacing
    assert now == pytest.approx(1.0, rel=0.1)


def test_spacing_that_is_not_known_is_named(tmp_path: Path) -> None:
    volume, picture = scene_of("volume", BRIGHT, tmp_path), scene_of("picture", BRIGHT, tmp_path)
    with pytest.raises(ConfigError, match="does not say how many millimetres"):
        at_trained_spacing(said(), volume, "adapter", SPEC)
    with pytest.raises(ConfigError, match=r"spacing 'adapter' on p\.png: .* pictures have no known pixel size"):
        at_trained_spacing(said(spacing=1.0), picture, "adapter", SPEC)
    assert at_trained_spacing(said(), picture, None, SPEC) == said()


def test_objects_keep_their_size_for_the_network(tmp_path: Path) -> None:
    image = squares((128, 128), [(32, 48, 63, 79)])
    nib.save(nib.Nifti1Image(np.stack([image] * 2).transpose(2, 1, 0), np.diag([0.5, 0.5, 5, 1.0])), tmp_path / "v.nii")
    scene, graft = samgraft.open(tmp_path / "v.nii"), OracleGraft()
    ready = at_trained_spacing(said(spacing=0.5), scene, "adapter", SPEC)  # twice as fine as whole slices give
    assert ready.recipe.window == 64 and "seen at 0.5 mm per network pixel" in ready.about["spacing"]
    found = segment_automatic(scene, graft, ready)
    assert ((found.labels > 0) == (image > 100)).all() and graft.calls == 2 * 9
    assert graft.backbone.sizes[0][-2:] == (64, 64)


def test_fit_alignment_is_what_the_engine_uses(tmp_path: Path) -> None:
    scene = scene_of("picture", dark(BRIGHT), tmp_path)
    target, source = scene_statistics(scene, look_at(scene)), source_of(BRIGHT)
    assert target is not None
    made, used = fit_alignment("moments", target, source), fit_scene("moments", scene, look_at(scene), source)
    assert used.words == f"moments: {made.describe()}"
