"""Training windows of rasters of two sizes: ``python -m tests.benchmarks.raster_training``.

A sparse GeoTIFF (3 x uint8, 512 x 512 tiles, one in eight of them stored) with one labelled rectangle in about 3,200
pixels, a process for each size: seconds until the first batch can be drawn, windows per second, and peak resident
memory before, after the label file and the index, and after all draws and two blocks that validate. The label file is
held as outlines; pixels and drawn labels are not.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from pyogrio import raw

from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.module import SegmentationData
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json

CRS = "EPSG:32645"
PLACE = Affine(0.5, 0.0, 300_000.0, 0.0, -0.5, 3_000_000.0)
BLOCK, STORED, PIXELS_PER_OBJECT = 512, 8, 3200


def write_scene(folder: Path, side: int) -> tuple[Path, Path, int]:
    """The raster, its labels, and how many there are."""
    path, labels = folder / "scene.tif", folder / "labels.fgb"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": side, "width": side, "crs": CRS}
    tiles = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "SPARSE_OK": True, "compress": "deflate"}
    rng = np.random.default_rng(0)
    noise = rng.integers(30, 220, (3, BLOCK, BLOCK), dtype=np.uint8)
    with rasterio.open(path, "w", transform=PLACE, **profile, **tiles) as file:
        places = [(r, c) for r in range(0, side - BLOCK + 1, BLOCK) for c in range(0, side - BLOCK + 1, BLOCK)]
        for row, col in places[::STORED]:
            file.write(noise, window=((row, row + BLOCK), (col, col + BLOCK)))
    count = side * side // PIXELS_PER_OBJECT
    corner = rng.integers(0, side - 40, (count, 2)).astype(np.float64)
    size = rng.integers(8, 40, (count, 2))
    x0, y0 = PLACE.c + 0.5 * corner[:, 0], PLACE.f - 0.5 * corner[:, 1]
    boxes = shapely.box(x0, y0 - 0.5 * size[:, 1], x0 + 0.5 * size[:, 0], y0)
    raw.write(
        str(labels),
        geometry=shapely.to_wkb(boxes),
        field_data=[np.arange(count)],
        fields=["n"],
        crs=CRS,
        geometry_type="Polygon",
        driver="FlatGeobuf",
    )
    return path, labels, count


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Index, draws and two blocks of one raster; memory in MB of 2**20 bytes."""
    config = DataConfig(
        layout="mosaic", path=task["raster"], labels=task["labels"], window=512, size=256, batch_size=4, val_blocks=8
    )
    before, start = _peak_mb(), time.perf_counter()
    data = SegmentationData(config, kind="instance", size=256, steps=task["steps"], val_cases=2)
    indexed, seconds = _peak_mb(), time.perf_counter() - start
    start = time.perf_counter()
    drawn = sum(len(image) for image, _ in data.train_dataloader())
    drawing = time.perf_counter() - start
    for case in data.val_dataloader():
        if case is None or max(case.plane) > 2048:
            raise RuntimeError("a block that validates is missing or larger than 2048 pixels")
    windows = data.index.windows
    if windows is None:
        raise RuntimeError("no windows")
    return {
        "windows": len(windows),
        "index_seconds": round(seconds, 2),
        "windows_per_second": round(drawn / drawing, 1),
        "before_mb": round(before, 1),
        "indexed_mb": round(indexed, 1),
        "peak_mb": round(_peak_mb(), 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_training", description=__doc__)
    parser.add_argument("--sides", type=int, nargs="*", default=[10_000, 40_000], help="sides of the rasters in pixels")
    parser.add_argument("--steps", type=int, default=50, help="batches of four windows that are drawn")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_training.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            path, labels, count = write_scene(Path(folder), side)
            task = {"raster": str(path), "labels": str(labels), "steps": options.steps}
            found = isolated("raster_training", ["--task", json.dumps(task)], threads=1)
        rows.append({"side": side, "objects": count, "raster_mb": 3 * side * side // 2**20} | found)
        write_json(options.json, {"training": rows})
        print(markdown(rows[-1:]), flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
