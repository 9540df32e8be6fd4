"""DICOM-SEG: labels out and in again, read by highdicom as well; codes, frames, refusals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samgraft.domains import open_scene
from samgraft.domains.medical import dicom_seg_write
from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_seg import DicomSegScene
from samgraft.domains.medical.dicom_seg_write import SegOptions
from samgraft.domains.medical.snomed import MAP_FILE, concept
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError, GeometryError, InputError, NoMatchError, OutputError
from samgraft.recipes.label_files import labels_on
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (6, 5, 7)
hd: Any = pytest.importorskip("highdicom")


def l_shape() -> NDArray[np.uint8]:
    """Labels 1 and 3 in an arrangement without symmetry; the first and the last slice are empty."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:5, 1, 2] = 1
    labels[1, 1:4, 2] = 1
    labels[3, 3, 4:6] = 3
    return labels


def result(scene: Any, labels: NDArray[Any] | None = None, classes: Mapping[int, str] | None = None) -> Segmentation:
    return Segmentation(
        labels=l_shape() if labels is None else labels,
        grid=scene.grid,
        kind="semantic",
        classes=classes or {1: "gross_tumour_volume", 3: "Left kidney"},
        meta={"backbone": "graft-tiny", "adapter": "tumour.graft", "adapter_sha256": "ab12"},
        source=scene,
    )


def series(folder: Path, **options: Any) -> DicomScene:
    scene = open_scene(volumes.dicom_series(folder, volumes.ramp(SHAPE), **options))
    assert isinstance(scene, DicomScene)
    return scene


def by_highdicom(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Labels (D, H, W) and affine to LPS as highdicom reads them."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    return volume.array, volume.affine


@pytest.mark.parametrize("kind", ["LABELMAP", "BINARY"])
@pytest.mark.parametrize("keep_empty", [True, False])
def test_labels_come_back_in_place_from_both_readers(tmp_path: Path, kind: Any, keep_empty: bool) -> None:
    scene = series(tmp_path / "a", axes=volumes.rotation(15, -25, 40))
    path = tmp_path / "seg.dcm"
    options = SegOptions(kind=kind, keep_empty=keep_empty)
    if kind == "BINARY":
        with pytest.warns(UserWarning, match="Left kidney: 3 -> 2"):
            result(scene).save(path, dicom=options)
    else:
        result(scene).save(path, dicom=options)
    second = 2 if kind == "BINARY" else 3
    back = open_scene(path)
    assert isinstance(back, DicomSegScene) and back.segmentation_type == kind
    assert back.classes == {1: "gross_tumour_volume", second: "Left kidney"}
    assert back.frame_of_reference == scene.frame_of_reference and back.source_series == scene.series_uid
    assert back.grid.shape[0] == (6 if keep_empty else 4)
    array, affine = by_highdicom(path)
    for value, number in ((1, 1), (3, second)):
        want = scene.grid.to_world(np.argwhere(l_shape() == value).astype(float))
        ours = back.grid.to_world(np.argwhere(back.read_labels() == number).astype(float))
        theirs = np.argwhere(array == number) @ affine[:3, :3].T + affine[:3, 3]
        for found in (ours, theirs):
            assert found.shape == want.shape
            distances = np.linalg.norm(found[:, None] - want[None], axis=-1)
            assert distances.min(axis=1).max() < 1e-4 and distances.min(axis=0).max() < 1e-4


def test_codes_algorithm_and_references_are_written(tmp_path: Path) -> None:
    import pydicom

    scene = series(tmp_path / "a")
    result(scene, classes={1: "gross_tumour_volume", 2: "glomus", 3: "Left kidney"}).save(tmp_path / "seg.dcm")
    head = pydicom.dcmread(tmp_path / "seg.dcm")
    assert head.SegmentationType == "LABELMAP" and head.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    assert int(head.NumberOfFrames) == 6 and head.FrameOfReferenceUID == volumes.FRAME
    _, tumour, unknown, kidney = head.SegmentSequence
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007" and side.CodeMeaning == "Left"
    assert unknown.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue" and unknown.SegmentLabel == "glomus"
    assert "not in samgraft's map" in unknown.SegmentDescription
    algorithm = tumour.SegmentationAlgorithmIdentificationSequence[0]
    assert tumour.SegmentAlgorithmType == "AUTOMATIC" and algorithm.AlgorithmName == "samgraft"
    assert algorithm.AlgorithmParameters == "adapter=tumour.graft,adapter_sha256=ab12,backbone=graft-tiny"
    assert head.ReferencedSeriesSequence[0].SeriesInstanceUID == scene.series_uid
    sources = {
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in head.PerFrameFunctionalGroupsSequence
    }
    assert sources == {one.uid for one in scene.slices if one is not None}


def test_objects_of_prompts_become_segments(tmp_path: Path) -> None:
    import pydicom

    scene = series(tmp_path / "a")
    labels = np.zeros(SHAPE, np.uint16)
    labels[2, 1:3, 1:3], labels[4, 0, 6] = 1, 300
    boxes = {1: (1.0, 1.0, 2.0, 2.0), 300: (6.0, 0.0, 6.0, 0.0)}
    records = tuple(InstanceRecord(id=i, class_id=1, score=0.5, box=box) for i, box in boxes.items())
    found = Segmentation(
        labels=labels,
        grid=scene.grid,
        kind="instance",
        classes={1: "lesion"},
        instances=records,
        meta={"mode": "prompted"},
    )
    found.about(source=scene).save(tmp_path / "seg.dcm")
    back = open_scene(tmp_path / "seg.dcm")
    assert isinstance(back, DicomSegScene) and back.classes == {1: "lesion 1", 300: "lesion 300"}
    assert np.array_equal(back.read_labels(), labels)
    segment = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[1]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"


def test_multiframe_series_is_referred_to_by_frame(tmp_path: Path) -> None:
    import pydicom

    scene = open_scene(volumes.enhanced(tmp_path / "a.dcm", volumes.ramp(SHAPE)))
    result(scene).save(tmp_path / "seg.dcm")
    back = open_scene(tmp_path / "seg.dcm")
    assert np.array_equal(back.read_labels(), l_shape()) and back.grid.corner_distance(scene.grid) < 1e-4
    head = pydicom.dcmread(tmp_path / "seg.dcm")
    places = [float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in head.PerFrameFunctionalGroupsSequence]
    frames = [
        int(f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
        for f in head.PerFrameFunctionalGroupsSequence
    ]
    assert isinstance(scene, DicomScene)
    known = {one.position[2]: one.frame for one in scene.slices if one is not None}
    assert frames == [known[z] + 1 for z in places]


def test_jitter_and_gaps_keep_frames_on_their_slices(tmp_path: Path) -> None:
    shifts = (0, 0.03, -0.03, 0.02, -0.02, 0)

    def tweak(index: int, head: Any) -> bool:
        head.ImagePositionPatient = [-20.5, 13.25, 100 + 2.5 * index + shifts[index]]
        return index != 2

    folder = volumes.dicom_series(tmp_path / "a", volumes.ramp(SHAPE), tweak=tweak)
    scene = open_scene(folder, allow_gaps=True)
    labels = l_shape()
    with pytest.raises(GeometryError, match=r"slices \[2\] hold labels but are missing in the series"):
        result(scene, labels).save(tmp_path / "seg.dcm")
    labels[2] = 0
    result(scene, labels).save(tmp_path / "seg.dcm")
    assert np.array_equal(open_scene(tmp_path / "seg.dcm").read_labels(), labels)


def test_what_has_no_study_is_refused_with_a_remedy(tmp_path: Path) -> None:
    nifti = open_scene(volumes.nifti(tmp_path / "a.nii", volumes.ramp(SHAPE).transpose(2, 1, 0), np.eye(4)))
    with pytest.raises(GeometryError, match=r"a\.nii is a NIfTI, which has no study.*segment the DICOM folder itself"):
        result(nifti).save(tmp_path / "seg.dcm")
    scene = series(tmp_path / "s")
    with pytest.raises(GeometryError, match="the source of the labels is unknown"):
        Segmentation(labels=l_shape(), grid=scene.grid, kind="semantic", classes={1: "a", 3: "b"}).save(
            tmp_path / "seg.dcm"
        )
    other = series(tmp_path / "t", step=3.0)
    with pytest.raises(GeometryError, match=r"grids differ.*largest corner distance 2\.5 mm"):
        result(other).about(source=scene).save(tmp_path / "seg.dcm")
    with pytest.raises(ConfigError, match="'LABELMAP' or 'BINARY'"):
        SegOptions(kind="FRACTIONAL")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no class or object to describe"):
        empty = Segmentation(labels=l_shape() * 0, grid=scene.grid, kind="semantic", classes={})
        empty.about(source=scene).save(tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_series_without_a_frame_of_reference_is_named(tmp_path: Path) -> None:
    def tweak(index: int, head: Any) -> bool:
        del head.FrameOfReferenceUID
        return True

    with pytest.raises(InputError, match=r"^.*: the series has no FrameOfReferenceUID.*write \.nii\.gz$"):
        result(series(tmp_path / "a", tweak=tweak)).save(tmp_path / "seg.dcm")


def test_file_that_reads_back_differently_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = series(tmp_path / "a")
    true_build = dicom_seg_write._build

    def spoilt(labels: NDArray[Any], *rest: Any) -> Any:
        changed = labels.copy()
        changed[0, 0, 0] = 1
        return true_build(changed, *rest)

    monkeypatch.setattr(dicom_seg_write, "_build", spoilt)
    with pytest.raises(OutputError, match="reads back with 1 other voxels, so it was removed"):
        result(scene).save(tmp_path / "seg.dcm")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_overlapping_segments_have_no_label_map(tmp_path: Path) -> None:
    import pydicom

    scene = series(tmp_path / "a")
    stacked = np.zeros((*SHAPE, 2), np.uint8)
    stacked[2, 1:4, 1:4, 0] = 1
    stacked[2, 3:5, 3:5, 1] = 1
    names = {1: "liver", 2: "spleen"}
    described = dicom_seg_write._descriptions(names, result(scene))
    slices = [one for one in scene.slices if one is not None]
    built = dicom_seg_write._build(stacked, slices, scene, described, SegOptions(kind="BINARY"))
    built.save_as(tmp_path / "seg.dcm")
    overlapping = open_scene(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=r"segments 1 \(liver\) and 2 \(spleen\) overlap on 1 voxels of slice 2"):
        overlapping.read_labels()
    assert isinstance(overlapping, DicomSegScene)
    for number in (1, 2):
        assert np.array_equal(overlapping.mask(number), stacked[..., number - 1] > 0)
    with pytest.raises(NoMatchError, match="no segment 3; it holds"):
        overlapping.mask(3)
    with pytest.raises(InputError, match="spleen and liver share 1 voxels"):
        labels_on(tmp_path / "seg.dcm", scene, structures=["liver", "spleen"])
    later = labels_on(tmp_path / "seg.dcm", scene, structures=["spleen", "liver"], overlap="later")
    assert [(later.labels == n).sum() for n in (1, 2)] == [3, 9]
    head = pydicom.dcmread(tmp_path / "seg.dcm")
    head.SegmentationType = "FRACTIONAL"
    head.save_as(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="segmentation type FRACTIONAL; expected LABELMAP or BINARY"):
        open_scene(tmp_path / "seg.dcm")


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("Spleen", "78961009", None),
        ("kidney_right", "64033007", "Right"),
        ("left  Ventricle", "87878005", None),
        ("GTV", "108369006", None),
        ("GTV_Mass_CT", "108369006", None),
        ("PTV GTV", "85756007", None),
        ("left right kidney", "85756007", None),
        ("wibble", "85756007", None),
    ],
)
def test_names_find_their_codes(name: str, value: str, side: str | None) -> None:
    found = concept(name)
    assert found.type.value == value and (found.laterality.meaning if found.laterality else None) == side
    assert found.known == (value != "85756007")


def test_every_code_of_the_map_is_one_of_dicom() -> None:
    import json

    from pydicom.sr._concepts_dict import concepts

    known = {value for codes in concepts["SCT"].values() for value in codes}
    table = json.loads(MAP_FILE.read_text())
    triples = [*table["categories"].values(), *table["laterality"].values(), table["unknown"]["type"]]
    triples += [entry["type"] for entry in table["structures"]]
    assert len(triples) > 45
    for value, scheme, meaning in triples:
        meanings = {words[0].lower() for codes in concepts[scheme].values() for v, words in codes.items() if v == value}
        assert value in known and meaning.lower() in meanings, (value, meaning, meanings)
    names = [name for entry in table["structures"] for name in entry["names"]]
    assert len(names) == len(set(names))
