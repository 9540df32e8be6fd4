"""Memory of a whole run over a raster: ``python -m tests.benchmarks.raster_engine_memory``.

A sparse GeoTIFF of three bands at 10,000 and at 40,000 pixels a side, a process each: reading, tiles, journal, seams,
polygons and rasters. "oracle": the objects of ``_endless`` (a million at 40,000). "graft-tiny": objects of a decoder
that was never trained, on as many filled squares of the raster in both sizes. Memory is that above the loaded model.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.recipes.mosaic.engines import LocalEngine
from samgraft.recipes.mosaic.journal import Journal, work_folder
from samgraft.recipes.mosaic.outputs import plan_sinks
from samgraft.recipes.mosaic.plan import plan_tiles
from samgraft.recipes.mosaic.run import run_mosaic
from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic
from tests.benchmarks import _endless
from tests.benchmarks._mosaics import EndlessInfer, raster, source, tiny_adapter
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._steps import Extra
from tests.benchmarks._table import markdown, write_json

WAYS = ("oracle", "graft-tiny")


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """One run in this process; memory in MB of 2**20 bytes."""
    side, folder = task["side"], Path(task["folder"])
    outputs = [folder / f"out{suffix}" for suffix in task["outputs"]]
    if task["way"] == "oracle":
        path = raster(folder / "empty.tif", side, filled=0)
        infer = EndlessInfer(source(str(path)))
        scene, plan = infer.scene, plan_tiles((side, side), task["tile"], task["overlap"])
        _endless.see(plan.tile(0), side)
        sinks = plan_sinks(outputs, scene.grid, {1: "object"}, kind="instance")
        extra, start = Extra(), time.perf_counter()
        with Journal(work_folder(outputs[0]), infer.facts()) as journal:
            summary = run_mosaic(
                scene.grid, infer, plan, sinks, kind="instance", classes={1: "object"}, engine=LocalEngine(),
                journal=journal,
            )  # fmt: skip
            kept = sum(p.stat().st_size for p in journal.folder.rglob("*") if p.is_file())
            journal.remove()
        if summary.objects != _endless.count(side):
            raise RuntimeError(f"{summary.objects} objects; expected {_endless.count(side)}")
    else:
        path = raster(folder / "filled.tif", side, filled=task["filled"], nodata=0)
        adapter = tiny_adapter(folder / "tiny.graft", kind="instance")
        small = raster(folder / "small.tif", 1024, nodata=0)
        options = MosaicOptions(tile=task["tile"], overlap=128)
        segment_mosaic(small, folder / "small.gpkg", adapter=adapter, options=options)  # model and libraries are loaded
        extra, start = Extra(), time.perf_counter()
        summary = segment_mosaic(path, outputs, adapter=adapter, options=options)
        kept = 0
    sizes = {f"out{p.suffix}_mb": round(p.stat().st_size / 2**20, 1) for p in outputs}
    found = {"objects": summary.objects, "tiles": summary.tiles, "artifacts_mb": round(kept / 2**20, 1)}
    return found | {"over_mb": round(extra.mb(), 1), "seconds": round(time.perf_counter() - start, 1)} | sizes


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_engine_memory", description=__doc__)
    parser.add_argument("--sides", type=int, nargs="*", default=[10_000, 40_000], help="sides of the rasters in pixels")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--outputs", nargs="*", default=[".gpkg", ".tif"], help="suffixes of what is written")
    parser.add_argument("--tile", type=int, default=1024, help="side of a tile in pixels")
    parser.add_argument("--overlap", type=int, default=64, help="of the oracle's tiles")
    parser.add_argument(
        "--filled", type=int, default=16, help="graft-tiny: squares of 1024 pixels with something in them"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_engine_memory.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for way in options.ways:
        for side in options.sides:
            with tempfile.TemporaryDirectory() as folder:
                keys = ("outputs", "tile", "overlap", "filled")
                task = {"way": way, "side": side, "folder": folder} | {key: getattr(options, key) for key in keys}
                found = isolated("raster_engine_memory", ["--task", json.dumps(task)], threads=1)
            rows.append({"way": way, "side": side} | found)
            first = next(row for row in rows if row["way"] == way)
            rows[-1]["of_first"] = rows[-1]["over_mb"] / max(first["over_mb"], np.finfo(float).eps)
            write_json(options.json, {"runs": rows})
            print(markdown(rows[-1:]), flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
