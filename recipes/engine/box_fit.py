"""What a box says beyond the prompt token: the object ends where the box ends.

The decoder reads a box as two corner tokens and then follows the visible edge, which may lie inside the outline that
the box was drawn for (the wall of a ventricle, a blurred border). A box is a statement about the object's extent, so
the level at which the logits are cut is chosen such that the mask's own box agrees best with the given one. Only the
prompt is used, never a label; for a loose box pass ``fit=False``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[float, float, float, float]
Place = tuple[slice, slice]

LEVELS = np.linspace(-4.0, 4.0, 33)
"""Logits at which the mask may be cut; 0 is the decoder's own choice."""
LEVEL_COST = 0.03
"""IoU between boxes that one unit of logit away from 0 has to gain."""
SLACK = 0.05
"""The mask may leave the box by this share of the box's side."""
OUTSIDE = -20.0
"""Logit where the mask must not be."""


def mean_logits(looks: Sequence[tuple[Place, Tensor]]) -> tuple[int, Tensor]:
    """Average several looks at one object on the pixels of the smallest one.

    Args:
        looks: Per look its rows and columns in the picture, and its logits (h, w) there.

    Returns:
        Which look is the smallest, and the mean logits (h, w) on its pixels; every pixel is averaged over the looks
        that saw it.
    """
    smallest = min(range(len(looks)), key=lambda i: looks[i][1].numel())
    (rows, cols), logits = looks[smallest]
    total, count = torch.zeros_like(logits), torch.zeros_like(logits)
    for (r, c), values in looks:
        top, bottom = max(rows.start, r.start), min(rows.stop, r.stop)
        left, right = max(cols.start, c.start), min(cols.stop, c.stop)
        here = (slice(top - rows.start, bottom - rows.start), slice(left - cols.start, right - cols.start))
        total[here] += values[top - r.start : bottom - r.start, left - c.start : right - c.start]
        count[here] += 1
    return smallest, total / count.clamp_min(1)


def fit_logits(logits: Tensor, place: Place, box: Sequence[float]) -> Tensor:
    """Shift logits so that the mask above 0 fills ``box``, and clear them outside it.

    Args:
        logits: (h, w) on the pixels of ``place``.
        place: Rows and columns of ``logits`` in the picture.
        box: (x0, y0, x1, y1) in the picture, first and last pixel inside.

    Returns:
        (h, w) logits; unchanged in level where no level gives a mask at all.
    """
    x0, y0, x1, y1 = box
    rows, cols = place
    inner = (x0 - cols.start, y0 - rows.start, x1 - cols.start, y1 - rows.start)
    dx, dy = SLACK * (x1 - x0 + 1), SLACK * (y1 - y0 + 1)
    y, x = torch.arange(logits.shape[0])[:, None], torch.arange(logits.shape[1])[None, :]
    inside = (x >= inner[0] - dx) & (x <= inner[2] + dx) & (y >= inner[1] - dy) & (y <= inner[3] + dy)
    kept = torch.where(inside, logits, OUTSIDE)
    level = _best_level(kept.amax(0).numpy(), kept.amax(1).numpy(), inner)
    return torch.where(inside, kept - level, OUTSIDE)


def _best_level(across: NDArray[np.floating], down: NDArray[np.floating], box: Box) -> float:
    """Level whose mask has the box most like ``box``; the highest logit per column and per row is all it takes."""
    best, chosen = -np.inf, 0.0
    for level in LEVELS:
        xs, ys = np.flatnonzero(across > level), np.flatnonzero(down > level)
        if len(xs) == 0 or len(ys) == 0:
            continue
        found = (float(xs[0]), float(ys[0]), float(xs[-1]), float(ys[-1]))
        score = _box_iou(found, box) - LEVEL_COST * abs(level)
        if score > best:
            best, chosen = score, float(level)
    return chosen


def _box_iou(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(0.0, wide) * max(0.0, high)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return common / max(areas - common, 1e-9)
