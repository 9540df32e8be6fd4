"""Colour transfer by means and standard deviations: of red, green and blue, or of lightness and colour in CIELAB.

Each channel of the target is shifted and stretched so that its mean and standard deviation become those of the source.
In CIELAB (Reinhard) the three axes are almost independent in natural pictures, so colours keep their relations; in RGB
(moments) the map is affine and undoes a gain and an offset of a camera exactly.

Source:
    Reinhard, Ashikhmin, Gooch, Shirley 2001, "Color transfer between images", IEEE CG&A 21(5), equations 10 and 11.
    sRGB: IEC 61966-2-1; CIELAB: CIE 15, white D65, 2 degree observer.
Deviations:
    CIELAB instead of l-alpha-beta, as usual for stained slides. Gains are held between 1/5 and 5, and a channel without
    any spread is only shifted: nothing of its noise should be blown up. The conversions are written out (element by
    element, no matrix product) since those of scikit-image may round a pixel differently in a window of another width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.statistics import ImageStatistics

MOST_GAIN = 5.0
"""Largest stretch of a channel, and the inverse of the smallest."""
FLAT = 1e-3
"""A standard deviation below this share of the range is none."""
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_WHITE = (_TO_XYZ / _WHITE[:, None]).astype(np.float32)
_FROM_WHITE = np.linalg.inv(_TO_XYZ / _WHITE[:, None]).astype(np.float32)
_EDGE, _SLOPE = 216 / 24389, 24389 / 27 / 116
"""Of CIELAB: below ``_EDGE`` the cube root becomes a line of this slope."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Gain and offset per channel of RGB."""

    gain: Floats
    """(3,)."""
    offset: Floats
    """(3,), in units of [0, 1]."""
    name: str = "moments"
    """In the registry."""
    pointwise: bool = True
    """A pixel's value depends on that pixel alone."""

    def apply(self, image: Floats) -> Floats:
        """Map (3, h, w) in [0, 1] to the same; NaN stays NaN. Gain 1 and offset 0 give the same bits."""
        moved = image * self.gain[:, None, None] + self.offset[:, None, None]
        return np.clip(moved, 0.0, 1.0, out=moved)

    def describe(self) -> str:
        """Gains and offsets."""
        return f"gains {_numbers(self.gain)}, offsets {_numbers(self.offset)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reinhard:
    """Gain and offset per axis of CIELAB."""

    gain: Floats
    """(3,) of lightness, a and b."""
    offset: Floats
    """(3,) in CIELAB."""
    name: str = "reinhard"
    """In the registry."""
    pointwise: bool = True
    """A pixel's value depends on that pixel alone."""

    def apply(self, image: Floats) -> Floats:
        """Map (3, h, w) in [0, 1] to the same; NaN stays NaN, colours outside of sRGB are clipped.

        Gain 1 and offset 0 give the same bits.
        """
        if (self.gain == 1).all() and (self.offset == 0).all():
            return np.array(image, dtype=np.float32)
        return from_lab(to_lab(image) * self.gain[:, None, None] + self.offset[:, None, None])

    def describe(self) -> str:
        """Gains and offsets."""
        return f"L, a, b: gains {_numbers(self.gain)}, offsets {_numbers(self.offset)}"


def fit_moments(target: ImageStatistics, source: ImageStatistics) -> Moments:
    """Gains and offsets that give the target the means and standard deviations of the source."""
    gain, offset = gain_and_offset(target.mean, target.std, source.mean, source.std, flat=FLAT)
    return Moments(gain=gain, offset=offset)


def fit_reinhard(target: ImageStatistics, source: ImageStatistics) -> Reinhard:
    """The same in CIELAB."""
    gain, offset = gain_and_offset(target.lab_mean, target.lab_std, source.lab_mean, source.lab_std, flat=100 * FLAT)
    return Reinhard(gain=gain, offset=offset)


def gain_and_offset(
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    wanted_mean: NDArray[np.float64],
    wanted_std: NDArray[np.float64],
    *,
    flat: float,
) -> tuple[Floats, Floats]:
    """Affine map per channel from one mean and standard deviation to another, (n,) each.

    Args:
        mean: What is there.
        std: What is there.
        wanted_mean: What is wanted.
        wanted_std: What is wanted.
        flat: A standard deviation below this, on either side, is none: the gain is 1.
    """
    gain = bounded(wanted_std, std, least=flat)
    return gain.astype(np.float32), (wanted_mean - gain * mean).astype(np.float32)


def bounded(wanted: NDArray[np.float64], there: NDArray[np.float64], *, least: float) -> NDArray[np.float64]:
    """``wanted / there`` between 1/5 and 5; 1 where either is below ``least``."""
    usable = (wanted >= least) & (there >= least)
    ratio = np.divide(wanted, there, out=np.ones_like(wanted), where=usable)
    return np.clip(ratio, 1 / MOST_GAIN, MOST_GAIN)


def to_lab(image: Floats) -> Floats:
    """SRGB (3, h, w) in [0, 1] to CIELAB (3, h, w): L 0 to 100, a and b about -110 to 110."""
    values = np.ascontiguousarray(image, dtype=np.float32)
    linear = np.where(values > 0.04045, ((values + np.float32(0.055)) / np.float32(1.055)) ** 2.4, values / 12.92)
    parts = [np.where(t > _EDGE, np.cbrt(t), _SLOPE * t + 4 / 29) for t in _mixed(_TO_WHITE, linear.astype(np.float32))]
    x, y, z = (part.astype(np.float32) for part in parts)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).astype(np.float32)


def from_lab(lab: Floats) -> Floats:
    """Inverse of :func:`to_lab`, clipped to [0, 1]."""
    y = (np.ascontiguousarray(lab[0]) + 16) / 116
    parts = [y + lab[1] / 500, y, y - lab[2] / 200]
    xyz = [np.where(t > 6 / 29, t**3, (t - 4 / 29) / _SLOPE).astype(np.float32) for t in parts]
    linear = np.clip(np.stack(_mixed(_FROM_WHITE, np.stack(xyz))), 0.0, 1.0)
    curved = np.where(linear > 0.0031308, np.float32(1.055) * linear ** (1 / 2.4) - np.float32(0.055), linear * 12.92)
    return np.clip(curved, 0.0, 1.0).astype(np.float32)


def _mixed(matrix: Floats, image: Floats) -> list[Floats]:
    """Rows of a 3 x 3 matrix times the channels; sums in one order, whatever the shape."""
    return [row[0] * image[0] + row[1] * image[1] + row[2] * image[2] for row in matrix]


def _numbers(values: Floats) -> str:
    return ", ".join(f"{float(v):.3g}" for v in values)
