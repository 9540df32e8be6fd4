"""Real files of every kind: open, segment with one box, write, and read back on the grid of the input."""

from pathlib import Path

import numpy as np
import pytest

import samgraft
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.scene import Scene
from samgraft.recipes.api import UserPrompts

VOLUMES = ("sarcoma_ct", "sarcoma_mr", "sarcoma_dicom", "spleen_ct")
RASTERS = ("buildings_banepa", "buildings_rio_8band", "rotated.tif", "float_raster_with_nodata.tif", "alpha.tif")
RASTERS += ("RGBA.uint16.tif", "float_nan.tif", "sentinel2_8band_uint16.tif")


def volume(root: Path, name: str) -> Path:
    """One case of a set: a file, or the folder of a DICOM series of images."""
    if name == "sarcoma_dicom":
        folders = sorted({p.parent for p in (root / "medical" / name).rglob("*.dcm")})
        return max(folders, key=lambda folder: len(list(folder.glob("*.dcm"))))
    if name == "spleen_ct":
        return root / "medical" / name / "sub-spleen2_ct.nii.gz"
    return sorted((root / "medical" / name / "imagesTr").glob("*.nii.gz"))[0]


def raster(root: Path, name: str) -> Path:
    """One file of a set."""
    if name.endswith(".tif"):
        return root / "geo" / "geotiff_cases" / name
    folder = "8band" if name == "buildings_rio_8band" else "train/oam"
    return sorted((root / "geo" / name / folder).glob("*.tif"))[0]


def middle(height: int, width: int) -> tuple[float, float, float, float]:
    """Box (x0, y0, x1, y1) over the middle quarter."""
    return (width // 4, height // 4, 3 * width // 4, 3 * height // 4)


def checked(scene: Scene, prompts: UserPrompts, output: Path) -> Scene:
    """Segment, write, read back; the grid of the result is that of the input, bit by bit."""
    result = samgraft.segment(scene, prompts=prompts, output=output, progress=False)
    assert result.grid == scene.grid
    assert result.labels.shape == scene.grid.shape
    back = samgraft.open(output)
    assert np.array_equal(back.read_labels(), result.labels)
    return back


@pytest.mark.parametrize("name", VOLUMES)
def test_volume_with_one_box(name: str, shared_data: Path, tmp_path: Path) -> None:
    scene = samgraft.open(volume(shared_data, name))
    prompts = UserPrompts(boxes=(middle(*_plane(scene)),), slice=_deepest(scene) // 2)
    if scene.grid.world == "LPS":  # NIfTI is RAS; MHA keeps the world of DICOM
        back = checked(scene, prompts, tmp_path / "mask.mha")
        np.testing.assert_allclose(back.grid.affine, scene.grid.affine, atol=1e-9)
        return
    back = checked(scene, prompts, tmp_path / "mask.nii.gz")
    assert np.array_equal(back.grid.affine, scene.grid.affine)


def _plane(scene: Scene) -> tuple[int, int]:
    axis = int(np.argmax(scene.grid.spacing))
    height, width = (n for i, n in enumerate(scene.grid.shape) if i != axis)
    return height, width


def _deepest(scene: Scene) -> int:
    return scene.grid.shape[int(np.argmax(scene.grid.spacing))]


@pytest.mark.parametrize("name", RASTERS)
def test_raster_with_one_box(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = raster(shared_data, name)
    scene = RasterScene(path, nodata=0) if name == "buildings_rio_8band" else samgraft.open(path)
    prompts = UserPrompts(boxes=(middle(*scene.grid.shape),))
    output = tmp_path / ("mask.tif" if scene.kind == "raster" else "mask.png")
    back = checked(scene, prompts, output)
    assert back.grid.shape == scene.grid.shape
    assert np.array_equal(back.grid.affine, scene.grid.affine)
    assert back.grid.world == scene.grid.world
