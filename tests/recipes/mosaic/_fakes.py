"""Infer functions that travel and need neither raster nor model, and a sink that is one JSON file."""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path
from samgraft.errors import CheckpointError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.journal import Outcome
from samgraft.recipes.mosaic.objects import MosaicObject
from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan, plan_tiles, shape_of
from samgraft.recipes.mosaic.sink import Takes


class Names:
    """Answers with the tile's place. Says in ``folder`` what it did; dies once, or fails, at the tiles named."""

    def __init__(self, folder: Path, *, dies_at: int = -1, always: bool = False, fails_at: int = -1) -> None:
        self.folder, self.dies_at, self.always, self.fails_at = folder, dies_at, always, fails_at
        self.loads = 0

    def facts(self) -> dict[str, Any]:
        return {"method": "names"}

    def stream(self, tiles: Iterable[Tile]) -> Iterator[Outcome]:
        if not self.loads:
            self.loads += 1
            (self.folder / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        for tile in tiles:
            died = self.folder / "died"
            if tile.number == self.dies_at and (self.always or not died.exists()):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if tile.number == self.fails_at:
                raise CheckpointError("the adapter is damaged")
            yield Outcome(number=tile.number, state="found", content=repr((tile.index, tile.window)).encode())

    def processes(self) -> set[str]:
        """Who loaded it."""
        return {path.name.split("-")[1] for path in self.folder.glob("loaded-*")}

    def times(self) -> int:
        """How often it was loaded."""
        return len(list(self.folder.glob("loaded-*")))


class JsonSink:
    """Everything that a sink is told, as one file; objects or rows."""

    def __init__(self, path: Path, takes: Takes = "objects") -> None:
        self.path, self.takes = path, takes
        self.content: dict[str, Any] = {}

    def start(
        self, grid: Grid, classes: Mapping[int, str], provenance: Mapping[str, object], *, count: int | None = None
    ) -> None:
        self.content = {"shape": list(grid.shape), "classes": {str(k): v for k, v in classes.items()}, "count": count}
        self.content |= {"provenance": dict(provenance), "found": []}

    def add(self, found: MosaicObject) -> None:
        pixels = [
            (int(r) + part[0].start, int(c) + part[1].start)
            for part, mask in found.pieces
            for r, c in np.argwhere(mask)
        ]
        self.content["found"].append([found.id, found.class_id, round(found.score, 6), sorted(pixels)])

    def paint(
        self,
        part: Part,
        labels: NDArray[Any] | None,
        scores: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        shape = shape_of(part)
        values = np.zeros(shape, dtype=np.int64) if labels is None else labels.astype(np.int64)
        values[np.zeros(shape, dtype=bool) if valid is None else ~valid] = -1
        entry = [part[0].start, part[1].start, values.tolist(), None if scores is None else scores.tolist()]
        self.content["found"].append(entry)

    def rows(self, rows: slice, labels: NDArray[Any] | None, scores: NDArray[np.uint8] | None = None) -> None:
        raise NotImplementedError

    def commit(self, further: Mapping[str, object] | None = None) -> Path:
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.content))
        return self.path

    def abort(self) -> None:
        self.content = {}

    def labels(self) -> NDArray[np.int64]:
        """The whole map of the file that was written; -1 where nothing was painted."""
        content = json.loads(self.path.read_text())
        whole = np.full(content["shape"], -1 if self.takes == "rows" else 0, dtype=np.int64)
        for entry in content["found"]:
            if self.takes == "rows":
                values = np.array(entry[2])
                whole[entry[0] : entry[0] + len(values), entry[1] : entry[1] + values.shape[1]] = values
            else:
                rows, cols = zip(*entry[3], strict=True)
                whole[list(rows), list(cols)] = entry[0]
        return whole


def small_plan(shape: tuple[int, int] = (70, 90), side: int = 32, overlap: int = 8) -> TilePlan:
    """A few tiles: 3 x 4 for the default."""
    return plan_tiles(shape, side, overlap)
