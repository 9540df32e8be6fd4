"""samgraft labels: RTSTRUCT, DICOM-SEG and label volumes on the grid of an image; samgraft segment to .dcm."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

import samgraft
from samgraft.domains.medical.dicom_seg import DicomSegScene
from samgraft.errors import GeometryError, InputError, NoMatchError
from samgraft.recipes import cli
from samgraft.recipes.label_files import labels_on
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (5, 9, 11)


def _series(folder: Path, **options: Any) -> Path:
    return volumes.dicom_series(folder, volumes.ramp(SHAPE), **options)


def _square(scene: Any, depth: int, size: float) -> NDArray[np.float64]:
    corners = [(1.5, 2.5), (1.5, 2.5 + size), (1.5 + size, 2.5 + size), (1.5 + size, 2.5)]
    return scene.grid.to_world(np.array([(depth, r, c) for r, c in corners], dtype=float))


def _structures(path: Path, scene: Any) -> Path:
    return volumes.rtstruct(path, {"GTV": [_square(scene, 2, 4.0)], "node": [_square(scene, 3, 2.0)]})


def test_contours_to_nifti_and_seg_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("highdicom")
    folder = _series(tmp_path / "ct", axes=volumes.rotation(15, -25, 40))
    scene = samgraft.open(folder)
    rs = _structures(tmp_path / "rs.dcm", scene)
    assert cli.main(["labels", str(rs)]) == 0
    assert capsys.readouterr().out == "1 GTV: 1 closed contours\n2 node: 1 closed contours\n"
    seg, nii = tmp_path / "seg.dcm", tmp_path / "m.nii.gz"
    assert cli.main(["labels", str(rs), "--image", str(folder), "-o", str(seg), "-o", str(nii)]) == 0
    assert "1 GTV: 16 voxels\n2 node: 4 voxels\n" in capsys.readouterr().out
    want = np.zeros(SHAPE, np.uint8)
    want[2, 2:6, 3:7], want[3, 2:4, 3:5] = 1, 2
    assert np.array_equal(np.asarray(nib.load(nii).dataobj).transpose(2, 1, 0), want)
    back = labels_on(seg, scene)
    assert np.array_equal(back.labels, want) and back.classes == {1: "GTV", 2: "node"} and back.grid == scene.grid
    assert back.from_ground_truth
    node = labels_on(seg, scene, structures=["node"])
    assert node.classes == {1: "node"} and np.array_equal(node.labels == 1, want == 2)
    with pytest.raises(NoMatchError, match="0 structures named 'liver'"):
        labels_on(seg, scene, structures=["liver"])
    assert cli.main(["labels", str(seg)]) == 0
    assert "1 GTV: 108369006 Neoplasm" in capsys.readouterr().out


def test_options_of_seg_files_reach_the_writer(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    folder = _series(tmp_path / "ct")
    rs = _structures(tmp_path / "rs.dcm", samgraft.open(folder))
    words = ["labels", str(rs), "--image", str(folder), "-o", str(tmp_path / "s.dcm")]
    assert cli.main([*words, "--seg-kind", "BINARY", "--seg-drop-empty"]) == 0
    seg = samgraft.open(tmp_path / "s.dcm")
    assert isinstance(seg, DicomSegScene) and seg.segmentation_type == "BINARY" and seg.grid.shape[0] == 2
    assert labels_on(tmp_path / "s.dcm", samgraft.open(folder)).labels.sum() == 16 + 2 * 4


def test_label_volumes_are_placed_refused_or_resampled(tmp_path: Path) -> None:
    scene = samgraft.open(_series(tmp_path / "ct"))
    labels = (volumes.ramp(SHAPE) > 100).astype(np.uint8) * 3
    affine = np.diag([-1.0, -1, 1, 1]) @ scene.grid.affine[:, [2, 1, 0, 3]]
    path = volumes.nifti(tmp_path / "m.nii", labels.transpose(2, 1, 0), affine)
    placed = labels_on(path, scene)
    assert np.array_equal(placed.labels, labels) and placed.classes == {3: "class 3"}
    affine[:3, 3] += (0.1, 0, 0)
    moved = volumes.nifti(tmp_path / "n.nii", labels.transpose(2, 1, 0), affine)
    with pytest.raises(GeometryError, match=r"corners lie 0\.1 mm apart.*--resample"):
        labels_on(moved, scene)
    assert np.array_equal(labels_on(moved, scene, resample=True).labels, labels), "0.1 mm is less than half a voxel"


def test_other_examinations_and_images_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    folder = _series(tmp_path / "ct")
    scene = samgraft.open(folder)
    rs = _structures(tmp_path / "rs.dcm", scene)
    nifti = samgraft.open(volumes.nifti(tmp_path / "a.nii", volumes.ramp(SHAPE).transpose(2, 1, 0), np.eye(4)))
    with pytest.raises(GeometryError, match=r"a\.nii is a NIfTI, which has none; give the DICOM series"):
        labels_on(rs, nifti)
    labels_on(rs, scene).save(tmp_path / "seg.dcm")

    def other(index: int, head: Any) -> bool:
        head.FrameOfReferenceUID = "1.2.3.100"
        return True

    stranger = samgraft.open(_series(tmp_path / "other", tweak=other))
    with pytest.raises(GeometryError, match=r"frame of reference 1\.2\.3\.99.*to 1\.2\.3\.100; it was made on series"):
        labels_on(tmp_path / "seg.dcm", stranger)
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(InputError, match="labels are placed on volumes"):
        labels_on(rs, samgraft.open(tmp_path / "p.png"))
    with pytest.raises(InputError, match=r"1 x RTSTRUCT\); expected CT.*samgraft labels FILE"):
        samgraft.open(rs)


def test_segment_writes_dicom_seg_of_a_series_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pydicom

    pytest.importorskip("highdicom")
    volume = np.full((3, 48, 40), -500, np.int16)
    volume[1, 10:30, 8:28] = 900
    folder = volumes.dicom_series(tmp_path / "ct", volume)
    box = ["--box", "8", "10", "27", "29", "--slice", "1"]
    assert cli.main(["segment", str(folder), *box, "-o", str(tmp_path / "seg.dcm")]) == 0
    out = capsys.readouterr().out
    assert "memory beside the network: 25.4 MB (labels 0.0 MB" in out and f"wrote {tmp_path / 'seg.dcm'}" in out
    head = pydicom.dcmread(tmp_path / "seg.dcm")
    assert int(head.NumberOfFrames) == 3 and head.SegmentSequence[1].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert (
        "backbone=graft-tiny"
        in head.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    )
    assert (samgraft.open(tmp_path / "seg.dcm").read_labels()[1] > 0).sum() > 200
    nifti = volumes.nifti(tmp_path / "a.nii", volume.transpose(2, 1, 0), np.eye(4))
    assert cli.main(["segment", str(nifti), *box, "-o", str(tmp_path / "n.dcm")]) == 2
    assert "GeometryError: n.dcm" in capsys.readouterr().err and not (tmp_path / "n.dcm").exists()
