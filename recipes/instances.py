"""Separate objects out of per-pixel classes, and how well they were found.

Training target: 0 background, 1 interior, 2 border (the rim of every object). At test time interiors are the seeds and
grow back over the border, so that touching objects stay apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.errors import ShapeError

BACKGROUND, INTERIOR, BORDER = 0, 1, 2
_CROSS = ndimage.generate_binary_structure(2, 1)


def border_target(instances: NDArray[np.integer], *, border: int = 1) -> NDArray[np.uint8]:
    """Turn an instance map into the three training classes.

    Args:
        instances: (H, W), 0 is background, every other value one object; -1 (ignore) counts as background here.
        border: Width of the rim in pixels, inside the object.

    Returns:
        (H, W) uint8 of ``BACKGROUND``, ``INTERIOR``, ``BORDER``. An object thinner than its rim keeps its innermost
        pixel as interior, so that none is lost.
    """
    inside = instances > 0
    differs = np.zeros(instances.shape, dtype=bool)
    for axis in (0, 1):
        step = np.diff(instances, axis=axis) != 0
        low = [slice(None), slice(None)]
        high = [slice(None), slice(None)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        differs[tuple(low)] |= step
        differs[tuple(high)] |= step
    rim = differs & inside
    depth = ndimage.distance_transform_cdt(~rim, metric="chessboard") if rim.any() else np.full(instances.shape, border)
    interior = inside & (depth >= border)
    interior |= _innermost(instances, inside, interior, depth)
    target = np.where(interior, INTERIOR, np.where(inside, BORDER, BACKGROUND))
    return target.astype(np.uint8)


def _innermost(
    instances: NDArray[np.integer], inside: NDArray[np.bool_], interior: NDArray[np.bool_], depth: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Deepest pixels of objects that have no interior; (H, W)."""
    found = np.zeros(instances.shape, dtype=bool)
    lost = np.setdiff1d(np.unique(instances[inside]), np.unique(instances[interior]))
    if not len(lost):
        return found
    compact = np.searchsorted(lost, instances)
    compact = np.where((compact < len(lost)) & np.isin(instances, lost), compact + 1, 0)
    for index, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        own = compact[box] == index
        centre = np.argwhere(own).mean(axis=0)
        distance = ((np.indices(own.shape).transpose(1, 2, 0) - centre) ** 2).sum(axis=-1)
        row, col = np.unravel_index(np.argmin(np.where(own, distance, np.inf)), own.shape)
        found[box][row, col] = True
    return found


def instances_from_probabilities(
    probabilities: NDArray[np.floating], *, min_area: int = 12, threshold: float = 0.5, max_growth: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find objects.

    Args:
        probabilities: (3, H, W) of background, interior, border, each pixel summing to 1.
        min_area: Objects with fewer pixels are dropped.
        threshold: Least foreground (interior + border) probability of an object's pixel.
        max_growth: Most pixels an interior grows; 0 for no limit.

    Returns:
        labels (H, W) int32, objects 1..n in order of first pixel; scores (n,), mean foreground probability in [0, 1].

    Raises:
        ShapeError: not (3, H, W).
    """
    if probabilities.ndim != 3 or probabilities.shape[0] != 3:
        raise ShapeError(f"probabilities are {probabilities.shape}; expected (3, H, W): background, interior, border")
    foreground = 1.0 - probabilities[BACKGROUND]
    mask = foreground > threshold
    seeds, _ = ndimage.label(mask & (probabilities[INTERIOR] > probabilities[BORDER]), structure=_CROSS)
    blobs, count = ndimage.label(mask, structure=_CROSS)
    seeded = np.unique(blobs[seeds > 0])
    missing = np.setdiff1d(np.arange(1, count + 1), seeded)
    seeds = np.where(np.isin(blobs, missing), blobs + seeds.max(), seeds)
    labels = _grow(seeds, mask, max_growth)
    return _finish(labels, foreground, min_area)


def _grow(seeds: NDArray[np.integer], mask: NDArray[np.bool_], limit: int) -> NDArray[np.int32]:
    """Spread labels over ``mask``, one ring of 4-neighbours at a time; ``limit`` 0 goes on until nothing changes.

    Where two objects arrive together the one below wins, then right, left, above: a rule that knows no numbers, so that
    the border between two objects is the same in every tile that shows it.
    """
    labels = np.pad(seeds.astype(np.int32), 1)
    flat, width = labels.ravel(), labels.shape[1]
    waiting = np.flatnonzero(np.pad(mask, 1).ravel() & (flat == 0))
    step = 0
    while not limit or step < limit:
        arrived = np.zeros(len(waiting), dtype=np.int32)
        for neighbour in (width, 1, -1, -width):
            arrived = np.where(arrived == 0, flat[waiting + neighbour], arrived)
        if not arrived.any():
            break
        flat[waiting] = arrived
        waiting, step = waiting[arrived == 0], step + 1
    return labels[1:-1, 1:-1]


def _finish(
    labels: NDArray[np.int32], foreground: NDArray[np.floating], min_area: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Drop small objects, renumber, score."""
    area = np.bincount(labels.ravel())
    keep = np.flatnonzero(area >= max(min_area, 1))
    keep = keep[keep > 0]
    table = np.zeros(len(area), dtype=np.int32)
    table[keep] = np.arange(1, len(keep) + 1)
    total = np.bincount(labels.ravel(), weights=foreground.ravel().astype(np.float64))
    scores = total[keep] / area[keep]
    return table[labels], scores.astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceMatch:
    """How the predicted objects of one case meet the true ones."""

    case: str
    scores: NDArray[np.float32]
    """(predicted,) confidence in [0, 1]."""
    best_iou: NDArray[np.float64]
    """(predicted,) IoU with the matched true object, 0 if none."""
    num_truth: int
    truth_iou: NDArray[np.float64]
    """(true,) best IoU of any prediction with each true object."""


def iou_matrix(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """IoU of every predicted with every true object, (predicted, true), in order of label value; 0 is background.

    Raises:
        ShapeError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ShapeError(f"predicted instances are {predicted.shape}; truth is {truth.shape}; compare on one grid")
    _, p = np.unique(np.concatenate([[0], np.maximum(predicted, 0).ravel()]), return_inverse=True)
    _, t = np.unique(np.concatenate([[0], np.maximum(truth, 0).ravel()]), return_inverse=True)
    p, t = p[1:], t[1:]
    rows, cols = int(p.max(initial=0)) + 1, int(t.max(initial=0)) + 1
    joint = np.bincount(p * cols + t, minlength=rows * cols).reshape(rows, cols).astype(np.float64)
    both = joint[1:, 1:]
    union = joint.sum(axis=1)[1:, None] + joint.sum(axis=0)[None, 1:] - both
    iou: NDArray[np.float64] = both / np.maximum(union, 1.0)
    return iou


def match_instances(
    case: str, predicted: NDArray[np.integer], scores: NDArray[np.floating], truth: NDArray[np.integer]
) -> InstanceMatch:
    """Match predictions to true objects greedily by score, each true object at most once.

    Args:
        case: Name of the case.
        predicted: (H, W), labels 1..n; pixels where ``truth`` is -1 are ignored.
        scores: (n,) confidences.
        truth: (H, W) instance map.
    """
    predicted = np.where(truth == -1, 0, predicted)
    present = np.unique(predicted[predicted > 0])
    scores = np.asarray(scores, dtype=np.float32)[present - 1]
    iou = iou_matrix(predicted, truth)
    best = np.zeros(len(present))
    free = np.ones(iou.shape[1], dtype=bool)
    for row in np.argsort(-scores, kind="stable"):
        if not free.any():
            break
        column = int(np.argmax(np.where(free, iou[row], -1.0)))
        best[row] = iou[row, column]
        free[column] = best[row] < 0.5
    truth_iou = iou.max(axis=0) if len(present) else np.zeros(iou.shape[1])
    return InstanceMatch(case=case, scores=scores, best_iou=best, num_truth=iou.shape[1], truth_iou=truth_iou)


def average_precision(matches: Sequence[InstanceMatch], *, threshold: float = 0.5) -> float:
    """Area under the precision envelope over all cases together (every recall step counts).

    Args:
        matches: One per case.
        threshold: Least IoU of a hit; 0.5 or more, since matching frees weaker pairs.

    Returns:
        0 to 1; NaN if there is no true object at all.
    """
    total = sum(m.num_truth for m in matches)
    if total == 0:
        return float("nan")
    scores = np.concatenate([m.scores for m in matches])
    hits = np.concatenate([m.best_iou for m in matches])[np.argsort(-scores, kind="stable")] >= threshold
    true_positive = np.cumsum(hits)
    precision = true_positive / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / total)


def mean_matched_iou(matches: Sequence[InstanceMatch]) -> float:
    """Mean over true objects of the best IoU of any prediction; NaN without objects."""
    values = np.concatenate([m.truth_iou for m in matches]) if matches else np.zeros(0)
    return float(values.mean()) if len(values) else float("nan")
