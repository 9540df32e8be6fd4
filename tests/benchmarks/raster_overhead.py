"""What the raster engine costs beside the model: ``python -m tests.benchmarks.raster_overhead``, with nothing else on.

"nothing": a model that finds nothing on a raster of 16,384 pixels a side, read, journalled and written as a class map,
against rasterio copying the file block by block. "graft-tiny": seconds in which neither encoder nor decoder computes,
as a share of the whole, at tiles of 1024 pixels; with what the work of windows on seams, computed twice, adds to the
model's time. A process each; ways take turns.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rasterio
import torch

from samgraft.domains.opening import open_scene
from samgraft.recipes.data.fit import windows
from samgraft.recipes.engine import automatic
from samgraft.recipes.mosaic.engines import LocalEngine
from samgraft.recipes.mosaic.infer import NothingInfer
from samgraft.recipes.mosaic.journal import Journal, work_folder
from samgraft.recipes.mosaic.outputs import plan_sinks
from samgraft.recipes.mosaic.plan import plan_tiles
from samgraft.recipes.mosaic.run import run_mosaic
from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic
from samgraft.recipes.mosaic.windows import AdapterInfer
from tests.benchmarks._mosaics import raster, source, tiny_adapter
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json


class Busy:
    """Seconds in which at least one of some functions runs, in whatever thread, and how many inputs they saw."""

    def __init__(self) -> None:
        self.seconds, self.inputs, self._running, self._since = 0.0, 0, 0, 0.0
        self._lock = threading.Lock()

    def watch(self, call: Callable[[Any], Any], *, counted: bool = False) -> Callable[[Any], Any]:
        def watched(value: Any) -> Any:
            with self._lock:
                self.inputs += len(value) if counted else 0
                self._running += 1
                if self._running == 1:
                    self._since = time.perf_counter()
            try:
                return call(value)
            finally:
                with self._lock:
                    self._running -= 1
                    if self._running == 0:
                        self.seconds += time.perf_counter() - self._since

        return watched


def copy(task: dict[str, Any]) -> dict[str, Any]:
    """Block by block, as anybody would."""
    target = Path(task["folder"]) / "copy.tif"
    start = time.perf_counter()
    with rasterio.open(task["path"]) as before, rasterio.open(target, "w", **before.profile) as after:
        for _, window in before.block_windows():
            after.write(before.read(window=window), window=window)
    seconds = time.perf_counter() - start
    target.unlink()
    return {"seconds": seconds}


def nothing(task: dict[str, Any]) -> dict[str, Any]:
    """The whole engine around a model that does nothing."""
    output = Path(task["folder"]) / f"out{task['suffix']}"
    start = time.perf_counter()
    infer = NothingInfer(source(task["path"]), kind="semantic" if task["suffix"] == ".tif" else "instance")
    grid = infer.scene.grid
    plan = plan_tiles((grid.shape[0], grid.shape[1]), task["tile"], task["overlap"])
    sinks = plan_sinks([output], grid, {1: "a"}, kind=infer.kind)
    with Journal(work_folder(output), infer.facts()) as journal:
        run_mosaic(grid, infer, plan, sinks, kind=infer.kind, classes={1: "a"}, engine=LocalEngine(), journal=journal)
        journal.remove()
    seconds = time.perf_counter() - start
    for sink in sinks:
        sink.path.unlink()
    return {"seconds": seconds}


def tiny(task: dict[str, Any]) -> dict[str, Any]:
    """graft-tiny: time outside of its encoder and decoder."""
    torch.set_num_threads(task["threads"])
    folder, busy = Path(task["folder"]), Busy()
    adapter = tiny_adapter(folder / "tiny.graft", kind=task["kind"])
    small = raster(folder / "small.tif", 256)
    options = MosaicOptions(tile=task["tile"])
    segment_mosaic(small, folder / "small.gpkg", adapter=adapter, options=options)
    plain = AdapterInfer.take

    def take(self: AdapterInfer, *given: Any) -> Any:
        loaded = plain(self, *given)
        network = automatic.Steps(busy.watch(loaded.network.encode, counted=True), busy.watch(loaded.network.decode))
        object.__setattr__(loaded, "network", network)
        return loaded

    AdapterInfer.take = take  # type: ignore[method-assign]
    start = time.perf_counter()
    outputs = [folder / "tiny.tif"] if task["kind"] == "semantic" else [folder / "tiny.gpkg"]
    summary = segment_mosaic(task["path"], outputs, adapter=adapter, options=options)
    seconds = time.perf_counter() - start
    least = len(windows(open_scene(task["path"]).grid.shape[:2], 128, 0.25))  # type: ignore[arg-type]
    return {
        "tiles": summary.tiles,
        "seconds": seconds,
        "model_seconds": busy.seconds,
        "outside": 1 - busy.seconds / seconds,
        "windows": busy.inputs,
        "computed_twice": busy.inputs / least - 1,
        "objects": summary.objects,
    }


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """One measurement in this process."""
    return {"copy": copy, "nothing": nothing, "tiny": tiny}[task["what"]](task)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_overhead", description=__doc__)
    parser.add_argument("--side", type=int, default=16_384, help="of the raster that nothing is found in")
    parser.add_argument("--tiny-side", type=int, default=4096, help="of the raster for graft-tiny; 0 leaves it out")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_overhead.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    with tempfile.TemporaryDirectory() as folder:

        def alone(**task: Any) -> dict[str, Any]:
            words = ["--task", json.dumps({"folder": folder, "tile": options.tile, "threads": options.threads} | task)]
            return isolated("raster_overhead", words, threads=options.threads)

        rows = []
        if options.side:
            path = str(raster(Path(folder) / "large.tif", options.side))
            found: dict[str, list[float]] = {"rasterio block copy": [], "nothing, .tif": [], "nothing, .gpkg": []}
            for _ in range(options.rounds):
                found["rasterio block copy"].append(alone(what="copy", path=path)["seconds"])
                for suffix in (".tif", ".gpkg"):
                    task = {"what": "nothing", "path": path, "suffix": suffix, "overlap": options.overlap}
                    found[f"nothing, {suffix}"].append(alone(**task)["seconds"])
            plain = statistics.median(found["rasterio block copy"])
            for name, seconds in found.items():
                rows.append({"what": name, "seconds": statistics.median(seconds)})
                rows[-1]["of_copy"] = rows[-1]["seconds"] / plain
            print(markdown(rows), flush=True)
        models = []
        if options.tiny_side:
            path = str(raster(Path(folder) / "medium.tif", options.tiny_side))
            models = [{"kind": k, **alone(what="tiny", path=path, kind=k)} for k in ("semantic", "instance")]
            print(markdown(models), flush=True)
    write_json(options.json, {"nothing": rows, "graft-tiny": models})


if __name__ == "__main__":
    main()
