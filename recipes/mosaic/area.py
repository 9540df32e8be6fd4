"""The part of a raster that is asked for: polygons of a vector file, in pixels of the raster.

A pixel belongs to the area if its centre lies inside. The network sees what lies around it; results do not.
"""

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio import features

from samgraft.domains.remote_sensing.vector import read_layer
from samgraft.errors import InputError
from samgraft.grid import Grid

Part = tuple[slice, slice]


class Area:
    """Polygons over a raster.

    Args:
        polygons: shapely polygons in (col, row) pixel coordinates, where pixel corners are whole numbers.
    """

    def __init__(self, polygons: Sequence[Any]) -> None:
        """Index them."""
        self.polygons = tuple(polygons)
        self._tree: shapely.STRtree | None = None

    @classmethod
    def read(cls, path: str | PathLike[str], grid: Grid) -> "Area":
        """The polygons of a vector file, in any CRS, that touch a raster.

        Args:
            path: GeoJSON, GeoPackage, shapefile or what else OGR reads.
            grid: Of the raster.

        Raises:
            InputError: no polygon, or none that touches the raster.
            GeometryError: only one of file and raster has a CRS.
        """
        layer = read_layer(path)
        found = [one.geometry for one in layer.on(grid)]
        polygons = [one for one in found if one.geom_type in ("Polygon", "MultiPolygon")]
        if not polygons:
            reason = "none of them touches the raster" if len(layer.geometries) and not found else "no polygon among them"
            raise InputError(
                f"{Path(path).name} has {len(layer.geometries)} features, {reason}; draw polygons on the raster"
            )
        return cls(polygons)

    def touches(self, part: Part) -> bool:
        """Whether some pixel of ``part`` may belong to the area; False is certain."""
        rows, cols = part
        box = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        if self._tree is None:
            self._tree = shapely.STRtree(self.polygons)
        return bool(len(self._tree.query(box, predicate="intersects")))

    def mask(self, part: Part) -> NDArray[np.bool_]:
        """(h, w) bool: which pixels of ``part`` belong to the area."""
        rows, cols = part
        box = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        if self._tree is None:
            self._tree = shapely.STRtree(self.polygons)
        near = [self.polygons[i] for i in self._tree.query(box)]
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        if not near:
            return np.zeros(shape, dtype=np.bool_)
        place = Affine.translation(cols.start, rows.start)
        inside: NDArray[np.bool_] = features.geometry_mask(near, shape, place, invert=True)
        return inside

    def digest(self) -> str:
        """SHA-256 of the polygons."""
        return hashlib.sha256(b"".join(shapely.to_wkb(one) for one in self.polygons)).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Polygons only; the index is made anew."""
        return {"polygons": self.polygons, "_tree": None}
