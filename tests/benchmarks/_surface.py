"""How far two masks' surfaces are apart in mm, on voxels of any spacing.

MONAI measures the distances; what it leaves to the caller is decided here: two empty masks agree (Dice 1, NSD 1), of
one empty mask nothing is right (0), and neither has a distance (NaN), which means leave out and count.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from tests.benchmarks._metrics import dice

Mask = NDArray[np.bool_]
TOLERANCES = (1.0, 2.0)
"""Of the normalised surface distance, mm."""


def surface_scores(predicted: Mask, truth: Mask, spacing: Sequence[float]) -> dict[str, float]:
    """ "dice", "nsd_1mm", "nsd_2mm" in [0, 1] and "hd95" in mm of two masks (D, H, W).

    Args:
        predicted: Mask.
        truth: Mask of the same shape.
        spacing: mm along (D, H, W).
    """
    found = {"dice": dice(predicted, truth)}
    names = [f"nsd_{tolerance:g}mm" for tolerance in TOLERANCES]
    if not predicted.any() or not truth.any():
        same = 1.0 if not predicted.any() and not truth.any() else 0.0
        return found | dict.fromkeys(names, same) | {"hd95": math.nan}
    box = _around(predicted | truth)
    a, b = (torch.from_numpy(np.ascontiguousarray(m[box]))[None, None] for m in (predicted, truth))
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, tolerance in zip(names, TOLERANCES, strict=True):
            found[name] = float(compute_surface_dice(a, b, [tolerance], **options))
        found["hd95"] = float(compute_hausdorff_distance(a, b, percentile=95, **options))
    return found


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over cases and classes; of "hd95" over those that have one, "hd95_n" of them."""
    names = [name for name in rows[0] if name != "hd95"]
    found = {name: float(np.mean([row[name] for row in rows])) for name in names}
    distances = [row["hd95"] for row in rows if not math.isnan(row["hd95"])]
    return found | {"hd95": float(np.mean(distances)) if distances else math.nan, "hd95_n": float(len(distances))}


def _around(mask: Mask) -> tuple[slice, ...]:
    """The box of a mask, one voxel wider where there is room: no surface lies elsewhere."""
    found = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        found.append(slice(max(0, int(filled[0]) - 1), int(filled[-1]) + 2))
    return tuple(found)
