"""What threads for reading, encoding and decoding save: ``python -m tests.benchmarks.pipeline``, with nothing else on.

Two tables. The first: graft-tiny with a class-token decoder over a compressed raster or volume made on the spot, one
step after the other (``pipeline=0``) and in threads; ``read_s`` is what reading alone takes, the most that reading
ahead can hide. The second: memory of "everything" with few and with thousands of grid points on one picture. Each
measurement has its own process; the two ways take turns.
"""

import argparse
import hashlib
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine
from scipy import ndimage

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import BundleMeta
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.domains.opening import open_scene
from samgraft.recipes.data.fit import windows
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.everything import EverythingConfig, segment_everything
from samgraft.recipes.engine.planes import Plane, Rows
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.look import look_at
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json

SCENES = ("deflate.tif", "jpeg.tif", "volume.nii.gz")
WAYS = {"sequential": 0, "pipelined": 2}
SLICES = 96


def texture(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Soft blobs and a little noise: packs neither like a constant nor like static."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0] // 16 + 2, shape[1] // 16 + 2), dtype=np.float32)
    soft = ndimage.zoom(coarse, 16, order=1)[: shape[0], : shape[1]] * 220
    return (soft + rng.integers(0, 24, shape)).astype(np.uint8)


def make(folder: Path, name: str, side: int) -> Path:
    """A scene with ``side`` pixels a side: three bands, or ``SLICES`` slices of a quarter of that."""
    path = folder / name
    if name.endswith(".nii.gz"):
        slices = [texture((side // 4, side // 4), seed).astype(np.int16) * 8 - 1000 for seed in range(SLICES)]
        nib.save(nib.Nifti1Image(np.stack(slices, axis=-1), np.diag([1.0, 1.0, 3.0, 1.0])), path)
        return path
    options: dict[str, Any] = {"compress": "deflate", "predictor": 2, "interleave": "pixel"}
    if name.startswith("jpeg"):
        options = {"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel"}
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    place = {"transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6), "tiled": True, "blockxsize": 256, "blockysize": 256}
    with rasterio.open(path, "w", **profile, **place, **options) as target:
        for band in range(3):
            target.write(texture((side, side), band), band + 1)
    return path


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of one scene, or of one number of points."""
    torch.set_num_threads(task["threads"])
    backbone = load_backbone("graft-tiny")
    size = backbone.spec.native_size
    scene = open_scene(task["path"])
    if "points" in task:
        config = EverythingConfig(points_per_side=task["points"], tile=4 * max(scene.grid.shape), pred_iou_thresh=0.0)

        def work(depth: int) -> NDArray[Any]:
            return segment_everything(scene, backbone, config=config, depth=depth).labels
    else:
        torch.manual_seed(0)
        grafted = attach(backbone, decoder=ClassTokensConfig(num_classes=2)).eval()
        window = None if scene.kind == "volume" else size
        settings = {"size": size, "window": window, "overlap": 0.25, "slice_axis": None, "neighbours": False}
        extra = {"input": settings | {"bands": None, "min_area": 4}}
        scale = {"kind": "range", "lower": -1000.0, "upper": 1000.0} if scene.kind == "volume" else None
        header = recorded(grafted, BundleMeta(classes={1: "a", 2: "b"}, intensity=scale, extra=extra))

        def work(depth: int) -> NDArray[Any]:
            return segment_automatic(scene, grafted, header, depth=depth).labels

    with torch.no_grad():
        backbone.encode(torch.rand(1, 3, size, size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, labels = timed(lambda: work(task["depth"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    digest = hashlib.sha256(np.ascontiguousarray(labels)).hexdigest()[:16]
    return {"seconds": seconds, "peak_mb": peak, "extra_mb": peak - before, "labels": digest}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def reading(path: str, size: int) -> float:
    """Seconds that reading takes alone, as the reading thread does it."""
    scene = open_scene(path)
    if scene.kind == "volume":
        return timed(scene.read)[0]
    rows = Rows(Plane(scene, look_at(scene)))
    return timed(lambda: [rows.read(*place) for place in windows(rows.plane.shape, size, 0.25)] and None)[0]


def alone(task: dict[str, Any]) -> dict[str, Any]:
    """Do ``task`` in a process of its own."""
    return isolated("pipeline", ["--task", json.dumps(task)], threads=task["threads"])


def compare(path: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the first table."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, depth in WAYS.items():
            found[way].append(alone({"path": str(path), "depth": depth, "threads": threads}))
    seconds = {way: statistics.median(f["seconds"] for f in found[way]) for way in WAYS}
    return {
        "scene": path.name,
        "threads": threads,
        "read_s": reading(str(path), 128),
        "sequential_s": seconds["sequential"],
        "pipelined_s": seconds["pipelined"],
        "faster": seconds["sequential"] / seconds["pipelined"],
        "sequential_mb": max(f["peak_mb"] for f in found["sequential"]),
        "pipelined_mb": max(f["peak_mb"] for f in found["pipelined"]),
        "equal": len({f["labels"] for way in WAYS for f in found[way]}) == 1,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline", description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="pixels along a side of the raster")
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=list(SCENES))
    parser.add_argument("--points", nargs="*", type=int, default=[16, 64], help="grid points along a side")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/pipeline.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [make(folder, scene, options.side) for scene in options.scenes]
        rows = [compare(path, threads, options) for path in paths for threads in options.threads]
        shown = folder / "picture.png"
        Image.fromarray(texture((256, 256), 1)).save(shown)
        asked = [{"path": str(shown), "points": n, "depth": 2, "threads": 1} for n in options.points]
        memory = [{"prompts": task["points"] ** 2, **alone(task)} for task in asked]
    write_json(options.json, {"results": rows, "prompts": memory})
    print(markdown(rows))
    print(markdown(memory, ["prompts", "seconds", "peak_mb", "extra_mb"]))


if __name__ == "__main__":
    main()
