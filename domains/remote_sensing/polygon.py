"""From label maps to polygons in the coordinates of the input, and into a vector file.

Outlines follow pixel edges exactly (``outline.py``): nothing is simplified, holes are kept, and the area of a polygon
is its pixel count times the area of a pixel. See docs/adr/0003-geojson-crs.md for the coordinates of GeoJSON files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from samgraft.domains.remote_sensing.georeference import PointMap, crs_of, equal_area, point_map, transform_of
from samgraft.domains.remote_sensing.outline import outlines
from samgraft.domains.remote_sensing.pixel_runs import Runs, components, joined, runs_of_labels
from samgraft.domains.remote_sensing.stream_vector import Batch, VectorFile
from samgraft.domains.scene import Array
from samgraft.errors import ConfigError, ShapeError
from samgraft.grid import Grid

COLUMNS: Mapping[str, type] = {
    "id": np.int64,
    "class": np.int32,
    "class_name": object,
    "score": np.float64,
    "area": np.float64,
    "area_px": np.int64,
}
"""Columns of every vector file of results: area in square metres, area_px in pixels."""


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
        Valid geometries sorted by id; a fragmented instance is one MultiPolygon. Components of a semantic map are
        numbered in scan order of their first pixels.

    Raises:
        ShapeError: labels and grid have different shapes.
        GeometryError: the grid is a volume's.
        ConfigError: the map has labels without a record.
    """
    if labels.shape != grid.shape:
        raise ShapeError(f"labels are {labels.shape}; the grid is {grid.shape}")
    move, turn = world_map(grid)
    runs = joined([runs_of_labels(labels)])
    known = None if records is None else {r.id: r for r in records}
    if known is None:
        class_of, runs = _components_as_owners(runs)
    else:
        missing = [v for v in np.unique(runs.owner).tolist() if v not in known]
        if missing:
            raise ConfigError(f"the label map has instances {missing[:10]} without a record; give one per instance")
        class_of = {value: record.class_id for value, record in known.items()}
    sizes = pixel_counts(runs)
    owners, geometries = outlines(runs, move=move, turn=turn)
    areas = square_metres(geometries, crs_of(grid))
    names = dict(classes or {})
    found = []
    for number, geometry, area in zip(owners.tolist(), geometries.tolist(), areas.tolist(), strict=True):
        class_id = class_of[number]
        found.append(
            Feature(
                geometry=geometry,
                id=number,
                class_id=class_id,
                class_name=names.get(class_id, f"class {class_id}"),
                score=float("nan") if known is None else float(known[number].score),
                area=area,
                area_px=sizes[number],
                properties={} if known is None else known[number].properties,
            )
        )
    return tuple(found)


def world_map(grid: Grid) -> tuple[PointMap, bool]:
    """How pixel corners (x = column, y = row) become coordinates, and whether rings are turned to stay anticlockwise.

    Raises:
        GeometryError: the grid is a volume's.
    """
    transform = transform_of(grid)
    return point_map(transform), bool(transform.a * transform.e - transform.b * transform.d > 0)


def pixel_counts(runs: Runs) -> dict[int, int]:
    """Pixels of every owner; runs must not overlap."""
    owners, inverse = np.unique(runs.owner, return_inverse=True)
    sizes = np.bincount(inverse, weights=runs.stop - runs.start, minlength=len(owners))
    return dict(zip(owners.tolist(), sizes.astype(np.int64).tolist(), strict=True))


def _components_as_owners(runs: Runs) -> tuple[dict[int, int], Runs]:
    """Class of every connected component, and runs owned by components, numbered from 1 in scan order."""
    part = components(runs)
    count = int(part.max(initial=-1)) + 1
    first = np.full(count, len(runs), dtype=np.int64)
    order = np.lexsort((runs.start, runs.row))
    np.minimum.at(first, part[order], np.arange(len(runs)))
    number = np.empty(count, dtype=np.int64)
    number[np.argsort(first)] = np.arange(1, count + 1)
    owner = number[part]
    class_of = dict(zip(owner.tolist(), runs.owner.tolist(), strict=True))
    return class_of, Runs(owner, runs.row, runs.start, runs.stop)


def square_metres(geometries: NDArray[np.object_], crs: CRS | None) -> NDArray[np.float64]:
    """Areas (n,) of polygons of a CRS in square metres; NaN where the unit is not known."""
    points, index = shapely.get_coordinates(geometries, return_index=True)
    flat = equal_area(points, crs)
    if flat is None or not len(points):
        return np.full(len(geometries), np.nan)
    first = np.searchsorted(index, np.arange(len(geometries)))
    near = flat - flat[first][index]  # small numbers: no offset before multiplying
    return np.asarray(shapely.area(shapely.transform(geometries, lambda _: near)), dtype=np.float64)


def simplified(geometries: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Polygons with fewer corners, none further than ``tolerance`` from the outline; 0 changes nothing.

    Each polygon is simplified by itself (Douglas-Peucker that keeps its topology), so neighbours may overlap a little
    afterwards. Where the result would be invalid or empty, the exact outline stays.

    Args:
        geometries: (n,) polygons.
        tolerance: In the units of the coordinates: metres or degrees, as the CRS has it.

    Raises:
        ConfigError: a negative tolerance.
    """
    require_tolerance(tolerance)
    if tolerance == 0 or not len(geometries):
        return geometries
    simple = shapely.simplify(geometries, tolerance, preserve_topology=True)
    good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
    return np.where(good, simple, geometries)


def require_tolerance(tolerance: float) -> None:
    """Raise if polygons cannot be simplified by this much.

    Raises:
        ConfigError: negative, infinite or not a number.
    """
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"simplification by {tolerance} map units; expected 0 (off) or more")


def write_vectors(
    path: Path | str, found: Sequence[Feature], grid: Grid, *, provenance: Mapping[str, object] | None = None
) -> None:
    """Write polygons in the CRS of the grid; fields id, class, class_name, score, area (m2), area_px, properties.

    Args:
        path: ``.geojson``, ``.gpkg``, ``.fgb`` or ``.parquet``; replaced only when the new file is complete. No
            features give an empty, valid file.
        found: From :func:`polygonise`.
        grid: Grid of the labels.
        provenance: What the file was made from; ``samgraft info`` shows it.

    Raises:
        ConfigError: another suffix.
        GeometryError: GeoJSON cannot name the CRS.
        MissingDependencyError: GeoParquet without pyarrow.
        OutputError: the file cannot be written; nothing is left behind.
    """
    columns = _columns(found)
    file = VectorFile(path, grid, {name: values.dtype for name, values in columns.items()})
    file.start()
    try:
        file.write(Batch(geometry=np.array([f.geometry for f in found], dtype=object), columns=columns))
        file.commit(provenance)
    finally:
        file.abort()


def _columns(found: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """Attribute columns, in the order in which they are written."""
    rows = [(f.id, f.class_id, f.class_name, f.score, f.area, f.area_px) for f in found]
    fixed: dict[str, NDArray[Any]] = {
        name: np.array([row[i] for row in rows], dtype=kind) for i, (name, kind) in enumerate(COLUMNS.items())
    }
    names = dict.fromkeys(name for f in found for name in f.properties if name not in fixed)
    nothing = float("nan")
    return fixed | {name: np.array([float(f.properties.get(name, nothing)) for f in found]) for name in names}
