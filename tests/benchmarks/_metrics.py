"""Overlap measures on plain arrays; detection measures come from ``samgraft.recipes.instances``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union in [0, 1]; 1 if both are empty."""
    union = int(np.logical_or(a, b).sum())
    return 1.0 if union == 0 else int(np.logical_and(a, b).sum()) / union


def dice(a: Mask, b: Mask) -> float:
    """Dice in [0, 1]; 1 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2 * int(np.logical_and(a, b).sum()) / total


def mean_by_case(values: Sequence[tuple[str, float]]) -> float:
    """Mean over cases of the mean over each case's objects; nan without values."""
    groups: dict[str, list[float]] = {}
    for case, value in values:
        groups.setdefault(case, []).append(value)
    return float(np.mean([np.mean(v) for v in groups.values()])) if groups else float("nan")
