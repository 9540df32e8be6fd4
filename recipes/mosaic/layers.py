"""Labels of several tiles over one block as one map, and what the labels of a tile still wait for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan, shape_of, shared, within

Labels = NDArray[np.int32]

EDGE = 3
"""A fragment that its tile shows only within this many pixels of a cut edge, and that no other tile confirms, is not
an object: a mask that is one or two pixels larger than that of the neighbour reaches as far."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What one tile says about part of the raster."""

    core: Part
    """Where this tile has the first word."""
    place: Part
    """Where its labels lie."""
    labels: Labels
    """(h, w) over ``place``."""
    codes: Labels
    """Look-up table from label to the value in the composed map; 0 leaves the pixel to other tiles."""


def compose(block: Part, layers: Sequence[Layer]) -> Labels:
    """One map (h, w) over ``block`` out of what several tiles say.

    A pixel goes to the tile whose core holds it. Where that tile shows nothing, or was not looked at, it goes to the
    first of the others that shows something: what one tile has seen is not lost because another has missed it.

    Args:
        block: A part of the raster.
        layers: Of all tiles that show some of the block, ascending by tile number.
    """
    canvas = np.zeros(shape_of(block), dtype=np.int32)
    for layer in reversed(layers):
        _paint(canvas, block, layer, shared(layer.place, block))
    for layer in layers if len(layers) > 1 else ():
        own = shared(layer.core, block)
        _paint(canvas, block, layer, own and shared(own, layer.place))
    return canvas


def _paint(canvas: Labels, block: Part, layer: Layer, part: Part | None) -> None:
    if part is not None:
        codes = layer.codes[layer.labels[within(part, layer.place)]]
        np.copyto(canvas[within(part, block)], codes, where=codes > 0)


def present(labels: Labels, count: int) -> NDArray[np.bool_]:
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


def glimpsed(plan: TilePlan, tile: Tile, labels: Labels, count: int) -> NDArray[np.bool_]:
    """(count + 1,) whether each label lies outside the core and within ``EDGE`` pixels of a cut edge of the window."""
    inner = tuple(
        slice(w.start + EDGE * (w.start > 0), w.stop - EDGE * (w.stop < length))
        for w, length in zip(tile.window, plan.shape, strict=True)
    )
    seen = present(labels, count)
    for part in ((inner[0], inner[1]), tile.core):
        if part[0].start < part[0].stop and part[1].start < part[1].stop:
            seen &= ~present(labels[within(part, tile.window)], count)
    return seen
