"""How far two borders lie apart in mm: HD95 and normalised surface Dice, with the empty cases defined.

The border of a mask are its voxels with a neighbour (by face) outside, or at the edge of the array; distances are
exact, between voxel centres, with the spacing. Each border voxel counts once, whatever its area. Distances: MONAI.
Source:
    Normalised surface Dice: arXiv:1809.04430, section 4.3 (there weighted by area). HD95: the larger of both directed
    95th percentiles.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray

from samgraft.errors import ShapeError

NSD_TOLERANCE_MM = 2.0
"""Default distance in mm within which borders count as equal."""
_PERCENTILE = 95.0


@dataclass(frozen=True, kw_only=True)
class SurfaceScore:
    """Agreement of two borders."""

    nsd: float
    """Share of both borders that lies within the tolerance of the other one; 0 to 1."""
    hd95: float
    """mm."""


def surface_score(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    tolerance: float = NSD_TOLERANCE_MM,
) -> SurfaceScore:
    """Compare the borders of two masks.

    Both empty: NSD 1, HD95 0. One empty: NSD 0, HD95 the diagonal of the array in mm, the largest possible distance.

    Args:
        predicted: mask with 2 or 3 axes.
        truth: mask of the same shape.
        spacing: mm, in axis order.
        tolerance: mm, for NSD.

    Raises:
        ShapeError: shapes differ, or the spacing has another number of axes.
    """
    if predicted.shape != truth.shape or len(spacing) != predicted.ndim:
        raise ShapeError(
            f"predicted mask is {predicted.shape}, truth {truth.shape}, spacing {tuple(spacing)}; expected masks on "
            "one grid and one spacing per axis"
        )
    filled = bool(predicted.any()), bool(truth.any())
    if not all(filled):
        diagonal = float(np.linalg.norm(np.array(predicted.shape) * np.array(spacing)))
        return SurfaceScore(nsd=0.0, hd95=diagonal) if any(filled) else SurfaceScore(nsd=1.0, hd95=0.0)
    masks = torch.from_numpy(np.ascontiguousarray(predicted)), torch.from_numpy(np.ascontiguousarray(truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        _, distances, _ = get_edge_surface_distance(*masks, spacing=[float(v) for v in spacing], symmetric=True)
    there, back = (np.asarray(one, dtype=np.float64) for one in distances)
    within = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    return SurfaceScore(
        nsd=within / (len(there) + len(back)),
        hd95=float(max(np.percentile(there, _PERCENTILE), np.percentile(back, _PERCENTILE))),
    )
