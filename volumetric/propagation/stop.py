"""When a walk has left the object: area, IoU, predicted IoU, and intensities, all spacing-aware.

Source:
    IoU with the previous slice, and its use outside the annotated range only: micro-sam,
    multi_dimensional_segmentation.py (``segment_mask_in_volume``). That masks grow past the ends of objects is a known
    complaint there (issue 382).
Deviations:
    micro-sam has one IoU threshold whatever the spacing. Here it is lowered to what an object of this size can show
    when its edge moves by one reach (``PropagationConfig.reach``), and areas, the decoder's own IoU and intensities
    are looked at as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from samgraft.volumetric.propagation.config import StopRule
from samgraft.volumetric.propagation.slices import Float, Mask

LEAST_CONTRAST = 0.03
"""Difference of [0, 1] intensities between object and surroundings below which intensities say nothing."""
RING = 3
"""Pixels around a mask that count as its surroundings."""


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """How bright an object and its surroundings are on an annotated slice: medians in [0, 1]."""

    inside: float
    outside: float

    @classmethod
    def of(cls, picture: Float, mask: Mask) -> "Intensities":
        """Medians of ``picture`` (H, W) inside ``mask`` and in a ring around it; the mask must not be empty."""
        ring = ndimage.binary_dilation(mask, iterations=RING) & ~mask
        inside = float(np.median(picture[mask]))
        return cls(inside=inside, outside=float(np.median(picture[ring])) if ring.any() else inside)

    def agreement(self, picture: Float, mask: Mask) -> float:
        """1 where the mask is as bright as the object was, 0 where it is as bright as its surroundings, linear between.

        1 as well where object and surroundings were hardly different.
        """
        contrast = self.inside - self.outside
        if abs(contrast) < LEAST_CONTRAST or not mask.any():
            return 1.0
        return float(np.clip((float(np.median(picture[mask])) - self.outside) / contrast, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """How large an object is expected to be, slice by slice."""

    centre: int
    """Slice where it is largest."""
    area: int
    """There, pixels."""
    half: float
    """Half its length across the slices, mm."""
    step: float
    """From slice to slice, mm."""

    @classmethod
    def through(cls, areas: Mapping[int, int], start: int, length: float, spacing: Sequence[float]) -> "Ellipsoid":
        """What is expected on the far side of an annotated slice.

        Where ``start`` is the largest slice, half the length is ``length`` of its diameters. Another annotated slice
        says itself how fast areas shrink; then the ellipsoid goes through both, and ends no later than that of the
        largest slice, or than one around ``start`` where that lies farther out already.

        Args:
            areas: Annotated slice -> pixels, above 0.
            start: The annotated slice where the walk begins.
            length: ``StopRule.length``.
            spacing: (D, H, W), mm.
        """
        centre = max(areas, key=lambda index: areas[index])
        pixel_mm2 = spacing[1] * spacing[2]
        half, own = (length * 2 * math.sqrt(areas[i] * pixel_mm2 / math.pi) for i in (centre, start))
        away, left = abs(start - centre) * spacing[0], 1 - areas[start] / areas[centre]
        if start != centre:
            latest = half if away < half else away + own
            half = min(latest, away / math.sqrt(left)) if left > 0 else latest
        return cls(centre=centre, area=areas[centre], half=half, step=spacing[0])

    def away(self, index: int) -> float:
        """Distance of a slice from the centre, mm."""
        return abs(index - self.centre) * self.step

    def area_on(self, index: int) -> float:
        """Pixels on a slice."""
        return self.area * max(0.0, 1 - (self.away(index) / self.half) ** 2)


@dataclass(kw_only=True)
class Watch:
    """Looks at every new slice of one walk. ``previous`` and what it keeps change as the walk goes on."""

    rule: StopRule
    start: int
    """Area on the annotated slice where the walk began, pixels."""
    largest: int
    """Largest area on an annotated slice, pixels."""
    pixel_mm2: float
    """Area of a pixel."""
    reach: float
    """How far an edge may move per slice, mm."""
    intensities: Intensities
    between: bool = False
    """The walk goes towards another annotated slice."""
    shape: Ellipsoid | None = None
    """How large the object is expected to be; None says nothing."""
    smallest: int = field(init=False)
    """Smallest area so far."""

    def __post_init__(self) -> None:
        """Begin with the annotated area."""
        self.smallest = self.start

    def room(self, index: int) -> float:
        """Largest area in pixels on a slice."""
        return math.inf if self.shape is None else (self.rule.max_growth or 1.0) * self.shape.area_on(index)

    def reason(self, index: int, previous: Mask, mask: Mask, picture: Float, predicted: float) -> str:
        """Why the walk ends before ``mask``, or "" if it goes on; then its area is remembered.

        Args:
            index: This slice.
            previous: (H, W) mask of the slice before, not empty.
            mask: (H, W) of this slice.
            picture: (H, W) in [0, 1] of this slice.
            predicted: IoU that the decoder predicts.
        """
        area = int(mask.sum())
        if not area:
            if self.shape is None or self.room(index) >= 1:
                return "empty"
            return f"length: {self.shape.away(index):.0f} mm, the end at length={self.rule.length:g}"
        found = self._by_picture(mask, picture)
        if not found and not self.between:
            found = self._by_area(area) or self._by_decoder(predicted) or self._by_iou(previous, mask)
        if not found:
            self.smallest = min(self.smallest, area)
        return found

    def _by_picture(self, mask: Mask, picture: Float) -> str:
        least = self.rule.min_agreement
        if least is None:
            return ""
        agreement = self.intensities.agreement(picture, mask)
        return f"intensity {agreement:.2f} < {least:g}" if agreement < least else ""

    def _by_area(self, area: int) -> str:
        rule = self.rule
        if rule.min_share is not None and area < rule.min_share * self.start:
            return f"area {area / self.start:.3f} < {rule.min_share:g}"
        if rule.max_growth is not None and area > rule.max_growth * self.largest:
            return f"growth {area / self.largest:.2f} > {rule.max_growth:g}"
        necked = 2 * self.smallest < self.start
        if rule.max_regrowth is not None and necked and area > rule.max_regrowth * self.smallest:
            return f"regrowth {area / self.smallest:.2f} > {rule.max_regrowth:g}"
        return ""

    def _by_decoder(self, predicted: float) -> str:
        least = self.rule.min_predicted_iou
        return f"predicted IoU {predicted:.2f} < {least:g}" if least is not None and predicted < least else ""

    def _by_iou(self, previous: Mask, mask: Mask) -> str:
        if self.rule.min_iou is None:
            return ""
        union = int((previous | mask).sum())
        iou = int((previous & mask).sum()) / max(union, 1)
        least = limit(self.rule.min_iou, int(previous.sum()) * self.pixel_mm2, self.reach)
        return f"IoU {iou:.2f} < {least:.2f}" if iou < least else ""


def limit(min_iou: float, area: float, reach: float) -> float:
    """IoU to ask for between neighbouring slices: ``min_iou``, or less where an edge may move by much of the radius.

    A disc of radius r that shrinks by ``reach`` on all sides keeps ((r - reach) / r)^2 of its area.

    Args:
        min_iou: What is asked of large objects in thin slices.
        area: Of the previous mask, mm2.
        reach: How far an edge may move, mm.
    """
    radius = math.sqrt(area / math.pi)
    kept = max(0.0, radius - reach) / max(radius, 1e-9)
    return min(min_iou, kept * kept)
