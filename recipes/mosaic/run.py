"""One run over a raster: tiles are computed, kept in the journal, joined in raster order, and written.

Two passes. The first computes what the journal does not have; as soon as a tile and all before it are there, its
objects are linked with those of its neighbours, while later tiles are computed. When all are there, the number of
every object is known, and the second pass reads the artifacts again and writes: objects as they close, rows as they
are decided. Files come under their names when all of them are complete, all or none (``all_or_none``). A run that is
killed in the second pass begins it anew; what the first one found stays.
"""

import io
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from samgraft.domains.atomic import all_or_none
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
    """Tiles without data in the area."""
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
    provenance: Mapping[str, object] | None = None,
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
    notes = dict(provenance or {}) | {"failed_tiles": [asdict(one) for one in skipped]}
    outputs = _write(run, grid, sinks, numbering, classes, notes)
    counts = np.zeros(1, dtype=np.int64) if numbering is None else np.bincount(numbering.classes, minlength=1)
    return MosaicSummary(
        outputs=outputs,
        kind=kind,
        tiles=len(plan.tiles),
        computed=run.new,
        empty=journal.count("empty"),
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

    def arriving(self) -> Generator[tuple[Tile, bytes | None], None, None]:
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

    def again(self) -> Iterator[tuple[Tile, bytes | None]]:
        """Second pass: tiles with data in raster order; None where nothing was found in them."""
        total, began = len(self.plan.tiles), time.monotonic()
        for done, tile in enumerate(self.plan.tiles, start=1):
            state = self.journal.state(tile.number)
            if state in ("found", "blank"):
                yield tile, self.journal.content(tile.number)
            self._say("writing", done, done, began, total)

    def objects(self, found: Iterator[tuple[Tile, bytes | None]]) -> Iterator[tuple[Tile, TileObjects]]:
        """Objects of tiles; of class maps, connected pixels of one class."""
        for tile, content in found:
            if content is None:
                continue
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
                f"tile {outcome.number} (rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop}) cannot "
                f"be read: {outcome.note}. Finished tiles stay in {self.journal.folder}: repair the file, or add "
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
    from skimage import measure  # takes half a second to import

    own = np.maximum(found.labels, 0)  # below 0: no data
    labels, count = measure.label(own, connectivity=1, background=0, return_num=True)
    values, first = np.unique(labels, return_index=True)
    classes = own.ravel()[first[values > 0]]
    scores = np.ones(count, dtype=np.float64)
    if found.scores is not None and count:
        area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        total = np.bincount(labels.ravel(), weights=found.scores.ravel(), minlength=count + 1)[1:]
        scores = total / area / 255
    return TileObjects(
        labels=labels.astype(np.int32), classes=classes.astype(np.int32), scores=scores.astype(np.float32)
    )


def _write(
    run: _Run,
    grid: Grid,
    sinks: Sequence[Sink],
    numbering: Numbering | None,
    classes: Mapping[int, str],
    notes: Mapping[str, object],
) -> tuple[Path, ...]:
    """Second pass: fill all sinks, and give all files their names when all are complete, or none."""
    count = None if numbering is None or run.kind == "semantic" else numbering.count
    opened: list[Sink] = []
    try:
        for sink in sinks:
            opened.append(sink)
            sink.start(grid, classes, notes, count=count)
        takers = [sink for sink in sinks if sink.takes == "objects"]
        painters = [sink for sink in sinks if sink.takes == "rows"]
        if run.kind == "semantic" and painters:
            _paint_classes(run, painters)
        if numbering is not None and (takers or run.kind == "instance"):
            _write_objects(run, takers, painters if run.kind == "instance" else [], numbering)
        with all_or_none():
            return tuple(sink.commit() for sink in sinks)
    except BaseException:
        for sink in opened:
            sink.abort()
        raise


def _write_objects(run: _Run, takers: Sequence[Sink], painters: Sequence[Sink], numbering: Numbering) -> None:
    """Objects as they close, and pixels with their numbers as they are decided."""
    table = np.zeros(numbering.count + 1, dtype=np.uint8)
    table[1:] = np.round(numbering.scores * 255)
    for step in stream_steps(run.plan, run.objects(run.again()), numbering):
        for taker in takers:
            for one in step.objects:
                taker.add(one)
        if painters and step.labels is not None:
            for painter in painters:
                painter.paint(step.part, step.labels, table[step.labels])


def _paint_classes(run: _Run, painters: Sequence[Sink]) -> None:
    """Class maps, core by core."""
    for tile, content in run.again():
        labels = scores = valid = None
        if content is not None:
            found, own = TileClasses.load(io.BytesIO(content)), within(tile.core, tile.window)
            labels, valid = np.maximum(found.labels[own], 0), found.labels[own] >= 0
            scores = None if found.scores is None else found.scores[own]
        for painter in painters:
            painter.paint(tile.core, labels, scores, valid)
