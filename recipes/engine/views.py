"""What is looked at: square windows with prompts in them, and one mask per prompt on the pixels of its window.

Everything here is about one picture of (H, W) that gives crops; prompts are in its pixels.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features, Promptable
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.improve import Improvement, best_answer, improve
from samgraft.recipes.engine.pipeline import pipeline
from samgraft.recipes.engine.windows import Crops, Window, from_network, scale_boxes, scale_points, to_network
from samgraft.recipes.prompting import MaskPrompt

PADDING = -10
"""Label of a point that is none."""
CERTAIN = 0.999
"""Probability that a mask prompt gives its pixels; as logits, plus or minus 6.9."""


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
    masks: Sequence[MaskPrompt] | None = None
    """(n,) earlier masks, or None."""

    def prompts(self, patch: int) -> tuple[list[Window], Prompts]:
        """The different windows, and the prompts in network pixels, for a backbone with patches of ``patch`` pixels."""
        distinct = list(dict.fromkeys(self.windows))
        number = {window: i for i, window in enumerate(distinct)}
        windows = list(self.windows)
        masks = None
        if self.masks is not None:
            cells = 4 * (self.size // patch)
            pairs = zip(self.masks, windows, strict=True)
            masks = torch.stack([mask_logits(mask, window, cells) for mask, window in pairs])
        return distinct, Prompts(
            image_index=torch.tensor([number[window] for window in windows]),
            boxes=None if self.boxes is None else scale_boxes(self.boxes.double(), windows, self.size).float(),
            points=None if self.points is None else scale_points(self.points.double(), windows, self.size).float(),
            labels=self.labels,
            masks=masks,
        )


def mask_logits(mask: MaskPrompt, window: Window, cells: int) -> Tensor:
    """(1, cells, cells): an earlier mask as the decoder takes it, over ``window``; sure where a cell is of one kind."""
    square = torch.zeros(1, 1, window.side, window.side)
    height, width = mask.inside.shape
    rows = slice(max(0, mask.top - window.top), min(window.side, mask.top + height - window.top))
    cols = slice(max(0, mask.left - window.left), min(window.side, mask.left + width - window.left))
    if rows.start < rows.stop and cols.start < cols.stop:
        dy, dx = window.top - mask.top, window.left - mask.left
        part = mask.inside[rows.start + dy : rows.stop + dy, cols.start + dx : cols.stop + dx]
        square[0, 0, rows, cols] = torch.from_numpy(np.ascontiguousarray(part)).float()
    share = functional.interpolate(
        square, size=(cells, cells), mode="bilinear", align_corners=False, antialias=window.side > cells
    )[0]
    return torch.logit(share, eps=1 - CERTAIN)


def decode_views(
    backbone: Promptable,
    crops: Crops,
    views: Sequence[View],
    *,
    shape: tuple[int, int],
    multimask: bool,
    depth: int,
    better: Improvement | None = None,
) -> Generator[tuple[int, int, tuple["ObjectMask", ...]], None, None]:
    """Encode what the views show and decode their prompts, a few at a time: memory does not follow their number.

    Args:
        backbone: Any backbone, frozen or grafted.
        crops: Gives the pixels of a window; called in one thread only.
        views: Each is one call of the encoder.
        shape: (H, W) of the picture.
        multimask: Three candidates per prompt.
        depth: Views that may wait between cropping, encoding and decoding; 0 does one after the other.
        better: What is done to the best candidate of every prompt; then there is one mask per prompt.

    Yields:
        View, prompt in the view, and its mask (three with ``multimask``, in the order of the decoder); views in order,
        the prompts of a view in any order.
    """
    device = next(backbone.parameters()).device

    def crop() -> Iterator[tuple[int, Prompts, Tensor]]:
        for number, view in enumerate(views):
            distinct, prompts = view.prompts(backbone.spec.patch_size)
            yield number, prompts, torch.stack([to_network(crops(window), view.size) for window in distinct])

    def encode(item: tuple[int, Prompts, Tensor]) -> tuple[int, Prompts, Features, Tensor | None]:
        number, prompts, images = item
        images = images.to(device)
        return number, prompts.to(device), backbone.encode(images), images if better else None

    @torch.no_grad()  # of a generator: only while it runs
    def decode(depth: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        with closing(pipeline(crop(), encode, depth=depth)) as encoded:
            for number, prompts, features, images in encoded:
                for rows, logits, iou in backbone.decode_parts(features, prompts, multimask=multimask):
                    if better and images is not None:
                        answer = best_answer(logits, iou)
                        answer = improve(backbone, features, images, prompts.select(rows), answer, better)
                        logits, iou = answer.logits[:, None], answer.iou[:, None]
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
