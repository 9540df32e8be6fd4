"""One run over a raster: tiles are computed, kept in the journal, joined in raster order, and written.

Two passes. The first computes what the journal does not have; as soon as a tile and all before it are there, its
objects are linked with those of its neighbours, while later tiles are computed. When all are there, the number of
every object is known, and the second pass reads the artifacts again and writes: objects as they close, rows as they
are decided. Files come under their names when all of them are complete. A run that is killed in the second pass begins
it anew; what the first one found stays.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from skimage import measure

from samgraft.domains.scene import label_dtype
from samgraft.errors import ConfigError, InputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.engines import Engine, Infer
from samgraft.recipes.mosaic.found import TileClasses, TileObjects
from samgraft.recipes.mosaic.frontier import number_objects, stream_steps
from samgraft.recipes.mosaic.infer import Kind
from samgraft.recipes.mosaic.journal import Journal, Outcome
from samgraft.recipes.mosaic.plan import Tile, TilePlan, within
from samgraft.recipes.mosaic.reduce import Numbering
from samgraft.recipes.mosaic.sink import Sink
from samgraft.recipes.mosaic.strips import RowStrip, Strips

OnBad = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    what: str
    """"tiles" or "writing"."""
    done: int
    total: int
    """Tiles."""
    new: int
    """Tiles of ``done`` that this process computed."""
    seconds: float
    """Since this pass began."""

    @property
    def rate(self) -> float:
        """Tiles per second of this process; 0 before the first."""
        return self.new / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left at this rate, or None before the first tile."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


Tell = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A tile that could not be read."""

    number: int
    rows: tuple[int, int]
    """First and last row of its core, which is empty in the result."""
    cols: tuple[int, int]
    reason: str

    def words(self) -> str:
        """One line."""
        return f"rows {self.rows[0]} to {self.rows[1]}, columns {self.cols[0]} to {self.cols[1]}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MosaicSummary:
    """What a run did."""

    outputs: tuple[Path, ...]
    kind: Kind
    tiles: int
    """In the plan."""
    computed: int
    """By this process; the others were in the journal."""
    empty: int
    """Tiles without data, outside the area, or where nothing was found."""
    skipped: tuple[Skipped, ...]
    objects: int
    """Objects, or connected patches of a class; 0 where nobody asked for them."""
    by_class: Mapping[str, int]
    """The same by name of the class."""
    seconds: float


def run_mosaic(
    grid: Grid,
    infer: Infer,
    plan: TilePlan,
    sinks: Sequence[Sink],
    *,
    kind: Kind,
    classes: Mapping[int, str],
    engine: Engine,
    journal: Journal,
    provenance: Mapping[str, str] | None = None,
    on_bad_tile: OnBad = "fail",
    tell: Tell | None = None,
) -> MosaicSummary:
    """Compute, join and write.

    Args:
        grid: Of the raster; results lie on it.
        infer: What is computed of a tile.
        plan: The tiles.
        sinks: What is written.
        kind: What ``infer`` finds: objects, or a class per pixel.
        classes: Label -> name.
        engine: Who computes.
        journal: What is finished; opened with the facts of ``infer`` and ``plan``.
        provenance: Written into the files; skipped tiles are added.
        on_bad_tile: "fail" stops at a tile that cannot be read, "skip" leaves it empty and says so.
        tell: Called after every tile.

    Raises:
        InputError: a tile cannot be read, and ``on_bad_tile`` is "fail".
        OutputError: journal or results cannot be written; finished tiles stay, nothing is at the final paths.
        ConfigError: sinks that cannot take such results.
    """
    if plan.shape != grid.shape:
        raise ConfigError(f"the plan is for a raster of {plan.shape}, this one is {grid.shape}; plan anew")
    began = time.monotonic()
    run = _Run(plan, infer, engine, journal, kind, on_bad_tile, tell)
    numbering: Numbering | None = None
    with closing(run.arriving()) as arriving:
        if kind == "instance" or any(sink.takes == "objects" for sink in sinks):
            numbering = number_objects(plan, run.objects(arriving))
        else:
            for _ in arriving:
                pass
    skipped = run.skipped()
    notes = dict(provenance or {})
    if skipped:
        notes["skipped tiles"] = "; ".join(one.words() for one in skipped)
    outputs = _write(run, grid, sinks, numbering, classes, notes)
    counts = np.zeros(1, dtype=np.int64) if numbering is None else np.bincount(numbering.classes, minlength=1)
    return MosaicSummary(
        outputs=outputs,
        kind=kind,
        tiles=len(plan.tiles),
        computed=run.new,
        empty=len(plan.tiles) - journal.count("found") - len(skipped),
        skipped=skipped,
        objects=0 if numbering is None else numbering.count,
        by_class={classes.get(int(n), str(n)): int(counts[n]) for n in np.flatnonzero(counts)},
        seconds=time.monotonic() - began,
    )


class _Run:
    """The tiles of one run on their way from the engine to the sinks."""

    def __init__(
        self,
        plan: TilePlan,
        infer: Infer,
        engine: Engine,
        journal: Journal,
        kind: Kind,
        on_bad_tile: OnBad,
        tell: Tell | None,
    ) -> None:
        self.plan, self.kind, self.journal, self.new = plan, kind, journal, 0
        self._infer, self._engine, self._on_bad, self._tell = infer, engine, on_bad_tile, tell

    def arriving(self) -> Iterator[tuple[Tile, bytes]]:
        """First pass: tiles with something in them, in raster order, each as soon as it and all before it are there."""
        tiles, began = self.plan.tiles, time.monotonic()
        rows, cols = self.plan.grid
        finished = np.zeros(rows * cols, dtype=np.bool_)
        finished[np.fromiter(self.journal.finished(), dtype=np.int64)] = True
        before = finished.copy()  # read by the thread that walks over what is left
        known = int(before.sum())
        left = (tile for tile in tiles if not before[tile.number])
        with closing(self._engine.run(self._infer, left)) as outcomes:
            for tile in tiles:
                while not finished[tile.number]:
                    outcome = next(outcomes)
                    self._take(outcome)
                    finished[outcome.number] = True
                    self._say("tiles", known + self.new, self.new, began)
                content = self.journal.content(tile.number)
                if content is not None:
                    yield tile, content

    def again(self) -> Iterator[tuple[Tile, bytes]]:
        """Second pass: the same from the journal."""
        total, began = len(self.plan.tiles), time.monotonic()
        for done, tile in enumerate(self.plan.tiles, start=1):
            content = self.journal.content(tile.number)
            if content is not None:
                yield tile, content
            self._say("writing", done, done, began, total)

    def objects(self, found: Iterator[tuple[Tile, bytes]]) -> Iterator[tuple[Tile, TileObjects]]:
        """Objects of tiles; of class maps, connected pixels of one class."""
        for tile, content in found:
            if self.kind == "instance":
                yield tile, TileObjects.load(io.BytesIO(content))
            else:
                yield tile, patches(TileClasses.load(io.BytesIO(content)))

    def skipped(self) -> tuple[Skipped, ...]:
        """Tiles that could not be read."""
        found = []
        for number, reason in self.journal.bad():
            rows, cols = self.plan.tile(number).core
            place = {"rows": (rows.start, rows.stop - 1), "cols": (cols.start, cols.stop - 1)}
            found.append(Skipped(number=number, reason=reason, **place))
        return tuple(found)

    def _take(self, outcome: Outcome) -> None:
        if outcome.state == "bad" and self._on_bad == "fail":
            rows, cols = self.plan.tile(outcome.number).window
            raise InputError(
                f"tile {outcome.number} (rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop}) cannot be "
                f"read: {outcome.note}. Finished tiles stay in {self.journal.folder}: repair the file, or add "
                "--on-bad-tile skip to leave such tiles empty"
            )
        self.journal.record(outcome)
        self.new += 1

    def _say(self, what: str, done: int, new: int, began: float, total: int | None = None) -> None:
        if self._tell is not None:
            whole = len(self.plan.tiles) if total is None else total
            seconds = time.monotonic() - began
            self._tell(Progress(what=what, done=done, total=whole, new=new, seconds=seconds))


def patches(found: TileClasses) -> TileObjects:
    """Connected pixels of one class (4 neighbours) as objects; their score is the mean of that of their pixels."""
    labels, count = measure.label(found.labels, connectivity=1, background=0, return_num=True)
    values, first = np.unique(labels, return_index=True)
    classes = found.labels.ravel()[first[values > 0]]
    scores = np.ones(count, dtype=np.float64)
    if found.scores is not None and count:
        area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        total = np.bincount(labels.ravel(), weights=found.scores.ravel(), minlength=count + 1)[1:]
        scores = total / area / 255
    return TileObjects(labels=labels.astype(np.int32), classes=classes.astype(np.int32), scores=scores.astype(np.float32))


def _write(
    run: _Run,
    grid: Grid,
    sinks: Sequence[Sink],
    numbering: Numbering | None,
    classes: Mapping[int, str],
    notes: Mapping[str, str],
) -> tuple[Path, ...]:
    """Second pass: fill all sinks, and give the files their names when all are complete."""
    opened: list[Sink] = []
    try:
        for sink in sinks:
            opened.append(sink)
            sink.start(grid, classes, notes)
        takers = [sink for sink in sinks if sink.takes == "objects"]
        writers = [sink for sink in sinks if sink.takes == "rows"]
        if run.kind == "semantic" and writers:
            _write_classes(run, writers, classes)
        if takers or (run.kind == "instance" and writers):
            _write_objects(run, takers, writers if run.kind == "instance" else [], numbering)
        return tuple(sink.commit() for sink in sinks)
    except BaseException:
        for sink in opened:
            sink.abort()
        raise


def _write_objects(run: _Run, takers: Sequence[Sink], writers: Sequence[Sink], numbering: Numbering | None) -> None:
    """Objects as they close, and their numbers as rows."""
    if numbering is None:
        return
    strips = Strips(run.plan.shape, label_dtype(numbering.count), scores=True)
    table = np.zeros(numbering.count + 1, dtype=np.uint8)
    table[1:] = np.round(numbering.scores * 255)
    for step in stream_steps(run.plan, run.objects(run.again()), numbering):
        for taker in takers:
            for one in step.objects:
                taker.add(one)
        if writers:
            scores = None if step.labels is None else table[step.labels]
            _send(strips.add(step.part, step.labels, scores), writers)
    if writers:
        _send(strips.finish(), writers)


def _write_classes(run: _Run, writers: Sequence[Sink], classes: Mapping[int, str]) -> None:
    """Class maps as rows."""
    strips: Strips | None = None
    for tile, content in run.again():
        found = TileClasses.load(io.BytesIO(content))
        if strips is None:
            strips = Strips(run.plan.shape, label_dtype(max(classes)), scores=found.scores is not None)
        own = within(tile.core, tile.window)
        _send(strips.add(tile.core, found.labels[own], None if found.scores is None else found.scores[own]), writers)
    strips = strips or Strips(run.plan.shape, label_dtype(max(classes)), scores=False)
    _send(strips.finish(), writers)


def _send(rows: Iterator[RowStrip], writers: Sequence[Sink]) -> None:
    for strip in rows:
        for writer in writers:
            writer.rows(strip.rows, strip.labels, strip.scores)
