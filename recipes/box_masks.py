"""A detection set becomes an instance-mask set: every box is a prompt, and the answer is its object's mask.

A mask is cut to a slightly larger box than the one that was given, so that no background far away belongs to an object.
Masks are painted from large to small, so that small objects stay visible on large ones; where several objects claim a
pixel it can be marked as unknown. Predicted IoU and stability stay with every mask, and images without boxes stay as
negatives. An image is done when its record is written: a run that was stopped goes on where it was.

    OUT/images/NAME        link to the image              OUT/annotations.json   COCO, run lengths of the whole masks
    OUT/instances/NAME     object i as i, small on top    OUT/contact_sheet.png  some images with boxes and masks
    OUT/semantic/NAME      class, 255 is unknown          OUT/records/NAME.json  one image's annotations

``samgraft fit --config nuclei --data OUT`` reads images and instances.

Source:
    SAMRS, arXiv:2305.02034, section 3.1, and ViTAE-Transformer/SAMRS:Generate Dataset. Stability: Segment Anything,
    arXiv:2304.02643, section B.
Deviations:
    The released code paints boxes in file order, so the last one wins, does not cut masks to their boxes, drops images
    without boxes, and writes pickles.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice
from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.base import Detection
from samgraft.domains.detections.coco import from_rle, to_rle
from samgraft.domains.detections.sets import DetectionPicture, DetectionSet
from samgraft.domains.opening import open_scene
from samgraft.domains.picture.picture import write_png
from samgraft.domains.scene import Array, Scene
from samgraft.errors import ConfigError, InputError, OutputError
from samgraft.recipes.engine.focus import CONTEXTS, boxes_in, network_size
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.engine.views import ObjectMask
from samgraft.recipes.report import write_text
from samgraft.recipes.sheet import contact_sheet

UNKNOWN = 255
"""Value of the semantic map where several objects claim a pixel."""
OFFSET = 1.0
"""Stability compares the mask at logits of plus and minus this."""
SHOWN = 12
"""Images on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class BoxMasksConfig:
    """How boxes become masks."""

    dilate: float = 0.05
    """A mask may leave its box by this share of the box's side, and by one pixel at least."""
    overlap: Literal["ignore", "smallest"] = "ignore"
    """Pixels of several objects in the semantic map: unknown (255), or the class of the smallest."""
    tight: bool = True
    """Boxes end where their objects end, so that masks are made to fill them."""
    min_score: float = 0.0
    """Detections with a lower score are left out."""
    network_size: int | None = None
    """Side in pixels of the network input; None takes the backbone's own."""

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("boxes-to-masks", "overlap", self.overlap, ("ignore", "smallest"))
        if not 0 <= self.dilate <= 1:
            raise ConfigError(f"boxes-to-masks: dilate is {self.dilate}; expected a share of the side in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxMask:
    """The mask of one box, on its own pixels."""

    source: Detection
    top: int
    left: int
    inside: NDArray[np.bool_]
    """(h, w), at least one pixel."""
    predicted_iou: float
    stability: float
    """Pixels above +1 over pixels above -1, in [0, 1]: 1 if the outline does not depend on the threshold."""

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.inside.sum())

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of ``inside`` in the image."""
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """The masks of one image in label maps."""

    instance: NDArray[np.int32]
    """(H, W): mask i as i + 1; where several claim a pixel, the smallest."""
    semantic: NDArray[np.int32]
    """(H, W) classes, 0 background; the class of the smallest object."""
    overlap: NDArray[np.bool_]
    """(H, W): claimed by more than one object."""

    def marked(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Instance map with -1, and semantic map with 255, where several objects claim a pixel."""
        return np.where(self.overlap, -1, self.instance), np.where(self.overlap, UNKNOWN, self.semantic)


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


def masks_of_boxes(
    scene: Scene, backbone: Backbone, found: Sequence[Detection], config: BoxMasksConfig
) -> tuple[list[BoxMask], list[str]]:
    """One mask per box of an image.

    Args:
        scene: A picture or raster.
        backbone: Any backbone.
        found: Objects with boxes, inside the image.
        config: How.

    Returns:
        Masks in the order of ``found``, and what has none, with the reason.
    """
    boxed = [one for one in found if one.box is not None]
    left_out = [f"{one.source}: no box" for one in found if one.box is None]
    if not boxed:
        return [], left_out
    plane, size = Plane(scene, look_at(scene)), network_size(backbone, config.network_size)
    answers = boxes_in(
        backbone,
        plane.crop,
        torch.tensor([one.box for one in boxed], dtype=torch.float64),
        shape=plane.shape,
        size=size,
        contexts=CONTEXTS,
        batch=encode_batch(backbone, size),
        depth=DEPTH,
        fit=config.tight,
    )
    masks = []
    for one, answer in zip(boxed, answers, strict=True):
        rows, cols = answer.place
        mask = cut_mask(one, answer, plane.valid(rows, cols), config.dilate)
        if mask is None:
            left_out.append(f"{one.source}: no mask found")
        else:
            masks.append(mask)
    return masks, left_out


def cut_mask(one: Detection, answer: ObjectMask, valid: NDArray[np.bool_], dilate: float) -> BoxMask | None:
    """The part of an answer in a dilated box and on valid pixels; None if nothing is left.

    Args:
        one: Whose box it is.
        answer: Of the decoder.
        valid: (h, w) on the pixels of ``answer``.
        dilate: Share of the box's sides, at least one pixel.
    """
    if one.box is None:
        raise InputError(f"{one.source} has no box to be cut to")
    x0, y0, x1, y1 = one.box
    dx, dy = max(1.0, dilate * (x1 - x0 + 1)), max(1.0, dilate * (y1 - y0 + 1))
    rows, cols = answer.place
    y, x = np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop)[None]
    near = (x >= x0 - dx) & (x <= x1 + dx) & (y >= y0 - dy) & (y <= y1 + dy) & valid
    logits = answer.logits.numpy()
    inside = (logits > 0) & near
    if not inside.any():
        return None
    most = int(((logits > -OFFSET) & near).sum())
    r, c = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return BoxMask(
        source=one,
        top=rows.start + int(r[0]),
        left=cols.start + int(c[0]),
        inside=np.ascontiguousarray(inside[r[0] : r[-1] + 1, c[0] : c[-1] + 1]),
        predicted_iou=answer.iou,
        stability=float(((logits > OFFSET) & near).sum()) / most,
    )


def paint_masks(masks: Sequence[BoxMask], classes: Mapping[str, int], shape: tuple[int, int]) -> Painted:
    """Draw masks from large to small.

    Args:
        masks: Of one image; of equal ones the later lies on top.
        classes: Class name -> label.
        shape: (H, W) of the image.
    """
    instance, semantic = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    claims = np.zeros(shape, np.int32)
    for number in sorted(range(len(masks)), key=lambda i: -masks[i].area):
        one = masks[number]
        instance[one.place][one.inside] = number + 1
        semantic[one.place][one.inside] = classes[one.source.class_name]
        claims[one.place] += one.inside
    return Painted(instance=instance, semantic=semantic, overlap=claims > 1)


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
    images, annotations = [], []
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
    from samgraft.domains.remote_sensing.raster import write_label_geotiff

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
