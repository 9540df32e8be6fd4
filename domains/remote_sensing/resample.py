"""A raster with larger or smaller pixels: at the ground sampling distance that an adapter was trained at.

A :class:`ResampledScene` covers exactly the ground of its source: the corners are the same, only the number of rows
and columns differs. Labels found on it go back to the source's pixels by :meth:`ResampledScene.to_source`. Larger
pixels are means of those that they cover, smaller ones are interpolated linearly; missing pixels have no weight.
Weights depend on a pixel's place in the raster alone, so its value does not depend on the window that is read.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from samgraft.domains.remote_sensing.geo_scene import GeoScene, ViewScene
from samgraft.domains.remote_sensing.georeference import ground_step
from samgraft.domains.remote_sensing.warp_grid import scaled
from samgraft.domains.scene import Array, Window, explicit_window
from samgraft.errors import ConfigError, GeometryError, ShapeError

SAME_GSD = 0.01
"""A ground sampling distance that differs by less than this share is left as it is."""

Kernel = Literal["nearest", "linear"]
"""Nearest keeps stored values; linear takes means of larger, and interpolates smaller pixels."""


class ResampledScene(ViewScene):
    """A raster on the same ground with another number of rows and columns."""

    def __init__(self, source: GeoScene, shape: tuple[int, int], *, kernel: Kernel = "linear") -> None:
        """Divide the ground of ``source`` anew; no pixel is read.

        Args:
            source: Any raster.
            shape: New (H, W).
            kernel: How values are computed.

        Raises:
            ConfigError: an unknown kernel.
        """
        if kernel not in ("nearest", "linear"):
            raise ConfigError(f"kernel is {kernel!r}; expected 'nearest' or 'linear'")
        self.kernel: Kernel = kernel
        """How values are computed."""
        height, width = source.grid.shape
        super().__init__(source, scaled(source.grid, shape), f"resampled from {height} x {width}")
        self.block_shape = _blocks(source.block_shape, source.grid.shape, shape)

    @property
    def factor(self) -> tuple[float, float]:
        """Rows and columns of the source in one row and column of this scene."""
        rows, cols = (a / b for a, b in zip(self.source.grid.shape, self.grid.shape, strict=True))
        return rows, cols

    def covering(self, window: Window | None = None) -> tuple[slice, slice]:
        """Window of this scene whose pixels hold the centres of all pixels of a window of the source."""
        parts = explicit_window(window, self.source.grid.shape)
        places = [self._places(axis, part) for axis, part in enumerate(parts)]
        rows, cols = (slice(int(place[0]), int(place[-1]) + 1) for place in places)
        return rows, cols

    def to_source(self, labels: Array, window: Window | None = None) -> Array:
        """Bring labels back to the pixels of the source: each takes the label of the pixel that holds its centre.

        Args:
            labels: (h, w) of ``covering(window)``; without a window also of the whole grid, which is more where pixels
                became less than half as wide.
            window: Rows and columns of the source; None is all of it.

        Returns:
            Labels of the source's window, same dtype.

        Raises:
            ShapeError: labels of another shape.
        """
        parts = explicit_window(window, self.source.grid.shape)
        rows, cols = (self._places(axis, part) for axis, part in enumerate(parts))
        if window is None and labels.shape == self.grid.shape:
            return labels[np.ix_(rows, cols)]
        expected = (int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1)
        if labels.shape != expected:
            raise ShapeError(f"labels are {labels.shape}; this window is covered by {expected} pixels")
        return labels[np.ix_(rows - rows[0], cols - cols[0])]

    def touches(self, window: Window) -> bool:
        """As of the source there; see :class:`GeoScene`."""
        sides = zip(window, self.source.grid.shape, self.grid.shape, strict=True)
        return self.source.touches(tuple(slice(w.start * a // b, -(-w.stop * a // b)) for w, a, b in sides))

    def _places(self, axis: int, part: slice) -> NDArray[np.int64]:
        """Index along an axis of the pixel that holds each pixel centre of the source; exact in whole numbers."""
        index = np.arange(part.start, part.stop, dtype=np.int64)
        return ((2 * index + 1) * self.grid.shape[axis]) // (2 * self.source.grid.shape[axis])

    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window."""
        sides = zip(window, self.source.grid.shape, self.grid.shape, strict=True)
        rows, cols = (_weights(part, before, after, self.kernel) for part, before, after in sides)
        array, valid = self.source.read_valid((rows.part, cols.part), channels)
        if self.kernel == "nearest":
            top, left = rows.nearest, cols.nearest
            return array[:, top[:, None], left[None]], valid[top[:, None], left[None]]
        share = None if valid.all() else rows.matrix @ valid.astype(np.float64) @ cols.matrix.T
        if share is not None:
            share[share > 1.0 - 1e-9] = 1.0  # so that a pixel with nothing missing is the same beside missing ones
        shape = (rows.matrix.shape[0], cols.matrix.shape[0])
        values = np.zeros((len(channels), *shape), dtype=self.dtype)
        for number, channel in enumerate(array):
            known = channel if share is None else np.where(valid, channel, 0)
            mean = rows.matrix @ known.astype(np.float64) @ cols.matrix.T
            if share is not None:
                mean = np.divide(mean, share, out=np.zeros_like(mean), where=share > 0)
            values[number] = _as(mean, self.dtype)
        return values, np.ones(shape, dtype=np.bool_) if share is None else np.asarray(share >= 0.5 - 1e-9)


def at_gsd(
    scene: GeoScene, gsd: float | tuple[float, float], *, kernel: Kernel = "linear", tolerance: float = SAME_GSD
) -> GeoScene:
    """A raster at a ground sampling distance, for an adapter that was trained at it.

    The pixel size is rounded so that whole pixels cover the source exactly.

    Args:
        scene: Any raster.
        gsd: Metres on the ground per pixel at the raster's centre (see :func:`ground_step`), or those of rows and of
            columns.
        kernel: How values are computed.
        tolerance: Largest share by which pixels may differ and are left as they are.

    Returns:
        The scene itself where its pixels have that size, else a :class:`ResampledScene`.

    Raises:
        ConfigError: ``gsd`` is not above 0.
        GeometryError: the raster's world has no known unit.
    """
    wanted = gsd if isinstance(gsd, tuple) else (gsd, gsd)
    if not all(np.isfinite(size) and size > 0 for size in wanted):
        raise ConfigError(f"gsd is {gsd}; expected metres per pixel, above 0")
    step = ground_step(scene.grid)
    if step is None:
        raise GeometryError(
            f"{scene.path} has no CRS with a known unit, so its pixel size in metres is unknown and gsd={gsd} has no "
            f"meaning; give it one: gdal_edit.py -a_srs EPSG:... {scene.path.name}"
        )
    ratios = [metres / size for metres, size in zip(step, wanted, strict=True)]
    if all(abs(ratio - 1.0) < tolerance for ratio in ratios):
        return scene
    height, width = (
        max(1, round(n * _whole(ratio, SAME_GSD))) for n, ratio in zip(scene.grid.shape, ratios, strict=True)
    )
    return ResampledScene(scene, (height, width), kernel=kernel)


def _whole(ratio: float, tolerance: float) -> float:
    """``ratio``, or the whole number or its inverse that is as good: 2 x 2 pixels make one, and not 1.9992 x 1.9992."""
    near = float(round(ratio)) if ratio >= 1.0 else 1.0 / round(1.0 / ratio)
    return near if abs(near / ratio - 1.0) < tolerance else ratio


@dataclass(frozen=True, eq=False)
class _Axis:
    """Which elements of the source make those of a part of an axis."""

    part: slice
    """Elements of the source that are read."""
    matrix: csr_array
    """(new, read): weights of the elements read; rows add up to 1."""
    nearest: NDArray[np.int64]
    """Index into ``part`` of the element at the centre of each new one."""


def _weights(part: slice, before: int, after: int, kernel: Kernel) -> _Axis:
    """Weights along one axis: ``before`` elements become ``after``; ``part`` of the latter is wanted."""
    index = np.arange(part.start, part.stop, dtype=np.int64)
    middle = ((2 * index + 1) * before) // (2 * after)
    if kernel == "nearest":
        return _Axis(slice(int(middle[0]), int(middle[-1]) + 1), csr_array((0, 0)), middle - middle[0])
    if after <= before:
        rows, cols, weight = _mean(index, before, after)
    else:
        rows, cols, weight = _linear(index, before, after)
    first, last = int(cols.min()), int(cols.max())
    matrix = csr_array((weight, (rows, cols - first)), shape=(len(index), last + 1 - first))
    return _Axis(slice(first, last + 1), matrix, np.clip(middle, first, last) - first)


def _mean(
    index: NDArray[np.int64], before: int, after: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Elements covered by each larger one, weighted by how much of them it covers; whole numbers until the end."""
    start, stop = index * before, (index + 1) * before  # in units of 1 / after of an element
    most = before // after + 2
    cols = (start // after)[:, None] + np.arange(most)
    cover = np.minimum(stop[:, None], (cols + 1) * after) - np.maximum(start[:, None], cols * after)
    rows = np.broadcast_to(np.arange(len(index))[:, None], cols.shape)
    keep = cover > 0
    return rows[keep], cols[keep], cover[keep] / before


def _linear(
    index: NDArray[np.int64], before: int, after: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The two elements on either side of the centre of each smaller one; the edge repeats."""
    place = np.clip(((2 * index + 1) * before - after) / (2 * after), 0, before - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, before - 1)
    share = place - low
    rows = np.arange(len(index))
    return np.concatenate([rows, rows]), np.concatenate([low, high]), np.concatenate([1 - share, share])


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """Round and clip to integers, or cast to floats."""
    if dtype.kind not in "iu":
        return values.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)


def _blocks(block: tuple[int, int], before: tuple[int, ...], after: tuple[int, int]) -> tuple[int, int]:
    """A block of the source, in new pixels."""
    rows, cols = (max(1, round(b * new / old)) for b, old, new in zip(block, before, after, strict=True))
    return rows, cols
