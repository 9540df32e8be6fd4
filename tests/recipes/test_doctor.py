"""samgraft doctor: every defect is found in one pass, named, placed, and comes with a remedy."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samgraft.recipes import cli
from samgraft.recipes.doctor.examine import examine
from samgraft.recipes.doctor.finding import Finding, Report
from tests.data import volumes
from tests.recipes._sets import write_pictures, write_volumes

pytestmark = pytest.mark.medical
ARRAY = volumes.ramp().transpose(2, 1, 0)


def found(report: Report) -> dict[str, Finding]:
    """Findings by name; notes are left out."""
    return {f.check: f for f in report.findings if f.severity != "note"}


def only(report: Report) -> Finding:
    named = found(report)
    assert len(named) == 1, report.text()
    return next(iter(named.values()))


def test_a_sound_file_and_a_missing_one(tmp_path: Path) -> None:
    report = examine(volumes.nifti(tmp_path / "a.nii.gz", ARRAY, np.diag([1.0, 1, 2, 1])))
    assert report.healthy and report.files == 1 and not report.findings
    assert only(examine(tmp_path / "none.nii")).check == "missing"


def _nan(array: Any) -> Any:
    array = array.astype(np.float32)
    array[3, 2, 1], array[4, 4, 4], array[5, 5, 4] = np.nan, np.inf, np.nan
    return array


@pytest.mark.parametrize(
    ("name", "options", "check", "severity", "words"),
    [
        ("nan", {"array": _nan(ARRAY.copy())}, "NaN or Inf", "error", r"2 NaN and 1 Inf of 210 values"),
        ("shear", {"affine": volumes.affines()["sheared"]}, "sheared affine", "warning", r"axes are \d+\.\d\d degrees"),
        ("plain", {"affine": None}, "no sform and no qform", "warning", "does not say where"),
        ("flat", {"array": np.full((4, 3, 2), 7, np.int16)}, "constant image", "warning", "every value is 7"),
        ("metres", {"affine": np.diag([1e-3, 1e-3, 2e-3, 1])}, "doubtful spacing", "warning", "0.002 x 0.001 x 0.001"),
        ("frames", {"array": np.stack([ARRAY, ARRAY], -1)}, "4D", "error", "is 4D"),
        ("deep", {"array": ARRAY[:, :, :, None, None].repeat(2, 4)}, "more than 4D", "error", "is 5D"),
    ],
)
def test_one_defect_of_a_file(
    tmp_path: Path, name: str, options: dict[str, Any], check: str, severity: str, words: str
) -> None:
    array, affine = options.get("array", ARRAY), options.get("affine", np.eye(4))
    finding = only(examine(volumes.nifti(tmp_path / f"{name}.nii", array, affine)))
    assert (finding.check, finding.severity) == (check, severity) and finding.remedy
    assert re.search(words, finding.what)
    if check == "NaN or Inf":
        assert finding.place == "the first at voxel (1, 2, 3), RAS (3.00, 2.00, 1.00) mm"


def _set(name: str, value: float) -> Callable[[Any], None]:
    def patch(header: Any) -> None:
        header[name][2 if name == "pixdim" else slice(None)] = value

    return patch


@pytest.mark.parametrize(("field", "check"), [("srow_y", "singular affine"), ("pixdim", "pixdim 0")])
def test_damaged_headers(tmp_path: Path, field: str, check: str) -> None:
    path = volumes.nifti(tmp_path / "a.nii", ARRAY, np.eye(4), patch=_set(field, 0.0))
    assert only(examine(path)).check == check


def test_truncated_file(tmp_path: Path) -> None:
    path = volumes.nifti(tmp_path / "a.nii", ARRAY, np.eye(4))
    path.write_bytes(path.read_bytes()[:500])
    assert only(examine(path)).check == "truncated or damaged"


@pytest.mark.parametrize(("low", "check"), [(0, "no Hounsfield units"), (-1000, None)])
def test_ct_that_was_a_picture(tmp_path: Path, low: int, check: str | None) -> None:
    array = np.linspace(low, 255, ARRAY.size).reshape(ARRAY.shape).astype(np.int16)
    path = volumes.nifti(tmp_path / "a.nii", array, np.eye(4))
    assert not found(examine(path))
    named = found(examine(path, modality="CT"))
    assert list(named) == ([check] if check else [])
    if check:
        assert "values run from 0 to 255: 8-bit gray values" in named[check].what


# --- series


def _series(folder: Path, **options: Any) -> Path:
    return volumes.dicom_series(folder, volumes.ramp((12, 4, 6)), **options)


def test_a_sound_series(tmp_path: Path) -> None:
    report = examine(_series(tmp_path / "a"))
    assert report.healthy and report.files == 12 and not found(report)


def _without(index: int, head: Any) -> bool:
    return index not in (3, 7)


def _tilted(index: int, head: Any) -> bool:
    head.ImagePositionPatient = [0, float(np.tan(np.radians(15)) * 2.5 * index), 2.5 * index]
    return True


def _irregular(index: int, head: Any) -> bool:
    head.ImagePositionPatient = [0, 0, 2.5 * index + (0.9 if index == 5 else 0.0)]
    return True


def _other_size(index: int, head: Any) -> bool:
    if index in (2, 9):
        head.Rows, head.PixelData = 3, head.PixelData[: 3 * 6 * 2]
    return True


def _same_place(index: int, head: Any) -> bool:
    if index == 6:
        head.ImagePositionPatient = [-20.5, 13.25, 100 + 2.5 * 5]
    return True


def _no_place(index: int, head: Any) -> bool:
    if index == 6:
        del head.ImagePositionPatient
    return True


@pytest.mark.parametrize(
    ("tweak", "check", "what", "place"),
    [
        (_without, "missing slices", "2 slices missing at spacing 2.500 mm", "105.00 to 110.00 mm (1), 115.00 to"),
        (_tilted, "gantry tilt", "15.00 degrees off their normal (0.670 mm sideways per slice)", ""),
        (_irregular, "irregular slices", "steps from 1.600 to 3.400 mm", "at 13.40 mm along the normal"),
        (_other_size, "mixed slices", "2 of 12 slices differ from the others in size", ""),
        (_no_place, "slice without a place", "ImagePositionPatient is missing", ""),
    ],
)
def test_one_defect_of_a_series(tmp_path: Path, tweak: Any, check: str, what: str, place: str) -> None:
    named = found(examine(_series(tmp_path / "a", tweak=tweak)))
    assert check in named and what in named[check].what and place in named[check].place
    assert set(named) <= {check, "missing slices"}, "slices that were set apart leave gaps"


def test_duplicates_and_gaps_are_both_reported(tmp_path: Path) -> None:
    finding = only(examine(_series(tmp_path / "a", tweak=_same_place)))
    assert finding.check == "duplicate slices" and "112.50 mm" in finding.what and "1.2.3.1.7" in finding.what


def test_two_series_are_examined_one_by_one(tmp_path: Path) -> None:
    _series(tmp_path / "a", series="1.2.3.1")
    _series(tmp_path / "a", series="1.2.3.2", tweak=_without)
    named = found(examine(tmp_path / "a"))
    assert set(named) == {"several series", "missing slices"} and "[series 2]" in named["missing slices"].file


# --- data sets


def _save(path: Path, array: Any, like: Path) -> None:
    nib.save(nib.Nifti1Image(array, nib.load(like).affine), path)


def _spoil(root: Path) -> None:
    """Eight defects in a data set of eight cases."""
    images, labels = root / "imagesTr", root / "labelsTr"
    one = nib.load(labels / "case_01.nii.gz")
    values = np.asarray(one.dataobj)
    nib.save(nib.Nifti1Image(values, one.affine + np.eye(4, k=3) * 5 * [[1], [0], [0], [0]]), labels / "case_01.nii.gz")
    wrong = values.copy()
    wrong[2, 3, 4] = 44
    _save(labels / "case_02.nii.gz", wrong, images / "case_02_0000.nii.gz")
    _save(labels / "case_03.nii.gz", values * 0, images / "case_03_0000.nii.gz")
    (labels / "case_04.nii.gz").unlink()
    (images / "case_05_0000.nii.gz").unlink()
    shutil.copy(images / "case_00_0000.nii.gz", images / "case_07_0000.nii.gz")
    header = json.loads((root / "dataset.json").read_text())
    header["labels"]["wrapped"] = 300
    (root / "dataset.json").write_text(json.dumps(header))
    split = json.loads((root / "splits.json").read_text())
    split[0]["train"].append("case_07")
    (root / "splits.json").write_text(json.dumps(split))


def test_a_sound_data_set(tmp_path: Path) -> None:
    report = examine(write_volumes(tmp_path / "set", cases=3, modality="CT"))
    assert report.healthy and report.files == 6 and not found(report), report.text()


def test_every_defect_of_a_data_set_in_one_pass(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "set", cases=8)
    _spoil(root)
    report = examine(root)
    named = {(f.check, Path(f.file).name) for f in report.findings if f.severity != "note"}
    assert {
        ("label on another grid", "case_01.nii.gz"),
        ("undeclared label", "case_02.nii.gz"),
        ("label overflow", "case_02.nii.gz"),
        ("empty label", "case_03.nii.gz"),
        ("image without label", "case_04_0000.nii.gz"),
        ("label without image", "case_05.nii.gz"),
        ("duplicate images in train and val", "set"),
        ("train/val leak", "set"),
    } <= named
    assert not report.healthy
    by_name = {(f.check, Path(f.file).name): f for f in report.findings}
    assert "largest corner distance 5 mm" in by_name["label on another grid", "case_01.nii.gz"].what
    undeclared = by_name["undeclared label", "case_02.nii.gz"]
    assert undeclared.place == "44 first at voxel (4, 3, 2), RAS (5.00, -4.00, 27.00) mm"
    overflow = by_name["label overflow", "case_02.nii.gz"]
    assert overflow.severity == "error" and "44 is what 300 becomes" in overflow.what
    assert "case_00, case_07" in by_name["duplicate images in train and val", "set"].what
    order = [f.severity for f in report.findings]
    assert order == sorted(order, key=("error", "warning", "note").index), "worst first"


def test_missing_channels_and_unreadable_json(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "set", cases=3)
    header = json.loads((root / "dataset.json").read_text())
    header["channel_names"] = {"0": "T1", "1": "T2"}
    (root / "dataset.json").write_text(json.dumps(header))
    named = found(examine(root))
    assert "1 channel files, dataset.json names 2" in named["missing channels"].what
    (root / "dataset.json").write_text("{")
    (root / "splits.json").write_text('[{"train": ["nobody"], "val": []}]')
    named = found(examine(root))
    assert "unreadable" in named["dataset.json"].what and "train names ['nobody']" in named["split file"].what


def test_pictures_beside_masks(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", cases=4)
    assert not found(examine(root)), examine(root).text()
    first = sorted((root / "masks").iterdir())[0]
    first.rename(first.with_name("stray.png"))
    named = found(examine(root))
    assert set(named) == {"image without label", "label without image"}
    assert "stray.png" in named["label without image"].file


# --- command line


def test_status_and_json_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = volumes.nifti(tmp_path / "a.nii", ARRAY, np.eye(4))
    assert cli.main(["doctor", str(good)]) == 0
    assert "1 file examined: 0 errors, 0 warnings, 0 notes" in capsys.readouterr().out
    flat = volumes.nifti(tmp_path / "b.nii", ARRAY * 0, np.eye(4))
    assert cli.main(["doctor", str(flat)]) == 0 and cli.main(["doctor", "--strict", str(flat)]) == 1
    capsys.readouterr()
    bad = volumes.nifti(tmp_path / "c.nii", _nan(ARRAY.copy()), np.eye(4))
    assert cli.main(["doctor", "--json", str(bad)]) == 1
    content = json.loads(capsys.readouterr().out)
    assert not content["healthy"] and content["errors"] == 1
    assert content["findings"][0] | {"what": ""} == {
        "severity": "error",
        "check": "NaN or Inf",
        "file": str(bad),
        "what": "",
        "remedy": 'repair the file, or open it with nan="fill" to read them as 0',
        "place": "the first at voxel (1, 2, 3), RAS (3.00, 2.00, 1.00) mm",
    }
