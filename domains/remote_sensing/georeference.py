"""Conversion between :class:`samgraft.grid.Grid` and GDAL's georeference (transform, CRS), without rounding.

A raster grid is anchored at pixel corners: its affine maps (row, col, 1) to (x, y, 1), so its columns are those of
GDAL's geotransform with the first two swapped. No number is recomputed on the way: reading and writing are bit-exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # errors of PROJ come as these, and rasterio.errors has no name for them
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as warp_points

from samgraft.errors import GeometryError
from samgraft.grid import Grid

PointMap = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps coordinates (N, 2) to coordinates (N, 2), x first."""

UNKNOWN_CRS = "unknown CRS"
"""``Grid.world`` of a raster that has a transform but no coordinate reference system."""
PIXEL = "pixel"
"""``Grid.world`` of an image without any georeference."""

_WGS84 = CRS.from_epsg(4326)
_WGS84_RADIUS = 6378137.0
_WGS84_FLATTENING = 1.0 / 298.257223563
_WGS84_E2 = _WGS84_FLATTENING * (2.0 - _WGS84_FLATTENING)


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


def transformed(points: NDArray[np.float64], source: CRS, target: CRS) -> NDArray[np.float64]:
    """Coordinates (N, 2) of one CRS in another, x (east) first; infinite where a point has no place there.

    Raises:
        GeometryError: there is no way from one to the other, or a point is none that the source can have.
    """
    try:
        x, y = warp_points(source, target, points[:, 0].tolist(), points[:, 1].tolist())
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        names = [str(crs.to_string())[:60] for crs in (source, target)]
        raise GeometryError(
            f"coordinates of {names[0]} cannot be transformed to {names[1]}: {error}; choose a CRS that holds them "
            "all, or cut them first"
        ) from error
    return np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)], axis=1)


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
    unit = _unit(crs)
    if unit is None:
        return None
    if not unit.angular:
        return points * unit.size
    e = math.sqrt(_WGS84_E2)
    sin = np.sin(points[:, 1] * unit.size)
    q = (1.0 - _WGS84_E2) * (sin / (1.0 - _WGS84_E2 * sin**2) - np.log((1.0 - e * sin) / (1.0 + e * sin)) / (2.0 * e))
    return np.stack([_WGS84_RADIUS * points[:, 0] * unit.size, _WGS84_RADIUS * q / 2.0], axis=1)


def metres_per_unit(crs: CRS | None, *, latitude: float) -> tuple[float, float] | None:
    """Metres of one unit of x and of one unit of y of a CRS; None if its unit of length is not known.

    Projected CRS: the unit of length; the projection's own distortion stays. Geographic CRS: one degree of longitude
    and of latitude on the WGS84 ellipsoid at ``latitude`` (in the unit of the CRS), from the radii of curvature of the
    prime vertical and of the meridian.

    Source:
        J. P. Snyder, Map Projections: A Working Manual (USGS 1395), equations 4-18, 4-20 and 4-21.
    """
    unit = _unit(crs)
    if unit is None:
        return None
    if not unit.angular:
        return unit.size, unit.size
    phi = latitude * unit.size
    bend = 1.0 - _WGS84_E2 * math.sin(phi) ** 2
    across, along = _WGS84_RADIUS / math.sqrt(bend), _WGS84_RADIUS * (1.0 - _WGS84_E2) / bend**1.5
    return unit.size * across * math.cos(phi), unit.size * along


def ground_step(grid: Grid) -> tuple[float, float] | None:
    """Metres on the ground from one row to the next and from one column to the next, at the centre of a raster.

    Measured on the WGS84 ellipsoid, so a pixel of "1 m" in Web Mercator at 60 degrees north has 0.5 m here. A CRS that
    cannot be related to the earth counts by its unit of length.

    Args:
        grid: Grid of a raster.

    Returns:
        (row step, column step), or None when the world has no known unit: no CRS, or a picture.
    """
    crs = crs_of(grid) if grid.ndim == 2 else None
    unit = _unit(crs)
    if crs is None or unit is None:
        return None
    middle = np.array(grid.shape, dtype=np.float64) / 2.0
    ends = grid.to_world(middle + 0.5 * np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]))
    if not unit.angular:
        try:
            degrees = transformed(ends, crs, _WGS84)
        except GeometryError:
            degrees = np.full_like(ends, np.inf)
        if not np.isfinite(degrees).all():
            row, col = (float(v) * unit.size for v in grid.spacing)
            return row, col
    else:
        degrees = ends * (unit.size / math.radians(1.0))
    metres = metres_per_unit(_WGS84, latitude=float(degrees[:, 1].mean()))
    steps = degrees[1::2] - degrees[::2]
    steps[:, 0] = (steps[:, 0] + 180.0) % 360.0 - 180.0  # two ends on either side of the antimeridian
    row, col = np.hypot(*(steps * np.array(metres)).T).tolist()
    return row, col


def affine_of_gcps(points: Sequence[GroundControlPoint]) -> tuple[Affine, float]:
    """Affine transform that fits ground control points best, and how badly it does.

    Least squares in exact arithmetic, rounded once, so that points which were made from a transform give it back to
    the last digits that doubles hold.

    Args:
        points: At least three, not on a line; row and col count from the outer corner of pixel (0, 0), as in GDAL.

    Returns:
        Transform (col, row -> x, y), and the largest distance in pixels between a point and its place.

    Raises:
        GeometryError: fewer than three points, or all on a line.
    """
    if len(points) < 3:
        raise GeometryError(f"{len(points)} ground control points; an affine transform needs at least 3")
    cols, rows, xs, ys = ([Fraction(float(getattr(p, k))) for p in points] for k in ("col", "row", "x", "y"))
    centre = [sum(values, Fraction(0)) / len(points) for values in (cols, rows, xs, ys)]
    c, r, x, y = ([v - m for v in values] for values, m in zip((cols, rows, xs, ys), centre, strict=True))
    cc, cr, rr = _dot(c, c), _dot(c, r), _dot(r, r)
    size = cc * rr - cr * cr
    if size == 0:
        raise GeometryError(f"{len(points)} ground control points lie on one line; they do not place an image")
    found: list[Fraction] = []
    for values, m in ((x, centre[2]), (y, centre[3])):
        cv, rv = _dot(c, values), _dot(r, values)
        along_col, along_row = (cv * rr - rv * cr) / size, (rv * cc - cv * cr) / size
        found += [along_col, along_row, m - along_col * centre[0] - along_row * centre[1]]
    transform = Affine(*(float(v) for v in found))
    if transform.determinant == 0.0:
        raise GeometryError(f"{len(points)} ground control points place the whole image on one line")
    there = point_map(~transform)(np.array([[p.x, p.y] for p in points], dtype=np.float64))
    here = np.array([[p.col, p.row] for p in points], dtype=np.float64)
    return transform, float(np.abs(there - here).max())


def _dot(one: Sequence[Fraction], other: Sequence[Fraction]) -> Fraction:
    """Sum of products."""
    return sum((a * b for a, b in zip(one, other, strict=True)), Fraction(0))


@dataclass(frozen=True)
class _Unit:
    """Unit of the coordinates of a CRS."""

    angular: bool
    """Whether coordinates are angles."""
    size: float
    """Metres, or radians."""


def _unit(crs: CRS | None) -> _Unit | None:
    """Unit of a CRS, or None when it has none that is known."""
    if crs is None:
        return None
    try:
        if crs.is_geographic:
            return _Unit(angular=True, size=float(crs.units_factor[1]))
        return _Unit(angular=False, size=float(crs.linear_units_factor[1]))
    except CRSError:
        return None
