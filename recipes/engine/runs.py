"""A mask as runs of pixels along columns: what is kept of thousands of masks, and how they are compared.

A blob 50 pixels wide takes 50 runs, however large the picture. Positions count down the columns (Fortran order), as in
COCO: pixel (row, col) of a picture of height H has position ``col * H + row``. A run never leaves its column.

Source:
    The run-length format of COCO (``counts`` begin with background; the text form holds base-32 differences).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import InputError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunMask:
    """A mask in a picture of ``shape``."""

    shape: tuple[int, int]
    """(H, W)."""
    starts: Ints
    """(n,) position of each run's first pixel, ascending."""
    stops: Ints
    """(n,) position behind each run's last pixel."""

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    @cached_property
    def box(self) -> Box:
        """Tight (x0, y0, x1, y1), first and last pixel inside; (0, 0, -1, -1) for an empty mask."""
        if not len(self.starts):
            return 0, 0, -1, -1
        height = self.shape[0]
        rows, last = self.starts % height, (self.stops - 1) % height
        return int(self.starts[0] // height), int(rows.min()), int(self.starts[-1] // height), int(last.max())

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of :attr:`box`."""
        x0, y0, x1, y1 = self.box
        return slice(y0, y1 + 1), slice(x0, x1 + 1)

    def crop(self, rows: slice | None = None, cols: slice | None = None) -> Mask:
        """(h, w) bool of a part of the picture; of the tight box if nothing is named."""
        inner = self.place
        rows, cols = rows or inner[0], cols or inner[1]
        height = self.shape[0]
        first, last = np.searchsorted(self.starts, (cols.start * height, cols.stop * height))
        starts, stops = self.starts[first:last], self.stops[first:last]
        column = starts // height
        tall = rows.stop - rows.start
        top = np.clip(starts - column * height - rows.start, 0, tall)
        bottom = np.clip(stops - column * height - rows.start, 0, tall)
        seen = top < bottom
        edges = np.zeros((cols.stop - cols.start, tall + 1), dtype=np.int8)
        edges[column[seen] - cols.start, top[seen]] = 1
        edges[column[seen] - cols.start, bottom[seen]] = -1  # runs of a column do not touch, so no edge meets another
        return np.ascontiguousarray(edges.cumsum(axis=1, dtype=np.int8)[:, :-1].T.astype(bool))

    def full(self) -> Mask:
        """(H, W) bool."""
        return self.crop(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def intersection(self, other: "RunMask") -> int:
        """Pixels that both masks have."""
        few, many = (self, other) if len(self.starts) <= len(other.starts) else (other, self)
        return int((many._before(few.stops) - many._before(few.starts)).sum())

    def iou(self, other: "RunMask") -> float:
        """Intersection over union, 0 to 1; 0 if both are empty."""
        both = self.intersection(other)
        return both / max(1, self.area + other.area - both)

    def counts(self) -> list[int]:
        """COCO run lengths over the whole picture, column by column: background, object, background, ..."""
        apart = np.flatnonzero(
            self.stops[:-1] != self.starts[1:]
        )  # runs meet where one column ends and the next begins
        starts = np.concatenate([self.starts[:1], self.starts[apart + 1]])
        stops = np.concatenate([self.stops[apart], self.stops[-1:]])
        edges = np.stack([starts, stops], axis=1).ravel()
        total = self.shape[0] * self.shape[1]
        lengths = np.diff(np.concatenate([[0], edges, [total]]))
        found: list[int] = lengths.tolist()
        return found[:-1] if len(found) > 1 and found[-1] == 0 else found

    def coco(self, *, compressed: bool = True) -> dict[str, Any]:
        """COCO's RLE: ``size`` [H, W] and ``counts``, as text or as a list of numbers."""
        counts = self.counts()
        return {"size": list(self.shape), "counts": pack(counts) if compressed else counts}

    @cached_property
    def _areas(self) -> Ints:
        """(n + 1,) pixels in the first 0, 1, ... n runs."""
        return np.concatenate([[0], np.cumsum(self.stops - self.starts)])

    def _before(self, positions: Ints) -> Ints:
        """Pixels of the mask before each position."""
        if not len(self.starts):
            return np.zeros_like(positions)
        index = np.searchsorted(self.starts, positions)
        beyond = np.where(index > 0, self.stops[index - 1] - positions, 0)
        found: Ints = self._areas[index] - np.maximum(beyond, 0)
        return found


def runs_of(mask: Mask, *, top: int = 0, left: int = 0, shape: tuple[int, int] | None = None) -> RunMask:
    """Runs of a mask (h, w) whose first pixel lies at (``top``, ``left``) of a picture of ``shape``; None: its own."""
    height, width = mask.shape
    padded = np.zeros((width, height + 2), dtype=np.bool_)
    padded[:, 1:-1] = mask.T
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, height + 2)
    picture = mask.shape if shape is None else shape
    positions = (column + left) * picture[0] + row + top
    return RunMask(shape=(picture[0], picture[1]), starts=positions[::2], stops=positions[1::2])


def from_coco(rle: Mapping[str, Any]) -> RunMask:
    """Read COCO's RLE, with ``counts`` as text, bytes or numbers.

    Raises:
        InputError: the lengths do not add up to the picture.
    """
    height, width = (int(v) for v in rle["size"])
    given = rle["counts"]
    counts = unpack(given) if isinstance(given, str | bytes) else [int(v) for v in given]
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise InputError(
            f"RLE counts add up to {sum(counts)} pixels (least {min(counts, default=0)}); expected "
            f"{height} x {width} = {height * width}; the RLE belongs to another picture or is damaged"
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs_of(flat.reshape(width, height).T)


def pack(counts: Sequence[int]) -> str:
    """COCO's text of run lengths: from the fourth on the difference to the one but last, 5 bits a character."""
    text = []
    for i, count in enumerate(counts):
        value = int(count) - (int(counts[i - 2]) if i > 2 else 0)
        more = True
        while more:
            digit = value & 31
            value >>= 5  # of a negative number it stays negative, and ends at -1
            more = value != (-1 if digit & 16 else 0)
            text.append(chr(48 + digit + (32 if more else 0)))
    return "".join(text)


def unpack(text: str | bytes) -> list[int]:
    """Run lengths of COCO's text.

    Raises:
        InputError: a character that the format does not have, or an unfinished number.
    """
    letters = text if isinstance(text, bytes) else text.encode("ascii", "replace")
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        digit = letter - 48
        if not 0 <= digit < 64:
            raise InputError(f"RLE text has the character {chr(letter)!r}; expected those from '0' to 'o'")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError("RLE text ends within a number; the file is cut off")
    return counts
