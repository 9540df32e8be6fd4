"""DICOM on a real patient: ``python -m tests.benchmarks.dicom``.

Contours against the NIfTI mask of the same patient, under several conventions of where a voxel lies (samgraft's is the
first; the others show what a wrong one costs), and DICOM-SEG files of that mask: size, seconds to write and to read.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.medical.dicom_seg_write import SegOptions
from samgraft.domains.medical.orientation import place_labels
from samgraft.domains.medical.rtstruct import fill_contours, read_rtstruct
from samgraft.domains.opening import open_scene
from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.metrics import overlap
from samgraft.recipes.surface import surface_score
from tests.benchmarks._table import markdown, write_json

SETS = (("CT", "sarcoma_ct"), ("MR_T1", "sarcoma_mr"))
SHIFTS = {
    "voxel centres (samgraft)": (0.0, 0.0),
    "half a pixel down": (0.5, 0.0),
    "half a pixel right": (0.0, 0.5),
    "half a pixel both": (0.5, 0.5),
    "half a pixel back": (-0.5, -0.5),
}
KINDS = (("LABELMAP, RLE", SegOptions()), ("LABELMAP, RLE, empty frames dropped", SegOptions(keep_empty=False)),
         ("BINARY", SegOptions(kind="BINARY")))  # fmt: skip


def load(data: Path, modality: str, folder: str) -> tuple[DicomScene, Path, np.ndarray]:
    """Series, structure file, and the NIfTI mask on the grid of the series."""
    patient = data / "medical" / "sarcoma_dicom" / "STS_019" / modality
    scene = open_scene(patient / "image")
    assert isinstance(scene, DicomScene)
    truth = open_scene(data / "medical" / folder / "labelsTr" / "STS_019.nii.gz")
    mask = place_labels(truth.read_labels(), truth.grid, scene.grid, what="NIfTI mask")
    return scene, patient / "mask" / "RS.dcm", mask


def contours(scene: DicomScene, file: Path, mask: np.ndarray, modality: str) -> list[dict[str, Any]]:
    """Agreement of filled contours and mask, per convention."""
    (structure,) = [s for s in read_rtstruct(file).structures if s.contours]
    rows = []
    for name, (down, right) in SHIFTS.items():
        moved = down * scene.grid.affine[:3, 1] + right * scene.grid.affine[:3, 2]
        found = fill_contours([points + moved for points in structure.contours], scene)
        border = surface_score(found, mask > 0, scene.grid.spacing, tolerance=1.0)
        rows.append({
            "series": modality,
            "convention": name,
            "Dice": overlap(found, mask > 0)[0],
            "HD95 mm": border.hd95,
            "voxels": int(found.sum()),
            "voxels of the mask": int((mask > 0).sum()),
        })  # fmt: skip
    return rows


def files(scene: DicomScene, mask: np.ndarray, modality: str, folder: Path) -> list[dict[str, Any]]:
    """Size and time of every kind of file."""
    found = Segmentation(labels=mask, grid=scene.grid, kind="semantic", classes={1: "gross_tumour_volume"})
    found = found.about(source=scene)
    rows = []
    for name, options in (*KINDS, ("NIfTI", None)):
        path = folder / ("a.nii.gz" if options is None else "a.dcm")
        began = time.perf_counter()
        found.save(path, dicom=options)
        written = time.perf_counter()
        open_scene(path).read_labels()
        rows.append({
            "series": modality,
            "file": name,
            "kB": path.stat().st_size / 1000,
            "write and check, s": written - began,
            "read, s": time.perf_counter() - written,
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2].parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    values = parser.parse_args(arguments)
    agreement: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for modality, name in SETS:
            scene, file, mask = load(values.data, modality, name)
            agreement += contours(scene, file, mask, modality)
            written += files(scene, mask, modality, Path(folder))
    print(markdown(agreement))
    print(markdown(written))
    if values.output is not None:
        write_json(values.output, {"contours": agreement, "files": written})


if __name__ == "__main__":
    main()
