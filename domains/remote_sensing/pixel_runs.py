"""Sets of pixels as horizontal runs: of masks, label maps and pieces of objects anywhere on a raster.

A run is an object's number, a row, a first column and the column behind the last one. Memory follows the height of an
object and not its bounding box, and pieces of one object are one again as soon as their runs are joined.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from samgraft.domains.scene import Array
from samgraft.errors import ShapeError

Ints = NDArray[np.int64]
_CHUNK = 4_000_000
"""Mask pixels that are looked at together."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Horizontal runs of pixels: (row, start) to (row, stop - 1) belong to object ``owner``; four arrays (n,)."""

    owner: Ints
    row: Ints
    start: Ints
    stop: Ints

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.owner)

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> "Runs":
        """Some of the runs."""
        return Runs(self.owner[index], self.row[index], self.start[index], self.stop[index])


def runs_of_masks(masks: Iterable[tuple[int, int, int, NDArray[np.bool_]]]) -> Runs:
    """Runs of many masks at once.

    Args:
        masks: (owner, row of the first pixel, column of the first pixel, bool mask (h, w)); an owner may come back.
            They are taken one by one.

    Raises:
        ShapeError: a mask is not 2D.
    """
    found, waiting, size = [], [], 0
    for item in masks:
        if item[3].ndim != 2:
            raise ShapeError(f"mask of object {item[0]} is {item[3].shape}; expected (h, w)")
        waiting.append(item)
        size += item[3].size
        if size >= _CHUNK:
            found.append(_runs_together(waiting))
            waiting, size = [], 0
    found.append(_runs_together(waiting))
    return joined(found)


def _runs_together(masks: Sequence[tuple[int, int, int, NDArray[np.bool_]]]) -> Runs:
    """Runs of masks that lie behind one another in one flat array, each followed by an empty column."""
    masks = [item for item in masks if item[3].size]
    if not masks:
        return Runs(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
    widths = np.array([item[3].shape[1] + 1 for item in masks], dtype=np.int64)
    sizes = np.array([item[3].shape[0] for item in masks], dtype=np.int64) * widths
    flat = np.zeros(int(sizes.sum()) + 1, dtype=np.bool_)
    begins = np.cumsum(sizes) - sizes
    for begin, (_, _, _, mask) in zip(begins.tolist(), masks, strict=True):
        height, width = mask.shape
        flat[begin + 1 : begin + 1 + height * (width + 1)].reshape(height, width + 1)[:, :-1] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    which = np.searchsorted(begins, edges[::2], side="right") - 1
    row, start = np.divmod(edges[::2] - begins[which], widths[which])
    stop = start + (edges[1::2] - edges[::2])
    places = np.array([item[:3] for item in masks], dtype=np.int64)[which]
    return Runs(places[:, 0], row + places[:, 1], start + places[:, 2], stop + places[:, 2])


def runs_of_labels(labels: Array) -> Runs:
    """Runs of a label map (H, W) of integers: the owner is the label, 0 is nobody."""
    height, width = labels.shape
    padded = np.zeros((height, width + 2), dtype=np.int64)
    padded[:, 1:-1] = labels
    flat = padded.ravel()
    begins = np.flatnonzero((flat[1:] != flat[:-1]) & (flat[1:] != 0)) + 1
    ends = np.flatnonzero((flat[1:] != flat[:-1]) & (flat[:-1] != 0)) + 1
    row, start = np.divmod(begins, width + 2)
    return Runs(flat[begins], row, start - 1, start - 1 + (ends - begins))


def joined(parts: Iterable[Runs]) -> Runs:
    """Sort runs by owner, row and column, and join those that touch or overlap; the order of the parts is lost."""
    every = list(parts)
    owner, row, start, stop = (
        np.concatenate([getattr(p, name) for p in every] or [np.zeros(0, dtype=np.int64)])
        for name in ("owner", "row", "start", "stop")
    )
    if not len(owner):
        return Runs(owner, row, start, stop)
    order = order_of(owner, row, start)
    owner, row, start, stop = owner[order], row[order], start[order], stop[order]
    line = np.cumsum(first_of(owner, row)) - 1
    base = line * (int(stop.max()) + 1 - int(start.min())) - int(start.min())
    reach = np.maximum.accumulate(stop + base)
    opens = np.ones(len(owner), dtype=np.bool_)
    opens[1:] = first_of(owner, row)[1:] | (start[1:] + base[1:] > reach[:-1])
    begins = np.flatnonzero(opens)
    last = np.append(begins[1:], len(owner)) - 1
    return Runs(owner[begins], row[begins], start[begins], reach[last] - base[last])


def components(runs: Runs) -> Ints:
    """Number of the 4-connected component of every run, from 0, by owner and then by first run.

    Args:
        runs: From :func:`joined`.

    Returns:
        (n,) numbers; those of one owner are consecutive.
    """
    count = len(runs)
    if not count:
        return np.zeros(0, dtype=np.int64)
    span = int(runs.stop.max()) - int(runs.start.min()) + 2
    line = np.cumsum(first_of(runs.owner, runs.row)) - 1
    heads = np.flatnonzero(first_of(runs.owner, runs.row))
    follows = np.zeros(len(heads), dtype=np.bool_)  # whether the next line is the next row of the same owner
    follows[:-1] = (runs.owner[heads[1:]] == runs.owner[heads[:-1]]) & (runs.row[heads[1:]] == runs.row[heads[:-1]] + 1)
    upper = np.flatnonzero(follows[line])
    shift = runs.start.min() - 1
    starts, stops = line * span + runs.start - shift, line * span + runs.stop - shift
    first = np.searchsorted(stops, starts[upper] + span, side="right")
    behind = np.searchsorted(starts, stops[upper] + span, side="left")
    met = np.maximum(behind - first, 0)
    a = np.repeat(upper, met)
    b = np.arange(len(a)) - np.repeat(np.cumsum(met) - met, met) + np.repeat(first, met)
    links = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(count, count))
    raw = connected_components(links, directed=False)[1]
    _, opened, number = np.unique(raw, return_index=True, return_inverse=True)
    rank = np.empty(len(opened), dtype=np.int64)
    rank[np.argsort(opened)] = np.arange(len(opened))
    return np.asarray(rank[number], dtype=np.int64)


def first_of(*columns: Ints) -> NDArray[np.bool_]:
    """True where any of the sorted columns changes, and at the first row."""
    opens = np.ones(len(columns[0]), dtype=np.bool_)
    opens[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return opens


def order_of(*columns: Ints) -> Ints:
    """Sorting index by the first column, then the second, and so on."""
    spans = [int(c.max()) - int(c.min()) + 1 for c in columns]
    if float(np.prod([float(s) for s in spans])) < 2.0**62:
        return np.asarray(np.argsort(key_of(columns[:-1], columns[-1]), kind="stable"), dtype=np.int64)
    return np.asarray(np.lexsort(columns[::-1]), dtype=np.int64)


def key_of(leading: Sequence[Ints], last: Ints) -> Ints:
    """One number that sorts like the columns; they must fit together into 62 bits."""
    key = np.zeros(len(last), dtype=np.int64)
    for column in (*leading, last):
        low = int(column.min())
        key *= int(column.max()) - low + 1
        key += column - low
    return key
