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

from samgraft.domains.remote_sensing.provenance import KEY
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

        self._temp, self._crs, self._count = temp, crs, 0
        self._types: set[str] = set()
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        fields = [(name, pa.string() if kind == object else pa.from_numpy_dtype(kind)) for name, kind in columns.items()]
        box = pa.struct([(corner, pa.float64()) for corner in _CORNERS])
        self._schema = pa.schema([*fields, ("bbox", box), (GEOMETRY, pa.binary())])
        self._writer = pq.ParquetWriter(temp, self._schema, compression="zstd", write_page_index=True)

    def write(self, batch: "Batch") -> None:
        """Append a batch as one row group."""
        import pyarrow as pa

        bounds = shapely.bounds(batch.geometry)
        self._bounds = np.concatenate(
            [np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0)), np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))]
        )
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
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}},
        }
        if self._count:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def read_geometries(path: Path, box: tuple[float, float, float, float] | None = None) -> NDArray[np.object_]:
    """Geometries of a GeoParquet file, of those only whose box meets ``box`` (x0, y0, x1, y1).

    Raises:
        InputError: damaged, or without geometries.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = json.loads((pq.read_metadata(path).metadata or {})[b"geo"])["primary_column"]
        geometry = shapely.from_wkb(pq.read_table(path, columns=[column])[column].to_numpy())
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as GeoParquet: {error}; is it complete?") from error
    return geometry if box is None else geometry[shapely.intersects(shapely.box(*box), geometry)]


def read_provenance(path: Path) -> str | None:
    """JSON that samgraft left in a Parquet file, or None.

    Raises:
        InputError: damaged.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}; is it complete?") from error
    return None if found is None else str(found.decode("utf-8"))
