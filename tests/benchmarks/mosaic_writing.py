"""What writing a mosaic's result costs: ``python -m tests.benchmarks.mosaic_writing``, with nothing else running.

Polygons: objects of 12 to 30 pixels a side with a notch and sometimes a hole, made one after the other and given to a
vector sink of every format; a tenth of them and all of them, each in a process of its own. Rasters: ids of a lattice of
objects painted in tiles of 1000 pixels, which do not fit the blocks of the file, at two sizes. "extra_mb" is the
largest memory on top of what was resident before the sink was made. Nothing is read but what is made here.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import from_origin

from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.grid import Grid
from samgraft.recipes.mosaic.objects import MosaicObject, Piece
from samgraft.recipes.mosaic.raster_sink import RasterSink
from samgraft.recipes.mosaic.vector_sink import VectorSink
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._steps import Extra
from tests.benchmarks._table import markdown, write_json

FORMATS = ("gpkg", "fgb", "parquet", "geojson")
CLASSES = {1: "building", 2: "shed"}
CELL = 40
TILE = 1000


def square_grid(side: int) -> Grid:
    """A UTM grid of half a metre."""
    return grid_of(from_origin(300000.25, 5100000.75, 0.5, 0.5), CRS.from_epsg(32633), (side, side))


def buildings(count: int) -> Iterator[MosaicObject]:
    """Objects on a lattice, in raster scan order of their cells; some 34 corners each."""
    columns = int(np.ceil(np.sqrt(count)))
    rng = np.random.default_rng(0)
    sizes, notches = rng.integers(12, 31, (4096, 2)), rng.integers(1, 6, 4096)
    for number in range(count):
        (height, width), notch = sizes[number % 4096].tolist(), int(notches[number % 4096])
        mask = np.ones((height, width), dtype=np.bool_)
        for step in range(notch):
            mask[: notch - step, step] = mask[step - notch :, width - 1 - step] = False
        if number % 5 == 0:
            mask[height // 2, width // 2] = False
        top, left = number // columns * CELL, number % columns * CELL
        part = (slice(top, top + height), slice(left, left + width))
        facts: dict[str, Any] = {"id": number + 1, "class_id": 1 + number % 2, "score": 0.5, "tiles": 1, "box": part}
        yield MosaicObject(**facts, area_px=int(mask.sum()), parts=(Piece.of(part, mask),))


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds, memory and size of one file."""
    with tempfile.TemporaryDirectory(dir=task["folder"]) as folder:
        path = Path(folder) / f"out.{task['format']}"
        return _raster(path, task["side"]) if task["format"] == "tif" else _vector(path, task["count"])


def _vector(path: Path, count: int) -> dict[str, Any]:
    side = (int(np.ceil(np.sqrt(count))) + 1) * CELL
    sample, began = min(count, 20_000), time.perf_counter()
    for _ in buildings(sample):
        pass
    making = (time.perf_counter() - began) * count / sample  # what making them costs is not the sink's
    sink, extra, began = VectorSink(path), Extra(), time.perf_counter()
    sink.start(square_grid(side), CLASSES, {"model": "none"})
    for one in buildings(count):
        sink.add(one)
    filled = time.perf_counter()
    sink.commit()
    end = time.perf_counter()
    seconds = {"seconds": end - began - making, "of which commit": end - filled}
    return seconds | {"extra_mb": extra.mb(), "file_mb": path.stat().st_size / 1e6}


def _raster(path: Path, side: int) -> dict[str, Any]:
    cell = np.zeros((CELL, CELL), dtype=np.int64)
    cell[5:30, 4:32] = 1
    tile = np.tile(cell, (TILE // CELL, TILE // CELL))
    within = np.repeat(np.repeat(np.arange((TILE // CELL) ** 2).reshape(TILE // CELL, -1), CELL, 0), CELL, 1) + 1
    sink, extra, began = RasterSink(path, "ids"), Extra(), time.perf_counter()
    sink.start(square_grid(side), CLASSES, {"model": "none"})
    for number, (top, left) in enumerate((t, c) for t in range(0, side, TILE) for c in range(0, side, TILE)):
        labels = (tile * (within + number * (TILE // CELL) ** 2))[: side - top, : side - left]
        sink.paint((slice(top, top + labels.shape[0]), slice(left, left + labels.shape[1])), labels)
    filled = time.perf_counter()
    sink.commit()
    end = time.perf_counter()
    seconds = {"seconds": end - began, "of which commit": end - filled}
    return seconds | {"extra_mb": extra.mb(), "file_mb": path.stat().st_size / 1e6}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mosaic_writing", description=__doc__)
    parser.add_argument("--formats", nargs="*", default=[*FORMATS, "tif"], choices=(*FORMATS, "tif"))
    parser.add_argument("--count", type=int, default=1_000_000, help="polygons; a tenth is measured too")
    parser.add_argument(
        "--side", type=int, default=40_000, help="side of the raster in pixels; a quarter is measured too"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="disk that is written to")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/mosaic_writing.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for name in options.formats:
        large = {"side": options.side} if name == "tif" else {"count": options.count}
        share = 4 if name == "tif" else 10
        for size in ({k: v // share for k, v in large.items()}, large):
            task = {"format": name, "folder": str(options.folder), **size}
            found = isolated("mosaic_writing", ["--task", json.dumps(task)], threads=1)
            rows.append({"format": name, "size": next(iter(size.values())), **found})
            print(markdown(rows[-1:]), flush=True)
            write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
