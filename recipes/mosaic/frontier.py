"""Walks over the tiles in raster scan order and gives every object as soon as nothing more can join it.

(signatures first; the body follows)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.objects import MosaicObject, Piece
from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan
from samgraft.recipes.mosaic.reduce import Keys, Numbering

__all__ = ["Frontier", "MosaicObject", "Piece", "Step", "number_objects", "stream_objects", "stream_steps"]


@dataclass(frozen=True, eq=False)
class Step:
    """What became final with one tile."""

    part: Part
    """The tile's block (``TilePlan.block``): these pixels are decided. Blocks come in raster scan order of tiles."""
    labels: NDArray[np.int32] | None
    """(h, w) over ``part``: final ids, 0 nothing; None without a Numbering, or where nothing is (all 0)."""
    objects: tuple[MosaicObject, ...]
    """Objects that are now complete, in raster scan order of their first pixels."""


class Frontier:
    """Joins the objects of tiles; holds only what later tiles may still change.

    Args:
        plan: All tiles.
        numbering: What :func:`number_objects` found in a first pass over the same tiles: final ids in raster scan
            order. None gives ids in the order of closing, which are the same for any number of workers, too.
    """

    def __init__(self, plan: TilePlan, numbering: Numbering | None = None) -> None:
        """Nothing is there yet."""
        self.plan, self.numbering = plan, numbering

    def push(self, tile: Tile, found: TileObjects, links: Mapping[int, Keys] | None = None) -> list[Step]:
        """Take the next tile.

        Args:
            tile: Of the plan, with a larger number than all before it; tiles in between count as unseen.
            found: What it shows.
            links: By number of an earlier neighbour, (m, 2) local ids of that neighbour and of this tile, as ``link``
                gave them; those that are absent are computed.
        """
        raise NotImplementedError

    def finish(self) -> list[Step]:
        """The rest, after the last tile."""
        raise NotImplementedError


def number_objects(plan: TilePlan, found: Iterable[tuple[Tile, TileObjects]]) -> Numbering:
    """First pass: final ids. ``found`` gives the tiles in raster scan order; it is read once and not kept."""
    raise NotImplementedError


def stream_steps(
    plan: TilePlan, found: Iterable[tuple[Tile, TileObjects]], numbering: Numbering | None = None
) -> Iterator[Step]:
    """Decided pixels and complete objects, tile by tile; ``found`` gives the tiles in raster scan order."""
    raise NotImplementedError


def stream_objects(
    plan: TilePlan, found: Iterable[tuple[Tile, TileObjects]], numbering: Numbering | None = None
) -> Iterator[MosaicObject]:
    """Complete objects only."""
    raise NotImplementedError
