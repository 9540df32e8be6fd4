"""From label maps to polygons in the coordinates of the input, and into GeoJSON or GeoPackage.

Outlines follow pixel edges exactly: nothing is simplified, holes are kept, and the area of a polygon is its pixel count
times the area of a pixel. See docs/adr/0003-geojson-crs.md for the coordinates of GeoJSON files.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from pyogrio import raw
from pyogrio.errors import DataSourceError
from rasterio import features
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from samgraft.domains.atomic import atomic_path, full_suffix
from samgraft.domains.remote_sensing.georeference import crs_of, equal_area, point_map, registered_code, transform_of
from samgraft.domains.scene import Array
from samgraft.errors import ConfigError, GeometryError, OutputError, ShapeError
from samgraft.grid import Grid

DRIVERS = {".geojson": "GeoJSON", ".json": "GeoJSON", ".gpkg": "GPKG"}
"""Vector formats by suffix."""
LAYER = "segmentation"
"""Layer name in the files written."""


class Record(Protocol):
    """What :func:`polygonise` needs to know of an instance."""

    @property
    def id(self) -> int:
        """Value in the label map."""
        ...

    @property
    def class_id(self) -> int:
        """Class of the instance."""
        ...

    @property
    def score(self) -> float:
        """Confidence in [0, 1]."""
        ...

    @property
    def properties(self) -> Mapping[str, float]:
        """Further columns."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """One polygon with its attributes."""

    geometry: BaseGeometry
    """Polygon or MultiPolygon in world coordinates (x, y)."""
    id: int
    """Instance label; for semantic maps a running number from 1."""
    class_id: int
    """Class label."""
    class_name: str
    """Name of the class."""
    score: float
    """Confidence; NaN where there is none."""
    area: float
    """Square metres; NaN when the world has no known unit."""
    area_px: int
    """Pixels."""
    properties: Mapping[str, float] = field(default_factory=dict)
    """Further columns."""


def polygonise(
    labels: Array, grid: Grid, records: Sequence[Record] | None = None, classes: Mapping[int, str] | None = None
) -> tuple[Feature, ...]:
    """Outline every instance (with records) or every connected component of every class (without).

    Args:
        labels: Integers >= 0, (H, W).
        grid: Grid of the labels: a raster or a picture (then coordinates are pixels, x right, y down).
        records: One per label value of an instance map, or None for a semantic map. Components of a semantic map join
            over edges, not over corners.
        classes: Class label -> name; missing names become "class <label>".

    Returns:
        Valid geometries sorted by id; a fragmented instance is one MultiPolygon.

    Raises:
        ShapeError: labels and grid have different shapes.
        GeometryError: the grid is a volume's.
        ConfigError: the map has labels without a record.
    """
    if labels.shape != grid.shape:
        raise ShapeError(f"labels are {labels.shape}; the grid is {grid.shape}")
    to_world, crs, names = point_map(transform_of(grid)), crs_of(grid), dict(classes or {})
    parts = _outlines(labels)
    if records is None:
        keyed = [(n, value, float("nan"), polygon) for n, (value, polygon) in enumerate(parts, start=1)]
    else:
        keyed = _by_instance(parts, {r.id: r for r in records})
    further = {r.id: r.properties for r in records or ()}
    found = []
    for number, class_id, score, pixels in keyed:
        geometry = shapely.transform(pixels, to_world)
        name = names.get(class_id, f"class {class_id}")
        found.append(
            Feature(
                geometry=geometry,
                id=number,
                class_id=class_id,
                class_name=name,
                score=score,
                area=_square_metres(geometry, crs),
                area_px=round(pixels.area),
                properties=further.get(number, {}),
            )
        )
    return tuple(found)


def write_vectors(path: Path | str, found: Sequence[Feature], grid: Grid) -> None:
    """Write polygons in the CRS of the grid; fields id, class, class_name, score, area (m2), area_px, properties.

    Args:
        path: ``.geojson`` or ``.gpkg``; replaced only when the new file is complete. No features give an empty, valid
            file.
        found: From :func:`polygonise`.
        grid: Grid of the labels.

    Raises:
        ConfigError: another suffix.
        GeometryError: GeoJSON cannot name the CRS.
        OutputError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    driver = DRIVERS.get(full_suffix(path))
    if driver is None:
        raise ConfigError(f"{path.name}: polygons go to {', '.join(sorted(DRIVERS))}; rename the output")
    crs = _writable_crs(path, driver, crs_of(grid))
    options = {"RFC7946": "NO", "COORDINATE_PRECISION": "17", "WRITE_BBOX": "NO"} if driver == "GeoJSON" else {}
    columns = _columns(found)
    with atomic_path(path) as temp, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*crs.*was not provided")
        try:
            raw.write(
                temp,
                geometry=np.array([shapely.to_wkb(f.geometry) for f in found], dtype=object),
                field_data=list(columns.values()),
                fields=list(columns),
                layer=LAYER,
                driver=driver,
                geometry_type="MultiPolygon" if driver == "GPKG" else "Unknown",
                promote_to_multi=driver == "GPKG",
                crs=crs,
                layer_options=options,
            )
            _verify(temp, len(found))
        except OutputError:
            raise
        except (DataSourceError, RuntimeError, ValueError) as error:
            raise OutputError(
                f"cannot write {path}: {error}; nothing was left behind, check space and rights"
            ) from error


def _outlines(labels: Array) -> list[tuple[int, BaseGeometry]]:
    """(label, polygon in pixel coordinates) of every 4-connected component, in scan order of the raster."""
    values, codes = labels, None
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        codes, inverse = np.unique(labels, return_inverse=True)
        values = inverse.reshape(labels.shape)
    values = np.ascontiguousarray(values, dtype=np.int32)
    found = []
    for shape, value in features.shapes(values, mask=labels != 0, connectivity=4):
        label = int(value) if codes is None else int(codes[int(value)])
        found.append((label, _valid(shapely.geometry.shape(shape))))
    return found


def _valid(polygon: BaseGeometry) -> BaseGeometry:
    """Split rings that touch themselves at a corner; the covered area stays the same."""
    if polygon.is_valid:
        return polygon
    repaired = polygon.buffer(0)
    if repaired.is_valid and repaired.area == polygon.area:
        return repaired
    return shapely.make_valid(polygon)


def _by_instance(
    parts: Sequence[tuple[int, BaseGeometry]], records: Mapping[int, Record]
) -> list[tuple[int, int, float, BaseGeometry]]:
    """Join the parts of each instance; sorted by id."""
    grouped: dict[int, list[BaseGeometry]] = {}
    for value, polygon in parts:
        grouped.setdefault(value, []).append(polygon)
    missing = sorted(set(grouped) - set(records))
    if missing:
        raise ConfigError(f"the label map has instances {missing[:10]} without a record; give one record per instance")
    joined = []
    for value in sorted(grouped):
        pieces = [p for part in grouped[value] for p in (part.geoms if hasattr(part, "geoms") else [part])]
        geometry = pieces[0] if len(pieces) == 1 else shapely.MultiPolygon(pieces)
        joined.append((value, records[value].class_id, float(records[value].score), geometry))
    return joined


def _square_metres(geometry: BaseGeometry, crs: CRS | None) -> float:
    """Area of a geometry of a CRS in square metres, or NaN."""
    if crs is None:
        return float("nan")
    flat = equal_area(shapely.get_coordinates(geometry), crs)
    if flat is None:
        return float("nan")
    copy = shapely.from_wkb(shapely.to_wkb(geometry))
    return float(shapely.set_coordinates(copy, flat - flat[:1]).area)  # small numbers: no offset before multiplying


def _writable_crs(path: Path, driver: str, crs: CRS | None) -> str | None:
    """CRS in the form that the driver stores without loss."""
    if crs is None:
        return None
    code = registered_code(crs)
    if code is not None:
        return f"EPSG:{code}"
    if driver == "GeoJSON":
        raise GeometryError(
            f"{path.name}: GeoJSON names a CRS by its registered code, and {crs.to_wkt()[:60]!r} has none; write .gpkg"
        )
    return str(crs.to_wkt())


def _columns(found: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """Attribute columns, in the order in which they are written."""
    fixed: dict[str, NDArray[Any]] = {
        "id": np.array([f.id for f in found], dtype=np.int64),
        "class": np.array([f.class_id for f in found], dtype=np.int32),
        "class_name": np.array([f.class_name for f in found], dtype=object),
        "score": np.array([f.score for f in found], dtype=np.float64),
        "area": np.array([f.area for f in found], dtype=np.float64),
        "area_px": np.array([f.area_px for f in found], dtype=np.int64),
    }
    names = dict.fromkeys(name for f in found for name in f.properties if name not in fixed)
    nothing = float("nan")
    return fixed | {name: np.array([float(f.properties.get(name, nothing)) for f in found]) for name in names}


def _verify(path: Path, count: int) -> None:
    """Read the written file back and count; a full disk does not always show while writing."""
    geometry = raw.read(path)[2]
    if len(geometry) != count:
        raise OutputError(f"{path.name}: {len(geometry)} of {count} polygons arrived on the disk; is it full?")
