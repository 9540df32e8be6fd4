"""How well a prediction agrees with weak labels: what chooses the best checkpoint where no mask may be read.

Boxes: mean IoU of every weak box and the box of what was predicted near it, times the share of the prediction that lies
in some box; where objects are separate, false ones count as boxes without overlap. Points: share of points that are
hit, times the share of points off the class that are not; separate objects: F1 of points and objects, one point each.
Scribbles: accuracy on drawn pixels, a mean over the classes drawn. Coarse: Dice with the outlines.

All of these would be content with boxes that are filled, or with everything being an object. So the figure that chooses
is their mean with the Dice of the prediction and the certain pixels of the pseudo-masks of the same cases, which come
from the same weak labels and the frozen backbone.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from samgraft.errors import InputError
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.metrics import Summary, overlap, summarise
from samgraft.recipes.weak_labels.labels import Box, WeakLabels, WeakObject, box_ious, box_of, pixel_box

MARGIN = 0.15
"""What lies so far outside a box, as a share of its sides and at least 2 pixels, still belongs to its object."""
_FALSE = 0.1
"""A predicted object whose box overlaps all weak boxes less than this is false."""
_NAMES = {"boxes": "box_iou", "points": "point_hits", "scribbles": "scribble_accuracy", "coarse": "coarse_dice"}


def judge(case: CaseArrays, predicted: NDArray[np.integer], *, instance: bool, classes: int) -> dict[str, float]:
    """Figures of a case, each from 0 to 1: the one of its kind of label, "pseudo_dice", and their mean "agreement".

    Args:
        case: With weak labels; its ``labels`` are pseudo-labels if these say so.
        predicted: (n, h, w) classes, or numbers of objects.
        instance: Which of the two.
        classes: Foreground classes.
    """
    weak = case.weak
    if weak is None:
        raise InputError(f"{case.id} has no weak labels to be judged by; give its file, or leave it out")
    numbers = range(1, 2 if instance else classes + 1)
    known = [c for c in numbers if instance or case.annotated is None or c in case.annotated]
    figures = {_NAMES[weak.kind]: _figure(weak, predicted, instance, known, case)}
    if weak.asked:
        figures["pseudo_dice"] = _pseudo_dice(case, predicted, instance, known)
    return figures | {"agreement": float(np.mean(list(figures.values())))}


def agreement_summaries(figures: Sequence[dict[str, float]], groups: Sequence[str]) -> list[Summary]:
    """Mean of every figure over groups (patients), each the mean of its cases; "agreement" first."""
    names = ["agreement", *sorted({name for one in figures for name in one} - {"agreement"})]
    found = []
    for name in names:
        values: dict[str, list[float]] = {}
        for one, group in zip(figures, groups, strict=True):
            if name in one:
                values.setdefault(group, []).append(one[name])
        found.append(summarise(name, [float(np.mean(own)) for own in values.values()]))
    return found


def _figure(
    weak: WeakLabels, predicted: NDArray[np.integer], instance: bool, known: Sequence[int], case: CaseArrays
) -> float:
    if weak.kind == "scribbles":
        return _accuracy(weak.seeds((case.num_slices, *case.plane)), predicted, instance)
    if weak.kind == "coarse":
        masks = ((predicted > 0 if instance else predicted == c, _areas(weak, predicted.shape, c)) for c in known)
        return float(np.mean([overlap(mask, area)[0] for mask, area in masks]))
    if weak.kind == "boxes":
        return (
            _separate_boxes(weak, predicted)
            if instance
            else float(np.mean([_boxes(weak, predicted, c) for c in known]))
        )
    return (
        _separate_points(weak, predicted) if instance else float(np.mean([_points(weak, predicted, c) for c in known]))
    )


def _pseudo_dice(case: CaseArrays, predicted: NDArray[np.integer], instance: bool, known: Sequence[int]) -> float:
    """Mean over classes of Dice on pixels whose pseudo-label is certain."""
    sure = case.labels != IGNORE
    if case.weak is not None and case.weak.unsure is not None:
        sure &= ~case.weak.unsure
    found = []
    for label in known:
        truth = (case.labels > 0 if instance else case.labels == label) & sure
        mine = (predicted > 0 if instance else predicted == label) & sure
        found.append(overlap(mine, truth)[0])
    return float(np.mean(found))


def _accuracy(drawn: NDArray[np.int32], predicted: NDArray[np.integer], instance: bool) -> float:
    if instance:
        drawn, predicted = np.minimum(drawn, 1), (predicted > 0).astype(np.int32)
    values = [int(v) for v in np.unique(drawn) if v >= 0]
    return float(np.mean([(predicted[drawn == v] == v).mean() for v in values])) if values else 1.0


def _areas(weak: WeakLabels, shape: tuple[int, ...], label: int) -> NDArray[np.bool_]:
    area = np.zeros(shape, dtype=bool)
    for one in weak.objects:
        if one.label == label and one.region is not None:
            height, width = one.region.inside.shape
            rows, cols = (slice(start, start + n) for start, n in ((one.region.top, height), (one.region.left, width)))
            area[one.slice, rows, cols] |= one.region.inside
    return area


def _of_class(weak: WeakLabels, label: int, depth: int) -> Iterator[tuple[int, list[WeakObject]]]:
    for index in range(depth):
        yield index, [one for _, one in weak.on_slice(index) if one.label == label]


def _wide(box: Box) -> Box:
    across, down = (max(2.0, MARGIN * (box[i + 2] - box[i] + 1)) for i in (0, 1))
    return box[0] - across, box[1] - down, box[2] + across, box[3] + down


def _boxes(weak: WeakLabels, predicted: NDArray[np.integer], label: int) -> float:
    """Boxes of one class; without boxes 1 if nothing was predicted, else 0."""
    ious: list[float] = []
    total = outside = 0
    for index, objects in _of_class(weak, label, len(predicted)):
        mask = predicted[index] == label
        total += int(mask.sum())
        taken = np.zeros_like(mask)
        for one in objects:
            near = pixel_box(_wide(one.around), mask.shape)
            taken[near] = True
            part = mask[near].copy()
            for other in objects:
                if other is not one:
                    _clear(part, near, other.around, one.around, mask.shape)
            ious.append(float(box_ious([box_of(part, near)], [one.around])[0, 0]))
        outside += int((mask & ~taken).sum())
    if not ious:
        return float(total == 0)
    return float(np.mean(ious)) * (1 - outside / max(total, 1))


def _clear(part: NDArray[np.bool_], near: tuple[slice, slice], other: Box, own: Box, shape: tuple[int, int]) -> None:
    """Take the pixels of another box out of a mask, unless they lie in its own box as well."""
    rows, cols = pixel_box(other, shape)
    mine = pixel_box(own, shape)
    y, x = np.ogrid[near]
    there = (y >= rows.start) & (y < rows.stop) & (x >= cols.start) & (x < cols.stop)
    inside = (y >= mine[0].start) & (y < mine[0].stop) & (x >= mine[1].start) & (x < mine[1].stop)
    part[there & ~inside] = False


def _separate_boxes(weak: WeakLabels, predicted: NDArray[np.integer]) -> float:
    """Sum of the best IoU of every weak box, over boxes and false objects; each object serves one box."""
    total, count = 0.0, 0
    for index, plane in enumerate(predicted):
        found = [
            (float(p[1].start), float(p[0].start), float(p[1].stop - 1), float(p[0].stop - 1))
            for p in ndimage.find_objects(plane.astype(np.int32))
            if p is not None
        ]
        boxes = [one.around for _, one in weak.on_slice(index)]
        ious = box_ious(found, boxes)
        rows, cols = linear_sum_assignment(ious, maximize=True)
        matched = ious[rows, cols][ious[rows, cols] >= _FALSE]
        total += float(matched.sum())
        count += len(boxes) + len(found) - len(matched)
    return total / count if count else 1.0


def _points(weak: WeakLabels, predicted: NDArray[np.integer], label: int) -> float:
    """Share of the points on a class that are hit, times the share of those off it that are not."""
    on, off = [], []
    for one in weak.objects:
        for x, y, positive in one.points:
            is_label = int(predicted[one.slice, _at(y, predicted.shape[1]), _at(x, predicted.shape[2])]) == label
            if one.label == label and positive:
                on.append(is_label)
            elif one.label == label or positive:
                off.append(not is_label)
    hits = float(np.mean(on)) if on else float(not (predicted == label).any())
    return hits * (float(np.mean(off)) if off else 1.0)


def _separate_points(weak: WeakLabels, predicted: NDArray[np.integer]) -> float:
    """F1 of points and objects: a point is found if it lies on an object, which serves one point."""
    hit, found = 0, 0
    for index, plane in enumerate(predicted):
        own = [one for _, one in weak.on_slice(index)]
        on = {
            int(plane[_at(y, plane.shape[0]), _at(x, plane.shape[1])])
            for one in own
            for x, y, positive in one.points[:1]
            if positive
        }
        hit += len(on - {0})
        found += len(np.unique(plane[plane > 0]))
    total = found + len(weak.objects)
    return 2 * hit / total if total else 1.0


def _at(value: float, length: int) -> int:
    return min(max(round(value), 0), length - 1)
