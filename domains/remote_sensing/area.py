"""An area of interest: polygons that say where a raster is looked at.

Takes polygons of a GeoJSON, GeoPackage or shapefile in any CRS; gives an :class:`AreaScene`, whose pixels outside them
are not valid. Polygons are drawn by window when one is read, so memory does not follow the raster.
"""

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from samgraft.domains.remote_sensing.geo_scene import GeoScene, ViewScene
from samgraft.domains.remote_sensing.georeference import PointMap, crs_of, point_map, transform_of
from samgraft.domains.remote_sensing.vector import comparable_crs, read_layer, reproject
from samgraft.domains.scene import Array, Window
from samgraft.errors import InputError
from samgraft.grid import Grid

_CORNERS = 512
"""Polygons with more corners are cut into pieces."""
_PIECES = 64
"""A reprojected edge is cut at least into pieces of a 64th of the raster's extent, since straight lines bend."""


class Area:
    """Polygons in (col, row) pixel coordinates of a raster."""

    def __init__(self, polygons: NDArray[Any], shape: tuple[int, ...], path: Path) -> None:
        """Keep the polygons; see :func:`read_area`."""
        self.path = path
        """The file that they come from."""
        self.shape = shape
        """(H, W) of the raster."""
        self._polygons = polygons
        self._tree: shapely.STRtree | None = None

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Where pixel centres of a window lie inside: bool, the window's shape."""
        rows, cols = window
        size = (rows.stop - rows.start, cols.stop - cols.start)
        near = self._near(window)
        if not len(near):
            return np.zeros(size, dtype=np.bool_)
        extent = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        if shapely.contains_properly(near, extent.buffer(1.0)).any():
            return np.ones(size, dtype=np.bool_)
        place = Affine.translation(cols.start, rows.start)
        drawn = features.rasterize(((p, 1) for p in near), out_shape=size, transform=place, fill=0, dtype="uint8")
        return np.asarray(drawn > 0)

    def touches(self, window: Window) -> bool:
        """Whether any polygon reaches into a window; false windows need not be read at all."""
        return bool(len(self._near(window)))

    def bounds(self) -> tuple[slice, slice] | None:
        """Smallest window that holds every pixel inside, or None where there is none."""
        low, high = shapely.total_bounds(self._polygons)[:2], shapely.total_bounds(self._polygons)[2:]
        spans = [
            slice(max(0, int(np.floor(a))), min(side, int(np.ceil(b))))
            for a, b, side in zip(low[::-1], high[::-1], self.shape, strict=True)
        ]
        return None if any(s.start >= s.stop for s in spans) else (spans[0], spans[1])

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the index, which another process builds anew."""
        return {**self.__dict__, "_tree": None}

    def _near(self, window: Window) -> NDArray[Any]:
        """Polygons that touch a window."""
        if self._tree is None:
            self._tree = shapely.STRtree(self._polygons)
        rows, cols = window
        extent = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        return np.asarray(self._polygons[np.sort(self._tree.query(extent, predicate="intersects"))])


class AreaScene(ViewScene):
    """A raster of which only an area counts: the same pixels, and ``valid`` is False outside the polygons."""

    def __init__(self, source: GeoScene, area: Area) -> None:
        """Take over everything but the validity.

        Args:
            source: The raster.
            area: Polygons in its pixels, from :func:`read_area`.
        """
        self.area = area
        """Where it counts."""
        super().__init__(source, source.grid, f"only inside {area.path.name}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the raster, and that of the polygons."""
        return (*self.source.files, self.area.path)

    def touches(self, window: Window) -> bool:
        """False outside the polygons; see :class:`GeoScene`."""
        return self.area.touches(window) and self.source.touches(window)

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """That of the whole raster, valid inside the area."""
        array, valid = self.source.overview(max_pixels)
        factors = [small / side for small, side in zip(valid.shape, self.grid.shape, strict=True)]
        polygons = shapely.transform(self.area._polygons, lambda points: points * np.array(factors[::-1]))
        small = Area(polygons, valid.shape, self.area.path)
        return array, valid & small.mask((slice(0, valid.shape[0]), slice(0, valid.shape[1])))

    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window; outside the area nothing is read."""
        inside = self.area.mask(window)
        if not inside.any():
            return np.zeros((len(channels), *inside.shape), dtype=self.dtype), inside
        array, valid = self.source.read_valid(window, channels)
        return array, valid & inside

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Pixels of a window, also outside the area."""
        return self.source.read(window, channels)


def read_area(path: Path | str, grid: Grid, *, layer: str | None = None) -> Area:
    """Read the polygons of a file that touch a raster.

    Args:
        path: GeoJSON, GeoPackage or shapefile; everything in it but polygons is left out.
        grid: Grid of the raster.
        layer: Layer name, where the file has several.

    Raises:
        InputError: the file is missing or damaged, or no polygon touches the raster.
        GeometryError: only one of file and raster has a CRS.
    """
    found = read_layer(path, layer=layer)
    polygons = [g for g in found.geometries if g.geom_type in ("Polygon", "MultiPolygon")]
    target = crs_of(grid)
    source = comparable_crs(found, target)
    extent = shapely.box(0, 0, grid.shape[1], grid.shape[0])
    outline = shapely.segmentize(extent, max(grid.shape) / _PIECES)
    there = shapely.transform(outline, point_map(transform_of(grid)))
    frame, step = _frame(there, source, target)
    to_pixel = point_map(~transform_of(grid))
    pieces: list[BaseGeometry] = []
    for polygon in polygons:
        for turn in _turns(source or target):
            cut = shapely.intersection(shapely.transform(polygon, _add(turn)), frame)
            if cut.geom_type not in ("Polygon", "MultiPolygon") or cut.is_empty:
                continue
            if source is not None:
                fine = shapely.transform(shapely.segmentize(cut, step), reproject(source, target))
                cut = shapely.transform(fine, _together(target, there))
            pieces += [p for p in _split(shapely.transform(cut, to_pixel)) if p.intersects(extent)]
    if not pieces:
        raise InputError(
            f"{found.path}: none of its {len(polygons)} polygons touches the raster; are both of the same place?"
        )
    return Area(np.array(pieces, dtype=object), grid.shape, found.path)


def _split(polygon: BaseGeometry) -> list[BaseGeometry]:
    """Cut a polygon with many corners along pixel edges, so that a window draws only those near it."""
    left, bottom, right, top = polygon.bounds
    sides = (right - left, top - bottom)
    if shapely.get_num_coordinates(polygon) <= _CORNERS or max(sides) < 4.0:
        return [polygon]
    middle = round((left + right) / 2) if sides[0] >= sides[1] else round((bottom + top) / 2)
    halves = (
        (shapely.box(left - 1, bottom - 1, middle, top + 1), shapely.box(middle, bottom - 1, right + 1, top + 1))
        if sides[0] >= sides[1]
        else (shapely.box(left - 1, bottom - 1, right + 1, middle), shapely.box(left - 1, middle, right + 1, top + 1))
    )
    cut = [part for half in halves for part in shapely.get_parts(shapely.intersection(polygon, half))]
    return [piece for part in cut if part.area > 0 for piece in _split(part)]


def _frame(outline: BaseGeometry, source: CRS | None, target: CRS | None) -> tuple[BaseGeometry, float]:
    """Box around a raster's outline in the CRS of the polygons, and the longest edge that may stay straight.

    Parts of polygons far away, which may have no place in the raster's CRS, are cut off by it.
    """
    near = outline
    if source is not None:
        near = shapely.transform(outline, reproject(target, source))
        near = shapely.transform(near, _together(source, near))
    left, bottom, right, top = near.bounds
    size = max(right - left, top - bottom)
    margin = 0.05 * size
    return shapely.box(left - margin, bottom - margin, right + margin, top + margin), size / _PIECES


def _turns(crs: CRS | None) -> tuple[float, ...]:
    """What may be added to x so that a polygon lies where the raster does: whole turns, for longitudes."""
    return (-360.0, 0.0, 360.0) if crs is not None and crs.is_geographic else (0.0,)


def _add(turn: float) -> PointMap:
    """Shift x."""
    return lambda points: points + np.array([turn, 0.0])


def _together(crs: CRS | None, about: BaseGeometry) -> PointMap:
    """Bring longitudes within half a turn of the first point of a geometry."""
    if crs is None or not crs.is_geographic:
        return _add(0.0)
    anchor = float(shapely.get_coordinates(about)[0, 0])

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        turned = points.copy()
        turned[:, 0] += 360.0 * np.round((anchor - points[:, 0]) / 360.0)
        return turned

    return move
