"""``segment_mosaic``: one raster of any size, or several files as one, to polygons and rasters on its own grid.

Memory follows the tile. What is finished is kept beside the output, so the same call goes on after a crash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samgraft import __version__
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.graft import Grafted
from samgraft.domains.atomic import remove_leftovers
from samgraft.domains.remote_sensing.area import Area, read_area
from samgraft.domains.remote_sensing.georeference import ground_step
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.engine.aligned import aligned
from samgraft.recipes.engine.everything import EverythingConfig
from samgraft.recipes.engine.focus import network_size
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.engine.run import adapter_meta, load_adapter
from samgraft.recipes.engine.turned import with_views
from samgraft.recipes.ground import require_trained_gsd
from samgraft.recipes.look import Look, look_at
from samgraft.recipes.mosaic.engines import ENGINES, DaskEngine, Engine, LocalEngine
from samgraft.recipes.mosaic.everything import EverythingInfer
from samgraft.recipes.mosaic.gather import classes_of
from samgraft.recipes.mosaic.infer import Source, TileInfer
from samgraft.recipes.mosaic.journal import Journal, work_folder
from samgraft.recipes.mosaic.outputs import plan_sinks
from samgraft.recipes.mosaic.plan import TilePlan, plan_for_objects, plan_tiles
from samgraft.recipes.mosaic.provenance import Provenance
from samgraft.recipes.mosaic.run import MosaicSummary, OnBad, Tell, run_mosaic
from samgraft.recipes.mosaic.windows import AdapterInfer, lattice

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
SEAM = 2
"""Overlap of tiles in pixels where a class map is made: it is the same in both, so they only have to touch."""
LEAST_SIDE, MOST_SIDE, VIEWS = 1024, 4096, 16
"""A tile is as wide as so many network windows, within these bounds: those on its seams are computed twice."""
HALO, MOST_HALO = 4, 64
"""Objects are told apart with a strip around each tile in view, of the overlap divided by the first number, and of at
most so many pixels; see ``windows``."""


@dataclass(frozen=True, kw_only=True)
class MosaicOptions:
    """How a raster is walked over. Engine, workers and what is kept do not change the result."""

    aoi: str | PathLike[str] | None = None
    """Vector file whose polygons say where results are wanted."""
    tile: int | None = None
    """Side of a tile in pixels; None chooses by the network's window."""
    overlap: float | None = None
    """What neighbouring tiles share: pixels, or below 1 a share of their side; None chooses: as wide as a network
    window for objects."""
    largest_m: float | None = None
    """Longest object in metres, from which tile and overlap are chosen."""
    engine: Literal["local", "dask"] = "local"
    """Who computes."""
    scheduler: str | None = None
    """Dask: address of a running scheduler; None starts processes on this machine."""
    workers: int = 1
    """Processes on this machine; ignored with a scheduler."""
    restart: bool = False
    """Throw away what an earlier run left."""
    on_bad_tile: OnBad = "fail"
    """What to do about a tile that cannot be read."""
    keep_work: bool = False
    """Leave the journal and the artifacts of tiles beside the output."""
    align: str | None = None
    """With an adapter: as of ``samgraft.segment``; fitted once for the whole raster."""
    align_source: str | PathLike[str] | None = None
    """As of ``samgraft.segment``."""
    views: int = 1
    """As of ``samgraft.segment``."""

    def __post_init__(self) -> None:
        """Check the words, and what excludes each other."""
        if self.engine not in ENGINES or self.on_bad_tile not in ("fail", "skip"):
            raise ConfigError(
                f"engine {self.engine!r}, on_bad_tile {self.on_bad_tile!r}; expected one of {', '.join(ENGINES)}, and "
                "fail or skip"
            )
        if self.scheduler is not None and self.engine != "dask":
            raise ConfigError(
                f"scheduler {self.scheduler} belongs to the Dask engine; add engine='dask' (--engine dask)"
            )
        if self.overlap is not None and (self.overlap <= 0 or (self.overlap > 1 and self.overlap != int(self.overlap))):
            raise ConfigError(
                f"overlap is {self.overlap:g}; expected whole pixels that neighbouring tiles share, such as 256, or a "
                "share of the tile below 1, such as 0.25"
            )
        if self.largest_m is not None and (self.tile is not None or self.overlap is not None):
            raise ConfigError("largest_m chooses tile and overlap; leave these two out, or largest_m")

    def runner(self) -> Engine:
        """The engine.

        Raises:
            MissingDependencyError: Dask is not installed.
        """
        return LocalEngine(self.workers) if self.engine == "local" else DaskEngine(self.scheduler, workers=self.workers)


def segment_mosaic(
    raster: Paths,
    output: Paths,
    *,
    adapter: str | PathLike[str] | Grafted | None = None,
    backbone: str | PathLike[str] | Backbone | None = None,
    options: MosaicOptions | None = None,
    everything: EverythingConfig | None = None,
    reading: Mapping[str, Any] | None = None,
    scores: str | PathLike[str] | None = None,
    simplify: float = 0.0,
    batch: int | None = None,
    tell: Tell | None = None,
) -> MosaicSummary:
    """Segment a raster tile by tile.

    A class map is exactly that of the whole raster at once, whatever the tiles are. Objects are found in each tile and
    joined where tiles overlap.

    Args:
        raster: A raster, or several files that are one mosaic.
        output: Files to write: ``.gpkg``, ``.fgb``, ``.parquet``, ``.geojson`` (polygons), ``.tif`` (a COG of classes,
            or of object numbers). The first one names the work folder.
        adapter: A file written by ``samgraft fit``, or what ``samgraft.load_adapter`` gives; None looks for everything.
        backbone: Name, folder, file or backbone; None takes the adapter's, else graft-tiny.
        options: Tiles, area, engine, and what to do about what went wrong.
        everything: Without an adapter: what is asked and kept.
        reading: Options of ``samgraft.open``; label rasters lie on the pixels of the file whatever ``gsd`` is.
        scores: File for a raster of scores.
        simplify: Tolerance for polygons in map units; 0 keeps the outlines of pixels.
        batch: Network inputs per call; None chooses by their size.
        tell: Called after every tile, to show progress.

    Raises:
        InputError: the raster is missing, damaged or of another kind than the adapter wants; or a tile cannot be read.
        ConfigError: contradictory options, or an unfinished run with other ones.
        CheckpointError: the adapter is damaged or belongs to another backbone.
        OutputError: a file cannot be written; finished tiles stay, and nothing is at the final paths.
        MissingDependencyError: an engine or a format needs a package that is not installed.
    """
    asked, outputs = options or MosaicOptions(), [Path(one) for one in _many(output)]
    engine, source = asked.runner(), Source.of(*_many(raster), **dict(reading or {}))
    scene = source.open()
    area = _area(scene, asked)
    infer, classes, view = _infer(source, scene, area, adapter, backbone, everything, scores is not None, batch, asked)
    plan = planned(scene, view, asked, kind=infer.kind, area=area)
    if isinstance(infer, AdapterInfer):
        infer.halo = min(plan.overlap // HALO, MOST_HALO) if infer.kind == "instance" else 0
    sinks = plan_sinks(
        outputs,
        scene.grid,
        classes,
        kind=infer.kind,
        scores=None if scores is None else Path(scores),
        simplify=simplify,
        view=scene if isinstance(scene, ResampledScene) else None,
    )
    facts = infer.facts()
    provenance = _provenance(scene, infer, plan, facts, adapter)
    facts |= {"plan": plan.to_dict(), "samgraft": __version__}
    with Journal(work_folder(outputs[0].absolute()), facts, restart=asked.restart) as journal:
        for sink in sinks:
            remove_leftovers(sink.path)
        journal.verify()
        summary = run_mosaic(
            scene.grid,
            infer,
            plan,
            sinks,
            kind=infer.kind,
            classes=classes,
            engine=engine,
            journal=journal,
            provenance=provenance,
            on_bad_tile=asked.on_bad_tile,
            tell=tell,
        )
        if not asked.keep_work:
            journal.remove()
    return summary


def _area(scene: Scene, asked: MosaicOptions) -> Area | None:
    """Where results are wanted.

    Raises:
        InputError: a volume, or the file holds no polygons.
    """
    if scene.grid.ndim != 2:
        raise InputError(f"{scene.path.name} is a volume; tiles are for rasters and pictures")
    return None if asked.aoi is None else read_area(Path(asked.aoi), scene.grid)


def planned(scene: Scene, view: int, asked: MosaicOptions, *, kind: str, area: Area | None = None) -> TilePlan:
    """The tiles of a raster.

    Args:
        scene: The raster.
        view: Side of a network window in pixels of the raster.
        asked: Tile, overlap, largest object.
        kind: "semantic" or "instance".
        area: Tiles that do not touch it are left out.

    Raises:
        ConfigError: tile and overlap do not fit, or the size of an object is given for a raster without a scale.
        InputError: the area lies beside every pixel.
    """
    height, width = scene.grid.shape
    overlap = SEAM if kind == "semantic" else view
    side = min(MOST_SIDE, max(LEAST_SIDE, VIEWS * view, 4 * overlap))
    side = max(side, 2 * overlap)
    if asked.largest_m is not None:
        step = ground_step(scene.grid)
        if step is None:
            raise ConfigError(
                f"{scene.path.name} has no CRS, so nothing is known about metres; give tile and overlap in pixels"
            )
        side, overlap = plan_for_objects(min(step), asked.largest_m, window=view)
    side = side if asked.tile is None else asked.tile
    if asked.overlap is None:
        overlap = min(overlap, side // 2)
    else:
        overlap = int(asked.overlap) if asked.overlap >= 1 else max(1, round(asked.overlap * side))
    plan = plan_tiles((height, width), side, overlap)
    if area is None:
        return plan
    keep = np.zeros(plan.grid, dtype=np.bool_)
    for tile in plan.tiles:
        keep[tile.index] = area.touches(tile.core)
    if not keep.any():
        raise InputError(f"{area.path}: no polygon holds a pixel of {scene.path.name}")
    return plan_tiles((height, width), side, overlap, keep=keep)


def _infer(
    source: Source,
    scene: Scene,
    area: Area | None,
    adapter: str | PathLike[str] | Grafted | None,
    backbone: str | PathLike[str] | Backbone | None,
    everything: EverythingConfig | None,
    scores: bool,
    batch: int | None,
    asked: MosaicOptions,
) -> tuple[TileInfer, Mapping[int, str], int]:
    """What is computed of a tile, its classes, and the side of a network window in pixels of the raster."""
    if adapter is None:
        if asked.align is not None or asked.align_source is not None or asked.views != 1:
            raise ConfigError(
                "align brings a raster to the training images of an adapter, and views are averaged by one; give "
                "adapter=, or leave them out"
            )
        whole = EverythingInfer(
            source,
            look_at(scene),
            backbone="graft-tiny" if backbone is None else backbone,
            config=everything,
            area=area,
        )
        return whole, {1: "object"}, 2 * network_size(whole.network, None)
    grafted = adapter if isinstance(adapter, Grafted) else load_adapter(adapter, backbone)
    said = recorded(grafted, adapter_meta(grafted))
    if "gsd" not in source.options:
        require_trained_gsd(scene, said.recipe.gsd)
    lattice(said, scene.grid.shape)  # an adapter for whole pictures is refused here
    said = aligned(said, scene, adapter_meta(grafted), asked.align, source=asked.align_source, resampled=False)
    said = with_views(said, scene, asked.views)
    options: dict[str, Any] = {"backbone": backbone, "scores": scores, "batch": batch, "area": area}
    infer = AdapterInfer(source, adapter, said.look(scene), **options)
    infer.take(grafted, said)
    return infer, classes_of(said), said.window or max(scene.grid.shape)


def _provenance(
    scene: Scene,
    infer: TileInfer,
    plan: TilePlan,
    facts: Mapping[str, Any],
    adapter: str | PathLike[str] | Grafted | None,
) -> dict[str, object]:
    """What is written into the files; nothing of it depends on who computed, or when."""
    method = facts["method"]
    look: Look | None = getattr(infer, "look", None)
    return Provenance(
        source=scene.path.name,
        grid=scene.grid,
        model=method["mode"],
        weights_sha256=method.get("backbone", ""),
        adapter="" if adapter is None or isinstance(adapter, Grafted) else str(adapter),
        adapter_sha256=method.get("adapter", ""),
        bands=() if look is None else [scene.channel_names[channel] for channel in look.channels],
        scaling={} if look is None else look.facts(),
        plan=plan,
        further={"area": "" if infer.area is None else infer.area.path.name, "method": dict(method)},
    ).to_dict()


def _many(given: Paths) -> list[str | PathLike[str]]:
    """One path or several, as a list."""
    return [given] if isinstance(given, str | PathLike) else list(given)
