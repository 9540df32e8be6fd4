"""Training tiles of weakly or partly labelled cases.

The label of a tile's pixel is its place in the whole set: tile number times tile area plus place in the tile. Whatever
augmentation does to it, everything that is known of the pixel can then be looked up: its pseudo-label, whether someone
marked it, which rows of which boxes it lies on. Pseudo-labels can change between steps, and the tiles stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.fit import Fit, windows
from samgraft.recipes.data.module import TileSet
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak_config import Supervision
from samgraft.recipes.weak_labels.labels import WeakObject
from samgraft.recipes.weak_labels.partial import annotated_flags
from samgraft.recipes.weak_learning.losses import Bags

Span = tuple[int, int]
"""First and last pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TileObject:
    """A weak object as a tile shows it; rows and columns are those of the tile."""

    number: int
    """Of the object in its case."""
    label: int
    """Class, from 1."""
    rows: Span
    """First and last row of its box."""
    cols: Span
    """First and last column of its box."""
    whole_rows: bool
    """Its box is not cut above or below, so that each of its columns is shown from end to end."""
    whole_cols: bool
    """Its box is not cut left or right, so that each of its rows is."""
    points: tuple[tuple[int, int, int], ...] = ()
    """Row, column, 1 on the object or 0 off it."""
    region: NDArray[np.bool_] | None = None
    """Coarse areas: what of the box lies in the outline."""

    def in_tile(self) -> WeakObject:
        """The object as a weak object of the tile."""
        if self.region is not None:
            region = MaskPrompt(top=self.rows[0], left=self.cols[0], inside=self.region)
            return WeakObject(label=self.label, region=region)
        if self.points:
            return WeakObject(label=self.label, points=tuple((col, row, on) for row, col, on in self.points))
        return WeakObject(label=self.label, box=(self.cols[0], self.rows[0], self.cols[1], self.rows[1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of some pixels."""

    labels: Tensor
    """(B, S, S) int64 pseudo-labels, or ``IGNORE``."""
    marks: Tensor
    """(B, S, S) int64 what was drawn or pointed at, or ``IGNORE``."""
    unsure: Tensor
    """(B, S, S) bool: the pseudo-label is a guess."""


class WeakTiles(TileSet):
    """Tiles whose labels are places, with what is known of the places.

    Args:
        size: Side of the network input.
        window: Native side of windows, or None for whole slices.
        overlap: Overlap of windows as a share of their side.
        classes: Foreground classes.
        instance: Pseudo-labels are numbers of objects.
        radius: Of the disc around a point that certainly is of its class.
    """

    def __init__(
        self, *, size: int, window: int | None, overlap: float, classes: int, instance: bool, radius: int = 0
    ) -> None:
        """Hold nothing yet."""
        self.images, self.labels, self.foreground = [], [], []
        self.size, self.window, self.overlap = size, window, overlap
        self.classes, self.instance, self.radius = classes, instance, radius
        self.supervision: Supervision = "masks"
        self.marks: list[Tensor] = []
        self.void: list[Tensor] = []
        self.unsure: list[Tensor] = []
        self.annotated: list[Tensor] = []
        self.objects: list[tuple[TileObject, ...]] = []
        self.names: list[str] = []
        self._nothing = torch.full((size, size), IGNORE, dtype=torch.int32)

    def add(self, case: CaseArrays) -> None:
        """Cut a case, whose ``labels`` are pseudo-labels, or masks with classes that were not annotated."""
        before = len(self.images)
        self._add(case, self.size, self.window, self.overlap)
        flags = annotated_flags(case.annotated, self.classes)
        self.annotated += [flags] * (len(self.images) - before)

    def _add(self, case: CaseArrays, size: int, window: int | None, overlap: float) -> None:
        shape = (case.num_slices, *case.plane)
        seeds = None
        if case.weak is not None:
            self.supervision = case.weak.kind
            seeds = case.weak.seeds(shape, instance=self.instance, radius=self.radius)
        for rows, cols in windows(case.plane, window, overlap):
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            for index in range(case.num_slices):
                label = torch.from_numpy(case.labels[index, rows, cols].astype(np.int32))
                objects = self._objects(case, index, fit, (rows, cols))
                if not (label >= 0).any() and not objects:
                    continue
                picture = torch.from_numpy(np.ascontiguousarray(case.picture(index)[:, rows, cols]))
                self.images.append((fit.image(picture.float() / 255) * 255).round().clamp(0, 255).to(torch.uint8))
                self.labels.append(fit.labels(label))
                self.unsure.append(self._unsure(case, index, fit, (rows, cols)))
                self.void.append(self._void(case, index, fit, (rows, cols)))
                self.marks.append(self._nothing if seeds is None else _marks(seeds[index, rows, cols], fit))
                self.objects.append(objects)
                self.foreground.append(bool((label > 0).any()) or bool(objects))
                self.names.append(case.id if case.num_slices == 1 else f"{case.id}, slice {index}")

    def _void(self, case: CaseArrays, index: int, fit: Fit, place: tuple[slice, slice]) -> Tensor:
        """(S, S) bool: beyond the picture, or without data."""
        void = torch.zeros(fit.source, dtype=torch.int32)
        if case.weak is None:
            void = torch.from_numpy((case.labels[index][place] == IGNORE).astype(np.int32))
        elif case.weak.nodata is not None:
            void = torch.from_numpy(case.weak.nodata[index][place].astype(np.int32))
        return fit.labels(void, outside=1) > 0

    def _unsure(self, case: CaseArrays, index: int, fit: Fit, place: tuple[slice, slice]) -> Tensor:
        """(S, S) bool: pseudo-labels that are a guess."""
        if case.weak is None or case.weak.unsure is None:
            return self._nothing > 0
        guess = torch.from_numpy(case.weak.unsure[index][place].astype(np.int32))
        return fit.labels(guess, outside=0) > 0

    def _objects(self, case: CaseArrays, index: int, fit: Fit, place: tuple[slice, slice]) -> tuple[TileObject, ...]:
        if case.weak is None:
            return ()
        found = (tile_object(n, one, fit, place) for n, one in case.weak.on_slice(index))
        return tuple(one for one in found if one is not None)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, S, S) uint8 and places (S, S) int64, ``IGNORE`` beyond the picture."""
        area = self.size * self.size
        places = torch.arange(index * area, (index + 1) * area).view(self.size, self.size)
        return self.images[index], places.masked_fill(self.void[index], IGNORE)

    def known(self, places: Tensor) -> "Known":
        """What is known of places (B, S, S), which are ``IGNORE`` where there is none."""
        tiles = tile_numbers(places, self.size)
        labels, marks, unsure = (
            torch.stack([
                torch.full_like(own, IGNORE) if tile < 0 else self._look(tables[tile], own, tile)
                for tile, own in zip(tiles, places, strict=True)
            ])
            for tables in (self.labels, self.marks, self.unsure)
        )  # fmt: skip
        return Known(labels=labels, marks=marks, unsure=unsure > 0)

    def _look(self, table: Tensor, places: Tensor, tile: int) -> Tensor:
        within = (places - tile * self.size**2).clamp_min(0)
        return table.reshape(-1)[within.reshape(-1)].long().view_as(places).masked_fill(places < 0, IGNORE)

    def bags(self, tiles: Sequence[int]) -> tuple[Bags, Bags]:
        """Rows and columns of the boxes of some tiles that are shown from end to end."""
        rows: list[tuple[int, int, int, int, int]] = []
        cols: list[tuple[int, int, int, int, int]] = []
        for image, tile in enumerate(tiles):
            for one in self.objects[tile] if tile >= 0 else ():
                own = (image, 0 if self.instance else one.label - 1)
                if one.whole_cols:
                    rows += [(*own, line, *one.cols) for line in range(one.rows[0], one.rows[1] + 1)]
                if one.whole_rows:
                    cols += [(*own, line, *one.rows) for line in range(one.cols[0], one.cols[1] + 1)]
        return _bags(rows), _bags(cols)


def _bags(entries: list[tuple[int, int, int, int, int]]) -> Bags:
    columns = torch.tensor(entries, dtype=torch.int64).reshape(-1, 5).unbind(dim=1)
    return Bags(**dict(zip(("image", "label", "line", "first", "last"), columns, strict=True)))


def tile_numbers(places: Tensor, size: int) -> list[int]:
    """Tile of each image of places (B, S, S); -1 where nothing of it is left."""
    return [int(top) // size**2 if top >= 0 else -1 for top in places.flatten(1).amax(dim=1).tolist()]


def tile_object(number: int, one: WeakObject, fit: Fit, place: tuple[slice, slice]) -> TileObject | None:
    """A weak object on the pixels of a tile, or None if the tile does not show it.

    Args:
        number: Of the object in its case.
        one: In pixels of the slice.
        fit: How the window becomes the tile.
        place: Rows and columns of the window on the slice.
    """
    x0, y0, x1, y1 = one.around
    spans, whole = [], []
    for low, high, window, corner in ((y0, y1, place[0], fit.corner[0]), (x0, x1, place[1], fit.corner[1])):
        if high + 1 <= window.start or low >= window.stop:
            return None
        whole.append(low >= window.start and high + 1 <= window.stop)
        scale = fit.size / fit.side
        ends = [(min(max(edge, window.start), window.stop) - window.start + corner) * scale for edge in (low, high + 1)]
        first = min(int(np.ceil(ends[0] - 0.5)), fit.size - 1)
        spans.append((first, max(first, int(np.ceil(ends[1] - 0.5)) - 1)))
    rows, cols = spans
    points, region = _tile_points(one, fit, place), None
    if one.points and not any(on for _, _, on in points):
        return None
    if one.region is not None:
        region = _tile_region(one, fit, place)[rows[0] : rows[1] + 1, cols[0] : cols[1] + 1]
        if not region.any():
            return None
    return TileObject(
        number=number,
        label=one.label,
        rows=rows,
        cols=cols,
        whole_rows=whole[0],
        whole_cols=whole[1],
        points=points,
        region=region,
    )


def _tile_points(one: WeakObject, fit: Fit, place: tuple[slice, slice]) -> tuple[tuple[int, int, int], ...]:
    scale, found = fit.size / fit.side, []
    for x, y, on in one.points:
        inside = place[0].start - 0.5 <= y < place[0].stop - 0.5 and place[1].start - 0.5 <= x < place[1].stop - 0.5
        if inside:
            row = int((y + 0.5 - place[0].start + fit.corner[0]) * scale)
            col = int((x + 0.5 - place[1].start + fit.corner[1]) * scale)
            found.append((min(row, fit.size - 1), min(col, fit.size - 1), on))
    return tuple(found)


def _tile_region(one: WeakObject, fit: Fit, place: tuple[slice, slice]) -> NDArray[np.bool_]:
    """(S, S): the outline, filled."""
    assert one.region is not None  # noqa: S101 - the caller asked
    (top, left), inside = (one.region.top, one.region.left), one.region.inside
    window = np.zeros(fit.source, dtype=np.uint8)
    rows = slice(max(top, place[0].start), min(top + inside.shape[0], place[0].stop))
    cols = slice(max(left, place[1].start), min(left + inside.shape[1], place[1].stop))
    here = (_moved(rows, -place[0].start), _moved(cols, -place[1].start))
    window[here] = inside[_moved(rows, -top), _moved(cols, -left)]
    found: NDArray[np.bool_] = (fit.labels(torch.from_numpy(window).int()) > 0).numpy()
    return found


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _marks(seeds: NDArray[np.int32], fit: Fit) -> Tensor:
    """(S, S): marks at the size of the tile; a thin line that shrinks keeps all of its length."""
    marks = fit.labels(torch.from_numpy(np.ascontiguousarray(seeds))).numpy()
    found = np.nonzero(seeds != IGNORE)
    scale = fit.size / fit.side
    rows, cols = (
        np.minimum(((at + 0.5 + corner) * scale).astype(np.int64), fit.size - 1)
        for at, corner in zip(found, fit.corner, strict=True)
    )
    marks[rows, cols] = seeds[found]
    return torch.from_numpy(marks)
