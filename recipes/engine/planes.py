"""A plane of a scene (a slice, a raster, a picture) as a network takes it: three channels, values in [0, 1]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.scene import Scene
from samgraft.recipes.engine.windows import Window
from samgraft.recipes.look import Look, fixed_look, look_at

__all__ = ["Look", "Plane", "fixed_look", "look_at", "plane_shape"]

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
        rows, cols = window.clipped(self.shape)
        part = self.read(rows, cols)
        inner_rows, inner_cols = window.inner(self.shape)
        pads = [(0, 0)] + [(s.start, window.side - s.stop) for s in (inner_rows, inner_cols)]
        return torch.from_numpy(np.pad(part, pads, mode="edge"))

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


def plane_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, int]:
    """(H, W) of a plane of an array of ``shape``, cut along ``axis``."""
    height, width = (n for i, n in enumerate(shape) if i != axis)
    return height, width
