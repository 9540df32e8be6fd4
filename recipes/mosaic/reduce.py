"""From pairs that are one object to groups, and from groups to final numbers.

A fragment is named by a key: ``tile number * 2**32 + local id``. The root of a group is its least key, so the same
groups and roots come out whatever the order of the pairs, and whatever is reduced first: ``Forest.merge`` is
associative, commutative and idempotent. Final ids count the objects in raster scan order of their first pixels.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ConfigError

Keys = NDArray[np.int64]
_SHIFT = 32


def key_of(tile: int, local: int) -> int:
    """Name of a fragment: its tile's number and its label there."""
    return tile << _SHIFT | local


def split_key(key: int) -> tuple[int, int]:
    """Tile number and local id of a fragment."""
    return key >> _SHIFT, key & (1 << _SHIFT) - 1


class Forest:
    """Union-find whose roots are the least keys of their groups."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        """With these pairs joined."""
        self._parent: dict[int, int] = {}
        for a, b in pairs:
            self.join(a, b)

    def root(self, key: int) -> int:
        """Least key of the group; a key that was never joined is its own root."""
        parent = self._parent
        while (above := parent.get(key, key)) != key:
            parent[key] = key = parent.get(above, above)
        return key

    def join(self, a: int, b: int) -> tuple[int, int]:
        """Make two groups one.

        Returns:
            The root of the new group, and the root that is none any more (the same if they were one already).
        """
        least, other = sorted((self.root(a), self.root(b)))
        if least != other:
            self._parent.setdefault(least, least)
            self._parent[other] = least
        return least, other

    def merge(self, other: "Forest") -> "Forest":
        """A new forest in which both hold; neither is changed beyond shorter paths."""
        return Forest([*self.pairs(), *other.pairs()])

    def pairs(self) -> list[tuple[int, int]]:
        """(key, root) of every fragment that was joined to another, ascending: equal groups give equal lists."""
        return [(key, self.root(key)) for key in sorted(self._parent)]

    def forget(self, keys: Iterable[int]) -> None:
        """Drop a whole group that nothing will be joined to any more."""
        for key in keys:
            self._parent.pop(key, None)


@dataclass(frozen=True, eq=False)
class Numbering:
    """Final ids of a whole raster: 4 bytes for each fragment and for each object."""

    classes: NDArray[np.uint16]
    """(count,) class of each object, in order of its id."""
    scores: NDArray[np.float16]
    """(count,) score of each object, 0 to 1; rounded, since it is meant for score maps."""
    _tables: dict[int, NDArray[np.int32]] = field(repr=False)

    @property
    def count(self) -> int:
        """Number of objects; ids are 1 to ``count``."""
        return len(self.classes)

    def of_tile(self, number: int, size: int) -> NDArray[np.int32]:
        """(size,) final id of each local id of a tile, 0 for 0: a look-up table for ``TileObjects.labels``.

        Raises:
            ConfigError: the first pass saw another number of objects in this tile.
        """
        table = self._tables.get(number)
        if table is None:
            table = np.zeros(1, dtype=np.int32)
        if len(table) != size and (len(table) > 1 or size > 1):
            raise ConfigError(
                f"tile {number} has {size - 1} objects, but {len(table) - 1} when they were numbered; number them again"
            )
        return table

    def id_of(self, key: int) -> int:
        """Final id of a fragment's object, 0 if no pixel was left to it."""
        tile, local = split_key(key)
        return int(self._tables[tile][local])


CHUNK = 65_536
"""Numbers that are looked at at once, where a copy of all would need as much memory again."""


class Register:
    """Collects objects as they close, in any order, and numbers them in the end."""

    def __init__(self) -> None:
        """Nothing is there yet."""
        self._firsts, self._classes, self._scores = array("q"), array("H"), array("H")
        self._tables: dict[int, NDArray[np.int32]] = {}

    def tile(self, number: int, count: int) -> None:
        """Make room for ``count`` fragments of a tile."""
        if count:
            self._tables[number] = np.zeros(count + 1, dtype=np.int32)

    def alone(
        self, tile: int, local: NDArray[np.intp], firsts: Keys, classes: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> None:
        """Objects (k,) of one fragment each: local ids, and row times width plus column of the first pixels."""
        if len(local):
            known = len(self._firsts)
            self._tables[tile][local] = np.arange(known + 1, known + len(local) + 1)
            self._add(np.asarray(firsts, dtype=np.int64), classes, scores)

    def joined(self, keys: Sequence[int], first: int, class_id: int, score: float) -> None:
        """One object of several fragments."""
        self._add(np.array([first]), np.array([class_id]), np.array([score]))
        for key in keys:
            tile, local = split_key(key)
            self._tables[tile][local] = len(self._firsts)

    def numbering(self) -> Numbering:
        """Final ids of everything so far; call it once, in the end."""
        count = len(self._firsts)
        order = sorted_places(self._firsts)
        self._firsts = array("q")
        final = np.zeros(count + 1, dtype=np.int32)
        final[1:][order] = np.arange(1, count + 1, dtype=np.int32)
        for table in self._tables.values():
            table[:] = final[table]
        classes, scores = np.array(self._classes, dtype=np.uint16), np.array(self._scores, dtype=np.uint16)
        return Numbering(classes=classes[order], scores=scores.view(np.float16)[order], _tables=self._tables)

    def _add(self, firsts: Keys, classes: NDArray[np.integer], scores: NDArray[np.floating]) -> None:
        self._firsts.frombytes(firsts.tobytes())
        self._classes.frombytes(classes.astype(np.uint16).tobytes())
        self._scores.frombytes(scores.astype(np.float16).tobytes())


def sorted_places(values: "array[int]") -> Keys:
    """(n,) places of whole numbers >= 0 in rising order of the numbers, equal ones in order of place.

    Works in the memory of ``values``, which are lost, where number and place fit into 63 bits together.
    """
    numbers = np.frombuffer(values, dtype=np.int64)
    bits = len(numbers).bit_length()
    if not len(numbers) or int(numbers.max()).bit_length() + bits > 63:
        return np.argsort(numbers, kind="stable")
    numbers <<= bits
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK]
        part |= np.arange(start, start + len(part))
    numbers.sort()
    numbers &= (1 << bits) - 1
    return numbers
