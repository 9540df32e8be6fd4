"""Grids for rasters that move to another one: which pixels they cover there, and how GDAL is told where they lie."""

import re

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import (
    PointMap,
    crs_of,
    grid_of,
    ground_step,
    point_map,
    transform_of,
    transformed,
)
from samgraft.domains.remote_sensing.header import RasterHeader
from samgraft.errors import ConfigError, GeometryError
from samgraft.grid import Grid

_MOST_SIDE = 2**31 - 1
_SHRINKS = 0.6
"""Pixels that become larger than 1 / 0.6 of the file's are means of several. Below that plain interpolation is better:
GDAL's stretched kernels move values by up to a twelfth of a pixel (measured on a ramp at 1.15)."""
_GREENWICH = re.compile(r'PRIMEM\["Greenwich",0(,AUTHORITY\["EPSG","\d+"\])?\]')


def default_grid(header: RasterHeader, crs: CRS | None, *, shift: float = 0.0, gsd: float | None = None) -> Grid:
    """North-up grid in another CRS that holds a whole raster, with pixels of the same area at its centre.

    Across the antimeridian, longitudes run on beyond 180 degrees.

    Args:
        header: The raster; it has a transform.
        crs: Target, or None for the raster's own CRS.
        shift: Added to the raster's x coordinates first.
        gsd: Pixel size in metres on the ground; None keeps the area of the raster's pixels.

    Raises:
        GeometryError: a part of the raster has no place in the target CRS, or would take more pixels than GDAL allows.
    """
    target = crs or header.crs
    place = _to_target(header, target, shift)
    height, width = header.shape
    rows, cols = np.meshgrid(np.linspace(0, height, 65), np.linspace(0, width, 65), indexing="ij")
    spots = place(np.stack([cols.ravel(), rows.ravel()], axis=1))
    if not np.isfinite(spots).all():
        raise GeometryError(
            f"parts of the raster have no place in {_short(target)}; choose a CRS that holds all of it, or cut it first"
        )
    (left, bottom), (right, top) = spots.min(axis=0), spots.max(axis=0)
    middle = np.array([[width / 2, height / 2]])
    ends = place(middle + np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]))
    size = float(np.sqrt(abs(np.linalg.det(ends[1::2] - ends[::2]))))
    down = across = size
    if gsd is not None:
        x, y = place(middle)[0].tolist()
        one = grid_of(Affine(size, 0.0, x - size / 2, 0.0, -size, y + size / 2), target, (1, 1))
        step = ground_step(one)
        if step is None:
            raise GeometryError(f"the CRS {_short(target)} has no known unit, so gsd={gsd} m has no meaning in it")
        down, across = (size * gsd / metres for metres in step)
    sides = ((top - bottom) / down, (right - left) / across)
    shape = tuple(max(1, int(np.ceil(side - 1e-6))) for side in sides)
    if max(shape) > _MOST_SIDE:
        raise GeometryError(f"the raster would have {shape} pixels in {_short(target)}; choose another CRS")
    return grid_of(Affine(across, 0.0, left, 0.0, -down, top), target, (shape[0], shape[1]))


def scaled(grid: Grid, shape: tuple[int, int]) -> Grid:
    """The same place divided into another number of rows and columns."""
    affine = grid.affine.copy()
    affine[:2, :2] *= np.array(grid.shape, dtype=np.float64) / np.array(shape, dtype=np.float64)
    return Grid(shape=shape, affine=affine, world=grid.world, nodata=grid.nodata, anchor=grid.anchor)


def _to_target(header: RasterHeader, target: CRS | None, shift: float) -> PointMap:
    """From (col, row) of a raster to coordinates of a CRS; longitudes stay together across the antimeridian."""
    own = point_map(Affine.translation(shift, 0.0) @ header.transform)
    source = header.crs
    if source is None or target is None or source == target:
        return own
    middle = own(np.array([[header.shape[1] / 2, header.shape[0] / 2]]))

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        before = own(points)
        moved = transformed(before, source, target)
        near = before[:, 0] if source.is_geographic else transformed(middle, source, target)[0, 0]
        if target.is_geographic:
            moved[:, 0] += 360.0 * np.round((near - moved[:, 0]) / 360.0)
        return moved

    return place


def shrinking(header: RasterHeader, grid: Grid, shift: float) -> tuple[float, float]:
    """Pixels of ``grid`` per pixel of the file along x and y, at the file's centre.

    GDAL would estimate them for every window anew, and pixels would depend on windows.

    Args:
        header: The file; it has a transform.
        grid: Grid that it is brought to.
        shift: Added to the file's x coordinates first.

    Returns:
        (x, y); (1, 1) where pixels hardly grow, so that values are interpolated and not averaged.
    """
    place = _to_target(header, crs_of(grid), shift)
    middle = np.array([[header.shape[1] / 2, header.shape[0] / 2]])
    ends = place(middle + np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]))
    pixels = point_map(~transform_of(grid))(ends)
    if not np.isfinite(pixels).all():
        return 1.0, 1.0
    steps = np.linalg.inv((pixels[1::2] - pixels[::2]).T)  # columns: (col, row) of the file per col and row of the grid
    x, y = (1.0 / max(float(np.linalg.norm(steps[:, axis])), 1e-12) for axis in (0, 1))
    return (x, y) if min(x, y) < _SHRINKS else (1.0, 1.0)


def turned(header: RasterHeader, shift: float) -> tuple[CRS | None, Affine]:
    """CRS and transform of a raster for GDAL, which looks for longitudes between -180 and 180 degrees only.

    A raster of degrees that runs beyond them is given the meridian of 180 degrees to count from.

    Args:
        header: The file; it has a transform.
        shift: Added to the file's x coordinates first.
    """
    place, crs = Affine.translation(shift, 0.0) @ header.transform, header.crs
    if crs is None or not crs.is_geographic:
        return crs, place
    height, width = header.shape
    ends = point_map(place)(np.array([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]]))[:, 0]
    if -180.0 - 1e-9 <= ends.min() and ends.max() <= 180.0 + 1e-9:
        return crs, place
    wkt, count = _GREENWICH.subn('PRIMEM["antimeridian",180]', str(crs.to_wkt(version="WKT1_GDAL")))
    if count != 1:
        return crs, place  # counts from another meridian already
    wkt = re.sub(r',AUTHORITY\["EPSG","\d+"\]\]$', "]", wkt)
    return CRS.from_wkt(wkt), Affine.translation(-180.0 if ends.max() > 180.0 else 180.0, 0.0) @ place


def target_crs(crs: str | None) -> CRS | None:
    """The CRS that a caller names.

    Raises:
        ConfigError: PROJ does not know it.
    """
    if crs is None:
        return None
    try:
        return CRS.from_user_input(crs)
    except ValueError as error:  # CRSError is one, and "EPSG:" without a number another
        raise ConfigError(
            f"crs={crs!r} is not a coordinate reference system ({error}); expected one such as EPSG:32633"
        ) from error


def _short(crs: CRS | None) -> str:
    return "no CRS" if crs is None else str(crs.to_string())[:60]
