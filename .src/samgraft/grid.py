"""The geometry of an image: where each array element lies in the world.

A :class:`Grid` is what makes a mask usable: it comes out of a reader, travels with the pixels, and goes into the writer
unchanged. Arrays are (row, col) or (D, H, W); world coordinates are (x, y) or (x, y, z).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import GeometryError, ShapeError

Anchor = Literal["center", "corner"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """Shape and placement of an array; compared bit by bit."""

    shape: tuple[int, ...]
    """Spatial array shape: (H, W) or (D, H, W). Channels are not part of a grid."""
    affine: NDArray[np.float64]
    """3x3 or 4x4, read-only; maps (row, col, 1) to (x, y, 1) or (d, h, w, 1) to (x, y, z, 1) in mm or CRS units."""
    world: str = "pixel"
    """"LPS" or "RAS" (patient, mm), a CRS as WKT, or "pixel" when the file has no world."""
    nodata: float | None = None
    """Value that marks a missing pixel, or None. NaN is allowed."""
    anchor: Anchor = "center"
    """What an integer index denotes: the element's centre (volumes, pictures) or its corner (rasters, as in GDAL)."""

    def __post_init__(self) -> None:
        """Check shape, affine and finiteness; freeze the affine."""
        ndim = len(self.shape)
        if ndim not in (2, 3) or any(int(n) < 1 for n in self.shape):
            raise ShapeError(f"grid shape is {self.shape}; expected two or three positive sides")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (ndim + 1, ndim + 1):
            raise ShapeError(f"affine is {affine.shape}; a {ndim}D grid needs ({ndim + 1}, {ndim + 1})")
        if not np.isfinite(affine).all():
            raise GeometryError(f"affine has non-finite values:\n{affine}")
        if np.linalg.matrix_rank(affine[:ndim, :ndim]) < ndim:
            raise GeometryError(f"affine is singular, so some array axis has no direction in the world:\n{affine}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Length of one step along each array axis, in array-axis order, in mm or CRS units."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def to_world(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map array indices (..., ndim) in axis order to world coordinates (..., ndim)."""
        index = np.asarray(index, dtype=np.float64)
        return np.asarray(index @ self.affine[:-1, :-1].T + self.affine[:-1, -1], dtype=np.float64)

    def to_index(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map world coordinates (..., ndim) to fractional array indices (..., ndim) in axis order."""
        world = np.asarray(world, dtype=np.float64)
        offset = (world - self.affine[:-1, -1])[..., None]
        return np.asarray(np.linalg.solve(self.affine[:-1, :-1], offset)[..., 0], dtype=np.float64)

    def corners(self) -> NDArray[np.float64]:
        """World coordinates of the outer corner elements, shape (2**ndim, ndim)."""
        ends = [(0, n if self.anchor == "corner" else n - 1) for n in self.shape]
        index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, self.ndim)
        return self.to_world(index.astype(np.float64))

    def corner_distance(self, other: "Grid") -> float:
        """Largest distance between corresponding corners, in world units; inf if worlds or dimensions differ."""
        if self.ndim != other.ndim or self.world != other.world:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def require_equal(self, other: "Grid", what: str) -> None:
        """Raise if ``other`` differs in shape, or in place by more than a thousandth of a voxel.

        Raises:
            GeometryError: names both shapes and the largest corner distance.
        """
        distance = self.corner_distance(other)
        if self.shape != other.shape or distance > 1e-3 * min(self.spacing):
            unit = "mm" if self.world in ("LPS", "RAS") else "world units"
            raise GeometryError(
                f"{what}: grids differ: shape {other.shape}, expected {self.shape}; largest corner distance "
                f"{distance:.4g} {unit}; resample the label onto the image's grid"
            )

    def crop(self, window: tuple[slice, ...]) -> "Grid":
        """Grid of ``array[window]``; every slice needs explicit non-negative bounds and step 1."""
        start = np.array([s.start for s in window], dtype=np.float64)
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_world(start)
        shape = tuple(s.stop - s.start for s in window)
        return Grid(shape=shape, affine=affine, world=self.world, nodata=self.nodata, anchor=self.anchor)

    def __eq__(self, other: object) -> bool:
        """Bit-equality of every field (NaN nodata equals NaN)."""
        if not isinstance(other, Grid):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        """Hash of the same fields."""
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        nodata = None if self.nodata is None else np.float64(self.nodata).tobytes()
        return (self.shape, self.affine.tobytes(), self.world, nodata, self.anchor)
