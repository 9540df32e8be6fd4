"""Walks over the tiles in raster scan order and gives every object as soon as nothing more can join it.

Of each tile, only the strips at its right and lower edge are kept, until the tiles that share them have come; of the
objects, only those that reach into such a strip. With every tile a block of the raster becomes final: the tile's window
without what later tiles share. A pixel belongs to the object of the tile whose core holds it, and where that tile shows
nothing, to what another tile shows there (``layers.compose``).

Two passes give final ids. The first, :func:`number_objects`, needs no masks; the second knows the id of every fragment
and so can write label maps block by block, also of incomplete objects. Memory: strips and open objects along one row of
tiles (large masks are packed), and for ids 12 bytes per object and 4 per fragment in the first pass, 4 and 4 then.

An oracle's objects come out exactly, for any tile size, overlap and origin: two adjacent pixels always lie in one
window, so connected fragments share pixels with each other, and over what two tiles share their parts are equal.
"""

import heapq
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.layers import Labels, Layer, compose, glimpsed, later_parts, present, waits_until
from samgraft.recipes.mosaic.link import ends, link_strips
from samgraft.recipes.mosaic.objects import MosaicObject, Piece, hull
from samgraft.recipes.mosaic.pending import Held, OpenObject
from samgraft.recipes.mosaic.plan import Part, Tile, TilePlan, shape_of, shared, within
from samgraft.recipes.mosaic.reduce import Forest, Keys, Numbering, Register, key_of, split_key

__all__ = ["Frontier", "Links", "MosaicObject", "Piece", "Step", "number_objects", "stream_objects", "stream_steps"]


@dataclass(frozen=True, eq=False)
class Step:
    """What became final with one tile."""

    part: Part
    """The tile's block (``TilePlan.block``): these pixels are decided. Blocks come in raster scan order of tiles; those
    that no tile has seen are left out."""
    labels: Labels | None
    """(h, w) over ``part``: final ids, 0 nothing. None without a Numbering, or if all would be 0."""
    objects: tuple[MosaicObject, ...]
    """Objects that are now complete, in raster scan order of their first pixels."""


@dataclass(eq=False)
class _Block:
    """Decided pixels of one step, by code: the local id of a fragment, or more for what only earlier tiles show."""

    tile: Tile
    part: Part
    found: TileObjects
    canvas: Labels
    ids: list[int]
    """Final id of each code; 0 without a Numbering."""
    roots: dict[int, int]
    """Open object (its root key) of the codes that belong to one; the other codes are complete objects."""


@dataclass(frozen=True, eq=False)
class _Complete:
    """An object before it has its id."""

    key: int
    """Of one of its fragments."""
    pieces: list[Piece]
    class_id: int
    score: float
    tiles: int

    def first(self) -> tuple[int, int]:
        return min(piece.first for piece in self.pieces)


class Frontier:
    """Joins the objects of tiles.

    Args:
        plan: All tiles.
        numbering: What :func:`number_objects` found in a first pass over the same tiles: final ids in raster scan
            order. None gives ids in the order of closing, which are the same for any number of workers, too.
    """

    def __init__(self, plan: TilePlan, numbering: Numbering | None = None) -> None:
        """Nothing is there yet."""
        self.plan, self.numbering = plan, numbering
        self._last, self._closed = -1, 0
        self._held: dict[int, Held] = {}
        self._forest = Forest()
        self._open: dict[int, OpenObject] = {}
        self._ending: defaultdict[int, list[int]] = defaultdict(list)
        self._waiting: defaultdict[int, int] = defaultdict(int)
        self._due: list[int] = []

    @property
    def open_fragments(self) -> int:
        """Fragments that reach into a strip which a later tile shares."""
        return sum(self._waiting.values())

    @property
    def open_objects(self) -> int:
        """Objects that later tiles may add to."""
        return len(self._open)

    @property
    def held_bytes(self) -> int:
        """Bytes of the strips that are kept."""
        return sum(labels.nbytes for held in self._held.values() for _, labels in held.strips)

    def push(self, tile: Tile, found: TileObjects, links: Mapping[int, Keys] | None = None) -> list[Step]:
        """Take the next tile.

        Args:
            tile: Of the plan, with a larger number than all before it; tiles in between count as unseen.
            found: What it shows.
            links: By number of an earlier neighbour, (m, 2) local ids of that neighbour and of this tile, as ``link``
                gave them; those that are absent are computed.

        Returns:
            What is decided now; the tile's own step comes last.

        Raises:
            ConfigError: the tile comes too late.
            ShapeError: the labels do not fit the tile's window.
        """
        if tile.number <= self._last:
            raise ConfigError(f"tile {tile.number} comes after tile {self._last}; push tiles in raster scan order")
        if found.labels.shape != shape_of(tile.window):
            raise ShapeError(
                f"labels of tile {tile.number} are {found.labels.shape}; expected its window, {shape_of(tile.window)}"
            )
        steps = self._unseen_before(tile.number)
        steps.append(self._decide(tile, found, links or {}))
        held = Held.of(self.plan, tile, found.labels, found.classes)
        if held.strips:
            self._held[tile.number] = held
            for _, number in later_parts(self.plan, tile):
                heapq.heappush(self._due, number)
        return steps

    def finish(self) -> list[Step]:
        """The rest, after the last tile."""
        return self._unseen_before(self.plan.grid[0] * self.plan.grid[1])

    def _unseen_before(self, limit: int) -> list[Step]:
        """Blocks of tiles that were not looked at but that others reach into."""
        steps = []
        while self._due and self._due[0] < limit:
            number = heapq.heappop(self._due)
            if number > self._last:
                tile = self.plan.tile(number)
                steps.append(self._decide(tile, TileObjects.nothing(shape_of(tile.window)), {}))
        return steps

    def _decide(self, tile: Tile, found: TileObjects, links: Mapping[int, Keys]) -> Step:
        """Link, paint, close."""
        near = self._near(tile)
        codes = self._enter(tile, found, near, links)
        block = self._paint(tile, found, codes, near)
        complete = self._collect(block)
        self._last = tile.number
        for number in sorted(n for n in self._ending if n <= tile.number):
            self._waiting.pop(number, None)
            for key in self._ending.pop(number):
                if key in self._open and self._open[key].until <= tile.number:
                    complete += self._close(key)
        self._let_go(tile)
        labels = None
        if self.numbering is not None and block.canvas.any():
            labels = np.array(block.ids, dtype=np.int32)[block.canvas]
        return Step(block.part, labels, self._named(complete))

    def _let_go(self, tile: Tile) -> None:
        """Drop what no tile after this one shares."""
        passed = tile.number - self.plan.grid[1] - 1
        for number in [n for n in self._held if n <= passed]:
            del self._held[number]
        if tile.index[1] and tile.number - 1 in self._held:
            left = self._held[tile.number - 1]
            left.strips = [strip for strip in left.strips if strip[0][1] == left.tile.window[1]]

    def _near(self, tile: Tile) -> list[Held]:
        """Earlier neighbours, ascending by number."""
        (row, col), cols = tile.index, self.plan.grid[1]
        beside = [col + step for step in (-1, 0, 1) if 0 <= col + step < cols]
        numbers = [(row - 1) * cols + at for at in beside] + ([tile.number - 1] if col else [])
        return [self._held[number] for number in numbers if number in self._held]

    def _enter(self, tile: Tile, found: TileObjects, near: list[Held], links: Mapping[int, Keys]) -> Labels:
        """Open the objects that are not complete, and join them to earlier ones.

        Returns:
            (n + 1,) for each local id: itself, or 0 if it is not painted; -1 if it belongs to an open object.
        """
        count, number = len(found), tile.number
        codes = np.arange(count + 1, dtype=np.int32)
        if not count:
            return codes
        until = waits_until(self.plan, tile, found.labels, count)
        pairs = {held.tile.number: self._links(tile, found, held, links) for held in near}
        partial = until > number
        for each in pairs.values():
            partial[each[:, 1]] = True
        areas = np.bincount(found.labels.ravel(), minlength=count + 1)
        faint = glimpsed(self.plan, tile, found.labels, areas)
        for local in np.flatnonzero(partial).tolist():
            key, end = key_of(number, local), int(until[local])
            self._open[key] = OpenObject(
                until=end,
                members=[(key, int(areas[local]), float(found.scores[local - 1]))],
                class_id=int(found.classes[local - 1]),
                faint=bool(faint[local]),
            )
            self._ending[end].append(key)
            self._waiting[end] += end > number
        for other, each in pairs.items():
            for first, second in each.tolist():
                self._join(key_of(other, first), key_of(number, second))
        codes[faint] = 0
        codes[partial] = -1
        return codes

    def _links(self, tile: Tile, found: TileObjects, held: Held, links: Mapping[int, Keys]) -> Keys:
        """(m, 2) local ids of an earlier neighbour and of this tile."""
        if held.tile.number in links:
            return links[held.tile.number]
        common = shared(tile.window, held.tile.window)
        before = None if common is None else held.over(common)
        if common is None or before is None:
            return np.zeros((0, 2), dtype=np.int64)
        here = found.labels[within(common, tile.window)]
        return link_strips(before, held.classes, here, found.classes, ends(held.tile.window, tile.window))

    def _join(self, a: int, b: int) -> None:
        root, gone = self._forest.join(a, b)
        if root == gone:
            return
        one, other = self._open[root], self._open.pop(gone)
        if other.until > one.until:
            self._ending[other.until].append(root)
        one.absorb(other)

    def _paint(self, tile: Tile, found: TileObjects, codes: Labels, near: list[Held]) -> _Block:
        """Compose the tile's block; an open object has one code in it, whichever tiles show it."""
        part, count = self.plan.block(tile), len(found)
        table = None if self.numbering is None else self.numbering.of_tile(tile.number, count + 1)
        ids = [0] * (count + 1) if table is None else table.tolist()
        roots: dict[int, int] = {}
        code_of: dict[int, int] = {}

        def code(key: int, fresh: int) -> int:
            root = self._forest.root(key)
            if self._open[root].faint:
                return 0
            roots.setdefault(code_of.setdefault(root, fresh), root)
            return code_of[root]

        for local in np.flatnonzero(codes < 0).tolist():
            codes[local] = code(key_of(tile.number, local), local)
        layers = []
        for held in near:
            common = shared(held.tile.window, part)
            labels = None if common is None else held.over(common)
            if common is None or labels is None:
                continue
            seen = np.zeros(len(held.classes) + 1, dtype=np.int32)
            before = None if self.numbering is None else self.numbering.of_tile(held.tile.number, len(seen))
            for local in np.flatnonzero(present(labels, len(held.classes))).tolist():
                seen[local] = code(key_of(held.tile.number, local), len(ids))
                if seen[local] == len(ids):
                    ids.append(0 if before is None else int(before[local]))
            layers.append(Layer(held.tile.core, common, labels, seen))
        layers.append(Layer(tile.core, tile.window, found.labels, codes))
        rim = tuple(self.plan.overlap * (place > 0) for place in tile.index)
        return _Block(tile, part, found, compose(part, layers, (rim[0], rim[1])), ids, roots)

    def _collect(self, block: _Block) -> list[_Complete]:
        """Cut the objects out of a block: complete ones are given back, the others wait."""
        complete, found = list[_Complete](), block.found
        top, left = block.part[0].start, block.part[1].start
        for code, box in enumerate(ndimage.find_objects(block.canvas, len(block.ids) - 1), start=1):
            if box is None:
                continue
            rows, cols = box
            part = slice(top + rows.start, top + rows.stop), slice(left + cols.start, left + cols.stop)
            piece = Piece.of(part, block.canvas[box] == code)
            root = block.roots.get(code)
            if root is not None:
                self._open[root].pieces.append(piece)
            else:
                class_id, score = int(found.classes[code - 1]), float(found.scores[code - 1])
                complete.append(_Complete(key_of(block.tile.number, code), [piece], class_id, score, 1))
        return complete

    def _close(self, key: int) -> list[_Complete]:
        """An open object is complete; nothing if none of its pixels are left to it."""
        one = self._open.pop(key)
        self._forest.forget(member for member, _, _ in one.members)
        tiles = len({split_key(member)[0] for member, _, _ in one.members})
        return [_Complete(key, one.pieces, one.class_id, one.score(), tiles)] if one.pieces else []

    def _named(self, complete: list[_Complete]) -> tuple[MosaicObject, ...]:
        """Objects with their ids, in raster scan order of their first pixels."""
        found = []
        for one in sorted(complete, key=_Complete.first):
            self._closed += 1
            parts = tuple(sorted(one.pieces, key=lambda piece: (piece.part[0].start, piece.part[1].start)))
            made = MosaicObject(
                id=self._closed if self.numbering is None else self.numbering.id_of(one.key),
                class_id=one.class_id,
                score=one.score,
                tiles=one.tiles,
                box=hull(piece.part for piece in parts),
                area_px=sum(piece.area_px for piece in parts),
                parts=parts,
            )
            found.append(made)
        return tuple(found)


class _Counter(Frontier):
    """The same walk without masks: only first pixels, classes and scores, for the numbering."""

    def __init__(self, plan: TilePlan) -> None:
        super().__init__(plan)
        self.register = Register()

    def _decide(self, tile: Tile, found: TileObjects, links: Mapping[int, Keys]) -> Step:
        self.register.tile(tile.number, len(found))
        return super()._decide(tile, found, links)

    def _collect(self, block: _Block) -> list[_Complete]:
        places = np.flatnonzero(block.canvas)[::-1]
        first = np.full(len(block.ids), -1, dtype=np.int64)
        first[block.canvas.ravel()[places]] = places  # of equal codes the last assignment stays: the first place
        row, col = np.divmod(first, block.canvas.shape[1])
        first_in_raster = (row + block.part[0].start) * self.plan.shape[1] + col + block.part[1].start
        alone = first >= 0
        for code, root in block.roots.items():
            if alone[code]:
                self._open[root].first = min(self._open[root].first, int(first_in_raster[code]))
            alone[code] = False
        local = np.flatnonzero(alone)
        found = block.found
        self.register.alone(
            block.tile.number, local, first_in_raster[local], found.classes[local - 1], found.scores[local - 1]
        )
        return []

    def _close(self, key: int) -> list[_Complete]:
        one = self._open.pop(key)
        keys = [member for member, _, _ in one.members]
        self._forest.forget(keys)
        if one.first < sys.maxsize:
            self.register.joined(keys, one.first, one.class_id, one.score())
        return []


Links = Callable[[Tile], Mapping[int, Keys]]
"""Gives, for a tile, what ``Frontier.push`` takes as ``links``."""


def number_objects(plan: TilePlan, found: Iterable[tuple[Tile, TileObjects]], links: Links | None = None) -> Numbering:
    """First pass: final ids. ``found`` gives the tiles in raster scan order; it is read once and not kept."""
    counter = _Counter(plan)
    for _ in _steps(counter, found, links):
        pass
    return counter.register.numbering()


def stream_steps(
    plan: TilePlan,
    found: Iterable[tuple[Tile, TileObjects]],
    numbering: Numbering | None = None,
    links: Links | None = None,
) -> Iterator[Step]:
    """Decided pixels and complete objects, tile by tile; ``found`` gives the tiles in raster scan order."""
    return _steps(Frontier(plan, numbering), found, links)


def stream_objects(
    plan: TilePlan,
    found: Iterable[tuple[Tile, TileObjects]],
    numbering: Numbering | None = None,
    links: Links | None = None,
) -> Iterator[MosaicObject]:
    """Complete objects only."""
    for step in stream_steps(plan, found, numbering, links):
        yield from step.objects


def _steps(frontier: Frontier, found: Iterable[tuple[Tile, TileObjects]], links: Links | None) -> Iterator[Step]:
    for tile, objects in found:
        yield from frontier.push(tile, objects, None if links is None else links(tile))
    yield from frontier.finish()
