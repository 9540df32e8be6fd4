"""A run over a label raster with real output files, in a process that may be killed.

Called as a module with a folder, a time per tile in seconds, how many bytes a file may have (0: any), and workers.
"""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from samgraft.domains.atomic import remove_leftovers
from samgraft.domains.opening import open_scene
from samgraft.errors import SamgraftError
from samgraft.recipes.mosaic.engines import Engine, LocalEngine
from samgraft.recipes.mosaic.infer import OracleInfer, Source
from samgraft.recipes.mosaic.journal import Journal, Outcome, work_folder
from samgraft.recipes.mosaic.outputs import plan_sinks
from samgraft.recipes.mosaic.plan import Tile, plan_tiles
from samgraft.recipes.mosaic.run import run_mosaic

OUTPUTS = ("out.gpkg", "out.tif", "out.geojson")


class SlowOracle(OracleInfer):
    """Says when a tile is done, and waits."""

    pause = 0.0

    def stream(self, tiles: Iterable[Tile]) -> Iterator[Outcome]:
        for outcome in super().stream(tiles):
            print("tile", outcome.number, flush=True)
            time.sleep(self.pause)
            yield outcome


def run(folder: Path, pause: float = 0.0, engine: Engine | None = None) -> None:
    """Segment ``truth.tif`` of the folder; here, or with an engine."""
    truth = folder / "truth.tif"
    grid = open_scene(truth).grid
    infer = SlowOracle(Source.of(truth), depth=0)
    infer.pause = pause
    plan = plan_tiles((grid.shape[0], grid.shape[1]), 48, 12)
    outputs = [folder / name for name in OUTPUTS]
    sinks = plan_sinks(outputs, grid, {1: "thing"}, kind="instance")
    facts = infer.facts() | {"plan": plan.to_dict()}
    with Journal(work_folder(outputs[0]), facts) as journal:
        for sink in sinks:
            remove_leftovers(sink.path)
        journal.verify()
        run_mosaic(
            grid,
            infer,
            plan,
            sinks,
            kind="instance",
            classes={1: "thing"},
            engine=engine or LocalEngine(),
            journal=journal,
        )
        journal.remove()


if __name__ == "__main__":
    place, wait, limit, count = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    print("ready", flush=True)
    try:
        run(place, wait, LocalEngine(count))
    except SamgraftError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(2)
