"""Objects that a person points at: UserPrompts on a Scene become an instance map on the scene's Grid."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Promptable
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.recipes.engine.focus import CONTEXTS, ObjectMask, boxes_in, network_size, points_in
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.engine.windows import window_around
from samgraft.recipes.prompting import UserPrompts

POINT_VIEW = 1024
"""Points without a box are first looked at in a view of at most this many pixels."""


def segment_prompted(
    scene: Scene,
    backbone: Promptable,
    prompts: UserPrompts,
    *,
    size: int | None = None,
    context: float | Sequence[float] = CONTEXTS,
    fit: bool = True,
    batch: int | None = None,
    depth: int = DEPTH,
    bands: Sequence[int] | None = None,
) -> Segmentation:
    """Segment what the prompts name; for a volume, on the prompted slice.

    Args:
        scene: Where to look.
        backbone: Any backbone.
        prompts: Boxes and points in pixels of the scene.
        size: Network size; None takes the native one.
        context: Side of the crop over the longest side of a box; several are averaged.
        fit: Boxes are tight: the mask fills its box.
        batch: Crops encoded together; None chooses by their size.
        depth: Batches that may wait between cropping, encoding and decoding; 0 does one after the other.
        bands: Channels shown as red, green, blue.

    Raises:
        PromptError: a prompt outside the scene.
        InputError: the file is damaged.
    """
    prompts.check(scene.grid)
    chosen = network_size(backbone, size)
    axis, index = prompts.plane_axis(scene.grid), prompts.plane_index(scene.grid)
    plane = Plane(scene, look_at(scene, bands), axis=axis, index=index)
    contexts = (context,) if isinstance(context, int | float) else context
    computed = encode_batch(backbone, chosen, batch)
    masks = _objects(plane, backbone, prompts, size=chosen, contexts=contexts, batch=computed, depth=depth, fit=fit)
    meta = {"mode": "prompted", "backbone": backbone.spec.name}
    if axis is not None:
        meta["slice"] = f"{'DHW'[axis]}={index}"
    empty = sum(mask.box() is None for mask in masks)
    if empty:
        meta["objects not found"] = str(empty)
    labels, records = paint(masks, plane)
    return Segmentation(
        labels=on_grid(labels, scene.grid.shape, axis, index),
        grid=scene.grid,
        kind="instance",
        classes={1: "object"},
        instances=records,
        from_ground_truth=prompts.from_ground_truth,
        meta=meta,
    )


def _objects(
    plane: Plane,
    backbone: Promptable,
    prompts: UserPrompts,
    *,
    size: int,
    contexts: Sequence[float],
    batch: int,
    depth: int,
    fit: bool,
) -> list[ObjectMask]:
    """One mask per object that was asked for."""
    points, labels = _point_tensors(prompts)
    if not prompts.boxes:
        corners = [(min(v), max(v)) for v in zip(*((x, y) for x, y, _ in prompts.points), strict=True)]
        spread = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        view = None
        if max(plane.shape) > POINT_VIEW:
            view = window_around(
                spread, plane.shape, POINT_VIEW / (max(spread[2] - spread[0], spread[3] - spread[1]) + 1)
            )
        options = {"shape": plane.shape, "size": size, "batch": batch, "depth": depth}
        found = points_in(backbone, plane.crop, points, labels, context=2.2, view=view, **options)  # type: ignore[arg-type]
        return [masks[0] for masks in found]
    boxes = torch.tensor(prompts.boxes, dtype=torch.float64)
    return boxes_in(
        backbone,
        plane.crop,
        boxes,
        around=[_around(box, prompts) for box in prompts.boxes],
        points=points if prompts.points else None,
        labels=labels if prompts.points else None,
        shape=plane.shape,
        size=size,
        contexts=contexts,
        batch=batch,
        depth=depth,
        fit=fit,
    )


def _around(box: tuple[float, float, float, float], prompts: UserPrompts) -> tuple[float, float, float, float]:
    """The box, enlarged to hold the points that belong to it."""
    xs = [box[0], box[2], *(x for x, _, _ in prompts.points)]
    ys = [box[1], box[3], *(y for _, y, _ in prompts.points)]
    return min(xs), min(ys), max(xs), max(ys)


def _point_tensors(prompts: UserPrompts) -> tuple[Tensor, Tensor]:
    """(1, p, 2) places and (1, p) labels."""
    places = torch.tensor([[(x, y) for x, y, _ in prompts.points]], dtype=torch.float64)
    return places.reshape(1, -1, 2), torch.tensor([[label for _, _, label in prompts.points]], dtype=torch.int64)


def paint(masks: Sequence[ObjectMask], plane: Plane) -> tuple[Array, tuple[InstanceRecord, ...]]:
    """Draw masks into one label map; where two overlap, the one with the larger predicted IoU wins.

    Returns:
        (H, W) labels, object i as i + 1 in the order of ``masks``, and one record per object with at least one pixel.
    """
    labels = np.zeros(plane.shape, dtype=label_dtype(len(masks)))
    for number in sorted(range(len(masks)), key=lambda i: masks[i].iou):
        mask = masks[number]
        rows, cols = mask.place
        labels[rows, cols][mask.crop & plane.valid(rows, cols)] = number + 1
    records = []
    for number, mask in enumerate(masks, start=1):
        rows, cols = mask.place
        seen = labels[rows, cols] == number
        if seen.any():
            y, x = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            box = (x[0] + cols.start, y[0] + rows.start, x[-1] + cols.start, y[-1] + rows.start)
            tight = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            records.append(InstanceRecord(id=number, class_id=1, score=mask.iou, box=tight))
    return labels, tuple(records)


def on_grid(labels: Array, shape: tuple[int, ...], axis: int | None, index: int) -> Array:
    """Put a plane's labels (H, W) into an array of ``shape``; zeros elsewhere."""
    if axis is None:
        return labels
    volume = np.zeros(shape, dtype=labels.dtype)
    place: list[slice | int] = [slice(None)] * 3
    place[axis] = index
    volume[tuple(place)] = labels
    return volume
