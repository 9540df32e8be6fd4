"""COCO annotations of the files of a raster, in pixels of that raster.

Every image of the COCO file is one of the raster's files, by name; its annotations are moved from the file's pixels to
those of the raster, so the annotations of many chips become those of one mosaic. An outline (polygons or run lengths)
counts before the box; crowds are areas of which nothing is known.

Source:
    COCO data format, cocodataset.org/#format-data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio import features
from shapely.geometry.base import BaseGeometry

from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.base import DEFAULT_CLASS, finite
from samgraft.domains.detections.coco import CocoImage, from_rle, read_coco
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.remote_sensing.georeference import PointMap, crs_of, point_map, transform_of
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import VectorObject, reproject
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoObjects:
    """What a COCO file says of a raster."""

    objects: tuple[VectorObject, ...]
    """In pixels of the raster."""
    crowds: tuple[BaseGeometry, ...] = ()
    """Areas with objects that nobody told apart."""


def read_coco_objects(path: Path, scene: GeoScene) -> CocoObjects:
    """Read the annotations of all files of a raster.

    Args:
        path: COCO JSON with images, annotations and categories.
        scene: The raster; its files are looked up by name. A file with one image serves a raster of that size by any
            name.

    Raises:
        InputError: damaged, no annotation on the raster, or an image of another size than its file.
    """
    known = read_coco(path)
    places = _places(path, known.images, scene)
    extent = shapely.box(0, 0, scene.grid.shape[1], scene.grid.shape[0])
    objects: list[VectorObject] = []
    crowds: list[BaseGeometry] = []
    content: Any = read_json(path)
    for number, entry in enumerate(content["annotations"] if isinstance(content, Mapping) else content):
        move = places.get(int(entry.get("image_id", 0)))
        if move is None:
            continue
        shape = _shape(path, entry, f"annotation {entry.get('id', number)}")
        if shape is None:
            continue
        moved = shapely.transform(shape, move)
        if not moved.intersects(extent):
            continue
        if entry.get("iscrowd"):
            crowds.append(moved)
            continue
        label = int(entry.get("category_id", -1))
        name = known.categories.get(label, DEFAULT_CLASS if label < 0 else f"class {label}")
        objects.append(VectorObject(geometry=moved, class_name=name, source_id=int(entry.get("id", number))))
    return CocoObjects(objects=tuple(objects), crowds=tuple(crowds))


def _places(path: Path, images: Sequence[CocoImage], scene: GeoScene) -> Mapping[int, PointMap]:
    """Image id -> map from its pixels to those of the raster, for the images that the raster holds."""
    files: dict[str, Path] = {}
    for file in scene.files:
        files.setdefault(file.name, file)
        files.setdefault(file.stem, file)
    found: dict[int, PointMap] = {}
    for image in images:
        name = Path(image.file_name)
        own = files.get(name.name) or files.get(name.stem)
        if own is not None:
            found[image.id] = _move(path, image, own, scene)
        elif len(images) == 1 and (image.height, image.width) == scene.grid.shape:
            found[image.id] = lambda points: points
    if not found:
        raise InputError(
            f"{path} has the images {', '.join(i.file_name for i in images[:3])}, ...; none is a file of the raster "
            f"({', '.join(sorted({f.name for f in scene.files})[:3])}, ...); name the files that were annotated"
        )
    return found


def _move(path: Path, image: CocoImage, file: Path, scene: GeoScene) -> PointMap:
    """Pixels of a file to pixels of the raster."""
    grid = RasterScene(file).grid
    if grid.shape != (image.height, image.width):
        raise InputError(
            f"{path} knows {image.file_name} as {image.width} x {image.height} pixels; the file has {grid.shape[1]} x "
            f"{grid.shape[0]}; give the file that was annotated"
        )
    steps: list[PointMap] = [point_map(transform_of(grid))]
    source, target = crs_of(grid), crs_of(scene.grid)
    if source is not None and target is not None and source != target:
        steps.append(reproject(source, target))
    steps.append(point_map(~transform_of(scene.grid)))

    def move(points: Any) -> Any:
        for step in steps:
            points = step(points)
        return points

    return move


def _shape(path: Path, entry: Mapping[str, Any], name: str) -> BaseGeometry | None:
    """Outline of an annotation in pixels of its image, or its box; None where it has no area."""
    given = entry.get("segmentation")
    parts: list[BaseGeometry] = []
    if isinstance(given, Mapping):
        mask = from_rle(given)
        parts = [shapely.geometry.shape(s) for s, _ in features.shapes(mask.astype(np.uint8), mask=mask)]
    elif given:
        for ring in given:
            numbers = np.array(finite(ring, f"{path}: outline of {name}")).reshape(-1, 2)
            parts += [shapely.make_valid(shapely.polygons(numbers))] if len(numbers) >= 3 else []
    elif entry.get("bbox"):
        x, y, width, height = finite(entry["bbox"], f"{path}: bbox of {name}")
        parts = [shapely.box(x, y, x + width, y + height)]
    whole = shapely.union_all(parts)
    return whole if whole.area > 0 else None
