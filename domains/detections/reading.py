"""Find the reader of a detection file: COCO JSON, CSV, GeoJSON, GeoPackage, shapefile."""

from importlib import import_module
from pathlib import Path

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.base import Detections
from samgraft.domains.detections.coco import is_coco, read_coco
from samgraft.domains.detections.table import read_table
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

VECTORS = (".geojson", ".gpkg", ".shp", ".json")
SUFFIXES = (".csv", *VECTORS)
"""Suffixes of detection files."""


def read_detections(
    path: Path | str,
    grid: Grid,
    shape: tuple[int, int],
    *,
    image: str | None = None,
    class_field: str | None = None,
    score_field: str | None = None,
) -> Detections:
    """Read what a file says of the objects of one image.

    Args:
        path: COCO ``.json``; ``.csv``; ``.geojson``, ``.gpkg`` or ``.shp`` in any CRS.
        grid: Grid of the image; a volume takes CSV and COCO only.
        shape: (H, W) of the image, or of the slices of the volume.
        image: File name of the image, for files about many images.
        class_field: Vector files: field that holds the class; None looks for a usual name.
        score_field: Vector files: field that holds the confidence; None looks for a usual name.

    Returns:
        Objects in pixels. Boxes may reach beyond the image; see ``Detections.within``.

    Raises:
        InputError: the file is missing or damaged, of another kind, or about other images.
        GeometryError: only one of file and image has a CRS, or a vector file for a volume.
    """
    path = Path(path)
    suffix = full_suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give detections as {', '.join(SUFFIXES)}")
    if suffix == ".csv":
        return read_table(path, image)
    if suffix == ".json" and is_coco(read_json(path)):
        coco = read_coco(path)
        return coco.of_file(image or "", shape)
    if suffix not in VECTORS:
        raise InputError(f"{path}: suffix {suffix!r} is no detection file; expected {', '.join(SUFFIXES)}")
    if grid.ndim != 2:
        raise GeometryError(f"{path} has map coordinates, the image is a volume; give a CSV with a column 'slice'")
    features = import_module("samgraft.domains.detections.features")  # the medical user never waits for GDAL
    found = features.read_features(path, grid, class_field=class_field, score_field=score_field)
    if not isinstance(found, Detections):
        raise TypeError(f"read_features gave {type(found).__name__}; expected Detections")
    return found
