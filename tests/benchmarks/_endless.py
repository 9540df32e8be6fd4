"""A raster of any size whose objects follow from a formula, so that nothing but the tile at hand has to exist.

Cells of 40 x 32 pixels hold one object each: a quarter of them fill the cell, and so touch their neighbours; the others
are discs of 5 to 14 pixels radius. Every hundredth row of cells holds a road that crosses the whole raster instead.
"""

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.plan import Tile

TALL, WIDE = 40, 32
ROAD_EVERY, ROAD_AT = 100, 50


def count(side: int) -> int:
    """Objects of a square raster: whole cells only."""
    rows, cols = side // TALL, side // WIDE
    roads = len(range(ROAD_AT, rows, ROAD_EVERY))
    return (rows - roads) * cols + roads


def _noise(rows: NDArray[np.int64], cols: NDArray[np.int64], salt: int) -> NDArray[np.uint32]:
    """A number for every cell (r, c)."""
    mixed = rows[:, None].astype(np.uint32) * np.uint32(2654435761) ^ cols[None, :].astype(np.uint32) * np.uint32(40503)
    mixed ^= np.uint32(salt * 97)
    mixed *= np.uint32(2246822519)
    return mixed ^ (mixed >> np.uint32(15))


def see(tile: Tile, side: int) -> TileObjects:
    """The objects of a tile of a raster of ``side`` x ``side``."""
    y, x = (np.arange(part.start, part.stop, dtype=np.int64) for part in tile.window)
    rows, cols = np.arange(y[0] // TALL, y[-1] // TALL + 1), np.arange(x[0] // WIDE, x[-1] // WIDE + 1)
    radius = 5 + _noise(rows, cols, 1) % 10
    limit = np.where(_noise(rows, cols, 2) % 4 == 0, 10_000, radius * radius).astype(np.int16)
    road = (rows % ROAD_EVERY == ROAD_AT) & (rows < side // TALL)
    limit[road] = -1
    limit[rows >= side // TALL] = -1
    limit[:, cols >= side // WIDE] = -1
    shift = (_noise(rows, cols, 3) % 3).astype(np.int16) - 1
    row, col = y // TALL - rows[0], x // WIDE - cols[0]
    labels = np.zeros((len(y), len(x)), dtype=np.int32)
    across = (x % WIDE - WIDE // 2).astype(np.int16)
    for number in range(len(rows)):  # a band of one row of cells at a time
        own = row == number
        down = (y[own] % TALL - TALL // 2).astype(np.int16)
        distance = (down * down)[:, None] + (across - shift[number][col]) ** 2
        inside = distance <= limit[number][col]
        labels[own] = np.where(inside, number * len(cols) + col + 1, 0)
        if road[number]:
            labels[own] = ((abs(down) <= 5) * (number * len(cols) + 1))[:, None]
    seen = np.zeros(len(rows) * len(cols) + 1, dtype=bool)
    seen[labels] = True
    seen[0] = False
    table = np.cumsum(seen, dtype=np.int32) * seen
    found = int(seen.sum())
    return TileObjects(table[labels], np.ones(found, np.int32), np.full(found, 0.5, np.float32))
