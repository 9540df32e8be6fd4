"""Examine a file, a DICOM folder, or a data set in one pass; nothing is raised, everything is reported."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TypeVar

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.image_mask import LABEL_FOLDERS
from samgraft.domains.medical.dicom import DicomScene, is_dicom
from samgraft.domains.opening import IMAGE_SUFFIXES, open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import SamgraftError
from samgraft.recipes.doctor.datasets import examine_set, loose_nnunet, loose_pairs
from samgraft.recipes.doctor.finding import Finding, Report, from_error
from samgraft.recipes.doctor.series import examine_series, read_headers
from samgraft.recipes.doctor.volumes import Patient, examine_image, measure

T = TypeVar("T")
Track = Callable[[Iterable[T], int], Iterable[T]]
"""Wraps a loop of known length to show its progress."""


def examine(path: str | PathLike[str], *, modality: str | None = None, track: Track[Path] | None = None) -> Report:
    """Look at everything below ``path``.

    Args:
        path: an image or label file, a DICOM folder, a folder in nnU-Net layout (``imagesTr``), a folder with
            ``images`` and ``masks``, or a folder of image files.
        modality: "CT" or "MR" where files do not say; decides whether values must be Hounsfield units.
        track: shows progress over files.

    Returns:
        The report, worst findings first.
    """
    root = Path(path).expanduser()
    report = Report(path=str(root))
    if not root.exists():
        report.add([_missing(root)])
    elif (root / "imagesTr").is_dir():
        examine_set(loose_nnunet(root), report, modality=modality, track=track)
    elif (root / "images").is_dir() and any((root / name).is_dir() for name in LABEL_FOLDERS):
        examine_set(loose_pairs(root), report, modality=modality, track=track)
    else:
        _folder_or_file(root, report, modality, track)
    report.sort()
    return report


def _missing(root: Path) -> Finding:
    return Finding(
        severity="error", check="missing", file=str(root), what="no such file or folder", remedy="check the path"
    )


def _folder_or_file(root: Path, report: Report, modality: str | None, track: Track[Path] | None) -> None:
    """Image files one by one; DICOM files together."""
    images = [p for p in _files(root) if full_suffix(p) in IMAGE_SUFFIXES]
    if images:
        report.files = len(images)
        for file in track(images, len(images)) if track else images:
            report.add(examine_file(file, modality))
        return
    if root.is_dir() or full_suffix(root) in (".dcm", ".dicom", ".ima") or is_dicom(root):
        _dicom(root, report, modality)
        return
    report.files = 1
    report.add(examine_file(root, modality))


def _files(root: Path) -> list[Path]:
    """The file itself, or those directly in a folder, hidden ones left out."""
    if root.is_file():
        return [root]
    return sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith("."))


def examine_file(file: Path, modality: str | None = None) -> list[Finding]:
    """Findings about one image file."""
    try:
        return list(_findings(quietly_open(file), modality))
    except SamgraftError as error:
        return [from_error(error, file)]


def quietly_open(file: Path) -> Scene:
    """Open with NaN as 0, so that they can be counted; warnings of the reader come out as findings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_scene(file, nan="fill")


def _findings(scene: Scene, modality: str | None) -> Iterator[Finding]:
    yield from examine_image(Patient(scene=scene, pixels=measure(scene), modality=modality or scene.modality or ""))


def _dicom(root: Path, report: Report, modality: str | None) -> None:
    """Headers of all files, then the pixels of every series whose geometry is sound."""
    if root.is_file() and _is_labels(root):
        report.files = 1
        report.add(examine_file(root, modality))
        return
    groups, report.files, findings = read_headers(root)
    report.add(findings)
    if not groups:
        if not findings:
            report.add([from_error(e, root) for e in _refusal(root)])
        return
    if len(groups) > 1:
        names = "; ".join(f"{uid}: {len(g)} slices, {g[0].modality} {g[0].description!r}" for uid, g in groups.items())
        report.add([
            Finding(
                severity="error",
                check="several series",
                file=str(root),
                what=f"holds {len(groups)} series ({names})",
                remedy="name one by series=, or keep one folder per series",
            )
        ])  # fmt: skip
    for uid, slices in groups.items():
        found = list(examine_series(root, uid, slices))
        report.add(found)
        if not any(f.severity == "error" for f in found) and not findings:
            report.add(_pixels(root, uid, modality))


def _is_labels(file: Path) -> bool:
    from samgraft.domains.medical.dicom_seg import is_dicom_seg

    try:
        return is_dicom_seg(file)
    except SamgraftError:
        return False


def _refusal(root: Path) -> list[SamgraftError]:
    """Why the reader takes nothing from a folder without slices."""
    try:
        DicomScene(root)
    except SamgraftError as error:
        return [error]
    return []


def _pixels(root: Path, uid: str, modality: str | None) -> list[Finding]:
    """Findings about the pixels of one series."""
    try:
        return list(_findings(DicomScene(root, series=uid, nan="fill"), modality))
    except SamgraftError as error:
        return [from_error(error, root)]
