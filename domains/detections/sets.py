"""Sets of images with boxes: a COCO file and its images, or rasters and vector files.

Takes paths; gives one entry per image, also for images without a box, whose objects are read when asked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.base import DEFAULT_CLASS, Detections
from samgraft.domains.detections.coco import CocoFile, CocoImage, is_coco, read_coco
from samgraft.domains.scene import Scene
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionPicture:
    """One image and what is known to be in it."""

    name: str
    """Unique in its set; the file's name without suffix."""
    path: Path
    """The image file."""
    read: Callable[[Scene], Detections]
    """Gives its objects, in pixels, for the opened image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionSet:
    """Images with boxes."""

    pictures: tuple[DetectionPicture, ...]
    """In the order of the file, or of names."""
    classes: Mapping[int, str]
    """Label, from 1 -> name."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pictures)

    def __iter__(self) -> Iterator[DetectionPicture]:
        """Iterate over the images."""
        return iter(self.pictures)


def read_detection_set(boxes: Path | str, images: Path | str, *, class_field: str | None = None) -> DetectionSet:
    """Index a detection set; no pixel is read.

    Args:
        boxes: A COCO ``.json`` with images, or a vector file or a folder of them for rasters of the same names.
        images: The folder of images.
        class_field: Vector files: field with the class; None makes one class, "object".

    Raises:
        InputError: missing files or folders, images that are not there, or two images of one name.
    """
    boxes, images = Path(boxes), Path(images)
    if not images.is_dir():
        raise InputError(f"{images} is no folder; name the folder of the images that the boxes belong to")
    if full_suffix(boxes) == ".json" and boxes.is_file() and is_coco(read_json(boxes)):
        return _coco_set(read_coco(boxes), images)
    from samgraft.domains.datasets.raster_vector import read_raster_vector

    index = read_raster_vector(images, boxes, class_field=class_field)
    pictures = tuple(
        DetectionPicture(name=case.id, path=case.image[0], read=partial(_of_features, case.label, class_field))
        for case in index
    )
    return DetectionSet(pictures=pictures, classes=dict(index.classes))


def _coco_set(coco: CocoFile, images: Path) -> DetectionSet:
    if not coco.images:
        raise InputError(f"{coco.path} names no images; give a COCO file with 'images'")
    missing, pictures, names = [], [], set()
    for image in coco.images:
        path = next((p for p in (images / image.file_name, images / Path(image.file_name).name) if p.is_file()), None)
        if path is None:
            missing.append(image.file_name)
            continue
        if path.stem in names:
            raise InputError(f"{coco.path} has two images called {path.stem}; their masks would have the same name")
        names.add(path.stem)
        pictures.append(DetectionPicture(name=path.stem, path=path, read=partial(_of_coco, coco, image)))
    if missing:
        raise InputError(f"{images} lacks {len(missing)} of {len(coco.images)} images: {', '.join(missing[:5])}")
    names_of = sorted({one.class_name for found in coco.boxes.values() for one in found.found})
    known = [coco.categories[label] for label in sorted(coco.categories)] or names_of
    return DetectionSet(pictures=tuple(pictures), classes=dict(enumerate(known, start=1)))


def _of_coco(coco: CocoFile, image: CocoImage, scene: Scene) -> Detections:
    height, width = scene.grid.shape
    if (image.height, image.width) != (height, width):
        raise InputError(
            f"{coco.path} has boxes for {image.file_name} of {image.width} x {image.height} pixels; {scene.path} has "
            f"{width} x {height}; give the images that the boxes were drawn on"
        )
    return coco.of(image)


def _of_features(path: Path | None, class_field: str | None, scene: Scene) -> Detections:
    if path is None:
        return Detections(found=())
    from samgraft.domains.detections.features import read_features

    found = read_features(path, scene.grid, class_field=class_field)
    if class_field is not None:
        return found
    return replace(found, found=tuple(replace(one, class_name=DEFAULT_CLASS) for one in found.found))
