"""Prompted segmentation at the network's own resolution: one square crop per object.

The embedded backbone sees 128 pixels. A whole CT slice or a satellite scene would leave a few tokens for the object, so
every object gets a square window around its box, resampled to the network size, and its logits are brought back to that
window.
"""

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Promptable
from samgraft.adapters.prompts.improve import Improvement
from samgraft.errors import PromptError, ShapeError
from samgraft.recipes.engine.box_fit import fit_logits, mean_logits
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch
from samgraft.recipes.engine.views import PADDING, ObjectMask, View, decode_views
from samgraft.recipes.engine.windows import Crops, Window, crop_of, whole_window, window_around
from samgraft.recipes.prompting import MaskPrompt

CONTEXTS = (1.3, 1.6, 2.0)
"""Sides of the windows around a box, over its longest side."""
SCALES = (0.5, 1.0)
"""Each window is looked at at these shares of the network size: half of it sees form, all of it sees edges."""


def network_size(backbone: Promptable, size: int | None) -> int:
    """The asked network size, or the backbone's native one.

    Raises:
        ShapeError: not a positive multiple of the patch.
    """
    chosen = backbone.spec.native_size if size is None else size
    patch = backbone.spec.patch_size
    if chosen < patch or chosen % patch:
        raise ShapeError(f"network size is {chosen}; expected a positive multiple of the patch of {patch} pixels")
    return chosen


def segment_boxes(
    backbone: Promptable,
    image: Tensor,
    boxes: Tensor | NDArray[np.floating],
    *,
    context: float | Sequence[float] = CONTEXTS,
    size: int | None = None,
    batch: int | None = None,
    fit: bool = True,
    pipeline: int = DEPTH,
    better: Improvement | None = None,
) -> list[ObjectMask]:
    """Segment one object per box.

    Args:
        backbone: Any backbone.
        image: (3, H, W) float in [0, 1].
        boxes: (N, 4) x0, y0, x1, y1 in pixels, first and last pixel inside.
        context: Side of the crop over the longest side of the box; several are looked at and averaged.
        size: Network size in pixels, a multiple of the patch; None takes the native size. Half of it is used as well.
        batch: Crops encoded together; None chooses by their size.
        fit: The boxes are tight: cut the logits where the mask fills its box.
        pipeline: Batches that may wait between cropping, encoding and decoding; 0 does one after the other.
        better: An extra point or self-correction in every look; None for neither.

    Returns:
        One mask per box: ``.full()`` is (H, W) bool, ``.iou`` the predicted IoU.

    Raises:
        ShapeError: image, boxes or size are of another shape.
        PromptError: a box outside the image.
    """
    shape = _picture_shape(image)
    wanted = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    _require_inside(wanted.reshape(-1, 2), shape)
    contexts = (context,) if isinstance(context, int | float) else context
    chosen = network_size(backbone, size)
    return boxes_in(
        backbone,
        crop_of(image),
        wanted,
        shape=shape,
        size=chosen,
        contexts=contexts,
        batch=encode_batch(backbone, chosen, batch),
        depth=pipeline,
        fit=fit,
        better=better,
    )


def boxes_in(
    backbone: Promptable,
    crops: Crops,
    boxes: Tensor,
    *,
    shape: tuple[int, int],
    size: int,
    contexts: Sequence[float] = CONTEXTS,
    batch: int,
    depth: int,
    fit: bool = True,
    around: Sequence[Sequence[float]] | None = None,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    masks: Sequence[MaskPrompt] | None = None,
    better: Improvement | None = None,
) -> list[ObjectMask]:
    """The same on anything that gives crops; see :func:`segment_boxes`.

    ``around`` are the boxes that windows are laid around, if they are not ``boxes`` (N, 4) themselves; ``points``
    (N, p, 2) and ``labels`` (N, p) are clicks that go with the boxes, ``masks`` (N,) earlier masks.
    """
    centred = boxes.tolist() if around is None else around
    patch = backbone.spec.patch_size
    sizes = sorted({max(patch, round(size * scale / patch) * patch) for scale in SCALES})
    views, owners = [], []
    for first in range(0, len(boxes), batch):
        rows = slice(first, first + batch)
        for context in contexts:
            windows = [window_around(box, shape, context) for box in centred[rows]]
            given = {"boxes": boxes, "points": points, "labels": labels, "masks": masks}
            chosen = {name: values[rows] for name, values in given.items() if values is not None}
            for side in sizes:
                views.append(View(windows=windows, size=side, **chosen))  # type: ignore[arg-type]
                owners.append(first)
    found: dict[int, ObjectMask] = {}
    looks: dict[int, list[ObjectMask]] = {}
    options = {"shape": shape, "multimask": False, "depth": depth, "better": better}
    with closing(decode_views(backbone, crops, views, **options)) as answers:  # type: ignore[arg-type]
        for number, row, (mask,) in answers:
            own = owners[number] + row
            looks.setdefault(own, []).append(mask)
            if len(looks[own]) == len(contexts) * len(sizes):
                found[own] = _one_of(looks.pop(own), boxes[own].tolist() if fit else None)
    return [found[own] for own in range(len(boxes))]


def _one_of(looks: Sequence[ObjectMask], box: Sequence[float] | None) -> ObjectMask:
    """Average the looks at one object and, if ``box`` is given, let the mask fill it."""
    smallest, logits = mean_logits([(look.place, look.logits) for look in looks])
    frame = looks[smallest]
    if box is not None:
        logits = fit_logits(logits, frame.place, box)
    iou = sum(look.iou for look in looks) / len(looks)
    return ObjectMask(window=frame.window, logits=logits, iou=iou, shape=frame.shape)


def segment_points(
    backbone: Promptable,
    image: Tensor,
    points: Tensor | NDArray[np.floating],
    labels: Tensor | NDArray[np.integer] | None = None,
    *,
    context: float = 2.2,
    size: int | None = None,
    batch: int | None = None,
    refine: bool = True,
    pipeline: int = DEPTH,
    better: Improvement | None = None,
) -> list[tuple[ObjectMask, ...]]:
    """Segment one object per row of points, without a box.

    The whole picture is looked at first. Where a candidate is small in it, the picture is looked at again in a window
    around that candidate, with the same points.

    Args:
        backbone: Any backbone.
        image: (3, H, W) float in [0, 1].
        points: (N, p, 2) or (N, 2), (x, y) pixels.
        labels: (N, p): 1 on the object, 0 off it, -10 padding; None means all on it.
        context: Side of the second window over the longest side of the first mask.
        size: Network size in pixels; None takes the native size.
        batch: Crops encoded together; None chooses by their size. The whole is encoded once for all points.
        refine: Look a second time.
        pipeline: Batches that may wait between cropping, encoding and decoding; 0 does one after the other.
        better: An extra point or self-correction in every look; None for neither.

    Returns:
        Per object three candidates, the one with the largest predicted IoU first; with ``better`` only
        the improved one.

    Raises:
        ShapeError: image, points or size are of another shape.
        PromptError: a point outside the image.
    """
    shape = _picture_shape(image)
    places = torch.as_tensor(points, dtype=torch.float64)
    places = places[:, None] if places.ndim == 2 else places
    marks = torch.ones(places.shape[:2]) if labels is None else torch.as_tensor(labels)
    marks = marks.reshape(places.shape[:2]).long()
    _require_inside(places[marks != PADDING], shape)
    chosen = network_size(backbone, size)
    return points_in(
        backbone,
        crop_of(image),
        places,
        marks,
        shape=shape,
        size=chosen,
        context=context,
        batch=encode_batch(backbone, chosen, batch),
        depth=pipeline,
        refine=refine,
        better=better,
    )


def points_in(
    backbone: Promptable,
    crops: Crops,
    points: Tensor,
    labels: Tensor,
    *,
    shape: tuple[int, int],
    size: int,
    context: float,
    batch: int,
    depth: int,
    refine: bool = True,
    view: Window | None = None,
    better: Improvement | None = None,
) -> list[tuple[ObjectMask, ...]]:
    """The same on anything that gives crops; see :func:`segment_points`.

    ``view`` is looked at first instead of the whole.
    """
    options = {"shape": shape, "multimask": True, "depth": depth, "better": better}
    whole = view or whole_window(shape)
    found: list[tuple[ObjectMask, ...]] = [()] * len(points)
    again: list[tuple[int, Window]] = []
    views = [View(windows=[whole] * len(points), size=size, points=points, labels=labels)] if len(points) else []
    with closing(decode_views(backbone, crops, views, **options)) as masks:  # type: ignore[arg-type]
        for _, row, three in masks:
            found[row] = _by_quality(three)
            box = found[row][0].box()
            if not refine or box is None:
                continue
            window = window_around(_with_points(box, points[row], labels[row]), shape, context)
            if window.side <= 0.75 * whole.side:
                again.append((row, window))
                found[row] = ()  # masks of the whole are large, and these are not needed any more
    again.sort(key=lambda item: item[0])
    parts = [again[first : first + batch] for first in range(0, len(again), batch)]
    rows = [torch.tensor([row for row, _ in part]) for part in parts]
    views = [
        View(windows=[window for _, window in part], size=size, points=points[which], labels=labels[which])
        for part, which in zip(parts, rows, strict=True)
    ]
    with closing(decode_views(backbone, crops, views, **options)) as masks:  # type: ignore[arg-type]
        for number, row, three in masks:
            found[parts[number][row][0]] = _by_quality(three)
    return found


def _by_quality(masks: tuple[ObjectMask, ...]) -> tuple[ObjectMask, ...]:
    return tuple(sorted(masks, key=lambda mask: -mask.iou))


def _with_points(
    box: tuple[float, float, float, float], points: Tensor, labels: Tensor
) -> tuple[float, float, float, float]:
    """Enlarge ``box`` so that it holds all points that are no padding."""
    real = points[labels != PADDING].tolist()
    xs, ys = [box[0], box[2], *(p[0] for p in real)], [box[1], box[3], *(p[1] for p in real)]
    return min(xs), min(ys), max(xs), max(ys)


def _picture_shape(image: Tensor) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ShapeError(f"image is {tuple(image.shape)} {image.dtype}; expected (3, H, W) float in [0, 1]")
    return image.shape[1], image.shape[2]


def _require_inside(places: Tensor, shape: tuple[int, int]) -> None:
    limit = torch.tensor([shape[1], shape[0]], dtype=torch.float64) - 0.5
    wrong = ~((places >= -0.5).all(-1) & (places <= limit).all(-1))
    if wrong.any():
        x, y = places[wrong][0].tolist()
        raise PromptError(f"({x:g}, {y:g}) lies outside the image: x 0..{shape[1] - 1}, y 0..{shape[0] - 1}")
