"""Memory of merging objects across seams: ``python -m tests.benchmarks.raster_memory``.

The raster of ``_endless`` (about one object in 1,280 pixels, roads across everything) at 10,000 and at 40,000 pixels a
side, a process each: both passes over all tiles, peak resident memory above that before the first tile. Nothing but the
tile at hand exists, so what grows is what the merging holds. The count of objects and their pixels are checked.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.frontier import Frontier, number_objects
from samgraft.recipes.mosaic.plan import Tile, TilePlan, plan_tiles
from tests.benchmarks import _endless
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Both passes; memory in MB of 2**20 bytes."""
    plan = plan_tiles((task["side"], task["side"]), task["tile"], task["overlap"])
    for tile in plan.tiles[: plan.grid[1] + 2]:  # what imports, caches and the generator take
        _endless.see(tile, task["side"])
    small = plan_tiles((3000, 3000), task["tile"], task["overlap"])
    _both(small, 3000)
    before, start = _peak_mb(), time.perf_counter()
    result = _both(plan, task["side"])
    after, seconds = _peak_mb(), time.perf_counter() - start
    start = time.perf_counter()
    for tile in plan.tiles[:50]:
        _endless.see(tile, task["side"])
    generator = (time.perf_counter() - start) / min(50, len(plan.tiles))
    if result["objects"] != _endless.count(task["side"]):
        raise RuntimeError(f"{result['objects']} objects; expected {_endless.count(task['side'])}")
    return result | {
        "tiles": len(plan.tiles),
        "before_mb": round(before, 1),
        "peak_mb": round(after, 1),
        "over_mb": round(after - before, 1),
        "seconds": round(seconds, 1),
        "generator_seconds": round(2 * generator * len(plan.tiles), 1),
    }


def _both(plan: TilePlan, side: int) -> dict[str, Any]:
    """Count what comes out of both passes, and what was held at most."""
    numbering = number_objects(plan, _found(plan, side))
    frontier = Frontier(plan, numbering)
    most, objects, ids, pixels, widest = [0, 0, 0], 0, 0, 0, 0
    for tile, found in _found(plan, side):
        for step in frontier.push(tile, found):
            objects += len(step.objects)
            ids += sum(one.id for one in step.objects)
            pixels += sum(one.area_px for one in step.objects)
            widest = max([widest, *(one.tiles for one in step.objects)])
        now = frontier.open_fragments, frontier.open_objects, frontier.held_bytes
        most = [max(a, b) for a, b in zip(most, now, strict=True)]
    if ids != objects * (objects + 1) // 2 or frontier.finish():
        raise RuntimeError(f"the ids of {objects} objects are not 1 to {objects}")
    return {
        "objects": objects,
        "object_pixels": pixels,
        "most_tiles": widest,
        "open_fragments": most[0],
        "open_objects": most[1],
        "strips_mb": round(most[2] / 2**20, 2),
    }


def _found(plan: TilePlan, side: int) -> Iterator[tuple[Tile, TileObjects]]:
    return ((tile, _endless.see(tile, side)) for tile in plan.tiles)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_memory", description=__doc__)
    parser.add_argument("--sides", type=int, nargs="*", default=[10_000, 40_000], help="sides of the rasters in pixels")
    parser.add_argument("--tile", type=int, default=1024, help="side of a tile in pixels")
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_memory.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for side in options.sides:
        task = {"side": side, "tile": options.tile, "overlap": options.overlap}
        rows.append(task | isolated("raster_memory", ["--task", json.dumps(task)], threads=1))
        write_json(options.json, {"merging": rows})
        print(markdown(rows[-1:]), flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
