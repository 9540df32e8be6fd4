"""Memory of a volume: estimated from the header, refused before a voxel is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samgraft
from samgraft.errors import ConfigError
from samgraft.recipes import volume_memory as planned
from tests.data import volumes


def _scene(tmp_path: Path, name: str) -> Any:
    array = np.zeros((8, 16, 32), np.int16)
    return samgraft.open(volumes.nifti(tmp_path / name, array, np.diag([1.0, 1.0, 4.0, 1.0])))


def _nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_AROUND", 0)
    monkeypatch.setattr(planned, "_PER_PIXEL", 0)


def test_bytes_of_slices_and_of_the_whole(tmp_path: Path) -> None:
    plain, packed = _scene(tmp_path, "a.nii"), _scene(tmp_path, "a.nii.gz")
    voxels, around = 8 * 16 * 32, planned._AROUND + planned._PER_PIXEL * 16**2
    sliced = planned.volume_memory(plain, 0, classes=300)
    assert (sliced.labels, sliced.whole, sliced.pixels) == (2 * voxels, False, around)
    assert planned.volume_memory(packed, 0).pixels == 2 * voxels + around
    across = planned._AROUND + planned._PER_PIXEL * 32**2  # slices of 32 x 16 are shown in squares of 32
    assert planned.volume_memory(plain, 2).pixels == 2 * voxels + across
    assert planned.volume_memory(packed, 2).pixels == 2 * (2 * voxels) + across


def test_reading_and_validity_count_where_they_take_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nothing_around(monkeypatch)
    array, affine = np.zeros((8, 16, 32), np.float32), np.eye(4)
    holes = samgraft.open(volumes.nifti(tmp_path / "holes.nii", array, affine), nan="fill")
    assert planned.volume_memory(holes, 2).pixels == array.nbytes + array.size
    assert holes.valid().nbytes == array.size and samgraft.open(holes.path).valid().strides == (0, 0, 0)

    def slope(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 2.0, 1.0

    scaled = samgraft.open(volumes.nifti(tmp_path / "a.nii", array.astype(np.int16), affine, patch=slope))
    assert planned.volume_memory(scaled, 2).pixels == array.size * (4 + 2 - 1)  # both while it is read, and no labels


def test_volume_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = _scene(tmp_path, "a.nii")
    monkeypatch.setattr(type(scene), "_read", lambda *_: pytest.fail("voxels were read"))
    _nothing_around(monkeypatch)
    monkeypatch.setattr(planned, "free_memory", lambda: 10_000)
    need = planned.require_memory(scene, 0)
    assert need.total == 4096 and "read slice by slice" in need.text() and "labels 0.0 MB" in need.text()
    with pytest.raises(ConfigError, match=r"\(32, 16, 8\) voxels do not fit.*read at once.*cut along axis 0"):
        planned.require_memory(scene, 1)
    monkeypatch.setattr(planned, "free_memory", lambda: 4000)
    with pytest.raises(ConfigError, match="crop the volume, or use a machine with more memory"):
        planned.require_memory(scene, 0)
