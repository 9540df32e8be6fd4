"""A plane of a scene (a slice, a raster, a picture) as a network takes it: three channels, values in [0, 1]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.scene import Array, Scene
from samgraft.recipes.engine.windows import Window
from samgraft.recipes.look import Look, look_at

__all__ = ["Look", "Plane", "Rows", "fill_window", "look_at", "plane_shape"]

WHOLE_BYTES = 256 * 2**20
"""A raster up to this size is read once; a larger one window by window."""


class Plane:
    """One slice of a volume, or a whole raster or picture.

    Args:
        scene: Where the pixels are.
        look: Channels and scale.
        axis: Array axis of a volume that is cut; None for two dimensions.
        index: Slice along ``axis``.
    """

    def __init__(self, scene: Scene, look: Look, *, axis: int | None = None, index: int = 0) -> None:
        """Remember the place; small planes are read on first use and kept."""
        self.scene, self.look, self.axis, self.index = scene, look, axis, index
        self.shape: tuple[int, int] = plane_shape(scene.grid.shape, axis)
        self.lazy = scene.kind == "raster" and scene.nbytes > WHOLE_BYTES
        self._pixels: NDArray[np.float32] | None = None

    def read(self, rows: slice, cols: slice) -> NDArray[np.float32]:
        """(3, h, w) float32 in [0, 1] of a part inside the plane."""
        if self.lazy:
            return self._load((rows, cols))
        if self._pixels is None:
            whole = (slice(0, self.shape[0]), slice(0, self.shape[1]))
            self._pixels = self._load(whole)
        return self._pixels[:, rows, cols]

    def whole(self) -> Tensor:
        """(3, H, W) float in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(self.read(slice(0, self.shape[0]), slice(0, self.shape[1]))))

    def valid(self, rows: slice | None = None, cols: slice | None = None) -> NDArray[np.bool_]:
        """(h, w): where the scene has data."""
        part = (rows or slice(0, self.shape[0]), cols or slice(0, self.shape[1]))
        return self.scene.valid(self._window(part)).reshape([s.stop - s.start for s in part])

    def crop(self, window: Window) -> Tensor:
        """(3, side, side) float in [0, 1]; edge pixels repeat where the window leaves the plane."""
        return fill_window(self.read(*window.clipped(self.shape)), window, self.shape)

    def _load(self, part: tuple[slice, slice]) -> NDArray[np.float32]:
        window = self._window(part)
        raw = self.scene.read(window, self.look.channels)
        raw = raw.reshape(len(self.look.channels), *(s.stop - s.start for s in part))
        seen = self.look.apply(raw)
        if self.scene.kind == "raster":
            seen = seen * self.scene.valid(window)[None]
        return np.ascontiguousarray(seen, dtype=np.float32)

    def _window(self, part: tuple[slice, slice]) -> tuple[slice, ...]:
        if self.axis is None:
            return part
        explicit = list(part)
        explicit.insert(self.axis, slice(self.index, self.index + 1))
        return tuple(explicit)


class Rows:
    """A plane that is walked from top to bottom: every block of a raster is unpacked once, however windows overlap.

    Holds the stored values of the rows between the top of the last window and the end of the block row that its last
    row lies in. Pictures, slices, and rasters without an index of their blocks are read by the plane itself.

    Args:
        plane: Where the pixels are; nobody else should read it meanwhile.
    """

    def __init__(self, plane: Plane) -> None:
        """Hold nothing yet."""
        self.plane = plane
        self._step: int = getattr(plane.scene, "block_shape", (1, 1))[0]
        self._moving = plane.scene.kind == "raster" and plane.scene.cheap_slabs
        self._top, self._stop = 0, 0
        self._raw: Array = np.zeros((len(plane.look.channels), 0, plane.shape[1]), dtype=plane.scene.dtype)
        self._valid: NDArray[np.bool_] = np.zeros((0, plane.shape[1]), dtype=np.bool_)

    def read(self, rows: slice, cols: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(3, h, w) float32 in [0, 1] of a part inside the plane, and (h, w) where it has data.

        ``rows.start`` should not be less than before; going back costs another read.
        """
        if not self._moving:
            if self.plane.lazy:
                return self.plane.read(rows, cols), self.plane.valid(rows, cols)
            if len(self._valid) == 0:
                self._valid = self.plane.valid()
            return self.plane.read(rows, cols), self._valid[rows, cols]
        self._move(rows)
        part = slice(rows.start - self._top, rows.stop - self._top)
        valid = self._valid[part, cols].copy()  # a view would keep all rows alive
        seen = self.plane.look.apply(self._raw[:, part, cols]) * valid[None]
        return np.ascontiguousarray(seen, dtype=np.float32), valid

    def _move(self, rows: slice) -> None:
        """Let go of rows above ``rows`` and read what is missing, up to the end of a block row."""
        if not self._top <= rows.start <= self._stop:
            self._raw, self._valid = self._raw[:, :0], self._valid[:0]
            self._top = self._stop = rows.start
        if rows.stop > self._stop:
            stop = min(self.plane.shape[0], -(-rows.stop // self._step) * self._step)
            window = (slice(self._stop, stop), slice(0, self.plane.shape[1]))
            raw, valid = self.plane.scene.read_valid(window, self.plane.look.channels)
            old = slice(rows.start - self._top, None)
            self._raw = np.concatenate([self._raw[:, old], raw], axis=1)
            self._valid = np.concatenate([self._valid[old], valid])
            self._top, self._stop = rows.start, stop


def fill_window(part: NDArray[np.float32], window: Window, shape: tuple[int, int]) -> Tensor:
    """(3, side, side): the pixels of ``window`` inside a picture of ``shape``, edge pixels repeated beyond it."""
    inner_rows, inner_cols = window.inner(shape)
    pads = [(0, 0)] + [(s.start, window.side - s.stop) for s in (inner_rows, inner_cols)]
    return torch.from_numpy(np.pad(part, pads, mode="edge"))


def plane_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, int]:
    """(H, W) of a plane of an array of ``shape``, cut along ``axis``."""
    height, width = (n for i, n in enumerate(shape) if i != axis)
    return height, width
