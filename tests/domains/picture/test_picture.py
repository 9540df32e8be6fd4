"""Pictures: modes, alpha, palettes, pages, wide colour, and damaged files by name."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from samgraft.domains import open_scene, write_png
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
GRAY = RGB[..., 0]


def test_rgb_png_is_lazy_and_read_by_window(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    scene = open_scene(tmp_path / "a.png")
    assert (scene.kind, scene.format, scene.channels, scene.grid.shape) == ("picture", "PNG", 3, (7, 5))
    assert scene.channel_names == ("red", "green", "blue") and scene.value_range == (0.0, 255.0)
    assert not scene.is_loaded
    assert np.array_equal(scene.read((slice(1, 4), slice(2, 5)), channels=[2])[0], RGB[1:4, 2:5, 2])
    assert scene.is_loaded and scene.valid().all()
    assert scene.grid.world == "pixel" and scene.grid.to_world(np.array([3.0, 4.0])).tolist() == [4.0, 3.0]
    assert repr(scene) == "<picture 'a.png': PNG, H=7, W=5, 3 channels uint8, spacing 1 x 1, world pixel, loaded>"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_of_8_and_16_bit_and_float_keep_values(tmp_path: Path, suffix: str) -> None:
    arrays = [GRAY, GRAY.astype(np.uint16) * 257] + ([GRAY.astype(np.float32) / 7] if suffix == ".tif" else [])
    for array in arrays:
        Image.fromarray(array).save(tmp_path / f"a{suffix}")
        scene = open_scene(tmp_path / f"a{suffix}")
        assert scene.kind == "picture" and scene.dtype == array.dtype
        assert np.array_equal(scene.read()[0], array)


def test_alpha_goes_to_valid(tmp_path: Path) -> None:
    alpha = np.full((7, 5, 1), 255, np.uint8)
    alpha[2, 3] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "a.png")
    scene = open_scene(tmp_path / "a.png")
    assert scene.channels == 3 and np.array_equal(scene.read(), RGB.transpose(2, 0, 1))
    assert np.argwhere(~scene.valid()).tolist() == [[2, 3]]
    Image.fromarray(np.concatenate([RGB[..., :1], alpha], axis=2)).save(tmp_path / "la.png")
    gray = open_scene(tmp_path / "la.png")
    assert gray.channels == 1 and np.array_equal(gray.read()[0], GRAY)
    assert np.argwhere(~gray.valid((slice(1, 4), slice(0, 5)))).tolist() == [[1, 3]]


def test_palette_gives_colours_as_image_and_indices_as_labels(tmp_path: Path) -> None:
    indices = (GRAY % 3).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    scene = open_scene(tmp_path / "a.png")
    assert np.array_equal(scene.read_labels(), indices)
    assert np.array_equal(scene.read()[0], np.where(indices == 1, 255, 0))
    with pytest.raises(InputError, match="3 channels; a label file has one"):
        Image.fromarray(RGB).save(tmp_path / "b.png")
        open_scene(tmp_path / "b.png").read_labels()


def test_bilevel_labels_are_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(GRAY > 100).save(tmp_path / "a.png")
    assert np.array_equal(open_scene(tmp_path / "a.png").read_labels(), (GRAY > 100).astype(np.uint8))


def test_pages_must_be_chosen(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY), Image.fromarray(GRAY // 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"has 2 pages; choose one with frame=0 to 1"):
        open_scene(tmp_path / "a.tif")
    assert np.array_equal(open_scene(tmp_path / "a.tif", frame=1).read()[0], GRAY // 2)
    with pytest.raises(InputError, match="frame=2 asked"):
        open_scene(tmp_path / "a.tif", frame=2)


@pytest.mark.parametrize(("suffix", "driver"), [(".png", "PNG"), (".tif", "GTiff")])
def test_16_bit_colour_is_not_cut_to_8(tmp_path: Path, suffix: str, driver: str) -> None:
    wide = RGB.transpose(2, 0, 1).astype(np.uint16) * 250 + 3
    alpha = np.full((1, 7, 5), 65535, np.uint16)
    alpha[0, 1, 1] = 0
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        extra = {"photometric": "rgb", "alpha": "yes"} if driver == "GTiff" else {}
        size = {"width": 5, "height": 7, "count": 4, "dtype": "uint16"}
        with rasterio.open(tmp_path / f"a{suffix}", "w", driver=driver, **size, **extra) as target:
            target.write(np.concatenate([wide, alpha]))
    scene = open_scene(tmp_path / f"a{suffix}")
    assert (scene.kind, scene.channels, scene.dtype) == ("picture", 3, np.uint16)
    assert np.array_equal(scene.read((slice(1, 3), slice(0, 4))), wide[:, 1:3, 0:4])
    assert np.argwhere(~scene.valid()).tolist() == [[1, 1]]


def test_tiff_with_a_place_is_a_raster(tmp_path: Path) -> None:
    transform = rasterio.Affine(2.0, 0, 100, 0, -2.0, 500)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=5, height=7, count=1, dtype="uint8", transform=transform
    ) as target:
        target.write(GRAY, 1)
    assert isinstance(open_scene(tmp_path / "a.tif"), RasterScene)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"truncated or damaged|no picture|cannot be opened"):
        open_scene(path).read()
    path.write_bytes(b"abc" * 30)
    with pytest.raises(InputError, match="no picture"):
        open_scene(path)


def test_exif_rotation_is_not_applied_and_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    scene = open_scene(tmp_path / "a.jpg")
    assert scene.grid.shape == (7, 5) and "EXIF orientation 6 not applied" in repr(scene)


def test_write_png_keeps_labels_and_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    labels = np.arange(35).reshape(7, 5)
    for scale, dtype in ((1, np.uint8), (1000, np.uint16)):
        write_png(tmp_path / "a.png", labels * scale)
        scene = open_scene(tmp_path / "a.png")
        assert scene.dtype == dtype and np.array_equal(scene.read_labels(), labels * scale)
    with pytest.raises(InputError, match="largest label 3400000"):
        write_png(tmp_path / "b.png", labels * 100000)
    with pytest.raises(GeometryError, match="3D grid"):
        write_png(tmp_path / "b.png", labels[None], Grid(shape=(1, 7, 5), affine=np.eye(4), world="RAS"))
    with pytest.raises(GeometryError, match=r"ends in \.png"):
        write_png(tmp_path / "b.jpg", labels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_tiff_of_many_channels_is_a_wide_picture(tmp_path: Path) -> None:
    five = np.random.default_rng(0).normal(size=(5, 7, 6)).astype(np.float32)
    five[2, 3, 4] = np.nan
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        size = {"width": 6, "height": 7, "count": 5, "dtype": "float32"}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", photometric="minisblack", **size) as target:
            target.write(five)
    scene = open_scene(tmp_path / "a.tif")
    assert scene.channels == 5 and np.array_equal(scene.read(channels=[4, 0]), five[[4, 0]])
    with pytest.raises(InputError, match=r"1 NaN and 0 Inf of 42 values read, the first at index \(3, 4\)"):
        scene.read(channels=[2])
    assert np.argwhere(~open_scene(tmp_path / "a.tif", nan="fill").valid()).tolist() == [[3, 4]]
