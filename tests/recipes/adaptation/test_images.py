"""Which files are the target, and their tiles; labels beside them are never opened."""

import numpy as np
import pytest
import torch
from PIL import Image

from samgraft.errors import ConfigError, InputError
from samgraft.recipes.adaptation.images import read_tiles, target_images
from samgraft.recipes.adaptation.session import split
from samgraft.recipes.config import DataConfig
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from tests.recipes._sets import write_pictures, write_rasters, write_volumes


def said(**recipe):
    return Recorded(recipe=InputRecipe(**({"size": 64} | recipe)), classes={1: "a"})


def test_a_data_set_is_its_images_of_the_training_side(tmp_path):
    root = write_volumes(tmp_path / "v")
    config = DataConfig(path=str(root))
    assert [case.id for case in target_images(config)] == ["case_00", "case_01", "case_02"]
    assert [case.id for case in target_images([root])] == [f"case_{i:02d}" for i in range(4)]  # no side was asked for
    assert all(case.label is None and case.image[0].parent.name == "imagesTr" for case in target_images(config))
    two = target_images(DataConfig(path=str(root), cases=2))
    assert len(two) == 2 and {case.id for case in two} < {"case_00", "case_01", "case_02"}


def test_channels_of_an_image_belong_together(tmp_path):
    folder = tmp_path / "imagesTr"
    folder.mkdir()
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / f"{name}.png")
    found = target_images([tmp_path])
    assert [(case.id, [p.name for p in case.image]) for case in found] == [
        ("a", ["a_0000.png", "a_0001.png"]),
        ("b", ["b_0000.png", "b_0001.png"]),
    ]


def test_patients_of_the_split_and_files_by_name(tmp_path):
    root = write_pictures(tmp_path / "p")
    assert [case.id[:2] for case in target_images(DataConfig(path=str(root), layout="image_mask"))] == ["P0"] * 2 + [
        "P1"
    ] * 2
    file = root / "images" / "P0-000.png"
    assert [case.image for case in target_images([file])] == [(file,)]
    with pytest.raises(InputError, match="no such file"):
        target_images([root / "nothing.png"])


def test_tiles_are_what_the_adapter_sees(tmp_path):
    root = write_pictures(tmp_path / "p", cases=1)
    tiles = read_tiles(target_images([root / "images"]), said(), most=5, seed=0)
    assert tiles.images.shape == (1, 3, 64, 64) and tiles.names == ("P0-000",)
    # 60 x 70 pixels in a square of 70: five rows of the square are padding, above and below
    rows = tiles.known[0].any(dim=1).nonzero().flatten()
    assert (rows[0].item(), rows[-1].item()) == (5, 58)
    pixels = np.asarray(Image.open(root / "images" / "P0-000.png")).astype(float)
    assert float(tiles.images.float()[0, :, 5:59].mean()) == pytest.approx(pixels.mean(), abs=1.0)


def test_nodata_of_a_raster_is_not_known(tmp_path):
    root = write_rasters(tmp_path / "r", cases=1)
    tiles = read_tiles(target_images([root]), said(size=48, window=48, overlap=0.0), most=50, seed=0)
    assert len(tiles) == 4
    corner = tiles.names.index("tile-0, row 0, column 0")
    assert int((~tiles.known[corner]).sum()) == 36 and int((~tiles.known).sum()) == 36
    assert read_tiles(target_images([root]), said(size=48, window=48, overlap=0.0), most=3, seed=0).images.shape[0] == 3


def test_slices_and_slabs_of_volumes(tmp_path):
    root = write_volumes(tmp_path / "v", cases=2)
    cases = target_images([root])
    tiles = read_tiles(cases, said(), most=12, seed=0)
    assert len(tiles) == 12 and {name for name in tiles.names if name.startswith("case_00")} == {
        f"case_00, slice {i}" for i in range(6)
    }
    slabs = read_tiles(cases, said(slab=3, slab_overlap=0.0), most=12, seed=0)
    assert slabs.images.shape == (4, 3, 3, 64, 64)
    image, known = slabs.batch([0], torch.device("cpu"))
    assert image.shape == (1, 3, 3, 64, 64) and known.shape == (1, 3, 64, 64) and float(image.max()) <= 1.0


def test_blank_images_are_refused(tmp_path):
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="1 target images: they hold nothing but blank"):
        read_tiles(target_images([tmp_path]), said(), most=5, seed=0)


def test_a_damaged_image_is_left_out_by_name(tmp_path, caplog):
    root = write_pictures(tmp_path / "p", cases=2)
    (root / "images" / "P0-000.png").write_bytes(b"no picture")
    assert read_tiles(target_images([root]), said(), most=5, seed=0).names == ("P0-001",)
    assert "P0-000 is left out" in caplog.text
    (root / "images" / "P0-001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="2 target images: P0-001: "):
        read_tiles(target_images([root]), said(), most=5, seed=0)


def test_two_images_of_one_name_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / name)
    with pytest.raises(ConfigError, match="both be written"):
        target_images([tmp_path])


def test_judging_tiles_are_apart_where_there_are_enough():
    judged, learned = split(90, 30)
    assert len(judged) == 30 and len(learned) == 60 and not set(judged) & set(learned)
    assert split(89, 30)[1] == list(range(89))
