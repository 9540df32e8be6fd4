"""Pairs of the benchmark of domain shift: who is scored, what can be reached from where, what the camera does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
from PIL import Image

from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from tests.benchmarks import _shift_camera, _shift_pairs, _shift_rows
from tests.benchmarks._shift_folders import LAST, Item, data_set, truth, unlabelled, write_image
from tests.benchmarks._shift_pairs import PAIRS, Pair, Sides
from tests.data.shift_items import people, picture, raster, square


@pytest.fixture
def real(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark reads the shared data of the tests."""
    monkeypatch.setenv("SAMGRAFT_SHARED", str(shared_data.parent))


# --- who is scored ----------------------------------------------------------------------------------------------------
def test_nobody_is_scored_who_was_trained_on(tmp_path: Path) -> None:
    one, other, third, *_ = people(tmp_path)  # 00L, 00R, 01L
    assert Sides(source=(one,), target=(other,), scored=(third,)).scored == (third,)
    with pytest.raises(ValueError, match="00"):
        Sides(source=(third,), target=(one,), scored=(other,))
    with pytest.raises(ValueError, match="00"):
        Sides(source=(one,), target=(third,), scored=(other,))


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_sides_of_the_real_pairs_are_apart(name: str) -> None:
    sides = PAIRS[name].sides(0)
    parts = {part: {item.patient for item in getattr(sides, part)} for part in ("source", "target", "scored")}
    assert all(parts.values())
    assert not parts["scored"] & (parts["source"] | parts["target"])
    images = [{(item.image, item.block) for item in getattr(sides, part)} for part in parts]
    assert not images[2] & (images[0] | images[1])
    assert PAIRS[name].sides(0) == sides


@pytest.mark.usefixtures("real")
def test_retina_shows_other_children_on_either_side() -> None:
    sides = PAIRS["retina_camera"].sides(1)
    children = [sorted({item.patient for item in part}) for part in (sides.source, sides.target, sides.scored)]
    numbers = [[int(child.removeprefix("Image_")) for child in part] for part in children]
    assert numbers == [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert {item.camera for item in sides.source} == {None}
    assert {item.camera for item in (*sides.target, *sides.scored)} == {_shift_camera.draw(1)}


@pytest.mark.usefixtures("real")
def test_sarcoma_patients_are_the_same_on_both_sides_and_those_scored_on_neither() -> None:
    there, back = PAIRS["sarcoma_ct_to_mr"].sides(0), PAIRS["sarcoma_mr_to_ct"].sides(0)
    assert len(there.source) == len(there.target) == 10 and len(there.scored) == 4
    assert {i.patient for i in there.source} == {i.patient for i in there.target}
    assert {i.patient for i in there.scored} == {i.patient for i in back.scored}
    assert [i.image.parts[-3] for i in (there.source[0], there.target[0], back.scored[0])] == [
        "sarcoma_ct",
        "sarcoma_mr",
        "sarcoma_ct",
    ]


@pytest.mark.usefixtures("real")
def test_nuclei_are_told_apart_as_the_readme_counts_them() -> None:
    known = _shift_pairs.nuclei_by_staining()
    sizes = {name: len(parts["train"]) + len(parts["val"]) for name, parts in known.items()}
    assert sizes == {"fluorescence": 48, "stained": 48, "gray": 4}
    assert len(known["fluorescence"]["val"]) == _shift_pairs.SCORED_DARK


def test_staining_by_colour_then_by_brightness(tmp_path: Path) -> None:
    for name, colour in {"pink": (200, 120, 160), "dark": (20, 20, 20), "pale": (180, 180, 180)}.items():
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    found = {name: _shift_pairs.staining(tmp_path / f"{name}.png") for name in ("pink", "dark", "pale")}
    assert found == {"pink": "stained", "dark": "fluorescence", "pale": "gray"}


def test_few_are_people_in_turn_and_only_those_that_show_something(tmp_path: Path) -> None:
    empty = np.zeros((40, 56), dtype=np.int32)
    items = people(tmp_path, 8, [square(), square(), square(), empty, square(), square(), empty, empty])
    images = {item.id: item.image for item in items}
    for seed in range(5):
        chosen = _shift_pairs.few(items, images, 3, seed)
        assert {item.patient for item in chosen} == {"00", "01", "02"}
        assert _shift_pairs.few(items, images, 3, seed) == chosen
        assert {item.id for item in chosen} < {"00L", "00R", "01L", "02L", "02R"}
        assert len(_shift_pairs.few(items, images, 9, seed)) == 5
    assert len({_shift_pairs.few(items, images, 3, seed) for seed in range(8)}) > 1


# --- blocks of ground -------------------------------------------------------------------------------------------------
def test_blocks_lie_where_they_lay_and_hold_their_own_polygons(tmp_path: Path) -> None:
    image, label = raster(tmp_path / "raw", nodata_columns=10)
    west = _shift_pairs.blocks(image, label, (slice(0, 60), slice(0, 45)), "west", side=30)
    assert [item.block for item in west] == [(0, 0, 30, 22), (0, 22, 30, 23), (30, 0, 30, 22), (30, 22, 30, 23)]
    (east,) = _shift_pairs.blocks(image, label, (slice(0, 60), slice(45, 90)), "east", side=None)
    written = write_image(east, tmp_path / "out")
    with rasterio.open(written) as file:
        assert (file.shape, file.nodata, tuple(file.bounds)[:2]) == ((60, 45), 0, (1022.5, 1970.0))
        assert file.crs.to_epsg() == 32616
    drawn = truth(east, written)
    rows, cols = np.nonzero(drawn)
    # x 1030..1033 is column (1030 - 1022.5) / 0.5 = 15 to 20, y 1985..1983 is row 30 to 33; the third has no data
    assert (rows.min(), rows.max(), cols.min(), cols.max(), len(rows)) == (30, 33, 15, 20, 24)
    assert np.unique(drawn).tolist() == [0, 1]


def test_blocks_without_data_are_left_out_but_not_where_one_is_scored(tmp_path: Path) -> None:
    image, label = raster(tmp_path, nodata_columns=45)
    ground = (slice(0, 60), slice(0, 90))
    assert [item.block for item in _shift_pairs.blocks(image, label, ground, "g", side=45)] == [(0, 0, 60, 45)]
    assert [item.block for item in _shift_pairs.blocks(image, label, ground, "g", side=None)] == [(0, 0, 60, 90)]


def test_training_polygons_leave_out_those_of_scored_ground(tmp_path: Path) -> None:
    image, label = raster(tmp_path / "raw")
    west = _shift_pairs.blocks(image, label, (slice(0, 60), slice(0, 45)), "west", side=45)
    written = unlabelled(west, tmp_path / "target")
    root = data_set(west, {i.id: p for i, p in zip(west, written, strict=True)}, tmp_path / "target" / "all")
    kept = json.loads((root / "labels" / "objects.geojson").read_text())["features"]
    assert [f["geometry"]["coordinates"][0][0] for f in kept] == [[1002.0, 1990.0]]
    index = index_data(DataConfig(layout="raster_vector", path=str(root), size=32), "instance")
    (case,) = index.train
    assert (case.load().labels > 0).sum() == 24 and case.load().image.shape[-2:] == (60, 45)


# --- what can be reached from where -----------------------------------------------------------------------------------
def reachable(folder: Path) -> set[Path]:
    """Files below ``folder``, and where its links lead, and what lies beside and below there."""
    found: set[Path] = set()
    for path in folder.rglob("*"):
        if path.is_file():
            found |= {path.resolve(), *(p.resolve() for p in path.resolve().parent.rglob("*") if p.is_file())}
    return found


def pair_of(target: list[Item], source: list[Item], scored: list[Item]) -> Pair:
    sides = Sides(source=tuple(source), target=tuple(target), scored=tuple(scored))
    return Pair(
        name="made_up", source="made_up_source", recipe="retina_vessels", metric="dice", sides=lambda seed: sides
    )


def test_images_lead_to_no_label_and_noise_instead_of_masks_changes_nothing_about_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prepared = []
    for name in ("true", "noise"):
        given = [square() if name == "true" else rng.integers(0, 2, (40, 56)) for _ in range(10)]
        items = people(tmp_path / name / "raw", 10, given)
        pair = pair_of(items[2:8], items[:2], items[8:])
        prepared.append(_shift_rows.prepare(pair, 3, tmp_path / name / "work"))
    true, noise = prepared
    assert [path.name for path in true.images] == ["01L.png", "01R.png", "02L.png", "02R.png", "03L.png", "03R.png"]
    assert [p.read_bytes() for p in true.images] == [p.read_bytes() for p in noise.images]
    (folder,) = {path.parent for path in true.images}
    assert {path.name for path in reachable(folder)} == {path.name for path in true.images}
    for kind in ("boxes", "points", "scribbles"):
        assert not any("masks" in path.parts for path in reachable(true.sets[kind]))
        labels = [p.read_bytes() for p in sorted((true.sets[kind] / kind).iterdir())]
        assert labels != [p.read_bytes() for p in sorted((noise.sets[kind] / kind).iterdir())]
    _, row = (true.sets["boxes"] / "boxes" / "02L.csv").read_text().splitlines()
    assert [float(value) for value in row.split(",")[-4:]] == [30, 4, 49, 13]
    masks = {image: truth(item, image) for item, image in true.scored}
    assert all(mask.sum() == 200 for mask in masks.values())
    assert not any(path.name in {p.name for p in masks} for path in reachable(true.sets["all"]))


@pytest.mark.parametrize("labels", ["masks", "instances"])
def test_data_sets_are_read_by_fit_and_validate_on_a_copy_of_a_training_case(tmp_path: Path, labels: str) -> None:
    items = [picture(tmp_path / "raw", f"p{i}x", square(value=1 + i), labels=labels) for i in range(3)]
    written = unlabelled(items, tmp_path / "target")
    root = data_set(items, {i.id: p for i, p in zip(items, written, strict=True)}, tmp_path / "target" / "all")
    kind = "instance" if labels == "instances" else "semantic"
    config = DataConfig(layout="image_mask", path=str(root), size=32)
    index = index_data(config, kind, ["thing"])  # type: ignore[arg-type]
    assert [case.id for case in index.train] == ["p0x", "p1x", "p2x"]
    assert [case.id for case in index.val] == [LAST + "p0x"]
    np.testing.assert_array_equal(index.val[0].load().image, index.train[0].load().image)
    assert (root / "images" / "p1x.png").is_symlink()


def test_volumes_become_a_set_of_their_own(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    header = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "lump": 1}, "numTraining": 9}
    (raw / "dataset.json").write_text(json.dumps({**header, "file_ending": ".nii.gz"}))
    items = []
    for number in range(2):
        values, lump = np.arange(120, dtype=np.int16).reshape(5, 6, 4), np.zeros((5, 6, 4), dtype=np.uint8)
        lump[1:3, 2, 3] = 1
        image, label = raw / "imagesTr" / f"S_{number}_0000.nii.gz", raw / "labelsTr" / f"S_{number}.nii.gz"
        for array, path in ((values, image), (lump, label)):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)  # type: ignore[attr-defined]
        items.append(Item(id=f"S_{number}", patient=f"S_{number}", image=image, label=label, layout="nnunet"))
    written = unlabelled(items, tmp_path / "target")
    assert [path.name for path in written] == ["S_0_0000.nii.gz", "S_1_0000.nii.gz"]
    root = data_set(items, {i.id: p for i, p in zip(items, written, strict=True)}, tmp_path / "target" / "all")
    index = index_data(DataConfig(layout="nnunet", path=str(root), size=32), "semantic")
    assert ([case.id for case in index.train], [case.id for case in index.val]) == (["S_0", "S_1"], [LAST + "S_0"])
    drawn = truth(items[1], written[1])
    assert drawn.shape == (4, 6, 5) and np.argwhere(drawn).tolist() == [[3, 2, 1], [3, 2, 2]]
    np.testing.assert_array_equal(index.train[1].load().labels, drawn)


# --- the camera -------------------------------------------------------------------------------------------------------
def plain_camera(**changes: Any) -> _shift_camera.Camera:
    unit = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    camera = _shift_camera.Camera(matrix=unit, vignette=0.0, gamma=1.0, blur=0.0, noise=0.0, seed=0)
    return replace(camera, **changes)


def test_a_camera_mixes_colours_darkens_the_rim_and_bends_the_tones() -> None:
    flat = np.broadcast_to(np.array([0.8, 0.4, 0.2], dtype=np.float32), (3, 5, 3))
    np.testing.assert_allclose(plain_camera().shoot(flat, "a"), flat, atol=1e-6)
    mixed = plain_camera(matrix=((0.5, 0.25, 0.0), (0.0, 1.0, 0.5), (0.25, 0.0, 1.0))).shoot(flat, "a")
    np.testing.assert_allclose(mixed[1, 2], [0.5, 0.5, 0.4], atol=1e-6)
    rim = plain_camera(vignette=0.5).shoot(flat, "a")
    np.testing.assert_allclose(rim[1, 2], flat[1, 2], atol=1e-6)  # the middle
    np.testing.assert_allclose(rim[0, 0], flat[0, 0] * 0.5, atol=1e-6)  # a corner
    np.testing.assert_allclose(rim[1, 0], flat[0, 0] * 0.75, atol=1e-6)  # the middle of a side
    np.testing.assert_allclose(plain_camera(gamma=2.0).shoot(flat, "a")[0, 0], [0.64, 0.16, 0.04], atol=1e-6)


def test_a_camera_is_the_same_for_its_seed_and_its_noise_for_a_name() -> None:
    picture = np.full((9, 7, 3), 0.5, dtype=np.float32)
    first = _shift_camera.draw(1)
    assert first == _shift_camera.draw(1) != _shift_camera.draw(2)
    np.testing.assert_array_equal(first.shoot(picture, "x"), first.shoot(picture, "x"))
    assert np.abs(first.shoot(picture, "x") - first.shoot(picture, "y")).max() > 0
    noise = plain_camera(noise=0.04).shoot(np.full((200, 200, 3), 0.5, dtype=np.float32), "z")
    assert noise.std() == pytest.approx(0.04, rel=0.03)
