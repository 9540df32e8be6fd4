"""Rules about the shape of one structure in a volume: largest component, holes, least volume. All off by default.

Volumes are in mm3, so that a rule means the same at every spacing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.errors import ConfigError, ShapeError

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
CONNECTIVITY = {6: 1, 18: 2, 26: 3}
"""Neighbours that join -> rank of scipy's structure."""


@dataclass(frozen=True, kw_only=True)
class ShapeRules:
    """What is done to a mask after segmentation, in this order."""

    fill_holes_mm3: float = 0.0
    """Cavities (background that does not touch the edge of the volume, joined over faces) up to this volume are filled;
    inf fills all."""
    min_mm3: float = 0.0
    """Components below this volume are removed."""
    largest: bool = False
    """Only the largest component stays; of equal ones the first in array order."""
    connectivity: int = 26
    """Neighbours that join a component: 6 (faces), 18 (edges), 26 (corners)."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if not (self.fill_holes_mm3 >= 0 and self.min_mm3 >= 0):
            raise ConfigError(
                f"shape rules: fill_holes_mm3 is {self.fill_holes_mm3} and min_mm3 {self.min_mm3}; expected volumes "
                "in mm3, at least 0"
            )
        if self.connectivity not in CONNECTIVITY:
            raise ConfigError(f"shape rules: connectivity is {self.connectivity}; expected 6, 18 or 26")

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return bool(self.fill_holes_mm3 or self.min_mm3 or self.largest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a header; inf becomes -1, since JSON has none."""
        values = asdict(self)
        values["fill_holes_mm3"] = -1.0 if np.isinf(self.fill_holes_mm3) else self.fill_holes_mm3
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ShapeRules":
        """Inverse of :meth:`to_dict`."""
        given = dict(values)
        if given.get("fill_holes_mm3") == -1.0:
            given["fill_holes_mm3"] = float("inf")
        return cls(**given)

    def apply(self, mask: Mask, spacing: Spacing) -> Mask:
        """A new mask (D, H, W) that obeys the rules.

        Args:
            mask: (D, H, W) bool.
            spacing: mm, in the order of the axes.

        Raises:
            ShapeError: another shape or type.
        """
        if mask.ndim != 3 or mask.dtype != np.bool_:
            raise ShapeError(f"mask is {mask.shape} {mask.dtype}; expected (D, H, W) bool")
        voxel = float(np.prod(spacing))
        result = fill_holes(mask, self.fill_holes_mm3 / voxel) if self.fill_holes_mm3 else mask.copy()
        if self.min_mm3 or self.largest:
            result = _components(result, self.min_mm3 / voxel, self.largest, self.connectivity)
        return result


def fill_holes(mask: Mask, most: float = float("inf")) -> Mask:
    """Fill cavities of at most ``most`` voxels; background that touches the edge of the volume is none."""
    parts, count = ndimage.label(~mask)
    if not count:
        return mask.copy()
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    open_ones: set[int] = set()
    for axis in range(mask.ndim):
        for end in (0, -1):
            open_ones |= set(np.unique(np.take(parts, end, axis=axis)).tolist())
    filled = [i for i in range(1, count + 1) if i not in open_ones and sizes[i] <= most + 1e-9]
    return np.asarray(mask | np.isin(parts, filled))


def apply_to_labels(labels: NDArray[Any], spacing: Spacing, rules: Mapping[int, ShapeRules]) -> NDArray[Any]:
    """Rules for the classes of a label map (D, H, W).

    A hole is filled only where it was background: other structures inside stay what they are.

    Args:
        labels: Integers, 0 background.
        spacing: mm, in the order of the axes.
        rules: Class -> its rules.
    """
    result = labels.copy()
    for value, rule in sorted(rules.items()):
        own = labels == value
        if not rule or not own.any():
            continue
        changed = rule.apply(own, spacing)
        result[own & ~changed] = 0
        result[changed & ~own & (result == 0)] = value
    return result


def _components(mask: Mask, least: float, largest: bool, connectivity: int) -> Mask:
    """Components of at least ``least`` voxels, or only the largest of them."""
    structure = ndimage.generate_binary_structure(3, CONNECTIVITY[connectivity])
    parts, count = ndimage.label(mask, structure)
    if not count:
        return mask.copy()
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = sizes >= max(least - 1e-9, 1)
    if largest:
        kept &= np.arange(len(sizes)) == int(sizes.argmax())
    return np.asarray(kept[parts])
