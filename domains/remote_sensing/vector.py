"""Vector labels: from GeoJSON, GeoPackage or shapefile to pixel coordinates and label maps.

Takes polygons, boxes or points in any CRS and the Grid of an image; gives shapely geometries in (col, row) pixel
coordinates, where pixel (row, col) covers [col, col + 1) x [row, row + 1), and instance or semantic label maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio import raw
from pyogrio.errors import DataSourceError
from rasterio import features
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from samgraft.domains.remote_sensing.geoparquet import read_crs, read_facts, read_features
from samgraft.domains.remote_sensing.georeference import PointMap, crs_of, point_map, transform_of, transformed
from samgraft.domains.scene import Window, explicit_window
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

PARQUET = (".parquet", ".geoparquet")
"""Suffixes of GeoParquet."""
DEFAULT_CLASS = "object"
"""Class name of features when no class field is named."""
_WGS84 = CRS.from_epsg(4326)


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorObject:
    """One labelled feature of a vector file, in pixels of an image."""

    geometry: BaseGeometry
    """Polygon, point or line, in (col, row) pixel coordinates; pixel corners are whole numbers."""
    class_name: str
    """Value of the class field, or ``DEFAULT_CLASS``."""
    source_id: int
    """Feature id in the file."""
    score: float | None = None
    """Value of the score field, or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorLayer:
    """All features of a vector file in its own CRS, kept so that many images can be cut from it."""

    path: Path
    """The file."""
    geometries: NDArray[Any]
    """shapely geometries in file coordinates, x (east) first."""
    class_names: tuple[str, ...]
    """One class per feature."""
    ids: tuple[int, ...]
    """One feature id each."""
    crs: CRS | None
    """CRS of the file, or None."""
    scores: tuple[float | None, ...] = ()
    """One score per feature; empty where no score field was named."""

    def on(self, grid: Grid) -> tuple[VectorObject, ...]:
        """Return the features that touch an image, in its pixel coordinates.

        Raises:
            GeometryError: only one of file and image has a CRS, or the coordinates cannot be transformed.
        """
        if not len(self.geometries):
            return ()
        target = crs_of(grid)
        source = comparable_crs(self, target)
        to_pixel = ~transform_of(grid)
        extent = shapely.box(0, 0, grid.shape[1], grid.shape[0])
        outline = shapely.transform(shapely.segmentize(extent, max(grid.shape) / 8), point_map(transform_of(grid)))
        near = outline if source is None else shapely.transform(outline, reproject(target, source))
        margin = 0.02 * max(near.bounds[2] - near.bounds[0], near.bounds[3] - near.bounds[1])
        hits = np.flatnonzero(shapely.intersects(self.geometries, shapely.box(*near.bounds).buffer(margin)))
        moved = self.geometries[hits]
        if source is not None:
            moved = shapely.transform(moved, reproject(source, target))
        moved = shapely.transform(moved, point_map(to_pixel))
        touching = np.flatnonzero(shapely.intersects(moved, extent))
        scores = self.scores or (None,) * len(self.ids)
        return tuple(
            VectorObject(
                geometry=moved[i],
                class_name=self.class_names[hits[i]],
                source_id=self.ids[hits[i]],
                score=scores[hits[i]],
            )
            for i in touching.tolist()
        )


def field_names(path: Path | str, layer: str | None = None) -> tuple[str, ...]:
    """Names of the fields of a vector file.

    Raises:
        InputError: the file is missing or damaged.
    """
    if Path(path).suffix.lower() in PARQUET:
        return tuple(read_facts(Path(path))["fields"])
    try:
        return tuple(str(name) for name in pyogrio.read_info(path, layer=layer)["fields"])
    except (DataSourceError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a vector file: {error}; is it complete?") from error


def read_layer(
    path: Path | str, *, class_field: str | None = None, layer: str | None = None, score_field: str | None = None
) -> VectorLayer:
    """Read a vector file (GeoJSON, GeoPackage, FlatGeobuf, GeoParquet, or what else OGR knows) completely.

    Null and empty geometries are left out, Z is dropped, invalid polygons are repaired.

    Args:
        path: The file.
        class_field: Field whose value is the class; None calls everything ``DEFAULT_CLASS``.
        layer: Layer name, where a file has several.
        score_field: Field with a confidence; None reads none.

    Raises:
        InputError: the file is missing or damaged, or has no such field or layer.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path, class_field, score_field)
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is None and len(layers) > 1:
            raise InputError(f"{path} has the layers {', '.join(layers)}; name one with layer=")
        meta, ids, geometry, field_data = raw.read(path, layer=layer, force_2d=True, return_fids=True)
    except (DataSourceError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a vector file: {error}; is it complete?") from error
    fields = [str(name) for name in meta["fields"]]
    for field in (class_field, score_field):
        if field is not None and field not in fields and len(geometry):
            raise InputError(f"{path} has no field {field!r}; it has {', '.join(fields) or 'no fields'}")
    geometries = shapely.from_wkb(geometry)
    keep = np.flatnonzero(~(shapely.is_missing(geometries) | shapely.is_empty(geometries)))
    repaired = np.array([_repair(geometries[i]) for i in keep], dtype=object)
    values = None if class_field not in fields else field_data[fields.index(str(class_field))]
    names = tuple(DEFAULT_CLASS if values is None or values[i] is None else str(values[i]) for i in keep)
    crs = CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    return VectorLayer(
        path=path,
        geometries=repaired,
        class_names=names,
        ids=tuple(int(ids[i]) for i in keep),
        crs=crs,
        scores=() if score_field not in fields else _scores(path, field_data[fields.index(str(score_field))][keep]),
    )


def _read_parquet(path: Path, class_field: str | None, score_field: str | None) -> VectorLayer:
    """The same of GeoParquet, which the GDAL of pyogrio's wheels cannot read; ids are row numbers."""
    known = read_facts(path)["fields"]
    for field in (class_field, score_field):
        if field is not None and field not in known:
            raise InputError(f"{path} has no field {field!r}; it has {', '.join(known) or 'no fields'}")
    geometries, values = read_features(path, class_field)
    geometries = shapely.force_2d(geometries)
    keep = np.flatnonzero(~(shapely.is_missing(geometries) | shapely.is_empty(geometries)))
    scores = () if score_field is None else _scores(path, read_features(path, score_field)[1][keep])
    return VectorLayer(
        path=path,
        geometries=np.array([_repair(geometries[i]) for i in keep], dtype=object),
        class_names=tuple(DEFAULT_CLASS if values[i] is None else str(values[i]) for i in keep),
        ids=tuple(keep.tolist()),
        crs=read_crs(path),
        scores=scores,
    )


def read_vectors(
    path: Path | str, grid: Grid, *, class_field: str | None = None, layer: str | None = None
) -> tuple[VectorObject, ...]:
    """Read the features of a vector file that touch an image, in its pixel coordinates.

    Args:
        path: GeoJSON, GeoPackage, shapefile.
        grid: Grid of the image: a raster (features are reprojected to its CRS) or a picture (coordinates are pixels).
        class_field: Field whose value is the class; None calls everything ``DEFAULT_CLASS``.
        layer: Layer name, where a file has several.

    Raises:
        InputError: the file is missing or damaged, or has no such field or layer.
        GeometryError: only one of file and image has a CRS.
    """
    return read_layer(path, class_field=class_field, layer=layer).on(grid)


def rasterise(
    objects: Sequence[VectorObject], shape: tuple[int, int], *, window: Window | None = None, point_radius: float = 0.0
) -> NDArray[np.int32]:
    """Draw features as instances: object i of the sequence gets label i + 1, background 0.

    Large ones are drawn first, so that small ones stay visible on top. A pixel belongs to a polygon if its centre does.

    Args:
        objects: Features in pixel coordinates.
        shape: (H, W) of the whole image.
        window: Rows and columns to draw; None draws the whole image. Labels do not depend on it.
        point_radius: Radius in pixels of the disc drawn for a point; 0 marks the one pixel that holds it.

    Returns:
        int32 labels of the window's shape.
    """
    order = sorted(range(len(objects)), key=lambda i: -objects[i].geometry.area)
    return _draw([(objects[i].geometry, i + 1) for i in order], shape, window, point_radius)


def rasterise_classes(
    objects: Sequence[VectorObject],
    shape: tuple[int, int],
    classes: Mapping[str, int],
    *,
    window: Window | None = None,
    point_radius: float = 0.0,
) -> NDArray[np.int32]:
    """Draw features as a semantic map: every feature gets the label of its class, background 0.

    Args:
        objects: Features in pixel coordinates.
        shape: (H, W) of the whole image.
        classes: Class name -> label.
        window: Rows and columns to draw; None draws the whole image.
        point_radius: As in :func:`rasterise`.

    Raises:
        InputError: a feature has a class that is not in ``classes``.
    """
    unknown = sorted({o.class_name for o in objects} - set(classes))
    if unknown:
        raise InputError(f"features have the classes {unknown}; known: {sorted(classes)}; add them or filter the file")
    order = sorted(objects, key=lambda o: -o.geometry.area)
    return _draw([(o.geometry, classes[o.class_name]) for o in order], shape, window, point_radius)


def _draw(
    items: Sequence[tuple[BaseGeometry, int]], shape: tuple[int, int], window: Window | None, point_radius: float
) -> NDArray[np.int32]:
    """Burn (geometry, label) pairs in order into a window of an image."""
    rows, cols = explicit_window(window, shape)
    size = (rows.stop - rows.start, cols.stop - cols.start)
    if point_radius > 0:
        items = [(g.buffer(point_radius) if g.area == 0 else g, label) for g, label in items]
    extent = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
    visible = [(g, label) for g, label in items if shapely.intersects(g, extent)]
    if not visible:
        return np.zeros(size, dtype=np.int32)
    place = Affine.translation(cols.start, rows.start)
    drawn = features.rasterize(visible, out_shape=size, transform=place, fill=0, dtype="int32", all_touched=False)
    return np.asarray(drawn, dtype=np.int32)


def comparable_crs(layer: VectorLayer, target: CRS | None) -> CRS | None:
    """CRS to transform from, or None when file and image coordinates are the same already."""
    if target is None:
        unnamed = layer.path.suffix.lower() in (".geojson", ".json") and layer.crs == _WGS84
        if layer.crs is None or unnamed:  # GeoJSON without a crs member is read as WGS84, also when it is in pixels
            return None
        raise GeometryError(
            f"{layer.path} is in {layer.crs.to_string()[:60]}, the image has no CRS; give the image its CRS "
            "(gdal_edit.py -a_srs EPSG:... image.tif) or the features in its coordinates"
        )
    if layer.crs is None:
        raise GeometryError(f"{layer.path} has no CRS, the image has {target.to_string()[:60]}; add its .prj")
    return None if layer.crs == target else layer.crs


def reproject(source: CRS, target: CRS) -> PointMap:
    """Return a function that maps coordinates (N, 2) between two CRS."""

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = transformed(points, source, target)
        if not np.isfinite(moved).all():
            raise GeometryError(f"some coordinates of {source} have no place in {target}; clip the features")
        return moved

    return move


def _scores(path: Path, values: NDArray[Any]) -> tuple[float | None, ...]:
    """Numbers of a field; None where there is none."""
    try:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the score field holds no numbers ({error}); name another field") from error
    return tuple(None if np.isnan(number) else float(number) for number in numbers)


def _repair(geometry: BaseGeometry) -> BaseGeometry:
    """Make a geometry valid; of a polygon only polygonal parts are kept."""
    if geometry.is_valid:
        return geometry
    valid = shapely.make_valid(geometry)
    if geometry.geom_type in ("Polygon", "MultiPolygon") and valid.geom_type == "GeometryCollection":
        return shapely.unary_union([part for part in valid.geoms if part.geom_type in ("Polygon", "MultiPolygon")])
    return valid
