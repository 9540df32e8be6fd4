"""Label maps with awkward objects, an oracle that sees them tile by tile, and what the frontier makes of it."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.frontier import MosaicObject, number_objects, stream_steps
from samgraft.recipes.mosaic.plan import Tile, TilePlan

Labels = NDArray[np.int32]
See = Callable[[Tile], TileObjects]
KINDS = ("noise", "cells", "rings", "combs", "full")


def canonical(labels: NDArray[np.integer]) -> Labels:
    """The same partition with labels 1 to n in raster scan order of their first pixels; 0 stays."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values > 0, first, labels.size))
    rank = np.empty(len(values), dtype=np.int32)
    rank[order] = np.arange(1, len(values) + 1)
    rank[values == 0] = 0
    return rank[inverse].reshape(labels.shape)


def components(labels: NDArray[np.integer], *, eight: bool = False) -> Labels:
    """Connected parts of every label, numbered as by ``canonical``; pixel by pixel, to check what works by runs."""
    places = np.arange(labels.size).reshape(labels.shape)
    ends = [(places[:, 1:], places[:, :-1]), (places[1:], places[:-1])]
    if eight:
        ends += [(places[1:, 1:], places[:-1, :-1]), (places[1:, :-1], places[:-1, 1:])]
    a, b = (np.concatenate([pair[i].ravel() for pair in ends]) for i in (0, 1))
    same = labels.ravel()[a] == labels.ravel()[b]
    graph = coo_array((np.ones(same.sum(), dtype=np.int8), (a[same], b[same])), shape=(labels.size, labels.size))
    _, part = connected_components(graph, directed=False)
    return canonical(np.where(labels > 0, part.reshape(labels.shape) + 1, 0))


def world(kind: str, shape: tuple[int, int], seed: int) -> Labels:
    """Labels (h, w) whose parts have every shape: specks, touching cells, rings in rings, interlocked combs."""
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape)
    if kind == "noise":
        return generator.integers(0, 4, shape).astype(np.int32)
    if kind == "full":
        return np.ones(shape, dtype=np.int32)
    if kind == "rings":
        centre = generator.uniform(0, 1, 2) * shape
        return (np.hypot(y - centre[0], x - centre[1]) / generator.uniform(1, 3)).astype(np.int32) % 4
    if kind == "combs":
        period = int(generator.integers(2, 6))
        teeth = (x // period % 2 + 1) * ((y > 1) & (y < shape[0] - 2))
        return np.where(y <= 1, 1, np.where(y >= shape[0] - 2, 2, teeth)).astype(np.int32)
    seeds = generator.uniform(0, 1, (int(generator.integers(2, 12)), 2)) * shape
    nearest = np.argmin(np.hypot(y[..., None] - seeds[:, 0], x[..., None] - seeds[:, 1]), axis=-1)
    return np.where(nearest % 3 == 0, 0, nearest).astype(np.int32)


def oracle(truth: Labels, *, eight: bool = False) -> See:
    """Sees the true objects, cut at the window, in as many parts as the window shows; the class is the label mod 3."""

    def see(tile: Tile) -> TileObjects:
        cut = truth[tile.window]
        labels = components(cut, eight=eight)
        values, firsts = np.unique(labels, return_index=True)
        owners = cut.ravel()[firsts[values > 0]]
        return TileObjects(labels, owners % 3, (owners % 4 / 4).astype(np.float32))

    return see


def merged(plan: TilePlan, found: Iterable[tuple[Tile, TileObjects]]) -> tuple[Labels, list[MosaicObject]]:
    """Both passes: the label map with final ids, and the objects in order of id."""
    tiles = list(found)
    whole, objects = np.zeros(plan.shape, dtype=np.int32), list[MosaicObject]()
    for step in stream_steps(plan, tiles, number_objects(plan, tiles)):
        objects += step.objects
        if step.labels is not None:
            whole[step.part] = step.labels
    return whole, sorted(objects, key=lambda one: one.id)


def painted(shape: tuple[int, int], objects: Iterable[MosaicObject]) -> Labels:
    """The label map that the objects' pieces make."""
    whole = np.zeros(shape, dtype=np.int32)
    for one in objects:
        for part, mask in one.pieces:
            assert not whole[part][mask].any()
            whole[part][mask] = one.id
    return whole


def boxes(tile: Tile, *found: tuple[slice, slice]) -> TileObjects:
    """Objects 1 to n that fill rectangles of the raster, as far as the tile's window shows them; class 1, score 0.5."""
    labels = np.zeros((100, 100), dtype=np.int32)
    for number, part in enumerate(found, start=1):
        labels[part] = number
    count = len(found)
    return TileObjects(labels[tile.window], np.ones(count, np.int32), np.full(count, 0.5, np.float32))
