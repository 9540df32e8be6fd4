"""An adapter on a tile: network windows lie on one lattice of the raster, whatever the tiles are.

Every pixel is blended from all network windows that touch it, also those that reach beyond the tile, with the weights
and in the order of ``samgraft.recipes.engine.automatic``. So a class map does not depend on the tiles, and is the one
that the whole raster at once would give; the price is that network windows on the seam of two tiles are computed twice.
What separates objects (``ObjectMaps``, ``WindowObjects``) works on the window of a tile, whose overlap with its
neighbours shows objects on the seam whole, and ``halo`` pixels beyond: where the border between two objects runs
depends on what lies around it, so of two tiles that end in different places each would draw it in its own way.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import bundle_path, tensors_hash
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError
from samgraft.recipes.data.fit import windows as tiling
from samgraft.recipes.engine.automatic import Chunk, chunks, on_squares
from samgraft.recipes.engine.pipeline import encode_batch, pipeline
from samgraft.recipes.engine.recorded import Recorded, recorded
from samgraft.recipes.engine.run import adapter_meta, load_adapter
from samgraft.recipes.engine.steps import Steps, steps
from samgraft.recipes.look import Look
from samgraft.recipes.mosaic.gather import Gather, View, gather_of
from samgraft.recipes.mosaic.infer import Found, Kind, Source, TileInfer, outcome_of, readable
from samgraft.recipes.mosaic.journal import Outcome
from samgraft.recipes.mosaic.plan import Tile, around, within
from samgraft.recipes.representations import WindowObjects


@dataclass(eq=False)
class _Job:
    """A few windows of a tile on their way, or a tile that needs none."""

    view: View | None
    chunk: Chunk | None = None
    last: bool = True
    outcome: Outcome | None = None


@dataclass(eq=False)
class Loaded:
    """What a process needs to answer: the network and how to read it."""

    grafted: Grafted
    recorded: Recorded
    network: Steps
    batch: int


class AdapterInfer(TileInfer):
    """Classes or objects by an adapter.

    Args:
        source: The raster.
        adapter: A file, which every process loads once, or a network in memory, which cannot travel.
        look: Channels and scale, the same for the whole raster.
        backbone: Name, folder or file; None takes the one that the adapter names.
        scores: Keep the probability of the class of every pixel (classes only).
        batch: Network inputs per call; None chooses by their size.
        options: As for :class:`TileInfer`.

    Attributes:
        views: How many views of a window are averaged; it travels to other processes, which read the header anew.
        halo: Pixels beyond the window of a tile that are looked at when objects are told apart; 0 until it is set.
    """

    def __init__(
        self,
        source: Source,
        adapter: str | PathLike[str] | Grafted,
        look: Look,
        *,
        backbone: str | PathLike[str] | Backbone | None = None,
        scores: bool = False,
        batch: int | None = None,
        **options: Any,
    ) -> None:
        """Load nothing yet."""
        super().__init__(source, **options)
        self.adapter = adapter if isinstance(adapter, Grafted) else str(bundle_path(adapter).resolve())
        self.backbone = backbone if isinstance(backbone, Backbone | None) else str(backbone)
        self.look, self.scores, self.batch, self.views, self.halo = look, scores, batch, 1, 0
        self._loaded: Loaded | None = None
        self._lattice: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None

    @property
    def loaded(self) -> Loaded:
        """The network, loaded once per process.

        Raises:
            CheckpointError: the adapter is damaged or belongs to another backbone.
            ConfigError: it looks at whole pictures.
        """
        if self._loaded is not None:
            return self._loaded
        grafted = self.adapter if isinstance(self.adapter, Grafted) else load_adapter(self.adapter, self.backbone)
        return self.take(grafted, replace(recorded(grafted, adapter_meta(grafted)), views=self.views))

    def take(self, grafted: Grafted, said: Recorded) -> Loaded:
        """Use what this process has loaded already."""
        representation, self.views = said.representation, said.views
        maps = representation if isinstance(representation, WindowObjects) else said.maps
        batch = max(1, encode_batch(grafted.backbone, said.size, self.batch) // said.views)
        self._loaded = Loaded(grafted, said, steps(grafted, maps, views=said.views), batch)
        return self._loaded

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """What the adapter's header says."""
        return self.loaded.recorded.kind

    def describe(self) -> dict[str, Any]:
        """See :meth:`TileInfer.describe`."""
        here = self.loaded
        return {
            "mode": "automatic",
            "adapter": tensors_hash(here.grafted.graft_state()),
            "backbone": here.grafted.base_hash,
            "kind": here.recorded.kind,
            "classes": {str(number): name for number, name in here.recorded.classes.items()},
            "recipe": asdict(here.recorded.recipe),
            "look": self.look.facts(),
            **{name: words for name, words in here.recorded.about.items() if name in ("align", "views")},
            "scores": self.scores,
            "halo": self.halo,
            "batch": here.batch,
            "device": next(here.grafted.backbone.parameters()).device.type,
        }

    def read(self, tile: Tile) -> View | None:
        """Pixels of the tile and of its network windows; None where nothing can be found."""
        need = around(tile.window, self.halo, self.scene.grid.shape)
        parts = [self._touching(axis, need[axis]) for axis in (0, 1)]
        rows, cols = (slice(found[0].start, found[-1].stop) for found in parts)
        part = (rows, cols)
        raw, valid = self.scene.read_valid(part, self.look.channels)
        known = self.known(part, valid)
        if not known[within(tile.window, part)].any():
            return None
        places = [within((r, c), part) for r in parts[0] for c in parts[1]]
        return View(tile, need, part, places, raw, valid, known, self.look)

    def find(self, tile: Tile, content: View) -> Found | None:
        """One tile on its own; :meth:`stream` is the way to do many."""
        gather = self._gather(content)
        for chunk in chunks(content.read, content.places, self.loaded.recorded.size, self.loaded.batch):
            for stage in self._stages():
                stage(_Job(content, chunk))
            for answer in chunk.answers():
                gather.add(*answer)
        return gather.finish()

    def stream(self, tiles: Iterable[Tile]) -> Iterator[Outcome]:
        """Outcomes of tiles, in their order; windows of the next tile are read while this one is computed."""
        self.loaded.grafted.eval()
        gather: Gather | None = None
        with closing(pipeline(self._jobs(tiles), *self._stages(), depth=self.depth)) as jobs:
            for job in jobs:
                if job.view is None or job.chunk is None:
                    yield job.outcome
                    continue
                gather = gather or self._gather(job.view)
                for answer in job.chunk.answers():
                    gather.add(*answer)
                if job.last:
                    yield outcome_of(job.view.tile, gather.finish())
                    gather = None

    def _jobs(self, tiles: Iterable[Tile]) -> Iterator[_Job]:
        """What the reading thread makes: windows of one tile after the other, no batch over two tiles."""
        size, batch = self.loaded.recorded.size, self.loaded.batch
        for tile in tiles:
            view = readable(tile, self.read)
            if not isinstance(view, View):
                yield _Job(None, outcome=view or Outcome(number=tile.number, state="empty"))
                continue
            waiting: Chunk | None = None
            for chunk in chunks(view.read, view.places, size, batch):
                if waiting is not None:
                    yield _Job(view, waiting, last=False)
                waiting = chunk
            yield _Job(view, waiting)

    def _stages(self) -> list[Callable[[_Job], _Job]]:
        """The network, encoder and decoder apart."""

        def on_job(step: Callable[[Any], Any]) -> Callable[[_Job], _Job]:
            own = on_squares(step)

            def stage(job: _Job) -> _Job:
                if job.chunk is not None:
                    own(job.chunk)
                return job

            return stage

        return [on_job(self.loaded.network.encode), on_job(self.loaded.network.decode)]

    def _gather(self, view: View) -> Gather:
        rows, cols = self.scene.grid.shape
        return gather_of(view, self.loaded.recorded, (rows, cols), scores=self.scores)

    def _touching(self, axis: int, need: slice) -> list[slice]:
        """Network windows along an axis that show some of ``need``."""
        if self._lattice is None:
            self._lattice = lattice(self.loaded.recorded, self.scene.grid.shape)
        starts = self._lattice[axis]
        side = min(int(self.loaded.recorded.window or 0), self.scene.grid.shape[axis])
        first = np.searchsorted(starts, need.start - side, side="right")
        last = np.searchsorted(starts, need.stop, side="left")
        return [slice(int(start), int(start) + side) for start in starts[first:last]]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded.

        Raises:
            TypeError: the adapter or the backbone is in memory and not in a file.
        """
        if isinstance(self.adapter, Grafted) or isinstance(self.backbone, Backbone):
            raise TypeError("the adapter or its backbone was given in memory")
        return super().__getstate__() | {"_loaded": None}


def lattice(said: Recorded, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Starts of all network windows of a raster, rows and columns: those of the whole raster at once.

    Raises:
        ConfigError: the adapter looks at whole pictures.
    """
    if said.window is None:
        raise ConfigError(
            "the adapter was trained on whole pictures, so it has no windows to walk over a large raster with; train "
            "it with --data.window, or cut the raster"
        )
    rows, cols = shape
    down = [one[0].start for one in tiling((rows, 1), said.window, said.overlap)]
    right = [one[1].start for one in tiling((1, cols), said.window, said.overlap)]
    return np.array(down, dtype=np.intp), np.array(right, dtype=np.intp)
