"""What is computed of a tile: the frame that all kinds share, and two that need no model.

An infer function is configuration that can be sent to another process; it opens raster and model there, on first use.
Reading has a thread of its own that runs ahead over the ends of tiles. A tile that cannot be read is an outcome, not
an error: whoever runs it decides what to do about it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.area import Area
from samgraft.domains.scene import Array, Scene
from samgraft.errors import InputError
from samgraft.recipes.engine.pipeline import DEPTH, pipeline
from samgraft.recipes.mosaic.fingerprint import fingerprint
from samgraft.recipes.mosaic.found import TileClasses, TileObjects
from samgraft.recipes.mosaic.journal import Outcome
from samgraft.recipes.mosaic.plan import Part, Tile, shape_of

Found = TileObjects | TileClasses
Kind = Literal["instance", "semantic"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A raster by its paths, so that every process opens its own."""

    paths: tuple[str, ...]
    """One file, or several that are one mosaic."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For ``samgraft.open``."""
    content: Mapping[str, Any] | None = None
    """Fingerprint without times, compared where another process opens it; None compares nothing."""

    @classmethod
    def of(cls, *paths: str | PathLike[str], **options: Any) -> "Source":
        """The source of files that are there now; options are those of ``samgraft.open``.

        Raises:
            InputError: see ``samgraft.open``.
        """
        source = cls(paths=tuple(str(Path(one).expanduser().absolute()) for one in paths), options=options)
        return replace(source, content=fingerprint(files_of(source.open()), times=False))

    def open(self) -> Scene:
        """The scene.

        Raises:
            InputError: the file is missing, or is another one than where the run began.
        """
        scene = open_scene(self.paths[0] if len(self.paths) == 1 else self.paths, **self.options)
        if self.content is not None and fingerprint(files_of(scene), times=False) != self.content:
            raise InputError(
                f"{scene.path} is not the file that this run began with; all workers must see the same files "
                "under the same paths"
            )
        return scene


def files_of(scene: Scene) -> list[Path]:
    """Files that a scene is made of: its own, sidecars, and the sources of a virtual raster."""
    given = getattr(scene, "files", None)
    return [Path(one) for one in given] if given else [scene.path]


class TileInfer(ABC):
    """An infer function whose tiles are each read, and then computed, as a whole.

    Args:
        source: The raster.
        area: Results outside of it are empty; None for everywhere.
        depth: Tiles that may wait between reading and computing; 0 does one after the other.
    """

    kind: Kind = "instance"
    """What it finds: objects, or a class per pixel."""

    def __init__(self, source: Source, *, area: Area | None = None, depth: int = DEPTH) -> None:
        """Open nothing yet."""
        self.source, self.area, self.depth = source, area, depth
        self._scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        """The raster, opened once per process."""
        if self._scene is None:
            self._scene = self.source.open()
        return self._scene

    def facts(self) -> dict[str, Any]:
        """Everything that decides its results; see ``engines.Infer``."""
        return {
            "input": fingerprint(files_of(self.scene)),
            "reading": {name: value for name, value in sorted(self.source.options.items()) if value is not None},
            "area": None if self.area is None else fingerprint([self.area.path], times=False),
            "method": self.describe(),
        }

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it does, as JSON."""

    @abstractmethod
    def read(self, tile: Tile) -> Any:
        """What :meth:`find` needs, or None where there is nothing to see; called in one thread."""

    @abstractmethod
    def find(self, tile: Tile, content: Any) -> Found | None:
        """What the tile shows, or None for nothing."""

    def stream(self, tiles: Iterable[Tile]) -> Iterator[Outcome]:
        """Outcomes of tiles, in their order; see ``engines.Infer``."""

        def compute(item: tuple[Tile, Any]) -> Outcome:
            tile, content = item
            return content if isinstance(content, Outcome) else outcome_of(tile, self.find(tile, content))

        with closing(pipeline(self._reads(tiles), compute, depth=self.depth)) as outcomes:
            yield from outcomes

    def _reads(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any]]:
        for tile in tiles:
            content = readable(tile, self.read)
            yield tile, Outcome(number=tile.number, state="empty") if content is None else content

    def known(self, part: Part, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(h, w) bool: pixels of ``part`` with data, inside the area."""
        return valid if self.area is None else valid & self.area.mask(part)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was opened."""
        return self.__dict__ | {"_scene": None}


NO_DATA = -1
"""In class maps of tiles: a pixel without data, or outside the area."""


def marked(labels: Array, known: NDArray[np.bool_]) -> Array:
    """Labels (h, w) with ``NO_DATA`` where nothing is known; as they are if everything is."""
    if known.all():
        return labels
    wider = np.promote_types(labels.dtype, np.int8)
    found = labels.astype(np.int64 if wider.kind == "f" else wider)
    found[~known] = NO_DATA
    return found


def readable(tile: Tile, read: Callable[[Tile], Any]) -> Any:
    """What ``read`` gives, or the outcome of a tile that cannot be read."""
    try:
        return read(tile)
    except InputError as error:
        return Outcome(number=tile.number, state="bad", note=str(error))


def outcome_of(tile: Tile, found: Found | None) -> Outcome:
    """The outcome of a tile that was computed."""
    if found is None or (isinstance(found, TileObjects) and not len(found.scores)):
        return Outcome(number=tile.number, state="blank")
    return Outcome(number=tile.number, state="found", content=found.to_bytes())


class OracleInfer(TileInfer):
    """The true objects of a label raster, as far as a tile shows them: for tests and benchmarks.

    What is connected inside the window is one object, so one that leaves the window and comes back is two.

    Args:
        source: One channel of whole numbers, 0 background; every other value is one object.
        semantic: The values are classes.
        options: As for :class:`TileInfer`.
    """

    def __init__(self, source: Source, *, semantic: bool = False, **options: Any) -> None:
        """Open nothing yet."""
        super().__init__(source, **options)
        self.kind = "semantic" if semantic else "instance"

    def describe(self) -> dict[str, Any]:
        """See :meth:`TileInfer.describe`."""
        return {"mode": "oracle", "kind": self.kind}

    def read(self, tile: Tile) -> Array | None:
        """Labels (h, w), ``NO_DATA`` where there is no data; None if there is none at all."""
        values, valid = self.scene.read_valid(tile.window, [0])
        known = self.known(tile.window, valid)
        return marked(values[0], known) if known.any() else None

    def find(self, tile: Tile, content: Array) -> Found | None:
        """Connected pixels of one value."""
        from skimage import measure  # takes half a second to import

        if not content.any():
            return None
        if self.kind == "semantic":
            return TileClasses(labels=content, scores=None)
        own = np.maximum(content, 0)
        labels, count = measure.label(own, connectivity=1, background=0, return_num=True)
        ones = np.ones(count)
        return TileObjects(
            labels=labels.astype(np.int32), classes=ones.astype(np.int64), scores=ones.astype(np.float32)
        )


class NothingInfer(TileInfer):
    """Reads every pixel and finds nothing: what the engine itself costs.

    Args:
        source: Any raster.
        kind: Which results to find none of.
        options: As for :class:`TileInfer`.
    """

    def __init__(self, source: Source, *, kind: Kind = "semantic", **options: Any) -> None:
        """Open nothing yet."""
        super().__init__(source, **options)
        self.kind = kind

    def describe(self) -> dict[str, Any]:
        """See :meth:`TileInfer.describe`."""
        return {"mode": "nothing", "kind": self.kind}

    def read(self, tile: Tile) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity."""
        return self.scene.read_valid(tile.window)

    def find(self, tile: Tile, content: tuple[Array, NDArray[np.bool_]]) -> None:
        """Nothing."""


__all__ = [
    "Found",
    "Kind",
    "NothingInfer",
    "OracleInfer",
    "Source",
    "TileInfer",
    "files_of",
    "outcome_of",
    "readable",
    "shape_of",
]
