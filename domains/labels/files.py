"""Label files of a large raster: vector files, COCO, or a raster of labels, brought onto the raster's pixels.

Takes GeoJSON, GeoPackage, FlatGeobuf, GeoParquet or a shapefile in any CRS, a COCO file of the raster's own files, or a
raster in any CRS and pixel size; gives a :class:`~samgraft.domains.labels.source.LabelSource`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from samgraft.domains.datasets.index import LabelKind, read_json
from samgraft.domains.detections.coco import is_coco
from samgraft.domains.labels.coco import read_coco_objects
from samgraft.domains.labels.source import LabelSource, ObjectLabels, RasterLabels
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.remote_sensing.georeference import crs_of, ground_step
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import DEFAULT_CLASS, VectorObject, read_layer
from samgraft.domains.remote_sensing.warp import Warp, WarpedScene
from samgraft.errors import GeometryError, InputError

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".img", ".jp2")
VECTOR_SUFFIXES = (".geojson", ".gpkg", ".fgb", ".parquet", ".geoparquet", ".shp", ".json")
BoxShape = Literal["box", "ellipse"]
_MOST_VALUES = 256
_CIRCLE = np.linspace(0.0, 2.0 * np.pi, 33)[:-1]


@dataclass(frozen=True, kw_only=True)
class LabelChoice:
    """What of a label file is wanted, and how it is drawn."""

    kind: LabelKind = "instance"
    """Whether objects are told apart."""
    class_field: str | None = None
    """Field of a vector file that holds the class; None makes one class, "object"."""
    classes: tuple[str, ...] | None = None
    """Classes in label order from 1; features of others are left out. None takes all that the file has, sorted."""
    layer: str | None = None
    """Layer of a vector file, where it has several."""
    point_m: float | None = None
    """Radius in metres of the disc that a point stands for, and half the width of a line."""
    boxes_as: BoxShape = "box"
    """"ellipse" draws what fills the box that is drawn around every outline: for boxes around round things."""
    least_visible: float = 0.1
    """See :class:`ObjectLabels`."""


def read_labels(path: Path, scene: GeoScene, choice: LabelChoice) -> LabelSource:
    """Open the labels of a raster.

    Args:
        path: The label file, or a folder of vector and COCO files that are taken together.
        scene: The raster.
        choice: What is wanted.

    Raises:
        InputError: a missing or damaged file, points without a radius, an unknown field, or nothing on the raster.
        GeometryError: only one of file and raster has a CRS, or a radius in metres where metres are not known.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return _raster_labels(path, scene, choice)
    objects: list[VectorObject] = []
    crowds: list[Any] = []
    for file in _members(path):
        if file.suffix.lower() == ".json" and file.is_file() and is_coco(read_json(file)):
            found = read_coco_objects(file, scene)
            objects += found.objects
            crowds += found.crowds
        else:
            objects += read_layer(file, class_field=choice.class_field, layer=choice.layer).on(scene.grid)
    names = choice.classes if choice.classes is not None else sorted({o.class_name for o in objects})
    if choice.classes is not None and {o.class_name for o in objects} == {DEFAULT_CLASS} and len(names) == 1:
        objects = [_renamed(one, names[0]) for one in objects]
    table = {name: number for number, name in enumerate(names, start=1)}
    wanted = [one for one in objects if one.class_name in table]
    if not wanted:
        there = sorted({o.class_name for o in objects})
        raise InputError(
            f"{path}: none of its objects of {', '.join(names) or 'any class'} touches {scene.path.name}"
            + (f"; it has {', '.join(there)}" if there else "; are both of the same place?")
        )
    geometries = _polygons(np.array([one.geometry for one in wanted], dtype=object), path, scene, choice)
    return ObjectLabels(
        geometries,
        np.array([table[one.class_name] for one in wanted], dtype=np.int32),
        {number: name for name, number in table.items()},
        unknown=np.array(crowds, dtype=object),
        least_visible=choice.least_visible,
    )


def read_mask(path: Path, scene: GeoScene) -> GeoScene:
    """A raster of 0 (or no data) and other values, on the grid of ``scene``.

    Raises:
        InputError: missing or damaged.
        GeometryError: it cannot be laid on that grid.
    """
    return _on_grid(path, scene)


def _renamed(one: VectorObject, name: str) -> VectorObject:
    return VectorObject(geometry=one.geometry, class_name=name, source_id=one.source_id)


def _members(path: Path) -> list[Path]:
    """The file, or all label files of a folder by name."""
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in VECTOR_SUFFIXES)
    if not found:
        raise InputError(f"{path} holds no label file; expected {', '.join(VECTOR_SUFFIXES)}")
    return found


def _polygons(geometries: NDArray[Any], path: Path, scene: GeoScene, choice: LabelChoice) -> NDArray[Any]:
    """Points and lines with a width, boxes as ellipses where that is wanted."""
    thin = np.flatnonzero(shapely.area(geometries) == 0)
    if len(thin):
        kind = geometries[thin[0]].geom_type
        if choice.point_m is None:
            raise InputError(
                f"{path}: {len(thin)} of {len(geometries)} features have no area, such as a {kind}; say how many "
                "metres around them belong to the object (data.point_m)"
            )
        step = ground_step(scene.grid)
        if step is None:
            raise GeometryError(
                f"{scene.path.name} has no CRS with a known unit, so {choice.point_m} m around a point of "
                f"{path.name} is unknown; give it a CRS, or draw polygons"
            )
        radius = choice.point_m / np.array(step[::-1])  # columns, rows
        shrunk = shapely.transform(geometries[thin], lambda points: points / radius)
        geometries[thin] = shapely.transform(shapely.buffer(shrunk, 1.0), lambda points: points * radius)
    if choice.boxes_as == "ellipse":
        thick = np.setdiff1d(np.arange(len(geometries)), thin)
        geometries[thick] = _ellipses(geometries[thick])
    return geometries


def _ellipses(geometries: NDArray[Any]) -> NDArray[Any]:
    """The ellipse that touches the sides of the smallest rectangle around each polygon, whatever its direction."""
    frames = shapely.oriented_envelope(geometries)
    found = np.empty(len(frames), dtype=object)
    for number, frame in enumerate(frames.tolist()):
        corners = shapely.get_coordinates(frame)[:4]
        middle = corners.mean(axis=0)
        along, across = (corners[1] - corners[0]) / 2, (corners[2] - corners[1]) / 2
        found[number] = shapely.polygons(middle + np.cos(_CIRCLE)[:, None] * along + np.sin(_CIRCLE)[:, None] * across)
    return found


def _raster_labels(path: Path, scene: GeoScene, choice: LabelChoice) -> RasterLabels:
    """Labels from a raster; its values are met by reading it once, block by block, where they are not named."""
    labels = _on_grid(path, scene)
    if choice.kind == "instance":
        name = choice.classes[0] if choice.classes else DEFAULT_CLASS
        return RasterLabels(labels, {1: name}, values={}, objects=True)
    if choice.classes is not None:
        values = {number: number for number in range(1, len(choice.classes) + 1)}
        return RasterLabels(labels, dict(enumerate(choice.classes, start=1)), values=values)
    present = _values(labels)
    if not present:
        raise InputError(f"{path} has no value above 0 on {scene.path.name}, so there is nothing to learn")
    values = {value: number for number, value in enumerate(present, start=1)}
    return RasterLabels(labels, {number: f"class {value}" for value, number in values.items()}, values=values)


def _on_grid(path: Path, scene: GeoScene) -> GeoScene:
    """A raster as it is where it lies on the grid of ``scene``, else moved onto it, each pixel as it was stored."""
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    own = RasterScene(path)
    if own.grid.shape == scene.grid.shape and np.array_equal(own.grid.affine, scene.grid.affine):
        if own.grid.world == scene.grid.world:
            return own
    if crs_of(own.grid) is None or crs_of(scene.grid) is None:
        raise GeometryError(
            f"{path} is {own.grid.shape}, {scene.path.name} is {scene.grid.shape}, and one of them has no CRS; give "
            "both a CRS, or labels of the raster's own size and transform"
        )
    return WarpedScene(path, warp=Warp(resampling="nearest"), grid=scene.grid)


def _values(labels: GeoScene) -> list[int]:
    """Values above 0 of a label raster, sorted.

    Raises:
        InputError: more than 256, which is no map of classes.
    """
    found: set[int] = set()
    rows, cols = labels.grid.shape
    for top in range(0, rows, 1024):
        for left in range(0, cols, 1024):
            part = (slice(top, min(rows, top + 1024)), slice(left, min(cols, left + 1024)))
            if not labels.touches(part):
                continue
            array, valid = labels.read_valid(part, [0])
            found |= {int(value) for value in np.unique(array[0][valid]) if value > 0}
            if len(found) > _MOST_VALUES:
                raise InputError(
                    f"{labels.path} has more than {_MOST_VALUES} values, so it is no map of classes; for numbered "
                    "objects set task.kind: instance"
                )
    return sorted(found)
