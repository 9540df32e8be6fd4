"""Histogram matching: every gray level of the target becomes the level that holds its rank in the source.

Per channel, the cumulative histogram of the target is followed by the inverse of that of the source. Only the two
256-bin histograms are needed, so the map is a table that is made once per scene and looked up pixel by pixel.

A share of zeros on both sides (air around a patient, the black rim of a fundus, padding) is nothing to be matched: its
size depends on the field of view. Where both histograms hold more than a hundredth of their pixels in bin 0, zero stays
zero and the other levels are matched among themselves.

The map nowhere rises faster than 5 gray levels per level: one picture with other contents than the set would else have
the noise of its ground stretched over the whole range. What is cut off is cut off on both sides of the median.

Source:
    Gonzalez and Woods, "Digital Image Processing", section "histogram specification".
Deviations:
    Ranks are taken in the middle of a bin, so that equal histograms give exactly the identity. Levels that the sample
    of the target does not hold are interpolated; beyond its ends the map goes on with slope 1. ``skimage.exposure``
    makes the table from the array that it changes, so that every window of a raster has another one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.colour import MOST_GAIN
from samgraft.domains.shift.statistics import ImageStatistics

NOTHING = 0.01
"""Share of zeros, on both sides, above which zero counts as nothing."""
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class HistogramMatch:
    """A monotone map per channel, linear between 256 levels."""

    change: NDArray[np.float32]
    """(3, 256): what is added to a value of level i, i / 255; zeros for the identity."""
    name: str = "histogram"
    """In the registry."""
    pointwise: bool = True
    """A pixel's value depends on that pixel alone."""

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (3, h, w) in [0, 1] to the same; NaN stays NaN. Without a change the result is bit-equal."""
        found = np.empty(image.shape, dtype=np.float32)
        for values, change, out in zip(image, self.change, found, strict=True):
            place = np.nan_to_num(values, nan=0.0) * np.float32(255)
            low = np.minimum(place.astype(np.intp), 254)
            share = place - low.astype(np.float32)
            np.add(values, change[low] + share * (change[low + 1] - change[low]), out=out)
        return np.clip(found, 0.0, 1.0, out=found)

    def describe(self) -> str:
        """What happens to three levels of the middle channel."""
        levels = (64, 128, 192)
        moved = [f"{level} to {level + 255 * float(self.change[1, level]):.0f}" for level in levels]
        return f"gray levels {', '.join(moved)} (of 255, middle channel)"


def fit_histogram(target: ImageStatistics, source: ImageStatistics) -> HistogramMatch:
    """The maps that give the target the histograms of the source."""
    tables = [match_levels(t, s) for t, s in zip(target.histogram, source.histogram, strict=True)]
    return HistogramMatch(change=((np.stack(tables) - _LEVELS) / 255).astype(np.float32))


def match_levels(target: NDArray[np.float64], source: NDArray[np.float64]) -> NDArray[np.float64]:
    """Table from levels of the target to levels of the source.

    Args:
        target: (256,) shares of pixels per level.
        source: (256,) likewise.

    Returns:
        (256,) in [0, 255], never falling.
    """
    here, there = target.copy(), source.copy()
    anchored = bool(here[0] > NOTHING and there[0] > NOTHING)
    if anchored:
        here[0] = there[0] = 0.0
    levels, goals = np.flatnonzero(here > 0), np.flatnonzero(there > 0)
    if not len(levels) or not len(goals):
        return _LEVELS.copy()
    reached = np.interp(_ranks(here)[levels], _ranks(there)[goals], goals.astype(np.float64))
    table = np.interp(_LEVELS, levels.astype(np.float64), reached)
    first, last = int(levels[0]), int(levels[-1])
    table[:first] = reached[0] - (first - _LEVELS[:first])
    table[last + 1 :] = reached[-1] + (_LEVELS[last + 1 :] - last)
    table = _held(table, int(np.searchsorted(_ranks(here), 0.5)))
    if anchored:
        table[0] = 0.0
    return np.clip(table, 0.0, 255.0)


def _held(table: NDArray[np.float64], middle: int) -> NDArray[np.float64]:
    """The table without steps above :data:`MOST_GAIN`; level ``middle`` keeps its value. A flat table is as it was."""
    steps = np.diff(table)
    if steps.max() <= MOST_GAIN:
        return table
    path = np.concatenate([[0.0], np.cumsum(np.minimum(steps, MOST_GAIN))])
    at = min(middle, len(table) - 1)
    held: NDArray[np.float64] = path - path[at] + table[at]
    return held


def _ranks(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(256,) share of pixels below the middle of each bin."""
    ranks: NDArray[np.float64] = (np.cumsum(shares) - shares / 2) / shares.sum()
    return ranks
