"""Objects that tiles cut and no neighbour completes: where they end, and the views that show them whole.

A part ends openly if it stops at an inner edge of its tile and nothing that it was joined with goes on there. Such a
part has a straight side that the object does not have. It is not kept; its points are asked again in a view that is
centred on it, as wide as a tile or twice as wide as the part, so that the object is seen whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.prompts.clicks import deepest_point
from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.crops import Crop
from samgraft.recipes.engine.runs import RunMask

GOES_ON = 0.75
"""Share of a straight side beyond which the mask must go on."""
ROOM = 0.5
"""A view leaves this share of a part's longer side free around it, but at the edge of the picture."""
WIDEST = 4
"""A view is at most so many tiles wide; larger objects would be drawn too coarsely, and are left out."""


@dataclass(frozen=True)
class _Side:
    """An edge of a tile, and what lies on its two sides."""

    axis: int
    """Across the edge."""
    along: slice
    """Where the part lies along the other axis."""
    at: slice
    """The last pixels of the tile."""
    beyond: slice
    """As many behind them."""

    def seen(self, mask: RunMask, depth: slice) -> NDArray[np.bool_]:
        """For every place along the edge whether the mask has a pixel at that depth."""
        window = (depth, self.along) if self.axis == 0 else (self.along, depth)
        found: NDArray[np.bool_] = np.asarray(mask.crop(*window).any(axis=self.axis))
        return found


@dataclass(frozen=True, eq=False)
class Piece:
    """Parts of one object, and the mask that they make together."""

    mask: Candidate
    parts: tuple[Candidate, ...]

    @property
    def extent(self) -> int:
        """Longer side of its box in pixels."""
        x0, y0, x1, y1 = self.mask.runs.box
        return max(x1 - x0, y1 - y0) + 1

    @property
    def middle(self) -> tuple[float, float]:
        """(x, y) of its deepest pixel: as sure a place as there is, where a point at its rim was asked before."""
        rows, cols = self.mask.runs.place
        x, y = deepest_point(self.mask.runs.crop())
        return float(x + cols.start), float(y + rows.start)

    def ends_openly(self) -> bool:
        """Whether a part stops at an inner edge of its tile where the mask does not go on."""
        whole = self.mask.runs
        return any(_stops(part.runs, whole, side) for part in self.parts for side in _cut_sides(part))


@dataclass(eq=False)
class _View:
    """A rectangle that is looked at again."""

    crop: Crop
    asked: list[tuple[float, float]] = field(default_factory=list)

    def shows(self, piece: Piece, side: int) -> bool:
        """Whether the piece lies in it with room on all sides, and not much smaller than in a view of its own."""
        x0, y0, x1, y1 = piece.mask.runs.box
        height, width = piece.mask.runs.shape
        rows, cols = self.crop.place
        room = ROOM * piece.extent
        near = (x0 - cols.start, y0 - rows.start, cols.stop - 1 - x1, rows.stop - 1 - y1)
        ends = (cols.start == 0, rows.start == 0, cols.stop == width, rows.stop == height)
        inside = all(gap >= (0 if end else room) for gap, end in zip(near, ends, strict=True))
        return inside and max(self.crop.height, self.crop.width) <= 2 * _needed(piece, side)

    def points(self) -> Tensor:
        """(n, 2) float (x, y) in pixels of the view, moved into it where a mask lies beside its point."""
        corner = torch.tensor([self.crop.left, self.crop.top], dtype=torch.float32)
        last = torch.tensor([self.crop.width, self.crop.height], dtype=torch.float32) - 1
        points = torch.tensor(list(dict.fromkeys(self.asked)), dtype=torch.float32) - corner
        return points.clamp_min(0).minimum(last)


def views(pieces: Sequence[Piece], side: int, most: int) -> list[tuple[Crop, Tensor]]:
    """Views that show each piece whole, from top to bottom, and the points (n, 2) to ask there.

    Args:
        pieces: In one picture; neighbours share a view where it shows both.
        side: Of a tile, in pixels.
        most: Views at most; the best pieces come first, what is left is not looked at again.
    """
    found: list[_View] = []
    fitting = [piece for piece in pieces if _needed(piece, side) <= WIDEST * side]
    for piece in sorted(fitting, key=lambda piece: -piece.mask.iou):
        home = next((view for view in found if view.shows(piece, side)), None)
        if home is None and len(found) < most:
            home = _View(_centred(piece, _needed(piece, side)))
            found.append(home)
        if home is not None:
            home.asked += [piece.middle, *(part.point for part in piece.parts)]
    found.sort(key=lambda view: (view.crop.top, view.crop.left))
    return [(view.crop, view.points()) for view in found]


def _needed(piece: Piece, side: int) -> int:
    """Side of a view that shows the piece with room around it."""
    return max(side, round((1 + 2 * ROOM) * piece.extent))


def _centred(piece: Piece, side: int) -> Crop:
    """A square of ``side`` around the piece, moved into the picture and cut where the picture is smaller."""
    x0, y0, x1, y1 = piece.mask.runs.box
    height, width = (min(side, length) for length in piece.mask.runs.shape)
    top = min(max(0, (y0 + y1 + 1 - height) // 2), piece.mask.runs.shape[0] - height)
    left = min(max(0, (x0 + x1 + 1 - width) // 2), piece.mask.runs.shape[1] - width)
    return Crop(top=top, left=left, height=height, width=width, tile=True)


def _cut_sides(part: Candidate) -> Iterator[_Side]:
    """The edges of its tile that a part reaches, as ``is_cut`` has it; those of the picture are none."""
    x0, y0, x1, y1 = part.runs.box
    (height, width), reach, crop = part.runs.shape, part.margin, part.crop
    spans = ((y0, y1, crop.top, crop.height, height), (x0, x1, crop.left, crop.width, width))
    for axis, (first, last, start, extent, length) in enumerate(spans):
        along, stop = slice(spans[1 - axis][0], spans[1 - axis][1] + 1), start + extent
        if first - start <= reach < first:
            yield _Side(axis, along, slice(start, start + reach + 1), slice(max(0, start - reach - 1), start))
        if stop - last <= reach < length - last:
            at = slice(max(start, stop - reach - 1), stop)
            yield _Side(axis, along, at, slice(stop, min(length, stop + reach + 1)))


def _stops(part: RunMask, whole: RunMask, side: _Side) -> bool:
    """Whether most of what a part has at an edge has nothing of the whole beyond it."""
    contact, beyond = side.seen(part, side.at), side.seen(whole, side.beyond)
    return int((contact & beyond).sum()) < GOES_ON * int(contact.sum())
