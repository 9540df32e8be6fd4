"""What a result was made from, read back out of the file itself.

Every writer of samgraft leaves JSON under one name: the metadata of the layer in GeoPackage and FlatGeobuf, a key of
the footer in GeoParquet, a member of the collection in GeoJSON, a tag in GeoTIFF.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samgraft.domains.atomic import full_suffix
from samgraft.errors import InputError

TAG = "SAMGRAFT"
"""GeoTIFF tag; ``SAMGRAFT_<NAME>`` are single values."""
KEY = "samgraft"
"""Name in vector files."""
_TAIL = 1 << 16


def canonical_json(values: Mapping[str, object]) -> str:
    """One line of JSON, the same for equal values."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_provenance(path: Path | str) -> dict[str, Any] | None:
    """Read what samgraft wrote into a vector or raster file about its making.

    Args:
        path: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON or GeoTIFF.

    Returns:
        JSON values by name, or None for a file without such a note.

    Raises:
        InputError: missing or damaged.
        MissingDependencyError: GeoParquet without pyarrow.
    """
    path = _existing(path)
    suffix = full_suffix(path)
    if suffix in (".gpkg", ".fgb"):
        text = _of_layer(path)
    elif suffix == ".parquet":
        from samgraft.domains.remote_sensing import geoparquet

        text = geoparquet.read_provenance(path)
    elif suffix in (".geojson", ".json"):
        text = _of_geojson(path)
    elif suffix in (".tif", ".tiff"):
        return _of_tags(path)
    else:
        return None
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its note on how it was made is damaged: {error}") from error
    return values if isinstance(values, dict) else None


def describe_vectors(path: Path | str) -> str:
    """One line on a vector file: format, number and kind of features, CRS, fields.

    Raises:
        InputError: missing or damaged.
        MissingDependencyError: GeoParquet without pyarrow.
    """
    path = _existing(path)
    if full_suffix(path) == ".parquet":
        from samgraft.domains.remote_sensing import geoparquet

        facts = geoparquet.read_facts(path)
    else:
        facts = _layer(path)
    fields = ", ".join(str(name) for name in facts["fields"])
    return (
        f"<polygons {path.name!r}: {facts['driver']}, {int(facts['features']):,} features, {facts['geometry_type']}, "
        f"{facts['crs'] or 'no CRS'}, fields {fields}>"
    )


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    return path


def _layer(path: Path) -> dict[str, Any]:
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        return dict(pyogrio.read_info(path, force_feature_count=True))
    except (DataSourceError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a vector file: {error}; is it complete?") from error


def _of_layer(path: Path) -> str | None:
    found = _layer(path).get("layer_metadata")
    return None if not found else found.get(KEY)


def _of_geojson(path: Path) -> str | None:
    """The member behind the features, from the end of the file, so that a gigabyte is not read for it."""
    mark = f'\n],\n"{KEY}":'.encode()
    size, take = path.stat().st_size, _TAIL
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - take))
            tail = file.read()
            at = tail.rfind(mark)
            if at >= 0:
                return tail[at + len(mark) :].decode("utf-8").rstrip()[:-1]
            if take >= size or take >= _TAIL << 8:
                return None
            take *= 4


def _of_tags(path: Path) -> dict[str, Any] | None:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as source:
            tags = {str(k): str(v) for k, v in source.tags().items()}
    except RasterioError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}; is it complete?") from error
    found: dict[str, Any] = json.loads(tags.get(TAG, "{}"))
    for name, value in tags.items():
        if name.startswith(f"{TAG}_"):
            key = name[len(TAG) + 1 :].lower()
            found.setdefault(key, json.loads(value) if value.startswith("{") else value)
    return found or None
