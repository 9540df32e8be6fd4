"""Which of many overlapping masks stay: suppression by boxes or by masks, and cleaning of holes and islands.

Suppression by boxes takes two concentric objects of about the same extent for one. Masks tell a nucleus from its cell
and a crater from the one inside it, and cost little: only pairs whose boxes and areas allow an overlap above the
threshold are compared, run by run.

Source:
    Segment Anything, arXiv:2304.02643, section B; ``monai.data.box_utils.non_max_suppression``.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression
from scipy import ndimage

from samgraft.recipes.engine.runs import RunMask, runs_of

_EIGHT = np.ones((3, 3), dtype=bool)


def keep_best(masks: Sequence[RunMask], order: Sequence[int], threshold: float, *, by: str = "mask") -> list[int]:
    """Walk masks in ``order`` and keep each whose IoU with no kept one exceeds ``threshold``.

    Args:
        masks: In one picture; empty ones are dropped.
        order: Their numbers, the best first.
        threshold: Largest IoU of two that stay.
        by: "box": IoU of tight boxes, outer edges; "mask": IoU of the masks.

    Returns:
        Numbers of the masks that stay, in that order.
    """
    walk = [i for i in order if masks[i].area]
    if not walk:
        return []
    boxes = np.array([masks[i].box for i in walk], dtype=np.int64) + [0, 0, 1, 1]
    if by == "box":
        rank = -torch.arange(len(walk), dtype=torch.float64)
        picked = non_max_suppression(torch.from_numpy(boxes).double(), rank, threshold)
        return [walk[i] for i in picked.tolist()]
    areas = np.array([masks[i].area for i in walk], dtype=np.int64)
    kept = np.zeros(len(walk), dtype=np.bool_)
    for place, number in enumerate(walk):
        others = np.flatnonzero(kept[:place])
        low, high = np.maximum(boxes[others, :2], boxes[place, :2]), np.minimum(boxes[others, 2:], boxes[place, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)  # pixels of the common box
        most = np.minimum(np.minimum(common, areas[others]), areas[place])  # the intersection is not larger
        possible = others[(most > 0) & (most > threshold * (areas[others] + areas[place] - most))]
        kept[place] = not any(masks[number].iou(masks[walk[k]]) > threshold for k in possible)
    return [walk[i] for i in np.flatnonzero(kept)]


def clean(mask: RunMask, least: int) -> tuple[RunMask, bool]:
    """Fill holes, then remove islands, with fewer than ``least`` pixels; neighbours touch at edges or corners.

    If all islands are small the largest stays. Background that reaches the picture's edge counts as a hole if it is
    small, as in the original.

    Returns:
        The mask, and whether anything changed.
    """
    if least < 1 or not mask.area:
        return mask, False
    rows, cols = mask.place
    tall, wide = rows.stop - rows.start, cols.stop - cols.start
    # around the mask as much background as makes it "large" on every side that the picture has pixels on
    up, aside = math.ceil(least / wide), math.ceil(least / tall)
    rows = slice(max(0, rows.start - up), min(mask.shape[0], rows.stop + up))
    cols = slice(max(0, cols.start - aside), min(mask.shape[1], cols.stop + aside))
    given = mask.crop(rows, cols)
    parts, count = ndimage.label(~given, structure=_EIGHT)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    small = np.flatnonzero(sizes < least)
    found = given | np.isin(parts, small[small > 0])
    parts, count = ndimage.label(found, structure=_EIGHT)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= least)
    if len(large) < count:
        found = np.isin(parts, large if len(large) else [int(sizes.argmax())])
    if np.array_equal(found, given):
        return mask, False
    return runs_of(found, top=rows.start, left=cols.start, shape=mask.shape), True
