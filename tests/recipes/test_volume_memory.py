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


def test_bytes_of_slices_and_of_the_whole(tmp_path: Path) -> None:
    plain, packed = _scene(tmp_path, "a.nii"), _scene(tmp_path, "a.nii.gz")
    voxels = 8 * 16 * 32
    sliced = planned.volume_memory(plain, 0, classes=300)
    assert (sliced.labels, sliced.whole) == (2 * voxels, False)
    assert sliced.pixels == 8 * (2 * 2 * voxels + voxels) // 32
    assert planned.volume_memory(plain, 2).pixels == 2 * 2 * voxels + voxels
    assert planned.volume_memory(packed, 0).pixels == 2 * voxels + 8 * (2 * 2 * voxels + voxels) // 32


def test_volume_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = _scene(tmp_path, "a.nii")
    monkeypatch.setattr(type(scene), "_read", lambda *_: pytest.fail("voxels were read"))
    monkeypatch.setattr(planned, "free_memory", lambda: 10_000)
    need = planned.require_memory(scene, 0)
    assert need.total == 4096 + 5120 and "read slice by slice" in need.text() and "labels 0.0 MB" in need.text()
    with pytest.raises(ConfigError, match=r"\(32, 16, 8\) voxels do not fit.*read at once.*cut along axis 0"):
        planned.require_memory(scene, 1)
    monkeypatch.setattr(planned, "free_memory", lambda: 5000)
    with pytest.raises(ConfigError, match="crop the volume, or use a machine with more memory"):
        planned.require_memory(scene, 0)
