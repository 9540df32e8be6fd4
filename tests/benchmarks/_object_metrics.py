"""How well separate objects were found: COCO's average precision, points hit by centroids, boxes overlapped.

All of them take one entry per image and count all images together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Float = NDArray[np.float64]
THRESHOLDS = tuple(float(v) for v in np.linspace(0.5, 0.95, 10))
"""IoU 0.50, 0.55 .. 0.95, as COCO has them."""
RECALLS = np.linspace(0, 1, 101)
"""Recall points of COCO."""
METRES = 3.0
"""Largest distance of a centroid from the tree that it found."""
BOX_IOU = 0.4
"""Least IoU of two crown boxes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """One image: how much every prediction overlaps every true object."""

    scores: Float
    """(p,) confidence; any range."""
    iou: Float
    """(p, t)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Near:
    """One image: how far every prediction is from every true point."""

    scores: Float
    """(p,)."""
    distance: Float
    """(p, t), metres."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Found and missed objects of all images."""

    found: int
    predicted: int
    true: int

    @property
    def recall(self) -> float:
        """Found over true; NaN without true objects."""
        return self.found / self.true if self.true else float("nan")

    @property
    def precision(self) -> float:
        """Found over predicted; 0 if nothing was predicted."""
        return self.found / self.predicted if self.predicted else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if nothing was found."""
        return 2 * self.found / max(1, self.predicted + self.true)


def coco_average_precision(images: Sequence[Overlaps], thresholds: Sequence[float] = THRESHOLDS) -> Float:
    """Average precision by COCO's definition for every threshold of IoU, (len(thresholds),); NaN without true objects.

    In each image predictions take, in falling order of score, the free true object with the largest IoU, if that
    reaches the threshold. All images together, sorted by score, give precision and recall; precision is made to fall
    with recall, read at 101 recall values, and averaged. There is one class, no crowd and no range of area.

    COCO counts the 100 best predictions of an image and no more; here all count, since an image may hold more objects
    than that.

    Source:
        The COCO evaluation as pycocotools 2.0 computes it (``COCOeval``), with ``maxDets`` of infinity.
    """
    total = sum(image.iou.shape[1] for image in images)
    if total == 0:
        return np.full(len(thresholds), np.nan)
    ranked = [np.argsort(-image.scores, kind="stable") for image in images]
    scores = np.concatenate([image.scores[order] for image, order in zip(images, ranked, strict=True)])
    order = np.argsort(-scores, kind="stable")
    values = []
    for threshold in thresholds:
        hits = [_hits(image.iou[rows], threshold) for image, rows in zip(images, ranked, strict=True)]
        values.append(_area(np.concatenate(hits)[order], total))
    return np.asarray(values)


def _hits(iou: Float, threshold: float) -> NDArray[np.bool_]:
    """(p,) whether each prediction, in its order, gets a true object."""
    found, free = np.zeros(len(iou), dtype=bool), np.ones(iou.shape[1], dtype=bool)
    if not iou.shape[1]:
        return found
    for row, overlaps in enumerate(iou):
        left = np.where(free, overlaps, -1.0)
        column = int(left.argmax())
        found[row] = left[column] >= threshold
        free[column] &= not found[row]
    return found


def _area(hits: NDArray[np.bool_], total: int) -> float:
    """Mean over 101 recall values of the best precision at that recall or beyond."""
    if not len(hits):
        return 0.0
    true = np.cumsum(hits)
    recall, precision = true / total, true / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def competition_score(images: Sequence[Overlaps], thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Mean over images, and over thresholds of IoU, of TP / (TP + FP + FN); NaN without images.

    Every prediction counts, whatever its score; an image with neither objects nor predictions has 1.

    Source:
        The score of the Data Science Bowl 2018, from whose images nuclei are: doi:10.1038/s41592-019-0612-7.
    """
    values = []
    for image in images:
        predicted, true = image.iou.shape
        for threshold in thresholds:
            hits = int(_hits(image.iou, threshold).sum())
            values.append(hits / (predicted + true - hits) if predicted + true else 1.0)
    return float(np.mean(values)) if values else float("nan")


def mean_best_iou(images: Sequence[Overlaps]) -> float:
    """Mean over all true objects of the best IoU of any prediction; NaN without true objects."""
    best = [image.iou.max(axis=0, initial=0.0) for image in images]
    values = np.concatenate([np.zeros(0), *best])
    return float(values.mean()) if len(values) else float("nan")


def box_iou(first: Float, second: Float) -> Float:
    """(p, t) IoU of boxes (p, 4) and (t, 4), both x0, y0, x1, y1 as first and last pixel."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:]) + 1
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] + 1 - boxes[:, :2], axis=1) for boxes in (first, second)]
    iou: Float = both / (areas[0][:, None] + areas[1][None] - both)
    return iou


def points_hit(images: Sequence[Near], least: float, *, reach: float = METRES) -> Hits:
    """Predictions with a score of at least ``least`` that found a point: greedy, one to one, nearest pairs first.

    Args:
        images: One entry each.
        least: Threshold of scores.
        reach: Largest distance of a pair, metres.
    """
    found = predicted = true = 0
    for image in images:
        distance = image.distance[image.scores >= least]
        predicted, true = predicted + len(distance), true + distance.shape[1]
        rows, cols = np.nonzero(distance <= reach)
        order = np.argsort(distance[rows, cols], kind="stable")
        taken_rows, taken_cols = set[int](), set[int]()
        for row, col in zip(rows[order].tolist(), cols[order].tolist(), strict=True):
            if row not in taken_rows and col not in taken_cols:
                taken_rows.add(row)
                taken_cols.add(col)
        found += len(taken_rows)
    return Hits(found=found, predicted=predicted, true=true)


def boxes_hit(images: Sequence[Overlaps], least: float, *, threshold: float = BOX_IOU) -> Hits:
    """Predictions with a score of at least ``least`` that found a box: the assignment with the largest sum of IoU.

    As in DeepForest's evaluation: boxes are paired first, and a pair counts if its IoU is above ``threshold``.
    """
    found = predicted = true = 0
    for image in images:
        iou = image.iou[image.scores >= least]
        predicted, true = predicted + len(iou), true + iou.shape[1]
        rows, cols = linear_sum_assignment(iou, maximize=True)
        found += int((iou[rows, cols] > threshold).sum())
    return Hits(found=found, predicted=predicted, true=true)


def best_threshold(
    images: Sequence[Overlaps] | Sequence[Near], kind: Literal["points", "boxes"], *, steps: int = 40
) -> float:
    """The score from which predictions are kept, by F1: chosen on training images, as a user would.

    Args:
        images: Training images.
        kind: How they are compared.
        steps: Quantiles of the scores that are tried; of equally good ones the lowest wins.
    """
    scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
    if not len(scores):
        return 0.0
    tried = np.unique(np.quantile(scores, np.linspace(0, 1, steps), method="lower"))
    values = [_counted(images, kind, float(value)).f1 for value in tried]
    return float(tried[int(np.argmax(values))])


def _counted(images: Sequence[Overlaps] | Sequence[Near], kind: str, least: float) -> Hits:
    if kind == "points":
        return points_hit([image for image in images if isinstance(image, Near)], least)
    return boxes_hit([image for image in images if isinstance(image, Overlaps)], least)


def distances(predicted: Float, true: Float, metre: float) -> Float:
    """(p, t) metres between points (p, 2) and (t, 2) in (x, y) pixels of ``metre`` each."""
    found: Float = cdist(predicted.reshape(-1, 2), true.reshape(-1, 2)) * metre
    return found
