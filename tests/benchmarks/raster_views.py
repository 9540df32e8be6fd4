"""What it costs to read a raster as it is, at another pixel size, in another CRS, or out of several files.

``python -m tests.benchmarks.raster_views``, with nothing else on. A compressed three-band raster is cut into windows of
1,024 pixels of the view; the first row is rasterio reading the same windows with the file held open.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.bands import stretch
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.pipeline import make, texture

TILE = 1024
VIEWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gsd 1.0 (twice the size)": {"gsd": 1.0},
    "gsd 0.7": {"gsd": 0.7},
    "gsd 0.25 (half the size)": {"gsd": 0.25},
    "EPSG:3857, bilinear": {"crs": "EPSG:3857"},
    "EPSG:3857, nearest": {"crs": "EPSG:3857", "resampling": "nearest"},
}
"""Options of ``samgraft.open``; the raster has pixels of half a metre."""


def chips(folder: Path, side: int) -> list[Path]:
    """Sixteen files side by side, in all as large as the raster."""
    part, paths = side // 4, []
    for number in range(16):
        place = Affine(0.5, 0, 5e5 + 0.5 * part * (number % 4), 0, -0.5, 5e6 - 0.5 * part * (number // 4))
        profile = {"driver": "GTiff", "height": part, "width": part, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
        paths.append(folder / f"{number:02}.tif")
        with rasterio.open(
            paths[-1], "w", **profile, transform=place, tiled=True, blockxsize=256, blockysize=256, compress="deflate"
        ) as target:
            for band in (1, 2, 3):
                target.write(texture((part, part), number + band), band)
    return paths


def timed(read: Callable[[int, int], Any], shape: tuple[int, ...], rounds: int) -> float:
    """Median seconds of one window."""
    places = [(r, c) for r in range(0, shape[0] - TILE + 1, TILE) for c in range(0, shape[1] - TILE + 1, TILE)]
    found = []
    for _ in range(rounds):
        for row, col in places[:16]:
            start = time.perf_counter()
            read(row, col)
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def reader(scene: GeoScene) -> Callable[[int, int], Any]:
    """Reads pixels and validity of the window at a row and column."""
    return lambda row, col: scene.read_valid((slice(row, row + TILE), slice(col, col + TILE)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_views", description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="pixels along a side of the raster")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_views.json"))
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        path = make(Path(name), "deflate.tif", options.side)
        with rasterio.open(path) as source:
            plain = timed(lambda r, c: source.read(window=Window(c, r, TILE, TILE)), source.shape, options.rounds)
        rows.append({"view": "rasterio, file held open", "s_per_window": plain})
        scenes = {view: open_scene(path, **asked) for view, asked in VIEWS.items()}
        scenes["16 files as a mosaic"] = open_scene(chips(Path(name), options.side))
        for view, scene in scenes.items():
            if isinstance(scene, GeoScene):
                rows.append({"view": view, "s_per_window": timed(reader(scene), scene.grid.shape, options.rounds)})
        start = time.perf_counter()
        stretch(scenes["as it is"])
        rows.append({"view": "the stretch, once per raster", "s_per_window": time.perf_counter() - start})
    for row in rows:
        row["times_plain"] = row["s_per_window"] / plain
    write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
