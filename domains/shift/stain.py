"""Macenko stain transfer: haematoxylin and eosin of one laboratory become those of another, amount for amount.

In optical density, -ln(intensity), the colour of a stained pixel is a sum of two stain vectors with positive amounts.
The amounts of the target's stains are found by least squares, scaled so that their maxima become those of the source,
and put together again with the source's vectors.

Source:
    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", ISBI, section 2. The
    vectors and maxima come from ``stain_basis``.
Deviations:
    Vectors and maxima are those of the whole scene, not of the picture or window at hand, so the map is one 3 x 3
    matrix in optical density and a pixel has one value in every window. What lies outside of the plane of the two
    stains (pigment, pens, counterstains) is kept and not dropped, so equal stains give exactly the identity. Amounts
    are scaled by at most 5. Clear glass need not be white: it is the 98th percentile of each channel, densities count
    from there, and the glass of the target becomes that of the source. Images that are not stained are refused.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.colour import bounded
from samgraft.domains.shift.stain_basis import DARKEST
from samgraft.domains.shift.statistics import ImageStatistics
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class StainTransfer:
    """A linear map of optical densities."""

    change: NDArray[np.float32]
    """(3, 3): density that is added per density that is there, beyond that of glass."""
    glass: NDArray[np.float32]
    """(3,) density of the target's clear glass."""
    added: NDArray[np.float32]
    """(3,) density of the source's clear glass, less the target's."""
    scale: NDArray[np.float32]
    """(2,) factor of the amounts of haematoxylin (or what else absorbs more red) and of the other stain."""
    name: str = "macenko"
    """In the registry."""
    pointwise: bool = True
    """A pixel's value depends on that pixel alone."""

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (3, h, w) in [0, 1] to the same; NaN stays NaN. No change gives the same bits."""
        values = np.ascontiguousarray(image, dtype=np.float32)
        density = -np.log(np.maximum(values, np.float32(DARKEST))) - self.glass[:, None, None]
        found = np.empty_like(values)
        for out, channel, row, glass in zip(found, values, self.change, self.added, strict=True):
            added = row[0] * density[0] + row[1] * density[1] + row[2] * density[2] + glass
            np.multiply(channel, np.exp(-added), out=out)
        return np.clip(found, 0.0, 1.0, out=found)

    def describe(self) -> str:
        """How much of each stain there is afterwards."""
        return f"two stains, amounts times {self.scale[0]:.3g} and {self.scale[1]:.3g}"


def fit_stain(target: ImageStatistics, source: ImageStatistics) -> StainTransfer:
    """The map from the target's stains to those of the source.

    Raises:
        InputError: target or source is not stained tissue in bright field.
    """
    for side, stats in (("the image", target), ("the adapter's training set", source)):
        if stats.stain is None:
            raise InputError(
                f"align 'macenko' is for stained tissue in bright field, and {side} does not look like it: too little "
                "optical density in colour, or no clear glass; use reinhard, histogram or auto"
            )
    there, wanted = target.stain, source.stain
    assert there is not None and wanted is not None  # noqa: S101 - checked above
    scale = bounded(wanted.maxima, there.maxima, least=1e-3)
    amounts = np.linalg.pinv(there.vectors.T)  # (2, 3): density to amounts
    change = (wanted.vectors.T * scale - there.vectors.T) @ amounts
    here, goal = (-np.log(_glass(stats)).astype(np.float32) for stats in (target, source))
    return StainTransfer(
        change=change.astype(np.float32), glass=here, added=goal - here, scale=scale.astype(np.float32)
    )


def _glass(stats: ImageStatistics) -> NDArray[np.float64]:
    """(3,) level of clear glass in [1 / 255, 1]."""
    below: NDArray[np.intp] = (np.cumsum(stats.histogram, axis=1) < 0.98).sum(axis=1)
    level: NDArray[np.float64] = np.maximum(below, 1) / 255
    return level
