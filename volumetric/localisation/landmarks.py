"""How a structure's place is written down: six landmarks of an annotated volume, six walls of a box in a new one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samgraft.errors import ShapeError

LANDMARKS = 6
"""First and last layer along D, H, W, in this order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Support:
    """An annotated volume."""

    image: Tensor
    """(D, H, W) in [0, 1] at the network's spacing."""
    walls: Mapping[int, NDArray[np.float64]]
    """Class -> landmarks (6, 3), mm along D, H, W from the first voxel's centre; see :func:`landmarks_of`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """One structure in a new volume."""

    low: NDArray[np.float64]
    """(3,) mm along D, H, W from the first voxel's centre: the centres of the first layers of the box."""
    high: NDArray[np.float64]
    """(3,) the same of the last layers."""
    landmarks: NDArray[np.float64]
    """(6, 3) mm, after refinement."""
    spread: float
    """Mean distance in mm of what the annotated volumes say, each alone, from their mean: large where they disagree."""

    def wall_distance(self, walls: NDArray[np.float64]) -> float:
        """Mean distance in mm of the six walls of the box from those of landmarks (6, 3)."""
        low, high = np.diagonal(walls[::2]), np.diagonal(walls[1::2])
        return float(np.mean(np.abs(np.concatenate([self.low - low, self.high - high]))))


def landmarks_of(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Middles of the first and the last layer of a mask along D, H, W: (6, 3) mm from the first voxel's centre.

    Args:
        mask: (D, H, W), not empty.
        spacing: mm in the order of the axes.

    Raises:
        ShapeError: an empty mask.
    """
    places = np.argwhere(mask)
    if not len(places):
        raise ShapeError("an empty mask has no landmarks; leave out volumes without the structure")
    found = []
    for axis in range(3):
        for end in (places[:, axis].min(), places[:, axis].max()):
            found.append(places[places[:, axis] == end].mean(axis=0))
    return np.array(found) * np.asarray(spacing, dtype=np.float64)
