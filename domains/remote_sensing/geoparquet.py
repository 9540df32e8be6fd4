"""GeoParquet 1.1 in row groups, and the metadata that makes a Parquet file one.

Geometries are WKB in the column ``geometry``; the column ``bbox`` holds the box of each feature, so that readers can
skip row groups; the CRS is PROJJSON. pyarrow writes the file.

Source: the GeoParquet specification 1.1.0 (geoparquet.org).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from samgraft.domains.remote_sensing.note import KEY
from samgraft.errors import InputError, MissingDependencyError, OutputError

if TYPE_CHECKING:
    from samgraft.domains.remote_sensing.stream_vector import Batch

GEOMETRY = "geometry"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def require_pyarrow(path: Path) -> None:
    """Raise if GeoParquet cannot be written or read.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name}: GeoParquet needs pyarrow; pip install 'samgraft[geo]', or use .gpkg"
        ) from error


class GeoParquetWriter:
    """Appends batches as row groups; the metadata goes into the footer at the end."""

    def __init__(self, temp: Path, columns: Mapping[str, np.dtype[Any]], crs: CRS | None) -> None:
        """Open the file.

        Args:
            temp: Where to write.
            columns: dtype of every column; ``object`` is text.
            crs: CRS of the geometries, or None.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._temp, self._crs, self._count, self._oriented = temp, crs, 0, True
        self._types: set[str] = set()
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        fields = [
            (name, pa.string() if kind.hasobject else pa.from_numpy_dtype(kind)) for name, kind in columns.items()
        ]
        box = pa.struct([(corner, pa.float64()) for corner in _CORNERS])
        self._schema = pa.schema([*fields, ("bbox", box), (GEOMETRY, pa.binary())])
        self._writer = pq.ParquetWriter(temp, self._schema, compression="zstd", write_page_index=True)

    def write(self, batch: "Batch") -> None:
        """Append a batch as one row group."""
        import pyarrow as pa

        bounds = shapely.bounds(batch.geometry)
        self._bounds = np.concatenate(
            [
                np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0)),
                np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0)),
            ]
        )
        self._oriented = self._oriented and _is_oriented(batch.geometry)
        self._types |= {str(kind) for kind in np.unique(shapely.get_type_id(batch.geometry)).tolist()}
        arrays = [
            pa.array(column, type=self._schema.field(name).type, from_pandas=True)  # NaN becomes null
            for name, column in batch.columns.items()
        ]
        corners = [pa.array(bounds[:, i]) for i in range(4)]
        arrays.append(pa.StructArray.from_arrays(corners, names=list(_CORNERS)))
        arrays.append(pa.array(shapely.to_wkb(batch.geometry), type=pa.binary()))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(batch))
        self._count += len(batch)

    def finish(self, provenance: str) -> None:
        """Write the footer and read it back.

        Raises:
            OutputError: features are missing.
        """
        import pyarrow.parquet as pq

        self._writer.add_key_value_metadata({"geo": json.dumps(self._geo()), KEY: provenance})
        self._writer.close()
        stored = pq.read_metadata(self._temp).num_rows
        if stored != self._count:
            raise OutputError(f"{self._temp.name}: {stored} of {self._count} polygons arrived; is the disk full?")

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._writer.close()
        except OSError:  # a full disk was named already
            pass

    def _geo(self) -> dict[str, object]:
        """The "geo" metadata of the specification."""
        names = {"3": "Polygon", "6": "MultiPolygon"}
        column: dict[str, object] = {
            "encoding": "WKB",
            "geometry_types": sorted(names[kind] for kind in self._types),
            "crs": None if self._crs is None else self._crs.to_dict(projjson=True),
            "edges": "planar",
            "covering": {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}},
        }
        if self._oriented:
            column["orientation"] = "counterclockwise"
        if self._count:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _is_oriented(geometry: NDArray[np.object_]) -> bool:
    """Whether all outer rings run anticlockwise and all holes clockwise."""
    rings, polygon = shapely.get_rings(shapely.get_parts(geometry), return_index=True)
    outer = np.append(True, polygon[1:] != polygon[:-1])
    return bool((shapely.is_ccw(rings) == outer).all())


def read_features(
    path: Path,
    column: str | None = None,
    *,
    box: tuple[float, float, float, float] | None = None,
    most: int | None = None,
) -> tuple[NDArray[np.object_], NDArray[Any]]:
    """Geometries of a GeoParquet file with the values of one column; row groups are read one by one.

    Args:
        path: The file.
        column: Its values come along; None or a column that is absent gives None for each.
        box: Only what meets (x0, y0, x1, y1).
        most: Stop after this many.

    Raises:
        InputError: damaged, or without geometries.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    geometries, values, count = [np.zeros(0, dtype=object)], [np.zeros(0, dtype=object)], 0
    try:
        with pq.ParquetFile(path) as file:
            primary = json.loads((file.metadata.metadata or {})[b"geo"])["primary_column"]
            wanted = [name for name in (primary, column) if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=wanted):
                found = shapely.from_wkb(batch.column(primary).to_numpy(zero_copy_only=False))
                met = slice(None) if box is None else np.flatnonzero(shapely.intersects(shapely.box(*box), found))
                other = batch.column(str(column)).to_pylist() if column in wanted else [None] * len(found)
                geometries.append(found[met])
                values.append(np.array(other, dtype=object)[met])
                count += len(geometries[-1])
                if most is not None and count >= most:
                    break
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as GeoParquet: {error}; is it complete?") from error
    return np.concatenate(geometries)[:most], np.concatenate(values)[:most]


def read_crs(path: Path) -> CRS | None:
    """CRS of the geometries: WGS84 longitude and latitude where the footer names none; None where it says unknown.

    Raises:
        InputError: damaged, no GeoParquet, or a CRS that PROJ does not know.
        MissingDependencyError: pyarrow is not installed.
    """
    geo = json.loads((_footer(path).metadata or {}).get(b"geo", b"{}"))
    column = geo.get("columns", {}).get(geo.get("primary_column"), None)
    if column is None:
        raise InputError(f"{path} is Parquet without geometries; expected GeoParquet")
    known = column.get("crs", "OGC:CRS84")
    try:
        return None if known is None else CRS.from_user_input(known)
    except CRSError as error:
        raise InputError(f"{path}: its CRS is none that PROJ knows ({error}); write the file anew") from error


def read_provenance(path: Path) -> str | None:
    """JSON that samgraft left in a Parquet file, or None.

    Raises:
        InputError: damaged.
        MissingDependencyError: pyarrow is not installed.
    """
    found = (_footer(path).metadata or {}).get(KEY.encode())
    return None if found is None else str(found.decode("utf-8"))


def read_facts(path: Path) -> dict[str, Any]:
    """What the footer says: driver, features, geometry_type, crs, fields.

    Raises:
        InputError: damaged, or no GeoParquet.
        MissingDependencyError: pyarrow is not installed.
    """
    footer = _footer(path)
    geo = json.loads((footer.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("columns", {}).get(geo.get("primary_column"), None)
    if column is None:
        raise InputError(f"{path} is Parquet without geometries; expected GeoParquet")
    known = column.get("crs") or {}
    code = known.get("id", {})
    return {
        "driver": f"GeoParquet {geo['version']}",
        "features": footer.num_rows,
        "geometry_type": "/".join(column["geometry_types"]) or "no geometry",
        "crs": f"{code['authority']}:{code['code']}" if code else known.get("name"),
        "fields": [n for n in footer.schema.to_arrow_schema().names if n not in (geo["primary_column"], "bbox")],
    }


def _footer(path: Path) -> Any:
    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}; is it complete?") from error
