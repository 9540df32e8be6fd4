"""Labels of several tiles over one block as one map, and what the labels of a tile still wait for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.link import EDGE, parts_of
from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan, shape_of, shared, within

Labels = NDArray[np.int32]
AnyLabels = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Layer:
    """What one tile says about part of the raster."""

    core: Part
    """Where this tile has the first word."""
    place: Part
    """Where its labels lie."""
    labels: AnyLabels
    """(h, w) over ``place``."""
    codes: Labels
    """Look-up table from label to the value in the composed map; 0 leaves the pixel to other tiles."""


def compose(block: Part, layers: Sequence[Layer], rim: tuple[int, int]) -> Labels:
    """One map (h, w) over ``block`` out of what several tiles say.

    A pixel goes to the tile whose core holds it. Where that tile shows nothing, or was not looked at, it goes to the
    first of the others that shows something: what one tile has seen is not lost because another has missed it. Where
    tiles draw the border between two objects differently, crumbs can remain at the seam; they go to the object that
    the other tile saw there.

    Args:
        block: A part of the raster.
        layers: Of all tiles that show some of the block, ascending by tile number; the last shows all of it.
        rim: Rows at the top and columns at the left that others than the last tile show, too.
    """
    last = layers[-1]
    canvas = last.codes[last.labels[within(block, last.place)]]
    (rows, cols), (down, right) = block, rim
    above = slice(rows.start, rows.start + down), cols
    beside = slice(rows.start + down, rows.stop), slice(cols.start, cols.start + right)
    for part in (above, beside) if len(layers) > 1 else ():
        if part[0].start < part[0].stop and part[1].start < part[1].stop:
            canvas[within(part, block)] = _settle(part, layers)
    return canvas


def _settle(part: Part, layers: Sequence[Layer]) -> Labels:
    """The map over a part that several tiles show."""
    owned, others = np.zeros(shape_of(part), dtype=np.int32), np.zeros(shape_of(part), dtype=np.int32)
    for layer in reversed(layers):  # the first of those that do not own a pixel is painted last
        common = shared(layer.place, part)
        if common is None:
            continue
        codes = layer.codes[layer.labels[within(common, layer.place)]]
        target = others[within(common, part)]
        own = shared(layer.core, common)
        if own is not None:
            owned[within(own, part)] = codes[within(own, common)]
            codes[within(own, common)] = 0
        np.copyto(target, codes, where=codes > 0)
    settled = np.where(owned > 0, owned, others)
    contested = (owned > 0) & (others > 0) & (owned != others)
    if contested.any():
        crumbs = _crumbs(settled, contested)
        settled[crumbs] = others[crumbs]
    return settled


def _crumbs(labels: Labels, contested: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Contested pixels (h, w) whose whole connected part of an object is contested while the rest of it is elsewhere.

    A part that reaches the edge of the map may go on beyond it, and is none.
    """
    parts = parts_of(np.where(contested, labels, 0))
    attached = np.zeros(len(parts.labels), dtype=bool)
    sure = np.where(contested, 0, labels)
    for axis in (0, 1):
        for low, high in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            here, there = (low, high) if axis == 0 else ((slice(None), low), (slice(None), high))
            attached[parts.places[here][contested[here] & (labels[here] == sure[there])]] = True
        for edge in (0, -1):
            at = edge if axis == 0 else (slice(None), edge)
            attached[parts.places[at][contested[at]]] = True
    elsewhere = np.isin(parts.labels, sure)
    found: NDArray[np.bool_] = contested & (elsewhere & ~attached)[parts.places]
    return found


def present(labels: AnyLabels, count: int) -> NDArray[np.bool_]:
    """(count + 1,) whether each label occurs; 0 never counts."""
    found = np.zeros(count + 1, dtype=bool)
    found[labels] = True
    found[0] = False
    return found


def later_parts(plan: TilePlan, tile: Tile) -> list[tuple[Part, int]]:
    """Parts of a tile's window that later tiles see too: at the right, below, and the corner of both.

    Returns:
        Each part with the number of the last tile that sees it, ascending. Those below span the whole width.
    """
    rows, cols = plan.grid
    block, window = plan.block(tile), tile.window
    right = slice(block[1].stop, window[1].stop)
    below = slice(block[0].stop, window[0].stop)
    found = []
    if tile.index[1] < cols - 1:
        found.append(((window[0], right), tile.number + 1))
    if tile.index[0] < rows - 1:
        found.append(((below, window[1]), tile.number + cols))
        if tile.index[1] < cols - 1:
            found.append(((below, right), tile.number + cols + 1))
    return found


def waits_until(plan: TilePlan, tile: Tile, labels: Labels, count: int) -> NDArray[np.int64]:
    """(count + 1,) for each label the number of the last tile that can still add to it."""
    until = np.full(count + 1, tile.number, dtype=np.int64)
    for part, number in later_parts(plan, tile):
        until[present(labels[within(part, tile.window)], count)] = number
    return until


def glimpsed(plan: TilePlan, tile: Tile, labels: Labels, areas: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(n + 1,) whether each label lies outside the core and within ``EDGE`` pixels of a cut edge of the window.

    Args:
        plan: All tiles.
        tile: The one that is looked at.
        labels: (h, w) over its window.
        areas: (n + 1,) pixels of each label.
    """
    rows, cols = (
        slice(w.start + EDGE * (w.start > 0), max(w.start + EDGE * (w.start > 0), w.stop - EDGE * (w.stop < length)))
        for w, length in zip(tile.window, plan.shape, strict=True)
    )
    window_rows, window_cols = tile.window
    rims = [
        (slice(window_rows.start, rows.start), window_cols),
        (slice(rows.stop, window_rows.stop), window_cols),
        (rows, slice(window_cols.start, cols.start)),
        (rows, slice(cols.stop, window_cols.stop)),
    ]
    outside = np.zeros(len(areas), dtype=np.intp)
    for rim in rims:
        own, everything = shared(rim, tile.core), shared(rim, tile.window)
        for part, sign in ((everything, 1), (own, -1)):
            if part is not None:
                outside += sign * np.bincount(labels[within(part, tile.window)].ravel(), minlength=len(areas))
    found: NDArray[np.bool_] = (areas > 0) & (outside == areas)
    found[0] = False
    return found
