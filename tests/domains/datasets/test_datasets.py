"""Indexes of the three layouts: names, splits, and labels that do not fit their images."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samgraft.domains.datasets.image_mask import read_image_mask
from samgraft.domains.datasets.nnunet import read_nnunet
from samgraft.domains.datasets.raster_vector import RasterVectorCase, read_raster_vector, split_by_number
from samgraft.errors import GeometryError, InputError, NoMatchError
from tests.data import rasters

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_nnunet(root: Path, *, channels: int = 1, label_affine: np.ndarray = AFFINE, suffix: bool = True) -> Path:
    for case in ("a_01", "a_02", "b_01"):
        for channel in range(channels):
            name = f"{case}_{channel:04d}" if suffix else case
            write_volume(root / "imagesTr" / f"{name}.nii.gz", np.full((4, 5, 6), channel + 3, dtype=np.int16))
        label = np.zeros((4, 5, 6), dtype=np.uint8)
        label[1, 2, 3] = 2
        write_volume(root / "labelsTr" / f"{case}.nii.gz", label, label_affine)
    names = {str(c): f"T{c + 1}" for c in range(channels)}
    header = {"labels": {"background": 0, "edema": 1, "core": 2}, "channel_names": names, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(header))
    return root


def save_png(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)


@pytest.mark.medical
def test_nnunet_layout(tmp_path: Path) -> None:
    root = make_nnunet(tmp_path, channels=2)
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b_01"]}]))
    index = read_nnunet(root)
    assert [c.id for c in index] == ["a_01", "a_02", "b_01"]
    assert index.classes == {1: "edema", 2: "core"} and index.channel_names == ("T1", "T2")
    assert [c.id for c in index.part("train")] == ["a_01", "a_02"] and index.case("a_02").group == "a"
    image = index.cases[0].load_image()
    assert image.channels == 2 and image.grid.shape == (6, 5, 4)
    assert image.read((slice(0, 1), slice(0, 1), slice(0, 1)), [1, 0]).ravel().tolist() == [4, 3]
    label = index.cases[0].load_label()
    assert label[3, 2, 1] == 2 and label.sum() == 2
    assert index.cases[0].load_label((slice(3, 4), slice(0, 5), slice(1, 2))).shape == (1, 5, 1)
    index.check()
    with pytest.raises(InputError, match="fold 1 asked, 1 known"):
        index.part("val", fold=1)
    with pytest.raises(NoMatchError, match="has no case 'zz'"):
        index.case("zz")


@pytest.mark.medical
def test_nnunet_without_channel_numbers_or_header(tmp_path: Path) -> None:
    root = make_nnunet(tmp_path, suffix=False)
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "x", "2": "y"}, "modality": {"0": "CT"}})
    )
    index = read_nnunet(root)
    assert index.classes == {1: "x", 2: "y"} and index.channel_names == ("CT",) and index.splits == ()
    (root / "dataset.json").unlink()
    assert read_nnunet(root).scan_classes().classes == {2: "class 2"}


@pytest.mark.medical
def test_label_on_another_grid_names_the_distance(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] = [3.0, 0.0, 4.0]
    index = read_nnunet(make_nnunet(tmp_path, label_affine=moved))
    with pytest.raises(GeometryError, match=r"label a_01.nii.gz of a_01: grids differ: .*largest corner distance 5 mm"):
        index.cases[0].load_label()
    with pytest.raises(InputError, match=r"3 of 3 cases cannot be used:\n  a_01: .*5 mm"):
        index.check(pixels=False)


@pytest.mark.medical
def test_nnunet_defects_are_named(tmp_path: Path) -> None:
    root = make_nnunet(tmp_path)
    write_volume(root / "labelsTr" / "b_01.nii.gz", np.full((4, 5, 6), 9, dtype=np.uint8))
    with pytest.raises(InputError, match=r"1 of 3 cases.*\n.*holds the values \[9\]"):
        read_nnunet(root).check()
    (root / "splits.json").write_text(json.dumps([{"train": ["a_01", "a_02"], "val": ["a_02"]}]))
    with pytest.raises(InputError, match=r"\['a_02'\] stand in train and in val"):
        read_nnunet(root)
    (root / "splits.json").write_text(json.dumps([{"train": ["a_0"], "val": []}]))
    with pytest.raises(InputError, match="'a_0', which is no case and no start of one"):
        read_nnunet(root)
    (root / "splits.json").unlink()
    write_volume(root / "imagesTr" / "b_01_0002.nii.gz", np.zeros((4, 5, 6), dtype=np.int16))
    with pytest.raises(InputError, match=r"b_01 has the channels \[0, 2\]"):
        read_nnunet(root)
    (root / "imagesTr" / "b_01_0002.nii.gz").unlink()
    (root / "imagesTr" / "b_01_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"labels without an image: \['b_01'\]"):
        read_nnunet(root)
    with pytest.raises(InputError, match="is no folder"):
        read_nnunet(tmp_path / "nowhere")


def test_masks_of_any_kind(tmp_path: Path) -> None:
    mask = np.zeros((6, 7), dtype=np.uint8)
    mask[2, 3] = 1
    for name in ("p1-s1", "p1-s2", "p2-s1"):
        save_png(tmp_path / "images" / f"{name}.png", np.full((6, 7, 3), 9, dtype=np.uint8))
    save_png(tmp_path / "masks" / "p1-s1.png", mask * 255)
    save_png(tmp_path / "masks" / "p1-s2_mask.png", mask, palette=True)
    save_png(tmp_path / "masks" / "p2-s1.png", np.repeat(mask[..., None] * 255, 3, axis=2))
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["p1"], "val": ["p2"]}]))
    index = read_image_mask(tmp_path)
    for case in index:
        np.testing.assert_array_equal(case.load_label(), mask)
    assert {c.group for c in index.part("train")} == {"p1"}
    assert index.scan_classes().classes == {1: "class 1"}
    colour = np.zeros((6, 7, 3), dtype=np.uint8)
    colour[1, 1] = (255, 0, 0)
    save_png(tmp_path / "masks" / "p2-s1.png", colour)
    with pytest.raises(InputError, match="p2-s1.png is a colour image"):
        index.case("p2-s1").load_label()
    save_png(tmp_path / "masks" / "p2-s1.png", mask[:5])
    with pytest.raises(GeometryError, match=r"shape \(5, 7\), expected \(6, 7\)"):
        index.case("p2-s1").load_label()
    save_png(tmp_path / "masks" / "p9.png", mask)
    with pytest.raises(InputError, match=r"masks without a picture of that name: \['p9.png'\]"):
        read_image_mask(tmp_path)


def test_instances_and_values(tmp_path: Path) -> None:
    ids = np.zeros((6, 7), dtype=np.uint16)
    ids[0, 0], ids[3, 3:5] = 1, 700
    save_png(tmp_path / "images" / "a.png", np.zeros((6, 7), dtype=np.uint8))
    save_png(tmp_path / "instances" / "a.png", ids)
    (case,) = read_image_mask(tmp_path)
    assert case.kind == "instance" and case.object_classes() == {1: 1, 700: 1}
    np.testing.assert_array_equal(case.load_label(), ids)
    (tmp_path / "instances").rename(tmp_path / "labels")
    (case,) = read_image_mask(tmp_path, classes={2: "cell"}, values={1: 2, 700: 0})
    assert np.argwhere(case.load_label()).tolist() == [[0, 0]]


@pytest.mark.remote_sensing
def test_rasters_with_vectors(tmp_path: Path) -> None:
    t = rasters.NORTH_UP
    for column in (1, 2, 3):
        (tmp_path / "rasters").mkdir(exist_ok=True)
        rasters.write_raster(tmp_path / "rasters" / f"tile-{column}-9.tif", rasters.pixels())
    (tmp_path / "vectors").mkdir()
    polygons = [
        {"type": "Polygon", "coordinates": [rasters.ring(t, [(2, 2), (5, 2), (5, 5), (2, 5)])]},
        {"type": "Polygon", "coordinates": [rasters.ring(t, [(8, 2), (9, 2), (9, 5), (8, 5)])]},
    ]
    kinds = [{"kind": "shed"}, {"kind": "house"}]
    for column in (1, 2):
        rasters.write_geojson(tmp_path / "vectors" / f"tile-{column}-9_labels.geojson", polygons, kinds)
    index = read_raster_vector(
        tmp_path / "rasters",
        tmp_path / "vectors",
        class_field="kind",
        match=lambda stem: f"{stem}_labels",
        split=split_by_number(r"tile-(\d+)-", 1),
    )
    assert index.classes == {1: "house", 2: "shed"}
    assert [c.label is not None for c in index] == [True, True, False]
    assert [c.id for c in index.part("train")] == ["tile-1-9"] and len(index.part("val")) == 2
    case = index.cases[0]
    assert isinstance(case, RasterVectorCase)
    assert case.object_classes() == {1: 2, 2: 1}
    label = case.load_label()
    assert (label == 1).sum() == 9 and (label == 2).sum() == 3
    np.testing.assert_array_equal(case.load_label((slice(3, 9), slice(1, 9))), label[3:9, 1:9])
    with pytest.raises(InputError, match="has no vector file"):
        index.cases[2].load_label()
    narrow = read_raster_vector(
        tmp_path / "rasters", tmp_path / "vectors" / "tile-1-9_labels.geojson", class_field="kind", classes=["house"]
    )
    with pytest.raises(InputError, match=r"3 of 3 cases.*\n.*classes \['shed'\]"):
        narrow.check()


MEDICAL = [("sarcoma_ct", 10, 4), ("sarcoma_mr", 10, 4), ("hippocampus_mr", 60, 20)]
PICTURES = [("cardiac_mr", 177, 50), ("nerve_us", 75, 25), ("nuclei", 70, 30), ("retina_vessels", 14, 6)]


@pytest.mark.medical
@pytest.mark.parametrize(("name", "train", "val"), MEDICAL)
def test_real_nnunet_sets(shared_data: Path, name: str, train: int, val: int) -> None:
    index = read_nnunet(shared_data / "medical" / name)
    assert (len(index.part("train")), len(index.part("val"))) == (train, val)
    label = index.cases[0].load_label()
    assert set(np.unique(label)) == {0, *index.classes}
    index.check(pixels=False)


@pytest.mark.parametrize(("name", "train", "val"), PICTURES)
def test_real_picture_sets(shared_data: Path, name: str, train: int, val: int) -> None:
    index = read_image_mask(shared_data / "medical" / name)
    assert (len(index.part("train")), len(index.part("val"))) == (train, val)
    label = index.cases[0].load_label()
    expected = {"cardiac_mr": 1, "nerve_us": 2, "nuclei": 27, "retina_vessels": 1}[name]
    assert label.max() == expected
    if name == "cardiac_mr":
        assert len({c.group for c in index}) == 12


@pytest.mark.remote_sensing
def test_real_buildings(shared_data: Path) -> None:
    folder = shared_data / "geo" / "buildings_banepa" / "train"
    index = read_raster_vector(folder / "oam", folder / "osm", split=split_by_number(r"OAM-(\d+)-", 386693))
    assert (len(index), len(index.part("train")), len(index.part("val"))) == (48, 32, 16)
    label = index.cases[0].load_label()
    assert label.shape == (512, 512) and label.max() == 44
