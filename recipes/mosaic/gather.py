"""From the answers of network windows to the result of one tile: classes, objects of maps, or objects of windows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.scene import Array, label_dtype
from samgraft.recipes.engine.automatic import Blend, Strip, least_area
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.joining import Joining
from samgraft.recipes.look import Look
from samgraft.recipes.mosaic.found import TileClasses, TileObjects
from samgraft.recipes.mosaic.infer import Found, marked
from samgraft.recipes.mosaic.plan import Part, Tile, shape_of, within
from samgraft.recipes.representations import ObjectMaps, WindowObjects


@dataclass(eq=False)
class View:
    """The pixels of a tile and of all network windows that touch it."""

    tile: Tile
    need: Part
    """What has to be known for the answer: the tile's window, and for objects what lies around it."""
    part: Part
    """What is read: the rectangle of those network windows."""
    places: list[Part]
    """The network windows, counted from the corner of ``part``."""
    raw: Array
    """(channels, h, w) over ``part``."""
    valid: NDArray[np.bool_]
    """(h, w): where there is data."""
    known: NDArray[np.bool_]
    """(h, w): where there is data and the area is."""
    look: Look

    def read(self, rows: slice, cols: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(3, h, w) in [0, 1] of one window, and where it can matter; see ``automatic.chunks``."""
        seen = self.look.apply(self.raw[:, rows, cols]) * self.valid[rows, cols][None]
        return np.ascontiguousarray(seen, dtype=np.float32), self.known[rows, cols]


class Gather(Protocol):
    """Makes the result of a tile of the answers of its windows, which come in order."""

    def add(self, place: Part, valid: NDArray[np.bool_], answer: Any) -> None:
        """Take one window; ``answer`` is None where nothing is valid."""
        ...

    def finish(self) -> Found | None:
        """The result; None for nothing."""
        ...


def gather_of(view: View, said: Recorded, shape: tuple[int, int], *, scores: bool) -> Gather:
    """What makes the result of one tile.

    Args:
        view: The tile and its pixels.
        said: The adapter's header.
        shape: (H, W) of the raster.
        scores: Keep the probability of the class of every pixel.
    """
    representation = said.representation
    if isinstance(representation, WindowObjects):
        return _Objects(view, said, shape)
    if isinstance(representation, ObjectMaps):
        return _ObjectMaps(view, said, representation, shape)
    return _Classes(view, said, scores=scores)


class _Strips:
    """Blended maps of a view, strip by strip, cut to what the tile has to answer for."""

    def __init__(self, view: View, said: Recorded) -> None:
        self.view, self.size = view, said.size
        self.inner = within(view.need, view.part)
        self._blend = Blend(said.maps, shape_of(view.part))

    def add(self, place: Part, valid: NDArray[np.bool_], answer: Tensor | None) -> None:
        if place[0].start > self._blend.top:  # rows above the next windows are finished
            self._cut(self._blend.finish(place[0].start))
        self._blend.add(place, valid, answer, self.size)

    def rest(self) -> None:
        """Everything that is left."""
        self._cut(self._blend.finish(shape_of(self.view.part)[0]))

    def take(self, rows: slice, maps: Tensor, known: NDArray[np.bool_]) -> None:
        """Take finished rows of the tile's own part: (K, rows, w), and (rows, w) where something is known."""
        raise NotImplementedError

    def _cut(self, strip: Strip) -> None:
        inner_rows, cols = self.inner
        rows = slice(max(strip.rows.start, inner_rows.start), min(strip.rows.stop, inner_rows.stop))
        if rows.start >= rows.stop:
            return
        own = slice(rows.start - strip.rows.start, rows.stop - strip.rows.start)
        there = slice(rows.start - inner_rows.start, rows.stop - inner_rows.start)
        self.take(there, strip.maps[:, own, cols], self.view.known[rows, cols])


class _Classes(_Strips):
    """The most probable class of every pixel."""

    def __init__(self, view: View, said: Recorded, *, scores: bool) -> None:
        super().__init__(view, said)
        shape = shape_of(view.need)
        self.labels = np.zeros(shape, dtype=label_dtype(max(said.classes)))
        self.known = np.zeros(shape, dtype=np.bool_)
        self.scores = np.zeros(shape, dtype=np.uint8) if scores else None

    def take(self, rows: slice, maps: Tensor, known: NDArray[np.bool_]) -> None:
        best = maps.max(dim=0)
        self.labels[rows], self.known[rows] = best.indices.numpy(), known
        if self.scores is not None:
            self.scores[rows] = (best.values * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            self.scores[rows][~known] = 0

    def finish(self) -> TileClasses | None:
        self.rest()
        labels = marked(self.labels, self.known)
        return TileClasses(labels=labels, scores=self.scores) if labels.any() or self.scores is not None else None


class _ObjectMaps(_Strips):
    """Objects that are read from complete maps of the tile's window."""

    def __init__(self, view: View, said: Recorded, representation: ObjectMaps, shape: tuple[int, int]) -> None:
        super().__init__(view, said)
        self._representation, self._least = representation, least_area(said, shape)
        self._nothing = torch.tensor(representation.nothing)[:, None, None]
        self._maps = np.zeros((representation.channels, *shape_of(view.need)), dtype=np.float32)

    def take(self, rows: slice, maps: Tensor, known: NDArray[np.bool_]) -> None:
        self._maps[:, rows] = maps.where(torch.from_numpy(known), self._nothing).numpy()

    def finish(self) -> TileObjects | None:
        self.rest()
        labels, scores = self._representation.objects(self._maps, min_area=self._least)
        own = labels[within(self.view.tile.window, self.view.need)]
        return numbered(own, np.ones(len(scores), dtype=np.int32), scores)


class _Objects:
    """Objects that every window finds, joined within the tile."""

    def __init__(self, view: View, said: Recorded, shape: tuple[int, int]) -> None:
        self._view, self._least = view, least_area(said, shape)
        (top, left), (height, width) = (axis.start for axis in view.part), shape
        frame = (slice(-top, height - top), slice(-left, width - left))
        self._joining = Joining(shape_of(view.part), said.size, frame=frame)

    def add(self, place: Part, valid: NDArray[np.bool_], answer: Any) -> None:
        del valid
        if answer is not None:
            self._joining.add(place, answer)

    def finish(self) -> TileObjects | None:
        labels, scores = self._joining.finish(min_area=self._least, valid=self._view.known)
        own = labels[within(self._view.tile.window, self._view.part)]
        return numbered(own, np.ones(len(scores), dtype=np.int32), scores)


def numbered(
    labels: NDArray[np.integer], classes: NDArray[np.int32], scores: NDArray[np.float32]
) -> TileObjects | None:
    """The objects of a tile, numbered 1 to n without gaps; None if there is none."""
    present = np.unique(labels)
    present = present[present > 0]
    if not len(present):
        return None
    table = np.zeros(len(scores) + 1, dtype=np.int32)
    table[present] = np.arange(1, len(present) + 1)
    return TileObjects(
        labels=table[labels], classes=classes[present - 1], scores=np.clip(scores[present - 1], 0.0, 1.0)
    )


def classes_of(said: Recorded) -> Mapping[int, str]:
    """Class label -> name of what an adapter gives; all objects are of one class."""
    return dict(said.classes) if said.kind == "semantic" else {1: said.classes.get(1, "object")}
