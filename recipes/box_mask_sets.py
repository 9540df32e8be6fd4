"""A detection set on disk becomes an instance-mask set on disk; what becomes of one image says ``box_masks``.

Images without boxes stay as negatives. An image is done when its record is written: a run that was stopped goes on
where it was, and what was made with other settings, boxes or weights is made again.

    OUT/images/NAME        link to the image              OUT/annotations.json   COCO, run lengths of the whole masks
    OUT/instances/NAME     object i as i, small on top    OUT/contact_sheet.png  some images with boxes and masks
    OUT/semantic/NAME      class, 255 is unknown          OUT/records/NAME.json  one image's annotations

``samgraft fit --config nuclei --data OUT`` reads images and instances.

Source:
    SAMRS, arXiv:2305.02034, section 3.1. Its released code drops images without boxes and writes pickles.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.backbones.base import Backbone
from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.coco import from_rle, to_rle
from samgraft.domains.detections.sets import DetectionPicture, DetectionSet
from samgraft.domains.opening import open_scene
from samgraft.domains.picture.picture import write_png
from samgraft.domains.scene import Array, Scene
from samgraft.errors import ConfigError, OutputError
from samgraft.recipes.box_masks import UNKNOWN, BoxMask, BoxMasksConfig, masks_of_boxes, paint_masks
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.report import write_text
from samgraft.recipes.sheet import contact_sheet

SHOWN = 12
"""Images on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class BoxMasksOutcome:
    """What a run did."""

    written: int
    """Images done in this run."""
    kept: int
    """Images that were done before."""
    masks: int
    negatives: int
    """Images without any object."""
    left_out: tuple[str, ...]
    """Boxes without a mask, each with its image and the reason."""


def boxes_to_masks(
    data: DetectionSet,
    output: Path,
    backbone: Backbone,
    config: BoxMasksConfig,
    *,
    tell: Callable[[str], None] | None = None,
) -> BoxMasksOutcome:
    """Make the masks of a whole set, or those that are missing.

    Args:
        data: Images with boxes.
        output: Folder, made if it is not there.
        backbone: Any backbone.
        config: How.
        tell: Called with a line per image.

    Raises:
        InputError: an image is missing or damaged, or has another size than its boxes say.
        ConfigError: more classes than a label map with an unknown value holds.
        OutputError: the folder cannot be written.
    """
    if len(data.classes) >= UNKNOWN:
        raise ConfigError(f"{len(data.classes)} classes; a semantic map with {UNKNOWN} for unknown holds {UNKNOWN - 1}")
    for name in ("images", "instances", "semantic", "records"):
        _make(output / name)
    settings = {**asdict(config), "classes": dict(data.classes), "backbone": backbone.weights_hash()}
    records, written = [], 0
    for number, picture in enumerate(data, start=1):
        scene = open_scene(picture.path)
        found = picture.read(scene)
        key = _key({**settings, "boxes": repr(found), "size": picture.path.stat().st_size})
        record = _done(output, picture, scene, key)
        if record is None:
            record = _one(picture, scene, output, backbone, config, data.classes, key=key)
            written += 1
        records.append(record)
        if tell is not None:
            count = len(record["annotations"])
            tell(f"[{number}/{len(data)}] {picture.name}: {count} mask{'s' * (count != 1)}")
    _write_coco(output, records, data.classes, settings)
    contact_sheet(output / "contact_sheet.png", _panels(output, records))
    return BoxMasksOutcome(
        written=written,
        kept=len(records) - written,
        masks=sum(len(record["annotations"]) for record in records),
        negatives=sum(not record["annotations"] for record in records),
        left_out=tuple(f"{record['image']['file_name']}: {line}" for record in records for line in record["left_out"]),
    )


def _one(
    picture: DetectionPicture,
    scene: Scene,
    output: Path,
    backbone: Backbone,
    config: BoxMasksConfig,
    classes: Mapping[int, str],
    *,
    key: str,
) -> dict[str, Any]:
    """Label maps of one image, and last its record, which says that all is there."""
    shape = (scene.grid.shape[0], scene.grid.shape[1])
    found = picture.read(scene).within(shape, min_score=config.min_score)
    masks, empty = masks_of_boxes(scene, backbone, found.found, config)
    labels = {name: label for label, name in classes.items()}
    painted = paint_masks(masks, labels, shape)
    semantic = painted.marked()[1] if config.overlap == "ignore" else painted.semantic
    for folder, array in (("instances", painted.instance), ("semantic", semantic)):
        _write_labels(output / folder / _label_name(picture, scene), array, scene)
    _link(picture.path, output / "images" / picture.path.name)
    record = {
        "key": key,
        "image": {"file_name": picture.path.name, "height": shape[0], "width": shape[1]},
        "annotations": [_annotation(mask, labels, shape) for mask in masks],
        "left_out": [line for line in (*found.left_out, *empty) if not line.endswith("outside the image")],
    }
    write_text(output / "records" / f"{picture.name}.json", json.dumps(record))
    return record


def _annotation(mask: BoxMask, labels: Mapping[str, int], shape: tuple[int, int]) -> dict[str, Any]:
    height, width = mask.inside.shape
    return {
        "category_id": labels[mask.source.class_name],
        "bbox": [mask.left, mask.top, width, height],
        "area": mask.area,
        "segmentation": to_rle(mask.inside, top=mask.top, left=mask.left, shape=shape),
        "iscrowd": 0,
        "given_box": list(mask.source.box or ()),
        "score": mask.source.score,
        "predicted_iou": round(mask.predicted_iou, 4),
        "stability": round(mask.stability, 4),
        "source": mask.source.source,
    }


def _write_coco(
    output: Path, records: Sequence[Mapping[str, Any]], classes: Mapping[int, str], settings: Mapping[str, Any]
) -> None:
    """All records in one COCO file; images count from 1, annotations too."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        images.append({"id": number, **record["image"]})
        for one in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
    content = {
        "info": {"description": "masks made of boxes by samgraft boxes-to-masks", "settings": dict(settings)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in classes.items()],
    }
    write_text(output / "annotations.json", json.dumps(content))


def _panels(output: Path, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Array, Array, Array]]:
    """Title, image, masks and boxes of some images, evenly spaced."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(SHOWN, len(records))).round().astype(int))
    panels = []
    for record in (records[int(row)] for row in rows):
        image = record["image"]
        shape = (image["height"], image["width"])
        scene = open_scene(output / "images" / image["file_name"])
        labels, boxes = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for number, one in enumerate(sorted(record["annotations"], key=lambda one: -one["area"]), start=1):
            labels[from_rle(one["segmentation"])] = number
            x0, y0, x1, y1 = (round(value) for value in one["given_box"])
            boxes[max(0, y0) : y1 + 1, max(0, x0) : x1 + 1] = number
        title = f"{image['file_name']}: {len(record['annotations'])}"
        panels.append((title, Plane(scene, look_at(scene)).whole().numpy(), labels, boxes))
    return panels


def _done(output: Path, picture: DetectionPicture, scene: Scene, key: str) -> dict[str, Any] | None:
    """The record of an image that was done before in the same way."""
    path = output / "records" / f"{picture.name}.json"
    name = _label_name(picture, scene)
    there = all((output / folder / name).is_file() for folder in ("instances", "semantic"))
    if not there or not path.is_file():
        return None
    record = read_json(path)
    return record if isinstance(record, dict) and record.get("key") == key else None


def _label_name(picture: DetectionPicture, scene: Scene) -> str:
    return f"{picture.name}{'.tif' if scene.kind == 'raster' else '.png'}"


def _write_labels(path: Path, labels: Array, scene: Scene) -> None:
    if scene.kind != "raster":
        write_png(path, labels)
        return
    from samgraft.domains.remote_sensing.label_raster import write_label_geotiff

    write_label_geotiff(path, labels, scene.grid)


def _link(source: Path, target: Path) -> None:
    """Make ``target`` show the image: a link, or a copy where links cannot be made."""
    for path in (source, *source.parent.glob(f"{source.name}.*")):  # .aux.xml and the like say where a raster lies
        place = target.with_name(path.name)
        if place.is_symlink() or place.exists():
            continue
        try:
            os.symlink(path.resolve(), place)
        except OSError:
            shutil.copy2(path, place)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error}; choose a writable folder") from error


def _key(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
