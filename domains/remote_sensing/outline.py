"""Outlines of pixel sets, exactly along pixel edges, from runs of pixels instead of a picture.

Takes masks, label maps or pieces of objects anywhere on a raster of any size; gives shapely polygons in pixel
coordinates. An object is kept as horizontal runs, so that memory follows its height and not its bounding box, and its
outline does not depend on how it was cut into pieces: runs that touch are joined before anything is traced.

How a boundary is found: the left and right ends of the runs are unit edges; edges above one another are one vertical
segment; the ends of all vertical segments of an object on one line between two rows, in order of columns, pair up to
the horizontal segments. Where two pixels touch at a corner only, the right end of one comes before the left start of
the other, which leads every outline around its own pixel. A ring that passes such a corner twice is cut there, so that
rings never touch themselves and every polygon is valid.
"""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.georeference import PointMap
from samgraft.domains.remote_sensing.pixel_runs import Ints, Runs, components, first_of, joined, key_of, order_of

Geometries = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Rings:
    """Closed rings in pixel coordinates, the outer ring of each part first, then its holes."""

    points: NDArray[np.float64]
    """(k, 2) corners as (column, row), first one not repeated; the filled side is the same for every ring."""
    ring: Ints
    """(k,) number of the ring, from 0, increasing."""
    part: Ints
    """(r,) number of the part of each ring, from 0, increasing."""


def trace(runs: Runs, part: Ints) -> Rings:
    """Rings around connected parts.

    Args:
        runs: From :func:`joined`.
        part: Component of each run, from :func:`components`.

    Returns:
        Rings that start at their topmost vertical segment; the outer ring of a part runs down its left side.
    """
    if not len(runs):
        return Rings(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    segments = _segments(runs, part)
    following, crossings = _following(segments)
    order, ring = _cycles(following)
    column, enters, leaves = segments.column[order], segments.enters[order], segments.leaves[order]
    points = np.empty((2 * len(order), 2), dtype=np.int64)
    points[::2, 0] = points[1::2, 0] = column
    points[::2, 1], points[1::2, 1] = enters, leaves
    owner, number = np.repeat(segments.part[order], 2), np.repeat(ring, 2)
    if len(crossings):
        points, number = _cut(points, number, owner, crossings)  # moves corners only within their part
    return _outer_first(points, number, owner)


@dataclass(frozen=True, eq=False)
class _Segments:
    """Vertical segments by part, upper end and column."""

    part: Ints
    column: Ints
    upper: Ints
    lower: Ints
    down: Ints
    """1 for left sides, which are walked down; 0 for right sides."""

    @property
    def enters(self) -> Ints:
        """Row where the walk enters."""
        return np.where(self.down == 1, self.upper, self.lower)

    @property
    def leaves(self) -> Ints:
        """Row where the walk leaves."""
        return np.where(self.down == 1, self.lower, self.upper)


def _segments(runs: Runs, part: Ints) -> _Segments:
    """Left and right ends of runs, joined where they lie above one another."""
    owner, row = np.concatenate([part, part]), np.concatenate([runs.row, runs.row])
    column = np.concatenate([runs.start, runs.stop])
    down = np.repeat(np.array([1, 0], dtype=np.int64), len(runs))
    order = order_of(owner, column, down, row)
    owner, column, down, row = owner[order], column[order], down[order], row[order]
    opens = first_of(owner, column, down)
    opens[1:] |= row[1:] != row[:-1] + 1
    begins = np.flatnonzero(opens)
    last = np.append(begins[1:], len(row)) - 1
    upper, lower = row[begins], row[last] + 1
    owner, column, down = owner[begins], column[begins], down[begins]
    order = order_of(owner, upper, column, down)
    return _Segments(owner[order], column[order], upper[order], lower[order], down[order])


def _following(segments: _Segments) -> tuple[Ints, Ints]:
    """The segment that a walk enters after each one, and the crossings as (part, row, column) (m, 3)."""
    count = len(segments.part)
    number = np.tile(np.arange(count), 2)
    owner, column, down = (np.tile(v, 2) for v in (segments.part, segments.column, segments.down))
    row = np.concatenate([segments.upper, segments.lower])
    order = order_of(owner, row, column, down)
    number, left, right = number[order], order[::2], order[1::2]
    at_upper = order < count
    leaves = at_upper != (down[order] == 1)  # a left side is left at its lower end, a right side at its upper
    following = np.empty(count, dtype=np.int64)
    a, b = number[::2], number[1::2]
    from_left = leaves[::2]
    following[np.where(from_left, a, b)] = np.where(from_left, b, a)
    same = np.flatnonzero(
        (owner[right[:-1]] == owner[left[1:]])
        & (row[right[:-1]] == row[left[1:]])
        & (column[right[:-1]] == column[left[1:]])
    )
    places = right[:-1][same]
    return following, np.stack([owner[places], row[places], column[places]], axis=1)


def _cycles(following: Ints) -> tuple[Ints, Ints]:
    """Segments in the order of the walks, and the number of the walk of each."""
    after = following.tolist()
    seen = bytearray(len(after))
    order: list[int] = []
    lengths: list[int] = []
    for first in range(len(after)):
        if seen[first]:
            continue
        before, current = len(order), first
        while not seen[current]:
            seen[current] = 1
            order.append(current)
            current = after[current]
        lengths.append(len(order) - before)
    return np.array(order, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _cut(points: Ints, ring: Ints, owner: Ints, crossings: Ints) -> tuple[Ints, Ints]:
    """Cut rings that pass a crossing of their part twice into rings that do not touch themselves."""
    keys = key_of(
        (np.concatenate([owner, crossings[:, 0]]), np.concatenate([points[:, 1], crossings[:, 1]])),
        np.concatenate([points[:, 0], crossings[:, 2]]),
    )
    passes = np.isin(keys[: len(points)], keys[len(points) :])
    touched = np.zeros(int(ring[-1]) + 1, dtype=np.bool_)
    touched[ring[passes]] = True
    bounds = np.append(np.flatnonzero(first_of(ring)), len(ring))
    new_ring, moved, number = np.empty_like(ring), points.copy(), 0
    for old in range(len(bounds) - 1):
        begin, end = int(bounds[old]), int(bounds[old + 1])
        loops = [points[begin:end]] if not touched[old] else _loops(points[begin:end])
        for loop in loops:
            moved[begin : begin + len(loop)] = loop
            new_ring[begin : begin + len(loop)] = number
            begin, number = begin + len(loop), number + 1
    return moved, new_ring


def _loops(corners: Ints) -> list[Ints]:
    """Simple loops of a closed walk, each corner once per passage."""
    found: list[Ints] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for corner in map(tuple, corners.tolist()):
        begin = place.get(corner)
        if begin is not None:
            found.append(np.array(path[begin:], dtype=np.int64))
            for gone in path[begin + 1 :]:
                del place[gone]
            del path[begin + 1 :]
            continue
        place[corner] = len(path)
        path.append(corner)
    return [np.array(path, dtype=np.int64), *found]


def _outer_first(points: Ints, ring: Ints, owner: Ints) -> Rings:
    """Order rings by part, the outer one before the holes, and number them anew."""
    begins = np.flatnonzero(first_of(ring))
    ends = np.append(begins[1:], len(ring))
    closing = np.arange(1, len(ring) + 1)
    closing[ends - 1] = begins
    steps = points[:, 0] * (points[closing, 1] - points[:, 1])
    hole = np.add.reduceat(steps, begins) > 0
    order = np.lexsort((np.arange(len(begins)), hole, owner[begins]))
    lengths = (ends - begins)[order]
    index = np.arange(len(ring)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begins[order], lengths)
    return Rings(
        points=points[index].astype(np.float64),
        ring=np.repeat(np.arange(len(order)), lengths),
        part=owner[begins][order],
    )


def outlines(runs: Runs, *, move: PointMap | None = None, turn: bool = False) -> tuple[Ints, Geometries]:
    """Polygon or MultiPolygon of every owner.

    Args:
        runs: Any runs; pieces of one owner may come in any order.
        move: Applied to the corners (x = column, y = row), such as a raster's transform.
        turn: Walk the rings the other way. Outer rings are anticlockwise after a ``move`` that mirrors (north-up
            rasters); after one that does not, they are so with ``turn``.

    Returns:
        Owners, increasing, and one valid geometry each; parts join over edges, not over corners.
    """
    runs = joined([runs])
    part = components(runs)
    owners = runs.owner[np.unique(part, return_index=True)[1]]
    polygons = part_polygons(trace(runs, part), move=move, turn=turn)
    heads = np.flatnonzero(first_of(owners)) if len(owners) else np.zeros(0, dtype=np.int64)
    counts = np.diff(np.append(heads, len(owners)))
    found = polygons[heads].copy()
    for place in np.flatnonzero(counts > 1).tolist():
        found[place] = shapely.multipolygons(polygons[heads[place] : heads[place] + counts[place]])
    return owners[heads], found


def part_polygons(rings: Rings, *, move: PointMap | None = None, turn: bool = False) -> Geometries:
    """One polygon per part; see :func:`outlines`."""
    if not len(rings.ring):
        return np.zeros(0, dtype=object)
    points, ring = rings.points, rings.ring
    if turn:
        points = _turned(points, ring)
    if move is not None:
        points = move(points)
    closed = shapely.linearrings(points, indices=ring)
    return np.asarray(shapely.polygons(closed, indices=rings.part), dtype=object)


def _turned(points: NDArray[np.float64], ring: Ints) -> NDArray[np.float64]:
    """Every ring the other way round, from the same corner."""
    begins = np.flatnonzero(first_of(ring))
    lengths = np.diff(np.append(begins, len(ring)))
    offset = np.arange(len(ring)) - np.repeat(begins, lengths)
    index: Ints = np.repeat(begins, lengths) + (-offset) % np.repeat(lengths, lengths)
    return np.asarray(points[index])
