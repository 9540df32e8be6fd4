"""Conversion between :class:`samgraft.grid.Grid` and GDAL's georeference (transform, CRS), without rounding.

A raster grid is anchored at pixel corners: its affine maps (row, col, 1) to (x, y, 1), so its columns are those of
GDAL's geotransform with the first two swapped. No number is recomputed on the way: reading and writing are bit-exact.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from samgraft.errors import GeometryError
from samgraft.grid import Grid

PointMap = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps coordinates (N, 2) to coordinates (N, 2), x first."""

UNKNOWN_CRS = "unknown CRS"
"""``Grid.world`` of a raster that has a transform but no coordinate reference system."""
PIXEL = "pixel"
"""``Grid.world`` of an image without any georeference."""

_WGS84_RADIUS = 6378137.0
_WGS84_FLATTENING = 1.0 / 298.257223563


def grid_of(transform: Affine, crs: CRS | None, shape: tuple[int, int], nodata: float | None = None) -> Grid:
    """Build the grid of a raster from its GDAL georeference.

    Args:
        transform: Maps (col, row) of a pixel corner to (x, y) of the CRS.
        crs: Coordinate reference system, or None.
        shape: (H, W).
        nodata: Value that marks a missing pixel, or None.

    Raises:
        GeometryError: the transform is singular or not finite.
    """
    a, b, c, d, e, f = (float(v) for v in transform[:6])
    affine = np.array([[b, a, c], [e, d, f], [0.0, 0.0, 1.0]])
    if crs:
        world = canonical_wkt(crs)
    else:
        world = PIXEL if transform == Affine.identity() else UNKNOWN_CRS
    return Grid(shape=shape, affine=affine, world=world, nodata=nodata, anchor="corner")


def transform_of(grid: Grid) -> Affine:
    """Return the GDAL transform (col, row of a pixel corner -> x, y) of a 2D grid.

    A picture (world "pixel") gets the identity: x to the right, y down, pixel (0, 0) covers [0, 1) x [0, 1).

    Raises:
        GeometryError: the grid is not 2D, or its world is a patient.
    """
    if grid.ndim != 2 or grid.world in ("LPS", "RAS"):
        raise GeometryError(
            f"a {grid.ndim}D grid in {grid.world[:40]!r} has no map transform; expected a raster or a picture; "
            "write volumes as .nii.gz, .mha or .nrrd"
        )
    (b, a, c), (e, d, f) = grid.affine[:2].tolist()
    if grid.anchor == "center" and grid.world != PIXEL:
        c, f = c - 0.5 * (a + b), f - 0.5 * (d + e)
    return Affine(a, b, c, d, e, f)


def crs_of(grid: Grid) -> CRS | None:
    """Return the CRS of a grid, or None when it has none.

    Raises:
        GeometryError: ``grid.world`` is not a CRS that PROJ understands.
    """
    if grid.world in (PIXEL, UNKNOWN_CRS, ""):
        return None
    try:
        return CRS.from_user_input(grid.world)
    except CRSError as error:
        raise GeometryError(f"grid world {grid.world[:60]!r} is not a coordinate reference system: {error}") from error


def point_map(transform: Affine) -> PointMap:
    """Return a function that applies a transform to coordinates (N, 2), x (or col) first."""
    a, b, c, d, e, f = (float(v) for v in transform[:6])

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    return move


def canonical_wkt(crs: CRS) -> str:
    """Return one WKT per CRS: that of the EPSG registry if the CRS equals a registered one, else its own.

    Sidecar files (``.aux.xml``) often hold an abbreviated WKT of a registered CRS; without this step the same CRS read
    from two kinds of file would differ as text.
    """
    code = registered_code(crs)
    return str(crs.to_wkt() if code is None else CRS.from_epsg(code).to_wkt())


def registered_code(crs: CRS) -> int | None:
    """EPSG code of a CRS that equals a registered one, else None."""
    return _code_of(str(crs.to_wkt()))


@lru_cache(maxsize=256)
def _code_of(wkt: str) -> int | None:
    """EPSG code of a WKT; the search through the registry takes tenths of a second for unregistered ones."""
    crs = CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return int(code) if code is not None and CRS.from_epsg(code) == crs else None


def equal_area(points: NDArray[np.float64], crs: CRS | None) -> NDArray[np.float64] | None:
    """Map coordinates (N, 2) of a CRS to a plane (N, 2) where areas are square metres; None if that is not known.

    Projected CRS: scaled by the unit of length; the projection's own distortion stays. Geographic CRS: Lambert's
    cylindrical equal-area projection on the WGS84 ellipsoid, exact for edges along meridians and parallels, which is
    what pixel outlines of an unrotated raster are.

    Source:
        J. P. Snyder, Map Projections: A Working Manual (USGS 1395), equations 3-12 and 10-14 with standard parallel 0.
    """
    if crs is None:
        return None
    if not crs.is_geographic:
        try:
            factor = float(crs.linear_units_factor[1])
        except CRSError:
            return None
        return points * factor
    e2 = _WGS84_FLATTENING * (2.0 - _WGS84_FLATTENING)
    e = math.sqrt(e2)
    to_radians = float(crs.units_factor[1])
    sin = np.sin(points[:, 1] * to_radians)
    q = (1.0 - e2) * (sin / (1.0 - e2 * sin**2) - np.log((1.0 - e * sin) / (1.0 + e * sin)) / (2.0 * e))
    return np.stack([_WGS84_RADIUS * points[:, 0] * to_radians, _WGS84_RADIUS * q / 2.0], axis=1)


def metres_per_unit(crs: CRS | None, *, latitude: float) -> tuple[float, float] | None:
    """Metres of one unit of x and of one unit of y of a CRS; None if its unit of length is not known.

    Projected CRS: the unit of length; the projection's own distortion stays. Geographic CRS: one degree of longitude
    and of latitude on the WGS84 ellipsoid at ``latitude`` (in the unit of the CRS), from the radii of curvature of the
    prime vertical and of the meridian.

    Source:
        J. P. Snyder, Map Projections: A Working Manual (USGS 1395), equations 4-18, 4-20 and 4-21.
    """
    if crs is None:
        return None
    if not crs.is_geographic:
        try:
            factor = float(crs.linear_units_factor[1])
        except CRSError:
            return None
        return factor, factor
    to_radians = float(crs.units_factor[1])
    phi = latitude * to_radians
    e2 = _WGS84_FLATTENING * (2.0 - _WGS84_FLATTENING)
    bend = 1.0 - e2 * math.sin(phi) ** 2
    across, along = _WGS84_RADIUS / math.sqrt(bend), _WGS84_RADIUS * (1.0 - e2) / bend**1.5
    return to_radians * across * math.cos(phi), to_radians * along
