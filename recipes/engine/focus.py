"""Prompted segmentation at the network's own resolution: one square crop per object.

The embedded backbone sees 128 pixels. A whole CT slice or a satellite scene would leave a few tokens for the object, so
every object gets a square window around its box, resampled to the network size, and its logits are brought back to that
window.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Features, Promptable
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import PromptError, ShapeError
from samgraft.recipes.engine.box_fit import fit_logits, mean_logits
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch, pipeline
from samgraft.recipes.engine.windows import (
    Crops,
    Window,
    crop_of,
    from_network,
    scale_boxes,
    scale_points,
    to_network,
    whole_window,
    window_around,
)

PADDING = -10
"""Label of a point that is none."""
CONTEXTS = (1.3, 1.6, 2.0)
"""Sides of the windows around a box, over its longest side."""
SCALES = (0.5, 1.0)
"""Each window is looked at at these shares of the network size: half of it sees form, all of it sees edges."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectMask:
    """One mask, on the pixels of its window only."""

    window: Window
    logits: Tensor
    """(h, w) float on the part of ``window`` inside the picture; above 0 is the object."""
    iou: float
    """IoU that the decoder predicts, clipped to [0, 1]."""
    shape: tuple[int, int]
    """(H, W) of the picture."""

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of ``logits`` in the picture."""
        return self.window.clipped(self.shape)

    @property
    def crop(self) -> NDArray[np.bool_]:
        """(h, w) bool of the same part."""
        return (self.logits > 0).numpy()

    def full(self) -> NDArray[np.bool_]:
        """(H, W) bool."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.place] = self.crop
        return mask

    def box(self) -> tuple[float, float, float, float] | None:
        """Tight (x0, y0, x1, y1) in the picture, first and last pixel inside; None if nothing was found."""
        crop, (rows, cols) = self.crop, self.place
        if not crop.any():
            return None
        y, x = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
        return float(x[0] + cols.start), float(y[0] + rows.start), float(x[-1] + cols.start), float(y[-1] + rows.start)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Windows that are encoded together, and what is asked in them."""

    windows: Sequence[Window]
    """(n,): where each prompt is looked at. Neighbours with the same window share one embedding."""
    size: int
    """Network size in pixels."""
    boxes: Tensor | None = None
    """(n, 4) in picture pixels, or None."""
    points: Tensor | None = None
    """(n, p, 2) in picture pixels, or None."""
    labels: Tensor | None = None
    """(n, p) 1, 0 or -10."""

    def prompts(self) -> tuple[list[Window], Prompts]:
        """The different windows, and the prompts in network pixels."""
        distinct = list(dict.fromkeys(self.windows))
        number = {window: i for i, window in enumerate(distinct)}
        windows = list(self.windows)
        return distinct, Prompts(
            image_index=torch.tensor([number[window] for window in windows]),
            boxes=None if self.boxes is None else scale_boxes(self.boxes.double(), windows, self.size).float(),
            points=None if self.points is None else scale_points(self.points.double(), windows, self.size).float(),
            labels=self.labels,
        )


def decode_views(
    backbone: Promptable, crops: Crops, views: Sequence[View], *, shape: tuple[int, int], multimask: bool, depth: int
) -> Generator[tuple[int, int, tuple["ObjectMask", ...]], None, None]:
    """Encode what the views show and decode their prompts, a few at a time: memory does not follow their number.

    Args:
        backbone: Any backbone, frozen or grafted.
        crops: Gives the pixels of a window; called in one thread only.
        views: Each is one call of the encoder.
        shape: (H, W) of the picture.
        multimask: Three candidates per prompt.
        depth: Views that may wait between cropping, encoding and decoding; 0 does one after the other.

    Yields:
        View, prompt in the view, and its mask (three with ``multimask``, in the order of the decoder); views in order,
        the prompts of a view in any order.
    """
    device = next(backbone.parameters()).device

    def crop() -> Iterator[tuple[int, Prompts, Tensor]]:
        for number, view in enumerate(views):
            distinct, prompts = view.prompts()
            yield number, prompts, torch.stack([to_network(crops(window), view.size) for window in distinct])

    def encode(item: tuple[int, Prompts, Tensor]) -> tuple[int, Prompts, Features]:
        number, prompts, images = item
        return number, prompts.to(device), backbone.encode(images.to(device))

    @torch.no_grad()  # of a generator: only while it runs
    def decode(depth: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        with closing(pipeline(crop(), encode, depth=depth)) as encoded:
            for number, prompts, features in encoded:
                for rows, logits, iou in backbone.decode_parts(features, prompts, multimask=multimask):
                    yield number, rows.cpu(), logits.float().cpu(), iou.float().cpu()

    waiting = depth if len(views) > 1 else 0  # one view: nothing to overlap
    with closing(pipeline(decode(waiting), depth=waiting)) as parts:
        for number, rows, logits, iou in parts:
            for row, one, quality in zip(rows.tolist(), logits, iou, strict=True):
                yield number, row, _masks(views[number].windows[row], one, quality, shape)


def _masks(window: Window, logits: Tensor, iou: Tensor, shape: tuple[int, int]) -> tuple[ObjectMask, ...]:
    rows, cols = window.inner(shape)
    native = from_network(logits, window.side)[:, rows, cols]
    return tuple(
        ObjectMask(window=window, logits=one.contiguous(), iou=min(1.0, max(0.0, float(quality))), shape=shape)
        for one, quality in zip(native, iou, strict=True)
    )


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
) -> list[ObjectMask]:
    """The same on anything that gives crops; see :func:`segment_boxes`.

    ``around`` are the boxes that windows are laid around, if they are not ``boxes`` (N, 4) themselves; ``points``
    (N, p, 2) and ``labels`` (N, p) are clicks that go with the boxes.
    """
    centred = boxes.tolist() if around is None else around
    patch = backbone.spec.patch_size
    sizes = sorted({max(patch, round(size * scale / patch) * patch) for scale in SCALES})
    views, owners = [], []
    for first in range(0, len(boxes), batch):
        rows = slice(first, first + batch)
        for context in contexts:
            windows = [window_around(box, shape, context) for box in centred[rows]]
            chosen = (boxes[rows], None if points is None else points[rows], None if labels is None else labels[rows])
            for side in sizes:
                views.append(View(windows=windows, size=side, boxes=chosen[0], points=chosen[1], labels=chosen[2]))
                owners.append(first)
    found: dict[int, ObjectMask] = {}
    looks: dict[int, list[ObjectMask]] = {}
    with closing(decode_views(backbone, crops, views, shape=shape, multimask=False, depth=depth)) as masks:
        for number, row, (mask,) in masks:
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

    Returns:
        Per object three candidates, the one with the largest predicted IoU first.

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
) -> list[tuple[ObjectMask, ...]]:
    """The same on anything that gives crops; see :func:`segment_points`.

    ``view`` is looked at first instead of the whole.
    """
    options = {"shape": shape, "multimask": True, "depth": depth}
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
