"""What all scenes share: windows, channels, opening by path, and atomic writes."""

import errno
from pathlib import Path

import numpy as np
import pytest

from samgraft.domains import atomic_path, open_scene, write_nifti
from samgraft.domains.atomic import full_suffix
from samgraft.domains.scene import explicit_window, label_dtype
from samgraft.errors import ConfigError, InputError, OutputError, ShapeError
from samgraft.grid import Grid
from tests.data import volumes


def test_missing_empty_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        open_scene(tmp_path / "none.nii.gz")
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(InputError, match="empty \\(0 bytes\\)"):
        open_scene(tmp_path / "a.nii")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(InputError, match=r"suffix '\.xyz' is unknown; expected \.nii"):
        open_scene(tmp_path / "a.xyz")
    with pytest.raises(ConfigError, match="nan='zero'"):
        open_scene(tmp_path / "a.nii", nan="zero")  # type: ignore[arg-type]


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    path = volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), np.eye(4))
    with pytest.raises(ConfigError, match="read as nifti, which has no option series, allow_gaps"):
        open_scene(path, series="1", allow_gaps=True)


def test_dicom_is_known_by_content(tmp_path: Path) -> None:
    folder = volumes.dicom_series(tmp_path / "a", volumes.ramp((1, 4, 5)))
    (file,) = folder.iterdir()
    assert open_scene(file.rename(tmp_path / "IM0001")).format == "DICOM file"


@pytest.mark.parametrize(
    "window",
    [
        (slice(0, 2),),
        (slice(0, 6), slice(0, 1), slice(0, 1)),
        (slice(-1, 2),) * 3,
        (slice(0, 4, 2),) * 3,
        (slice(2, 2),) * 3,
    ],
)
def test_bad_windows_and_channels(tmp_path: Path, window: tuple[slice, ...]) -> None:
    scene = open_scene(volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), np.eye(4)))
    for call in (scene.read, scene.valid):
        with pytest.raises(ShapeError, match="window"):
            call(window)
    for channels in ([1], [-1], []):
        with pytest.raises(ShapeError, match="it has 0 to 0"):
            scene.read(channels=channels)


def test_explicit_window_fills_open_ends() -> None:
    assert explicit_window((slice(None, 3), slice(1, None)), (5, 6)) == (slice(0, 3), slice(1, 6))


def test_label_dtype_bounds() -> None:
    found = [label_dtype(n) for n in (0, 255, 256, 65535, 65536, 2**32 - 1)]
    assert found == [np.uint8, np.uint8, np.uint16, np.uint16, np.uint32, np.uint32]
    with pytest.raises(InputError, match="cannot be stored"):
        label_dtype(2**32)


def test_full_suffix() -> None:
    names = {"a.nii.gz": ".nii.gz", "IM.001.DCM": ".dcm", "x.NII.GZ": ".nii.gz", "noext": "", "v1.2.tif": ".tif"}
    assert {name: full_suffix(Path(name)) for name in names} == names


def test_atomic_write_replaces_only_on_success(tmp_path: Path) -> None:
    final = tmp_path / "a.nii.gz"
    final.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(final) as temp:
        assert temp.parent == tmp_path and temp.name.endswith(".nii.gz") and temp != final
        temp.write_text("half")
        Path(f"{temp}.aux.xml").write_text("side")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"] and final.read_text() == "old"
    with atomic_path(final) as temp:
        temp.write_text("new")
        Path(f"{temp}.aux.xml").write_text("side")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "a.nii.gz.aux.xml"]
    assert final.read_text() == "new"


def test_full_disk_and_missing_folder_are_output_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*a\.png: No space left"),
        atomic_path(tmp_path / "a.png") as temp,
    ):
        temp.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="produced no file"), atomic_path(tmp_path / "a.png"):
        pass
    with pytest.raises(OutputError, match="is a folder"), atomic_path(tmp_path):
        pass
    with pytest.raises(OutputError, match=r"folder .*none does not exist"), atomic_path(tmp_path / "none" / "a.png"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_while_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    grid = Grid(shape=volumes.SHAPE, affine=np.eye(4), world="RAS")
    with pytest.raises(OutputError, match="No space left"):
        write_nifti(tmp_path / "a.nii.gz", np.ones(volumes.SHAPE, np.uint8), grid)
    assert list(tmp_path.iterdir()) == []
