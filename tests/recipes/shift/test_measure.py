"""The whole measurement on small sets: the same twice, a gamma, inverted contrast, an adapter's memory, the command."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.domains.shift.statistics import image_statistics
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes import cli
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.shift.advice import Advice, advise, beyond_chance, inverted
from samgraft.recipes.shift.features import Encoder, Moments
from samgraft.recipes.shift.figure import draw_shift, plane
from samgraft.recipes.shift.measure import Measured, ShiftOptions, measure_shift
from samgraft.recipes.shift.report import shift_json, shift_text, write_shift
from samgraft.recipes.shift.seen import network_pixel
from samgraft.recipes.shift.sets import find_set
from samgraft.recipes.shift.views import Viewer, set_views
from tests.adapters.toy import toy_backbone
from tests.data.rasters import write_raster
from tests.recipes.shift._pictures import write_set

QUICK = ShiftOptions(views=16, permutations=99)


@pytest.fixture(scope="module")
def backbone() -> HFSamBackbone:
    return toy_backbone()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sets ``plain``, ``other`` (of the same kind), ``dark`` (gamma 2) and ``inverted``."""
    root = tmp_path_factory.mktemp("shift")
    write_set(root / "plain", count=14)
    write_set(root / "other", count=14, seed=1)
    write_set(root / "dark", count=14, seed=2, gamma=2.0)
    write_set(root / "inverted", count=14, seed=3, invert=True)
    return root


def levers(found: Measured) -> dict[str, Advice]:
    return {one.lever: one for one in advise(found)}


def adapter(path: Path, backbone: HFSamBackbone, images: Path | None, *, remember: bool = True) -> Path:
    """A bundle whose header remembers ``images``, as training writes it."""
    extra: dict[str, object] = {"input": asdict(InputRecipe(size=64))}
    if images is not None:
        views = list(set_views(find_set(images), Viewer(), 16))
        extra["source"] = image_statistics([v.image for v in views]).to_json()
        encoder = Encoder(backbone, 64)
        for view in views:
            encoder.add(view.image)
        moments = Moments.of_rows(encoder.rows())
        if remember:
            extra["features"] = {
                "backbone": backbone.weights_hash(),
                "images": moments.count,
                "mean": moments.mean.tolist(),
                "variance": moments.variance.tolist(),
            }
    grafted = attach(backbone, [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=1))
    try:
        return save_bundle(path, grafted, meta=BundleMeta(classes={1: "disc"}, input_size=(64, 64), extra=extra))
    finally:
        grafted.detach()


def test_a_set_against_itself_has_no_shift(sets: Path, backbone: HFSamBackbone) -> None:
    found = measure_shift(sets / "plain", sets / "plain", backbone=backbone, options=QUICK)
    assert found.features is not None and found.features.probe is not None
    assert found.features.probe.auc == 0.5 and found.features.mmd_p == 1.0
    assert (found.features.standardised, found.features.frechet) == pytest.approx((0, 0), abs=1e-6)
    assert found.comparison.wasserstein == (0, 0, 0)
    assert advise(found)[0].lever == "nothing" and levers(found)["no labels"].worth == "no"


def test_another_set_of_the_same_kind_is_hardly_told_apart(sets: Path, backbone: HFSamBackbone) -> None:
    found = measure_shift(sets / "plain", sets / "other", backbone=backbone, options=QUICK)
    assert found.features is not None and found.features.probe is not None and found.features.mmd_p is not None
    assert found.features.mmd_p > 0.05 and 0.15 < found.features.probe.auc < 0.85
    assert found.features.frechet < 1.5 * (found.features.frechet_chance or 0)
    assert advise(found)[0].lever == "nothing"


def test_a_gamma_asks_for_an_alignment(sets: Path, backbone: HFSamBackbone) -> None:
    found = measure_shift(sets / "plain", sets / "dark", backbone=backbone, options=QUICK)
    assert found.features is not None and found.features.probe is not None
    assert found.features.probe.auc == 1 and found.features.mmd_p == found.features.smallest_p == pytest.approx(0.01)
    assert beyond_chance(found.features) > 0.5
    assert advise(found)[0].worth == "try" and levers(found)["histogram"].worth == "try"
    assert "limit 0.05" in levers(found)["histogram"].why and "nothing" not in levers(found)


def test_an_alignment_does_not_undo_inverted_contrast(sets: Path, backbone: HFSamBackbone) -> None:
    found = measure_shift(sets / "plain", sets / "inverted", backbone=backbone, options=QUICK)
    one, two = found.comparison.skewness
    assert one > 0.4 and two == pytest.approx(-one, rel=0.2) and inverted(found)
    given = levers(found)
    assert (given["histogram"].worth, given["weak labels"].worth, given["augment"].worth) == ("no", "try", "perhaps")
    assert "augment.invert" in given["augment"].how


def test_pixels_of_another_size_ask_for_resampling(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 255, (3, 80, 90)).astype(np.uint8)
    for name, size in (("fine", 0.3), ("coarse", 0.75)):
        (tmp_path / name).mkdir()
        for index in range(2):
            place = Affine(size, 0, 399000.25 + 500 * index, 0, -size, 4500000.75)
            write_raster(tmp_path / name / f"{name}{index}.tif", array, transform=place)
    options = replace(QUICK, features=False)
    found = measure_shift(tmp_path / "fine", tmp_path / "coarse", options=options)
    np.testing.assert_allclose(found.file_ratio, 2.5, rtol=1e-3)
    assert found.zoom is None and "resample" not in levers(found)  # no network, so nobody knows its pixels
    found = measure_shift(tmp_path / "fine", tmp_path / "coarse", backbone=toy_backbone(), options=QUICK)
    assert found.zoom == pytest.approx(2.5, rel=1e-3)
    given = levers(found)["resample"]
    assert given.worth == "try" and "pixels of 0.3 " in given.how and "2.50 times" in given.why


def test_network_pixels_by_hand() -> None:
    image = np.zeros((3, 40, 100), dtype=np.float32)
    seen = image_statistics([image], [(3.0, 0.5)])
    assert network_pixel(seen, 64) == pytest.approx(3 * 40 / 64)
    assert network_pixel(seen, None) is None and network_pixel(image_statistics([image]), 64) is None


def test_the_memory_of_an_adapter_stands_in_for_its_images(sets: Path, backbone: HFSamBackbone, tmp_path: Path) -> None:
    file = adapter(tmp_path / "a.graft", backbone, sets / "plain")
    images = measure_shift(sets / "plain", sets / "dark", adapter=file, backbone=backbone, options=QUICK)
    memory = measure_shift(file, sets / "dark", backbone=backbone, options=QUICK)
    assert memory.comparison.to_json() == images.comparison.to_json()
    assert memory.features is not None and images.features is not None and memory.data is None
    assert memory.features.standardised == pytest.approx(images.features.standardised)
    assert memory.features.probe is None and memory.source.title == "a.graft" and memory.source.remembered
    assert any("needs its images" in note or "need its images" in note for note in memory.notes)
    assert levers(memory)["histogram"].worth == "try"
    same = measure_shift(file, sets / "other", backbone=backbone, options=QUICK)
    assert same.features is not None and same.features.standardised < 1.5 * same.features.standardised_chance
    assert advise(same)[0].lever == "nothing"
    assert draw_shift(memory)[:4] == b"\x89PNG"


def test_an_adapter_that_remembers_nothing_is_refused(sets: Path, backbone: HFSamBackbone, tmp_path: Path) -> None:
    forgetful = adapter(tmp_path / "a.graft", backbone, None)
    with pytest.raises(CheckpointError, match="does not remember its training images"):
        measure_shift(forgetful, sets / "dark", backbone=backbone, options=QUICK)
    pixels_only = adapter(tmp_path / "b.graft", backbone, sets / "plain", remember=False)
    found = measure_shift(pixels_only, sets / "dark", backbone=backbone, options=QUICK)
    assert found.features is None and any("pixels only" in note for note in found.notes)
    with pytest.raises(CheckpointError, match="leave --backbone out"):
        Moments.from_meta(BundleMeta(extra={"features": _stored(backbone)}), "f" * 64)
    with pytest.raises(ConfigError, match="leave --adapter"):
        measure_shift(pixels_only, sets / "dark", adapter=forgetful, backbone=backbone)


def _stored(backbone: HFSamBackbone) -> dict[str, object]:
    return {"backbone": backbone.weights_hash(), "images": 3, "mean": [0.0, 1.0], "variance": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "match"),
    [({"mean": None}, "cannot be read"), ({"mean": [1.0]}, r"\(1,\)"), ({"variance": [1.0, float("nan")]}, "copy it")],
)
def test_damaged_moments_are_refused(backbone: HFSamBackbone, change: dict[str, object], match: str) -> None:
    meta = BundleMeta(extra={"features": _stored(backbone) | change})
    with pytest.raises(CheckpointError, match=match):
        Moments.from_meta(meta, backbone.weights_hash())


def test_a_single_scene_per_side_is_said(tmp_path: Path, backbone: HFSamBackbone) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        array = np.random.default_rng(len(name)).integers(1, 255, (3, 600, 1100)).astype(np.uint8)
        write_raster(tmp_path / name / f"{name}.tif", array)
    found = measure_shift(tmp_path / "a", tmp_path / "b", backbone=backbone, options=replace(QUICK, views=4))
    assert any("a single patient or scene" in note for note in found.notes)


def test_text_json_page_and_picture(sets: Path, backbone: HFSamBackbone, tmp_path: Path) -> None:
    found = measure_shift(sets / "plain", sets / "dark", backbone=backbone, options=QUICK)
    text = shift_text(found)
    assert "AUC 1.00" in text and "try   histogram" in text and "plain: 14 images, 14 views" in text
    plain = json.loads(json.dumps(shift_json(found), allow_nan=False))
    assert plain["features"]["probe"]["auc"] == 1 and plain["target"]["views"] == 14
    assert [one["lever"] for one in plain["advice"]] == [one.lever for one in advise(found)]
    for name in ("a.html", "a.json", "a.png"):
        write_shift(found, tmp_path / name)
    page = (tmp_path / "a.html").read_text()
    assert "What is worth trying" in page and "data:image/png;base64" in page and "http" not in page.split("<h2>", 1)[1]
    assert json.loads((tmp_path / "a.json").read_text()) == plain
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000
    with pytest.raises(ConfigError, match=r"\.html, \.json, \.png"):
        write_shift(found, tmp_path / "a.pdf")


def test_features_in_a_plane_keep_their_distances() -> None:
    flat = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 1.0], [0.0, 1.0]])
    turn = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    places, share = plane(flat @ turn)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(np.abs(places), np.abs(flat - flat.mean(axis=0)), atol=1e-9)


def test_the_command(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    words = ["shift", str(sets / "plain"), str(sets / "dark"), "--views", "8", "--json", "-o", str(out)]
    assert cli.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["features"]["backbone"] == "graft-tiny" and printed["source"]["views"] == 8 and out.is_file()
    assert cli.main([*words[:5], "--no-features"]) == 0
    assert "linear probe" not in capsys.readouterr().out
    assert cli.main([*words[:3], "-o", "report.pdf"]) == 2
    assert cli.main(["shift", str(sets / "plain"), str(sets / "dark"), "--views", "2"]) == 2
