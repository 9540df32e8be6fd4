"""Memory of segmenting a volume, estimated and measured: ``python -m tests.benchmarks.volume_memory``.

A synthetic volume as .nii, .nii.gz and DICOM series is cut along its first and its last axis; the network is an oracle
that takes no memory worth naming, so what is measured is what a volume costs beside any network, from opening it to the
written .nii.gz. The estimate is the line that ``samgraft segment`` prints before it reads a voxel.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from samgraft.domains.opening import open_scene
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.volume_memory import volume_memory
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._steps import Extra
from tests.benchmarks._table import markdown, write_json
from tests.data import volumes
from tests.recipes._oracle import OracleGraft

KINDS = (".nii", ".nii.gz", "DICOM")
MB = 1e6


def write(folder: Path, kind: str, shape: Sequence[int]) -> Path:
    """A volume (D, H, W) of int16 with one bright box."""
    depth, height, width = shape
    image = np.full((depth, height, width), -500, np.int16)
    image[depth // 4 : depth // 2, height // 4 : height // 2, width // 4 : width // 2] = 1000
    if kind == "DICOM":
        return volumes.dicom_series(folder / "series", image)
    nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), np.diag([0.7, 0.7, 2.0, 1.0])), folder / f"a{kind}")
    return folder / f"a{kind}"


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Estimate and peak in MB."""
    scene = open_scene(task["path"])
    recipe = Recorded(recipe=InputRecipe(size=64, slice_axis=task["axis"]), classes={1: "bright"})
    graft: Any = OracleGraft()
    estimate = volume_memory(scene, task["axis"]).total / MB
    extra = Extra()
    result = segment_automatic(scene, graft, recipe, batch=8)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "labels.nii.gz")
    return {"estimate_mb": estimate, "peak_mb": extra.mb() * 2**20 / MB, "labelled": int(result.labels.sum())}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.volume_memory", description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--axes", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--shape", nargs=3, type=int, default=[600, 512, 512], help="slices, rows, columns")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/volume_memory.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            path = write(Path(folder), kind, options.shape)
            for axis in options.axes:
                task = {"path": str(path), "axis": axis}
                found = isolated("volume_memory", ["--task", json.dumps(task)], threads=1)
                off = found["estimate_mb"] / found["peak_mb"] - 1
                rows.append({"file": kind, "axis": axis, "shape": options.shape, **found, "estimate_off": off})
                print(markdown(rows[-1:]), flush=True)
                write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
