"""Vector files written in batches: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON, of any number of polygons.

A :class:`VectorFile` takes batches of geometries with columns, keeps none of them, and puts the complete file at its
path when told so; until then nothing is there. Equal batches give equal bytes: no time of day is written.

GeoPackage and FlatGeobuf go through a spool, a GeoPackage without an index in a hidden folder beside the result, and
are made from it in one pass at the end by GDAL, which builds the spatial index then. A FlatGeobuf cannot be appended
to, and an index that grows with every batch costs more than the pass. GDAL holds one box per feature while it sorts
them for a FlatGeobuf's index.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio import raw
from pyogrio.errors import DataSourceError
from rasterio.crs import CRS

from samgraft.domains.atomic import atomic_path, drop, full_suffix, work_folder
from samgraft.domains.remote_sensing.georeference import crs_of, registered_code
from samgraft.domains.remote_sensing.note import KEY, canonical_json
from samgraft.errors import ConfigError, GeometryError, OutputError, SamgraftError
from samgraft.grid import Grid

FORMATS = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".parquet": "GeoParquet",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
}
"""Vector formats by suffix."""
LAYER = "segmentation"
"""Layer name in the files written."""
_ARROW_BATCH = 4096
_SETTINGS = {"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z", "OGR_GPKG_MAX_RAM_USAGE_RTREE": "8000000"}
"""GeoPackages hold the time of their last change; a fixed one makes equal contents equal files. GDAL keeps the whole
spatial index in memory while it is made, 60 bytes for each polygon, unless it is told how much it may have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some features."""

    geometry: NDArray[np.object_]
    """(n,) shapely polygons or multipolygons, in the coordinates of the file."""
    columns: Mapping[str, NDArray[Any]]
    """(n,) values by column; integers, float64 (NaN is written as null) or text (dtype object)."""

    def __len__(self) -> int:
        """Number of features."""
        return len(self.geometry)


class _Writer(Protocol):
    """One format; paths are temporary."""

    def write(self, batch: Batch) -> None:
        """Append a batch of at least one feature."""

    def finish(self, provenance: str) -> None:
        """Complete the file; ``provenance`` is JSON."""

    def close(self) -> None:
        """Let go of the file, finished or not."""


class VectorFile:
    """A vector file in the making."""

    def __init__(self, path: Path | str, grid: Grid, columns: Mapping[str, type | np.dtype[Any]]) -> None:
        """Check that the file can be written; nothing is made yet.

        Args:
            path: Where the file goes; the suffix is one of ``FORMATS``.
            grid: Grid of the raster, for the CRS.
            columns: dtype of every column, in order; ``object`` is text.

        Raises:
            ConfigError: another suffix.
            GeometryError: GeoJSON cannot name the CRS.
            MissingDependencyError: GeoParquet without pyarrow.
        """
        self.path = Path(path)
        driver = FORMATS.get(full_suffix(self.path))
        if driver is None:
            raise ConfigError(f"{self.path.name}: polygons go to {', '.join(sorted(FORMATS))}; rename the output")
        self.driver = driver
        self.crs = crs_of(grid)
        self.columns = {name: np.dtype(kind) for name, kind in columns.items()}
        self.count = 0
        """Features written so far."""
        self._stack = ExitStack()
        self._writer: _Writer | None = None
        if driver == "GeoJSON":
            _geojson_crs(self.path, self.crs)
        if driver == "GeoParquet":
            from samgraft.domains.remote_sensing.geoparquet import require_pyarrow

            require_pyarrow(self.path)

    def start(self) -> None:
        """Make the temporary file.

        Raises:
            OutputError: the folder is missing or not writable.
        """
        with self._named(), ExitStack() as opening:
            temp = opening.enter_context(atomic_path(self.path))
            writer = self._open(temp, opening)
            opening.callback(writer.close)
            self._writer, self._stack = writer, opening.pop_all()

    def _open(self, temp: Path, opening: ExitStack) -> _Writer:
        if self.driver == "GeoJSON":
            return _GeoJsonWriter(temp, self.path, self.crs)
        if self.driver == "GeoParquet":
            from samgraft.domains.remote_sensing.geoparquet import GeoParquetWriter

            return GeoParquetWriter(temp, self.columns, self.crs)
        work = opening.enter_context(work_folder(self.path))
        return _OgrWriter(temp, work, self.driver, self.columns, self.crs)

    def write(self, batch: Batch) -> None:
        """Append features.

        Raises:
            ConfigError: other columns than announced.
            OutputError: the file cannot be written; call :meth:`abort`.
        """
        if list(batch.columns) != list(self.columns):
            raise ConfigError(f"columns are {list(batch.columns)}; the file was begun with {list(self.columns)}")
        if len(batch):
            with self._named():
                self._begun().write(batch)
            self.count += len(batch)

    def commit(self, provenance: Mapping[str, object] | None = None) -> Path:
        """Complete the file and give it its final name.

        Args:
            provenance: What the file was made from, JSON types; see ``samgraft.domains.remote_sensing.provenance``.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        try:
            with self._named():
                writer = self._begun()
                writer.finish(canonical_json(provenance or {}))
                self._stack.close()
        except BaseException:
            self.abort()
            raise
        self._writer = None
        return self.path

    def abort(self) -> None:
        """Delete what was written; does nothing after :meth:`commit`."""
        self._writer = None
        stack, self._stack = self._stack, ExitStack()
        drop(stack)

    def _begun(self) -> _Writer:
        if self._writer is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() before write() and commit()")
        return self._writer

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the libraries become one that names the file."""
        try:
            yield
        except SamgraftError:
            raise
        except (DataSourceError, OSError, RuntimeError, ValueError) as error:
            raise OutputError(
                f"cannot write {self.path}: {error}; nothing was left behind, check space and rights"
            ) from error


class _OgrWriter:
    """GeoPackage and FlatGeobuf, by GDAL from a spool."""

    def __init__(
        self, temp: Path, work: Path, driver: str, columns: Mapping[str, np.dtype[Any]], crs: CRS | None
    ) -> None:
        self._temp, self._work, self._driver, self._columns = temp, work, driver, dict(columns)
        self._spool = work / "spool.gpkg"
        self._crs = None if crs is None else _crs_text(crs)
        self._count = 0
        self._append(Batch(geometry=np.zeros(0, dtype=object), columns={n: np.zeros(0, t) for n, t in columns.items()}))

    def write(self, batch: Batch) -> None:
        self._append(batch)
        self._count += len(batch)

    def _append(self, batch: Batch) -> None:
        begun = self._spool.exists()
        with _quiet():
            raw.write(
                self._spool,
                geometry=np.asarray(shapely.to_wkb(batch.geometry), dtype=object),
                field_data=list(batch.columns.values()),
                fields=list(batch.columns),
                layer=LAYER,
                driver="GPKG",
                geometry_type="MultiPolygon",
                promote_to_multi=True,
                crs=self._crs,
                append=begun,
                layer_options={} if begun else {"SPATIAL_INDEX": "NO"},
            )

    def finish(self, provenance: str) -> None:
        options = {"SPATIAL_INDEX": "YES"}
        if self._driver == "FlatGeobuf":
            options["TEMPORARY_DIR"] = str(self._work)
            options["SPATIAL_INDEX"] = "YES" if self._count else "NO"
        with (
            _quiet(),
            _settings(),
            raw.open_arrow(self._spool, layer=LAYER, batch_size=_ARROW_BATCH) as (meta, stream),
        ):
            raw.write_arrow(
                stream,
                self._temp,
                layer=LAYER,
                driver=self._driver,
                geometry_name=meta["geometry_name"] or "geom",
                geometry_type="MultiPolygon",
                crs=self._crs,
                layer_metadata={KEY: provenance},
                layer_options=options,
            )
        self._spool.unlink()
        self._verify()

    def _verify(self) -> None:
        """Read the last feature back; a full disk does not always show while writing."""
        stored = int(pyogrio.read_info(self._temp, layer=LAYER, force_feature_count=True)["features"])
        last = 0
        if stored == self._count and self._count:
            last = len(raw.read(self._temp, layer=LAYER, skip_features=self._count - 1, max_features=1)[2])
        if stored != self._count or (self._count and last != 1):
            raise OutputError(f"{self._temp.name}: {stored} of {self._count} polygons arrived; is the disk full?")

    def close(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)


class _GeoJsonWriter:
    """GeoJSON as text, one feature a line; what the file was made from stands in a member behind the features."""

    def __init__(self, temp: Path, path: Path, crs: CRS | None) -> None:
        self._file: IO[bytes] = temp.open("wb")
        self._temp, self._size, self._first = temp, 0, True
        head: dict[str, object] = {"type": "FeatureCollection", "name": LAYER}
        name = _geojson_crs(path, crs)
        if name is not None:
            head["crs"] = {"type": "name", "properties": {"name": name}}
        self._put(json.dumps(head)[:-1] + ',\n"features":[\n')

    def write(self, batch: Batch) -> None:
        names, values = list(batch.columns), [_plain(column) for column in batch.columns.values()]
        lines = []
        for shape, *row in zip(shapely.to_geojson(batch.geometry).tolist(), *values, strict=True):
            properties = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
            lines.append(f'{{"type":"Feature","properties":{properties},"geometry":{shape}}}')
        self._put(("" if self._first else ",\n") + ",\n".join(lines))
        self._first = False

    def finish(self, provenance: str) -> None:
        self._put(f'\n],\n"{KEY}":{provenance}}}\n')
        self.close()
        if self._temp.stat().st_size != self._size:
            raise OutputError(f"{self._temp.name}: {self._temp.stat().st_size} of {self._size} bytes arrived")

    def close(self) -> None:
        self._file.close()

    def _put(self, text: str) -> None:
        self._size += self._file.write(text.encode("utf-8"))


def _plain(column: NDArray[Any]) -> list[Any]:
    """Values for JSON; NaN becomes None."""
    values = column.tolist()
    return [None if v != v else v for v in values] if column.dtype.kind == "f" else values


def _geojson_crs(path: Path, crs: CRS | None) -> str | None:
    """Name of a CRS in GeoJSON; see docs/adr/0003-geojson-crs.md."""
    if crs is None:
        return None
    code = registered_code(crs)
    if code is None:
        raise GeometryError(
            f"{path.name}: GeoJSON names a CRS by its registered code, and {crs.to_wkt()[:60]!r} has none; write .gpkg"
        )
    return f"urn:ogc:def:crs:EPSG::{code}"


def _crs_text(crs: CRS) -> str:
    """CRS in the form that GDAL's drivers store without loss."""
    code = registered_code(crs)
    return str(crs.to_wkt()) if code is None else f"EPSG:{code}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning that a picture has no CRS."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*crs.*was not provided")
        yield


@contextmanager
def _settings() -> Iterator[None]:
    """GDAL with ``_SETTINGS``, as long as this lasts."""
    before = {name: pyogrio.get_gdal_config_option(name) for name in _SETTINGS}
    pyogrio.set_gdal_config_options(_SETTINGS)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)
