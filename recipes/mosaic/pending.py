"""What is kept along the frontier: strips of tiles that later tiles share, and objects that may still grow."""

import sys
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.layers import AnyLabels, Labels, later_parts
from samgraft.recipes.mosaic.objects import Piece
from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan, shared, within


@dataclass(eq=False)
class Held:
    """The strips of a tile that later tiles share."""

    tile: Tile
    classes: NDArray[np.int32]
    """(n,) of all its objects."""
    strips: list[tuple[Part, AnyLabels]]
    """Those that are not empty."""

    @classmethod
    def of(cls, plan: TilePlan, tile: Tile, labels: Labels, classes: NDArray[np.int32]) -> "Held":
        """Copies, so that the tile's labels can go."""
        small = np.dtype(np.uint16 if len(classes) < 1 << 16 else np.int32)
        parts = [part for part, _ in later_parts(plan, tile)[:2]]  # the corner lies in the strip below
        cut = [(part, labels[within(part, tile.window)]) for part in parts]
        return cls(tile, classes, [(part, strip.astype(small)) for part, strip in cut if strip.any()])

    def over(self, part: Part) -> AnyLabels | None:
        """Labels over a part that later tiles share, or None where nothing is."""
        for place, labels in self.strips:
            if shared(place, part) == part:
                return labels[within(part, place)]
        return None


@dataclass(eq=False, kw_only=True)
class OpenObject:
    """An object that later tiles may add to."""

    until: int
    """Number of the last tile that can."""
    members: list[tuple[int, int, float]]
    """Key, pixels and score of each fragment."""
    class_id: int
    faint: bool
    """One fragment that its tile hardly shows and none confirms: not painted."""
    first: int = sys.maxsize
    """Row times width plus column of the first decided pixel."""
    pieces: list[Piece] = field(default_factory=list)

    def absorb(self, other: "OpenObject") -> None:
        """Become one with another, which is of no use afterwards."""
        if len(other.members) > len(self.members):
            self.members, other.members = other.members, self.members
        if len(other.pieces) > len(self.pieces):
            self.pieces, other.pieces = other.pieces, self.pieces
        self.members += other.members
        self.pieces += other.pieces
        self.until, self.faint = max(self.until, other.until), False
        self.first = min(self.first, other.first)

    def score(self) -> float:
        """Mean by pixels, summed in the order of the keys, so that it does not depend on the order of joining."""
        members = sorted(self.members)
        return sum(area * score for _, area, score in members) / sum(area for _, area, _ in members)
