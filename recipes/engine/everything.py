"""Everything in a picture, without prompts and without an adapter: a grid of points, and the answers worth keeping.

A mask is kept if the decoder believes in it (predicted IoU), if it hardly changes with the threshold (stability), if no
edge of a crop cuts it, and if no better mask is nearly the same. Small holes and islands can be cleaned, and objects
chosen by form and size. The result is a list of masks that may overlap (:func:`automatic_masks`), or an instance map
(:func:`segment_everything`), where the smaller of two overlapping masks is on top, so that nested objects stay.

Source:
    Segment Anything, arXiv:2304.02643, section B; segment-anything
    ``segment_anything/automatic_mask_generator.py`` for options and the order of steps.
Deviations:
    A mask without a pixel is dropped whatever the thresholds. ``bbox`` counts pixels, as COCO does: width x1 - x0 + 1
    (the original's is one less); boxes are compared by outer edges. Among crops of one size, and among masks that
    cleaning left alone, the better one wins (the original: whichever comes first). A crop is padded on all sides with
    its edge pixels, and enlarged masks are interpolated once instead of twice.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.domains.atomic import atomic_path
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError, ShapeError
from samgraft.grid import Grid
from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.focus import network_size
from samgraft.recipes.engine.pipeline import DEPTH
from samgraft.recipes.engine.planes import Plane, Rows, look_at
from samgraft.recipes.engine.search import Track, crops_of, search
from samgraft.recipes.engine.shapes import PixelScale, Shape, shape_of
from samgraft.recipes.engine.suppress import clean, keep_best
from samgraft.recipes.everything import ORIGINAL, EverythingConfig

__all__ = ["ORIGINAL", "AutomaticMasks", "EverythingConfig", "automatic_masks", "segment_everything"]

MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
"""Forms of ``segmentation`` in a record."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AutomaticMasks:
    """Masks of a picture, the best first; they may overlap."""

    shape: tuple[int, int]
    """(H, W)."""
    found: tuple[Candidate, ...]
    shapes: tuple[Shape, ...] = ()
    """Form and size of each."""
    dropped: Counter[str] = field(default_factory=Counter)
    """"masks": how many were decoded; the others: how many were dropped, and why."""

    def __len__(self) -> int:
        """Number of masks."""
        return len(self.found)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        """Each mask, (H, W) bool."""
        return (one.runs.full() for one in self.found)

    def records(self, output_mode: str = "coco_rle") -> list[dict[str, Any]]:
        """One dictionary per mask with the fields of the original generator, ready for JSON but for binary masks.

        Args:
            output_mode: "binary_mask" ((H, W) bool), "uncompressed_rle" or "coco_rle" (COCO, Fortran order).

        Returns:
            ``segmentation``; ``area`` in pixels; ``bbox`` and ``crop_box`` (x, y, width, height); ``predicted_iou``;
            ``point_coords`` [[x, y]], 0 being the first pixel's centre; ``stability_score``; and ``properties``.

        Raises:
            ConfigError: another mode.
        """
        if output_mode not in MODES:
            raise ConfigError(f"output_mode is {output_mode!r}; expected one of {', '.join(MODES)}")
        found = []
        shapes = self.shapes or (None,) * len(self.found)
        for one, shape in zip(self.found, shapes, strict=True):
            x0, y0, x1, y1 = one.runs.box
            binary = output_mode == "binary_mask"
            mask: Any = one.runs.full() if binary else one.runs.coco(compressed=output_mode == "coco_rle")
            found.append(
                {
                    "segmentation": mask,
                    "area": one.runs.area,
                    "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                    "predicted_iou": one.iou,
                    "point_coords": [list(one.point)],
                    "stability_score": one.stability,
                    "crop_box": list(one.crop.box),
                    "properties": shape.properties() if shape else {},
                }
            )
        return found

    def labels(self, valid: NDArray[np.bool_] | None = None) -> Array:
        """(H, W) instance map: mask i is i + 1; the smaller of two is on top. ``valid`` False stays 0."""
        labels = np.zeros(self.shape, dtype=label_dtype(len(self.found)))
        for number in sorted(range(len(self.found)), key=lambda i: -self.found[i].runs.area):
            runs = self.found[number].runs
            own = runs.crop()
            if valid is not None:
                own &= valid[runs.place]
            labels[runs.place][own] = number + 1
        return labels

    def explain(self) -> str:
        """How many masks were decoded, and why those that are not here were dropped."""
        reasons = [f"{count} by {why}" for why, count in self.dropped.most_common() if why != "masks" and count]
        lost = f"; dropped: {', '.join(reasons)}" if reasons else ""
        points = "" if self.dropped["masks"] else " (no point lies on a pixel with data)"
        return f"{self.dropped['masks']} masks decoded{points}{lost}"


def automatic_masks(
    backbone: Backbone,
    image: Tensor,
    *,
    config: EverythingConfig | None = None,
    size: int | None = None,
    valid: NDArray[np.bool_] | None = None,
    grid: Grid | None = None,
    batch: int | None = None,
    depth: int = DEPTH,
    features: Features | None = None,
) -> AutomaticMasks:
    """All masks of a picture in memory.

    Args:
        backbone: Any backbone.
        image: (3, H, W) float in [0, 1].
        config: What is asked and kept; ``ORIGINAL`` for the numbers of the published generator.
        size: Network size; None takes the native one.
        valid: (H, W) where there is data; None for everywhere.
        grid: Says how large pixels are, for shapes; None measures in pixels.
        batch: Crops encoded together; None chooses by their size.
        depth: Batches that may wait between reading, encoding and decoding; 0 does one after the other.
        features: Of the square that holds the picture, if it was encoded already; only for one crop.

    Raises:
        ShapeError: the image or ``valid`` has another shape.
        ConfigError: features for more than one crop.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ShapeError(f"image is {tuple(image.shape)} {image.dtype}; expected (3, H, W) float in [0, 1]")
    shape = (image.shape[1], image.shape[2])
    known = np.ones(shape, dtype=np.bool_) if valid is None else valid
    if known.shape != shape:
        raise ShapeError(f"valid is {known.shape}; the image is {shape}")
    config = config or EverythingConfig()
    chosen = network_size(backbone, size)
    if features is not None and len(crops_of(shape, chosen, config)) > 1:
        raise ConfigError("features belong to one view, and this picture is looked at in several; leave features out")
    pixels = image.float().cpu().numpy()
    found, dropped = search(
        lambda rows, cols: (pixels[:, rows, cols], known[rows, cols]),
        shape,
        backbone,
        config,
        size=chosen,
        batch=batch,
        depth=depth,
        features=features,
    )
    plain = Grid(shape=shape, affine=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]))
    return _finish(found, dropped, grid or plain, config)


def segment_everything(
    scene: Scene,
    backbone: Backbone,
    *,
    config: EverythingConfig | None = None,
    size: int | None = None,
    bands: Sequence[int] | None = None,
    batch: int | None = None,
    depth: int = DEPTH,
    track: Track | None = None,
    records: str | PathLike[str] | None = None,
) -> Segmentation:
    """Instance map of a picture or raster.

    Args:
        scene: Picture or raster.
        backbone: Any backbone.
        config: What is asked and kept.
        size: Network size; None takes the native one.
        bands: Channels shown as red, green, blue.
        batch: Crops encoded together; None chooses by their size.
        depth: Batches that may wait between reading, encoding and decoding; 0 does one after the other.
        track: Wraps the loop over crops, to show progress.
        records: JSON file for all masks, overlapping ones too, as COCO RLE.

    Raises:
        ConfigError: the scene is a volume; slices would be unrelated.
        OutputError: ``records`` cannot be written.
    """
    if scene.kind == "volume":
        raise ConfigError(
            f"{scene.path.name} is a volume: without an adapter it needs a prompt on a slice "
            "(UserPrompts(boxes=..., slice=...)); or give adapter=..."
        )
    config = config or EverythingConfig()
    plane = Plane(scene, look_at(scene, bands))
    chosen = network_size(backbone, size)
    read = Rows(plane).read
    found, dropped = search(read, plane.shape, backbone, config, size=chosen, batch=batch, depth=depth, track=track)
    masks = _finish(found, dropped, scene.grid, config)
    if records is not None:
        write_records(Path(records), masks, scene.path.name)
    labels = masks.labels(plane.valid())
    instances = _visible(masks, labels)
    meta = {"mode": "everything", "backbone": backbone.spec.name, "masks": masks.explain()}
    hidden = len(masks) - len(instances)
    if hidden:
        meta["objects hidden by smaller ones"] = str(hidden)
    return Segmentation(
        labels=labels, grid=scene.grid, kind="instance", classes={1: "object"}, instances=instances, meta=meta
    )


def _visible(masks: AutomaticMasks, labels: Array) -> tuple[InstanceRecord, ...]:
    """What is known of every mask that has a pixel in the instance map; its box is that of these pixels."""
    seen = set(np.unique(labels).tolist())
    instances = []
    for number, (one, shape) in enumerate(zip(masks.found, masks.shapes, strict=True), start=1):
        if number not in seen:
            continue
        rows, cols = one.runs.place
        own = labels[rows, cols] == number
        y, x = np.flatnonzero(own.any(1)) + rows.start, np.flatnonzero(own.any(0)) + cols.start
        instances.append(
            InstanceRecord(
                id=number,
                class_id=1,
                score=min(1.0, max(0.0, one.iou)),
                box=(float(x[0]), float(y[0]), float(x[-1]), float(y[-1])),
                properties={"stability": one.stability, **shape.properties()},
            )
        )
    return tuple(instances)


def write_records(path: Path, masks: AutomaticMasks, image: str) -> None:
    """Write all masks as JSON: ``image`` (file_name, height, width) and ``annotations`` with COCO RLE.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    content = {
        "image": {"file_name": image, "height": masks.shape[0], "width": masks.shape[1]},
        "annotations": [{"id": i, **record} for i, record in enumerate(masks.records(), start=1)],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _finish(found: list[Candidate], dropped: Counter[str], grid: Grid, config: EverythingConfig) -> AutomaticMasks:
    """Clean, measure and choose by form; the best first."""
    if config.min_mask_region_area and found:
        found = _cleaned(found, dropped, config)
    scale = PixelScale(grid)
    shape = (grid.shape[0], grid.shape[1])
    kept = []
    for number, one in enumerate(sorted(found, key=lambda one: -one.iou), start=1):
        rows, cols = one.runs.place
        form = shape_of(one.runs.crop(), scale, frame=shape, top=rows.start, left=cols.start, number=number)
        if config.shapes is None or config.shapes.accepts(form):
            kept.append((one, form))
    dropped["shape"] += len(found) - len(kept)
    numbered = tuple(replace(form, id=number) for number, (_, form) in enumerate(kept, start=1))
    return AutomaticMasks(shape=shape, found=tuple(one for one, _ in kept), shapes=numbered, dropped=dropped)


def _cleaned(found: list[Candidate], dropped: Counter[str], config: EverythingConfig) -> list[Candidate]:
    """Masks without small holes and islands; of those that became doubles, one that was left alone stays."""
    results = [clean(one.runs, config.min_mask_region_area) for one in found]
    masks = [mask for mask, _ in results]
    order = sorted(range(len(found)), key=lambda i: (results[i][1], -found[i].iou))
    kept = keep_best(masks, order, max(config.box_nms_thresh, config.crop_nms_thresh), by=config.nms)
    dropped["doubles after cleaning"] += len(found) - len(kept)
    return [replace(found[i], runs=masks[i]) for i in kept]
