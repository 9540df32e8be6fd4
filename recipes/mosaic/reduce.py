"""From pairs that are one object to groups, and from groups to final numbers.

A fragment is named by its tile and its local id: ``key = tile number * 2**32 + local id``. The root of a group is its
least key, so the same groups come out whatever the order or the number of reductions: ``merge`` is associative,
commutative and idempotent. Final ids count the objects in raster scan order of their first pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Fragments that are one object; those that stand alone are left out."""

    keys: Keys
    """(k,) ascending."""
    roots: Keys
    """(k,) least key of each one's group."""


def groups_of(pairs: Keys) -> Groups:
    """Groups from pairs (m, 2) of keys in any order."""
    raise NotImplementedError


def merge(groups: Sequence[Groups]) -> Groups:
    """One set of groups out of several; groups with a common fragment become one."""
    raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Numbering:
    """Final ids of a whole raster: 4 bytes for each fragment, 24 for each object."""

    count: int
    """Number of objects; ids are 1 to ``count``."""
    classes: NDArray[np.int32]
    """(count,) class of each object."""
    scores: NDArray[np.float32]
    """(count,) score of each object."""

    def of_tile(self, number: int) -> NDArray[np.int32]:
        """(n + 1,) final id of each local id of a tile, 0 for 0; a look-up table for ``TileObjects.labels``."""
        raise NotImplementedError

    def at(self, first: tuple[int, int]) -> int:
        """Final id of the object whose first pixel lies at this row and column."""
        raise NotImplementedError
