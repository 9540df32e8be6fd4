"""Labels of any file on the grid of an image: RTSTRUCT, DICOM-SEG, NIfTI, MHA, NRRD.

Takes a label file and an opened image, gives a Segmentation on exactly the image's grid. Voxels are placed, not
interpolated, unless that is asked for; another frame of reference is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np

from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_header import read_dataset
from samgraft.domains.medical.dicom_seg import DicomSegScene
from samgraft.domains.medical.orientation import place_labels, resample_labels
from samgraft.domains.medical.rtstruct import rasterise, read_rtstruct
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import GeometryError, InputError, NoMatchError

Overlap = Literal["raise", "later"]


def labels_on(
    path: str | PathLike[str],
    image: Scene,
    *,
    structures: Sequence[str] | None = None,
    overlap: Overlap = "raise",
    resample: bool = False,
) -> Segmentation:
    """Read labels and bring them onto the grid of ``image``.

    Args:
        path: RTSTRUCT or DICOM-SEG file, or a label volume.
        image: the volume; for RTSTRUCT the DICOM series.
        structures: names of structures, in the order of their new labels from 1; None takes all as they are numbered.
        overlap: what happens where two structures share voxels.
        resample: take the nearest voxel where the voxels do not coincide, instead of refusing.

    Returns:
        Labels on ``image.grid`` with their names; remarks in ``meta["notes"]``.

    Raises:
        GeometryError: another frame of reference, or voxels that do not coincide; the distance is named in mm.
        InputError: no label file, overlapping structures.
        NoMatchError: a structure that the file does not hold.
    """
    path = Path(path)
    if image.kind != "volume":
        raise InputError(f"{image.path.name} is a {image.kind}; labels are placed on volumes; give a series or NIfTI")
    head = read_dataset(path, ["Modality"]) if path.is_file() else None
    if head is not None and head.get("Modality") == "RTSTRUCT":
        return _contours(path, image, structures, overlap)
    scene = open_scene(path)
    _same_frame(scene, image)
    labels, classes = _read(scene, structures, overlap)
    bring = resample_labels(labels, scene.grid, image.grid) if resample else None
    placed = place_labels(labels, scene.grid, image.grid, what=str(path)) if bring is None else bring
    return _result(placed, image, classes, path, scene.notes)


def _contours(path: Path, image: Scene, names: Sequence[str] | None, overlap: Overlap) -> Segmentation:
    """Filled contours."""
    if not isinstance(image, DicomScene):
        raise GeometryError(
            f"{path.name}: contours are given in a DICOM frame of reference, and {image.path.name} is a "
            f"{image.format}, which has none; give the DICOM series as --image, then place the result on the other file"
        )
    labels, classes, notes = rasterise(read_rtstruct(path), image, names=names, overlap=overlap)
    return _result(labels, image, classes, path, notes)


def _result(labels: Array, image: Scene, classes: Mapping[int, str], path: Path, notes: Sequence[str]) -> Segmentation:
    meta = {"mode": "labels", "labels": path.name, **({"notes": "; ".join(notes)} if notes else {})}
    source = image if isinstance(image, DicomScene) else None
    found = Segmentation(
        labels=labels, grid=image.grid, kind="semantic", classes=classes, from_ground_truth=True, meta=meta
    )
    return found.about(source=source)


def _same_frame(labels: Scene, image: Scene) -> None:
    """A segmentation object of another frame of reference belongs to another examination."""
    if not isinstance(labels, DicomSegScene) or not isinstance(image, DicomScene):
        return
    theirs, ours = labels.frame_of_reference, image.frame_of_reference
    if theirs != ours:
        raise GeometryError(
            f"{labels.path}: belongs to the frame of reference {theirs or 'unknown'}, {image.path} to "
            f"{ours or 'unknown'}; it was made on series {labels.source_series or 'unknown'}; open that series"
        )


def _read(scene: Scene, names: Sequence[str] | None, overlap: Overlap) -> tuple[Array, dict[int, str]]:
    """Labels on the file's own grid: all as they are, or the structures asked for, numbered in that order."""
    if names is None:
        labels = scene.read_labels()
        known = scene.classes if isinstance(scene, DicomSegScene) else _unnamed(labels)
        return labels, known
    mask: Callable[[int], Array]
    if isinstance(scene, DicomSegScene):
        classes, mask = scene.classes, scene.mask  # one by one, since segments may overlap
    else:
        whole = scene.read_labels()
        classes, mask = _unnamed(whole), partial(np.equal, whole)
    out = np.zeros(scene.grid.shape, dtype=label_dtype(len(names)))
    for value, name in enumerate(names, start=1):
        found = [v for v, known_name in classes.items() if known_name == name]
        if len(found) != 1:
            raise NoMatchError(
                f"{scene.path}: {len(found)} structures named {name!r}; it holds {list(classes.values())}"
            )
        inside = mask(found[0])
        shared = int((out[inside] > 0).sum())
        if shared and overlap == "raise":
            other = names[int(out[inside].max()) - 1]
            raise InputError(
                f'{scene.path}: {name} and {other} share {shared} voxels; let the later one win (overlap="later")'
            )
        out[inside] = value
    return out, dict(enumerate(names, start=1))


def _unnamed(labels: Array) -> dict[int, str]:
    """Names of labels in a file that has none."""
    return {int(v): f"class {v}" for v in np.unique(labels) if v}
