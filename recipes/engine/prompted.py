"""Objects that someone points at: prompts on a Scene become an instance map on the scene's Grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Promptable
from samgraft.adapters.prompts.improve import Improvement
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.recipes.engine.focus import CONTEXTS, boxes_in, network_size, points_in
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.engine.views import ObjectMask
from samgraft.recipes.engine.windows import Window, window_around
from samgraft.recipes.prompting import AXES, ObjectPrompt, ObjectPrompts, UserPrompts

POINT_VIEW = 1024
"""Points without a box are first looked at in a view of at most this many pixels."""
POINT_CONTEXT = 2.2
"""Side of the second view of points over the longest side of the first mask."""


def segment_prompted(
    scene: Scene,
    backbone: Promptable,
    prompts: UserPrompts | ObjectPrompts,
    *,
    size: int | None = None,
    context: float | Sequence[float] = CONTEXTS,
    fit: bool = True,
    batch: int | None = None,
    depth: int = DEPTH,
    bands: Sequence[int] | None = None,
    better: Improvement | None = None,
) -> Segmentation:
    """Segment what the prompts name; for a volume, on the prompted slices.

    Args:
        scene: Where to look.
        backbone: Any backbone.
        prompts: Boxes, points and masks in pixels of the scene.
        size: Network size; None takes the native one.
        context: Side of the crop over the longest side of a box; several are averaged.
        fit: Boxes are tight: the mask fills its box.
        batch: Crops encoded together; None chooses by their size.
        depth: Batches that may wait between cropping, encoding and decoding; 0 does one after the other.
        bands: Channels shown as red, green, blue.
        better: An extra point or self-correction in every look; None for neither.

    Returns:
        An instance map: object i of the prompts has label i + 1, and the class that its prompt names.

    Raises:
        PromptError: a prompt outside the scene.
        InputError: the file is damaged.
    """
    asked = prompts.as_objects() if isinstance(prompts, UserPrompts) else prompts
    asked.check(scene.grid)
    chosen, axis = network_size(backbone, size), asked.plane_axis(scene.grid)
    look = look_at(scene, bands)
    contexts = (context,) if isinstance(context, int | float) else tuple(context)
    computed = encode_batch(backbone, chosen, batch)
    names = {name: label for label, name in enumerate(asked.class_names(), start=1)}
    settings = AskSettings(
        backbone=backbone, size=chosen, contexts=contexts, batch=computed, depth=depth, fit=fit, better=better
    )
    labels = np.zeros(scene.grid.shape, dtype=label_dtype(len(asked)))
    records: list[InstanceRecord] = []
    empty = 0
    slices = _by_slice(asked, scene)
    for index, numbers in slices.items():
        plane = Plane(scene, look, axis=axis, index=index)
        masks = ask_objects(plane, [asked.objects[i] for i in numbers], settings)
        classes = [names[asked.objects[i].class_name] for i in numbers]
        drawn, found = paint(masks, plane, ids=[i + 1 for i in numbers], classes=classes)
        labels[plane_of(axis, index)] = drawn
        records += found
        empty += sum(mask.box() is None for mask in masks)
    meta = {"mode": "prompted", "backbone": backbone.spec.name}
    if axis is not None:
        meta["slice"] = f"{AXES[axis]}={','.join(map(str, slices))}"
    if empty:
        meta["objects not found"] = str(empty)
    return Segmentation(
        labels=labels,
        grid=scene.grid,
        kind="instance",
        classes={label: name for name, label in names.items()},
        instances=tuple(sorted(records, key=lambda record: record.id)),
        from_ground_truth=asked.from_ground_truth,
        meta=meta,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class AskSettings:
    """How objects are looked at."""

    backbone: Promptable
    size: int
    contexts: tuple[float, ...]
    batch: int
    depth: int
    fit: bool
    better: Improvement | None


class Picture(Protocol):
    """What objects are asked in: anything with a size that gives crops."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        ...

    def crop(self, window: Window) -> Tensor:
        """(3, side, side) in [0, 1]; edge pixels repeat."""
        ...


def _by_slice(asked: ObjectPrompts, scene: Scene) -> dict[int, list[int]]:
    """Slice -> which objects lie in it, slices in order."""
    found: dict[int, list[int]] = {}
    for number, one in enumerate(asked.objects):
        found.setdefault(asked.plane_index(scene.grid, one), []).append(number)
    return dict(sorted(found.items()))


def ask_objects(plane: Picture, asked: Sequence[ObjectPrompt], settings: AskSettings) -> list[ObjectMask]:
    """One mask per object. What has the same kinds of prompts is decoded together; padding would change the answers."""
    kinds: dict[tuple[bool, int, bool, bool], list[int]] = {}
    for number, one in enumerate(asked):
        boxed = one.box is not None or one.mask is not None
        key = (boxed, len(one.points), one.mask is not None, one.tight and one.box is not None)
        kinds.setdefault(key, []).append(number)
    found: dict[int, ObjectMask] = {}
    for (boxed, *_), numbers in kinds.items():
        some = [asked[i] for i in numbers]
        masks = _boxed(plane, some, settings) if boxed else _pointed(plane, some, settings)
        found |= dict(zip(numbers, masks, strict=True))
    return [found[number] for number in range(len(asked))]


def _boxed(plane: Picture, asked: Sequence[ObjectPrompt], settings: AskSettings) -> list[ObjectMask]:
    """Objects with a box or a mask, all with the same kinds of prompts."""
    masks = [one.mask for one in asked if one.mask is not None]
    points, labels = _point_tensors(asked)
    with_points = bool(asked[0].points)
    return boxes_in(
        settings.backbone,
        plane.crop,
        torch.tensor([_box_of(one) for one in asked], dtype=torch.float64),
        around=[one.around for one in asked],
        points=points if with_points else None,
        labels=labels if with_points else None,
        masks=masks or None,
        shape=plane.shape,
        size=settings.size,
        contexts=settings.contexts,
        batch=settings.batch,
        depth=settings.depth,
        fit=settings.fit and asked[0].tight and asked[0].box is not None,
        better=settings.better,
    )


def _box_of(one: ObjectPrompt) -> tuple[float, float, float, float]:
    """The box that was given, else that of the mask."""
    if one.box is not None:
        return one.box
    return one.around if one.mask is None else one.mask.box


def _pointed(plane: Picture, asked: Sequence[ObjectPrompt], settings: AskSettings) -> list[ObjectMask]:
    """Objects with the same number of points and nothing else."""
    options: dict[str, Any] = {"shape": plane.shape, "size": settings.size, "batch": settings.batch}
    options |= {"depth": settings.depth, "better": settings.better, "context": POINT_CONTEXT}
    if max(plane.shape) <= POINT_VIEW:
        return [masks[0] for masks in points_in(settings.backbone, plane.crop, *_point_tensors(asked), **options)]
    found = []
    for one in asked:
        x0, y0, x1, y1 = one.around
        view = window_around(one.around, plane.shape, POINT_VIEW / (max(x1 - x0, y1 - y0) + 1))
        found += points_in(settings.backbone, plane.crop, *_point_tensors([one]), view=view, **options)
    return [masks[0] for masks in found]


def _point_tensors(asked: Sequence[ObjectPrompt]) -> tuple[Tensor, Tensor]:
    """(N, p, 2) places and (N, p) labels of objects with p points each."""
    places = [[(x, y) for x, y, _ in one.points] for one in asked]
    labels = [[label for _, _, label in one.points] for one in asked]
    shape = (len(asked), len(asked[0].points))
    return (
        torch.tensor(places, dtype=torch.float64).reshape(*shape, 2),
        torch.tensor(labels, dtype=torch.int64).reshape(shape),
    )


def paint(
    masks: Sequence[ObjectMask],
    plane: Plane,
    *,
    ids: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
) -> tuple[Array, tuple[InstanceRecord, ...]]:
    """Draw masks into one label map; where two overlap, the one with the larger predicted IoU wins.

    Args:
        masks: Of the plane.
        plane: Where they lie; invalid pixels stay background.
        ids: Label of each mask; None takes 1, 2, ...
        classes: Class of each mask; None takes 1.

    Returns:
        (H, W) labels, and one record per object with at least one pixel.
    """
    chosen = list(range(1, len(masks) + 1)) if ids is None else list(ids)
    labels = np.zeros(plane.shape, dtype=label_dtype(max(chosen, default=0)))
    for number in sorted(range(len(masks)), key=lambda i: masks[i].iou):
        mask = masks[number]
        rows, cols = mask.place
        labels[rows, cols][mask.crop & plane.valid(rows, cols)] = chosen[number]
    records = []
    for number, (mask, own) in enumerate(zip(masks, chosen, strict=True)):
        rows, cols = mask.place
        seen = labels[rows, cols] == own
        if seen.any():
            y, x = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            box = (x[0] + cols.start, y[0] + rows.start, x[-1] + cols.start, y[-1] + rows.start)
            tight = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            class_id = 1 if classes is None else classes[number]
            records.append(InstanceRecord(id=own, class_id=class_id, score=mask.iou, box=tight))
    return labels, tuple(records)


def plane_of(axis: int | None, index: int) -> tuple[slice | int, ...]:
    """Where slice ``index`` along ``axis`` lies in an array; everything, if there is no axis."""
    if axis is None:
        return (slice(None), slice(None))
    place: list[slice | int] = [slice(None)] * 3
    place[axis] = index
    return tuple(place)


def on_grid(labels: Array, shape: tuple[int, ...], axis: int | None, index: int) -> Array:
    """Put a plane's labels (H, W) into an array of ``shape``; zeros elsewhere."""
    if axis is None:
        return labels
    volume = np.zeros(shape, dtype=labels.dtype)
    volume[plane_of(axis, index)] = labels
    return volume
