"""What every raster has in common, be it a file, a mosaic of files, or a view of one on another grid.

A :class:`GeoScene` is a Scene whose pixels and validity are read together, by window; it can be looked at small, and
its values can be sampled evenly without reading all of it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array, Scene, Window, explicit_window
from samgraft.grid import Grid

WHOLE_PIXELS = 2**24
"""A raster, or an overview of it, with at most so many pixels is looked at as a whole."""

_BLOCKS = (64, 256)
_MOST_BLOCKS = 4096
_BLOCK_PIXELS = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Valid pixels that stand for a whole raster."""

    values: Array
    """(C, n), in the order in which they were met."""
    how: str
    """Where they come from, in words; stored with what was measured on them."""


class GeoScene(Scene):
    """A raster; subclasses give pixels and validity of a window together, in ``_both``."""

    color: tuple[str, ...] = ()
    """Colour interpretation of each channel ("red", "gray", "undefined", ...)."""
    block_shape: tuple[int, int] = (256, 256)
    """(rows, columns) of one stored block; reading whole blocks is fastest."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the pixels come from; a change of one of them is a change of the scene."""
        return (self.path,)

    def touches(self, window: Window) -> bool:
        """Whether a window can hold anything valid, as far as is known without reading a pixel.

        A window outside all files of a mosaic, or outside the area of interest, need not be read at all.
        """
        return True

    @abstractmethod
    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels (C, h, w) and validity (h, w) of a checked window and channel choice."""

    def read_valid(
        self, window: Window | None = None, channels: Sequence[int] | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window, with every block unpacked once; see :meth:`Scene.read_valid`."""
        return self._both(explicit_window(window, self.grid.shape), self._chosen(channels))

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Pixels of a checked window; see :meth:`Scene.read`."""
        return self._both(window, channels)[0]

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Validity of a checked window; see :meth:`Scene.valid`."""
        return self._both(window, tuple(range(self.channels)))[1]

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """Show the whole raster at reduced size.

        Args:
            max_pixels: Upper bound of rows times columns.

        Returns:
            Values (C, h, w) of ``dtype`` and validity (h, w): every pixel is one pixel of the raster, or of a stored
            overview.

        Raises:
            InputError: the file is damaged.
        """
        height, width = reduced_shape(self.grid.shape, max_pixels)
        rows, cols = _middles(height, self.grid.shape[0]), _middles(width, self.grid.shape[1])
        array = np.zeros((self.channels, height, width), dtype=self.dtype)
        valid = np.zeros((height, width), dtype=np.bool_)
        for number, row in enumerate(rows.tolist()):
            line, seen = self.read_valid((slice(row, row + 1), slice(None)))
            array[:, number], valid[number] = line[:, 0, cols], seen[0, cols]
        return array, valid

    def sample(self, limit: int = 1_000_000) -> Sample:
        """Valid pixels of blocks that are spread evenly over the raster; the same ones on every call.

        Where the blocks hold nothing valid, more are read, up to 4096.

        Args:
            limit: About how many pixels to give at most.

        Raises:
            InputError: a block is damaged.
        """
        area = min(_BLOCK_PIXELS, self.block_shape[0] * self.block_shape[1])
        count = min(_BLOCKS[1], max(_BLOCKS[0], WHOLE_PIXELS // area))
        while True:
            windows, every = spread(self.grid.shape, self.block_shape, count)
            total = sum((rows.stop - rows.start) * (cols.stop - cols.start) for rows, cols in windows)
            step = -(-total // max(1, limit)) | 1  # odd: an even step would meet the same columns again and again
            found = []
            for window in windows:
                array, valid = self.read_valid(window)
                found.append(array[:, valid][:, ::step])
            values = np.concatenate(found, axis=1)
            if values.shape[1] or len(windows) == every or count >= _MOST_BLOCKS:
                how = "every pixel" if total == np.prod(self.grid.shape) else f"{len(windows)} of {every} blocks"
                return Sample(values=values, how=how if step == 1 else f"one pixel in {step} of {how}")
            count *= 4


class ViewScene(GeoScene):
    """Another raster seen differently; what a subclass does not change is that of the source."""

    def __init__(self, source: GeoScene, grid: Grid, remark: str) -> None:
        """Take over the header.

        Args:
            source: The raster that is read.
            grid: Grid of the view.
            remark: What is different, for ``notes``.
        """
        self.source = source
        """The raster that is read."""
        self.color = source.color
        self.block_shape = source.block_shape
        super().__init__(
            path=source.path,
            kind="raster",
            grid=grid,
            channels=source.channels,
            dtype=source.dtype,
            format=source.format,
            value_range=source.value_range,
            channel_names=source.channel_names,
            frame_known=source.frame_known,
            notes=(*source.notes, remark),
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the source."""
        return self.source.files

    @property
    def cheap_slabs(self) -> bool:
        """As of the source."""
        return self.source.cheap_slabs

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """That of the source."""
        return self.source.overview(max_pixels)

    def sample(self, limit: int = 1_000_000) -> Sample:
        """That of the source: a pixel looks the same, however it is viewed."""
        return self.source.sample(limit)


def reduced_shape(shape: tuple[int, ...], max_pixels: int) -> tuple[int, int]:
    """(rows, columns) with the proportions of ``shape`` and at most ``max_pixels`` pixels, at least one each."""
    height, width = shape
    factor = max(1.0, float(np.sqrt(height * width / max(1, max_pixels))))
    return max(1, int(height / factor)), max(1, int(width / factor))


def spread(shape: tuple[int, ...], block: tuple[int, int], count: int) -> tuple[list[tuple[slice, slice]], int]:
    """Windows of about ``count`` blocks, evenly spaced in both directions, and the number of blocks there are.

    Of a block with more than 4 million pixels, only its middle rows.
    """
    sides = [-(-length // size) for length, size in zip(shape, block, strict=True)]
    down = min(sides[0], max(1, round(float(np.sqrt(count * sides[0] / sides[1])))))
    across = min(sides[1], max(1, -(-count // down)))
    down = min(sides[0], max(1, -(-count // across)))
    most_rows = max(1, _BLOCK_PIXELS // block[1])
    windows = []
    for row in _middles(down, sides[0]).tolist():
        top, bottom = row * block[0], min(shape[0], (row + 1) * block[0])
        cut = max(0, bottom - top - most_rows)
        rows = slice(top + cut // 2, bottom - (cut - cut // 2))
        for col in _middles(across, sides[1]).tolist():
            windows.append((rows, slice(col * block[1], min(shape[1], (col + 1) * block[1]))))
    return windows, sides[0] * sides[1]


def _middles(count: int, length: int) -> NDArray[np.int64]:
    """``count`` indices into ``length`` elements: the middles of equal parts."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * length) // (2 * count)
