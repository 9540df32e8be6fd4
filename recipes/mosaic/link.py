"""Which objects of two neighbouring tiles are one.

Only what both windows show is compared. There, each object falls into connected parts (4 neighbours). Two parts are
the same thing if each is the other's best match by IoU and they share more than half of the smaller one; two objects
are one if any of their parts are the same thing and their classes agree. Looking at parts rather than at whole objects
keeps this exact for objects that enter the shared strip several times (U shapes, rings, networks of roads): an oracle's
parts are equal in both tiles, while its whole objects need not be. "Each the other's best" keeps a blob that covers two
objects of the other tile from gluing them together.

One more case counts: a part that ends at the edge of its own tile, and that the other tile, which sees what lies
beyond, shows in every pixel as a piece of one object. Two parts whose insides meet beyond the edge look like two
objects from one side and are one from the other.

Source: none published; instance stitching by overlap votes is common, for example in cellpose's block-wise runs.
Deviations: votes are counted by connected part and must be mutual, see above.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.plan import Part, Tile, shared, within

Labels = NDArray[np.integer]
Classes = NDArray[np.int32]
Pairs = NDArray[np.int64]

LEAST = 0.5
"""Share of the smaller of two parts that both tiles must show, and more."""
EDGE = 3
"""A fragment that its tile shows only within this many pixels of a cut edge says nothing, and is not an object unless
another tile confirms it: a mask that is one or two pixels larger than that of the neighbour reaches as far."""
Ends = tuple[bool, bool, bool, bool]
"""Whether one of two tiles ends above, below, left and right of what they share, where the other one goes on."""
NOWHERE: Ends = (False, False, False, False)


def link(a_tile: Tile, a: TileObjects, b_tile: Tile, b: TileObjects, least: float = LEAST) -> Pairs:
    """Local ids (m, 2) of objects of two tiles that are one object, sorted; (0, 2) if the windows do not meet."""
    common = shared(a_tile.window, b_tile.window)
    if common is None:
        return np.zeros((0, 2), dtype=np.int64)
    strips = a.labels[within(common, a_tile.window)], b.labels[within(common, b_tile.window)]
    return link_strips(strips[0], a.classes, strips[1], b.classes, ends(a_tile.window, b_tile.window), least)


def ends(a: Part, b: Part) -> tuple[Ends, Ends]:
    """Where each of two windows ends within the other one."""
    (rows, cols), (down, right) = a, b
    return (
        (rows.start > down.start, rows.stop < down.stop, cols.start > right.start, cols.stop < right.stop),
        (rows.start < down.start, rows.stop > down.stop, cols.start < right.start, cols.stop > right.stop),
    )


def link_strips(
    a: Labels,
    a_classes: Classes,
    b: Labels,
    b_classes: Classes,
    cut: tuple[Ends, Ends] = (NOWHERE, NOWHERE),
    least: float = LEAST,
) -> Pairs:
    """The same from parts of tiles.

    Args:
        a: (h, w) labels of the first tile over what both share.
        a_classes: (n,) classes of all its objects.
        b: Labels of the second tile.
        b_classes: Classes of its objects.
        cut: Where each of the tiles ends, see :func:`ends`.
        least: Share of the smaller of two parts that both must show, and more.
    """
    if not (a.any() and b.any()):
        return np.zeros((0, 2), dtype=np.int64)
    one, other = parts_of(a), parts_of(b)
    joint = one.places.astype(np.int64) * len(other.labels) + other.places
    seen, counts = np.unique(joint[(a > 0) & (b > 0)], return_counts=True)
    i, j = np.divmod(seen, len(other.labels))
    alike = a_classes[one.labels[i] - 1] == b_classes[other.labels[j] - 1]
    i, j, counts = i[alike], j[alike], counts[alike]
    enough = counts > least * np.minimum(one.sizes[i], other.sizes[j])
    agreement = counts / (one.sizes[i] + other.sizes[j] - counts)
    same = enough & _best(i, j, agreement) & _best(j, i, agreement)
    same |= (counts == one.sizes[i]) & _cut_off(one, a, cut[0], cut[1])[i]
    same |= (counts == other.sizes[j]) & _cut_off(other, b, cut[1], cut[0])[j]
    pairs: Pairs = np.unique(np.stack([one.labels[i[same]], other.labels[j[same]]], axis=1).astype(np.int64), axis=0)
    return pairs


@dataclass(frozen=True, eq=False)
class Parts:
    """Connected parts of labelled pixels, in raster scan order of their first pixels."""

    places: NDArray[np.int32]
    """(h, w) number of the part, from 0; 0 also where nothing is."""
    labels: NDArray[np.int32]
    """(p,) label of each part."""
    sizes: NDArray[np.int64]
    """(p,) pixels of each part."""


def parts_of(labels: Labels) -> Parts:
    """Split labels (h, w) with at least one pixel above 0 into parts whose pixels touch by an edge.

    Works on the runs of equal labels in each row: two runs of one label in successive rows that share a column belong
    together.
    """
    width = labels.shape[1]
    flat = labels.ravel()
    fresh, ends = labels != 0, labels != 0
    change = labels[:, 1:] != labels[:, :-1]
    fresh[:, 1:] &= change
    ends[:, :-1] &= change
    starts, stops = np.flatnonzero(fresh), np.flatnonzero(ends) + 1
    own = flat[starts]
    first = np.searchsorted(stops, starts + width, side="right")  # the runs of the next row that a run looks down on
    amount = np.maximum(np.searchsorted(starts, stops + width, side="left") - first, 0)
    above = np.repeat(np.arange(len(starts)), amount)
    below = np.arange(len(above)) - np.repeat(np.cumsum(amount) - amount, amount) + np.repeat(first, amount)
    alike = own[above] == own[below]
    above, below = above[alike], below[alike]
    graph = coo_array((np.ones(len(above), dtype=np.int8), (above, below)), shape=(len(starts), len(starts)))
    count, part = connected_components(graph, directed=False)
    places = np.zeros(labels.shape, dtype=np.int32)
    places.ravel()[flat != 0] = np.repeat(part, stops - starts)
    owner = np.zeros(count, dtype=np.int32)
    owner[part] = own
    sizes = np.bincount(part, weights=stops - starts, minlength=count).astype(np.int64)
    return Parts(places=places, labels=owner, sizes=sizes)


def _cut_off(parts: Parts, labels: Labels, own: Ends, other: Ends) -> NDArray[np.bool_]:
    """(p,) parts that reach an edge where their tile ends, and are more than a sliver along that of either tile."""
    found = np.zeros(len(parts.labels), dtype=bool)
    if not any(own):
        return found
    edge = _along(labels.shape, own, 1)
    inner = ~(_along(labels.shape, own, EDGE) | _along(labels.shape, other, EDGE))
    found[parts.places[edge & (labels > 0)]] = True
    deep = np.zeros_like(found)
    deep[parts.places[inner & (labels > 0)]] = True
    return found & deep


def _along(shape: tuple[int, ...], cut: Ends, width: int) -> NDArray[np.bool_]:
    """(h, w) pixels within ``width`` of the edges that are cut."""
    near = np.zeros(shape, dtype=bool)
    for axis, (first, last) in enumerate((cut[:2], cut[2:])):
        lines = np.moveaxis(near, axis, 0)
        lines[:width] |= first
        lines[max(0, len(lines) - width) :] |= last
    return near


def _best(of: NDArray[np.int64], among: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each pair whether it has the largest value of all with the same ``of``; of equals, the least ``among``."""
    order = np.lexsort((among, -values, of))
    result = np.zeros(len(of), dtype=bool)
    result[order[np.flatnonzero(np.diff(of[order], prepend=-1))]] = True
    return result
