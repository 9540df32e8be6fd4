"""How good an adapter is on the scored cases of a pair: ``samgraft.segment`` on the files, against plain readers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.instances import InstanceMatch, average_precision, match_instances
from tests.benchmarks._metrics import dice, iou
from tests.benchmarks._shift_folders import Int, Item, truth

Scored = Sequence[tuple[Item, Path]]
"""Cases with their images as they were written."""
Predict = Callable[[Path], Segmentation]


def objects_of(result: Segmentation) -> tuple[Int, NDArray[np.float32]]:
    """Labels 1..n and scores (n,) of an instance map, whose numbers may have gaps."""
    records = sorted(result.instances, key=lambda record: record.id)
    table = np.zeros(max([int(result.labels.max(initial=0)), *(r.id for r in records)]) + 1, dtype=np.int32)
    for number, record in enumerate(records, start=1):
        table[record.id] = number
    return table[result.labels], np.asarray([record.score for record in records], dtype=np.float32)


def score(metric: str, cases: Scored, predict: Predict) -> dict[str, Any]:
    """Figures over ``cases``: "dice" is a mean over them, "ap50" counts all objects together; with "n".

    Raises:
        ValueError: a result that does not lie on the grid of the labels.
    """
    overlaps: list[float] = []
    matches: list[InstanceMatch] = []
    for item, image in cases:
        result, wanted = predict(image), truth(item, image)
        if result.labels.shape != wanted.shape:
            raise ValueError(f"{item.id}: the result is {result.labels.shape}, the labels are {wanted.shape}")
        if metric == "dice":
            overlaps.append(dice(result.labels > 0, wanted > 0))
            continue
        labels, scores = objects_of(result)
        matches.append(match_instances(item.id, labels, scores, wanted))
        overlaps.append(iou(labels > 0, wanted > 0))
    if metric == "dice":
        return {"n": len(cases), "dice": float(np.mean(overlaps)), "by_case": overlaps}
    true, found = sum(match.num_truth for match in matches), sum(len(match.scores) for match in matches)
    figures = {"ap50": float(average_precision(matches)), "iou": float(np.mean(overlaps))}
    return {"n": len(cases), "objects": true, "predicted": found, **figures}


def agreement(cases: Scored, other: Callable[[Item], Item]) -> dict[str, Any]:
    """Dice of two observers: what ``other`` makes of an item has the labels of the second."""
    found = [dice(truth(other(item), image) > 0, truth(item, image) > 0) for item, image in cases]
    return {"n": len(cases), "dice": float(np.mean(found)), "by_case": found}
