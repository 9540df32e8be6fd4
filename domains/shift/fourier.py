"""Fourier amplitude alignment (FDA): low-frequency amplitudes of an image become those of the source; phases stay.

Amplitudes of the lowest frequencies hold lighting, contrast and colour cast; phases hold where things are. At use the
amplitudes of the target are multiplied by the ratio of the source's mean amplitudes to the target's, up to 7 cycles
per image. One picture thereby gets exactly the source's amplitudes (within the bound of the gains), and the slices
of a volume keep their differences from each other. In training, ``recipes.amplitudes`` mixes amplitudes of target images
into source images.

Source:
    Yang and Soatto 2020, "FDA: Fourier Domain Adaptation for Semantic Segmentation", arXiv:2004.05498, equation 3.
Deviations:
    Mean amplitudes of a set, from its statistics, instead of those of one random image; frequencies are counted in
    cycles per image (up to 7) and not as a share of its side; gains are held between 1/5 and 5.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.colour import bounded
from samgraft.domains.shift.statistics import ImageStatistics

_LEAST = 1e-5
"""An amplitude below this, in units of [0, 1], is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FourierGain:
    """A filter with zero phase; depends on the whole picture, so it is not for windows."""

    gain: NDArray[np.float64]
    """(3, k, k), k odd: factor of each low frequency, the constant in the middle."""
    name: str = "fourier"
    """In the registry."""
    pointwise: bool = False
    """A pixel's value depends on the whole picture."""

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map a whole picture (3, h, w) in [0, 1] to the same; gains of 1 give the same bits.

        NaN counts as the mean of its channel, and stays NaN.
        """
        if (self.gain == 1).all():
            return np.array(image, dtype=np.float32)
        missing = np.isnan(image)
        filled = np.asarray(image, dtype=np.float64)
        if missing.any():
            filled = np.stack([np.where(m, _mean(c), c) for c, m in zip(filled, missing, strict=True)])
        spectrum = np.fft.fft2(filled)
        rows, cols, gain = self._places(image.shape[1], image.shape[2])
        spectrum[:, rows[:, None], cols] *= gain
        found: NDArray[np.float32] = np.clip(np.fft.ifft2(spectrum).real, 0.0, 1.0).astype(np.float32)
        found[missing] = np.nan
        return found

    def _places(self, height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Rows and columns of the spectrum that are changed, and the gains there; fewer for tiny pictures."""
        half = self.gain.shape[1] // 2
        down, right = (min(half, (side - 1) // 2) for side in (height, width))
        rows, cols = (np.arange(-n, n + 1) % side for n, side in ((down, height), (right, width)))
        return rows, cols, self.gain[:, half - down : half + down + 1, half - right : half + right + 1]

    def describe(self) -> str:
        """Change of the means and of the rest."""
        half = self.gain.shape[1] // 2
        means = ", ".join(f"{v:.3g}" for v in self.gain[:, half, half])
        return f"means times {means}; other amplitudes times {np.median(self.gain):.3g} (median)"


def fit_fourier(target: ImageStatistics, source: ImageStatistics) -> FourierGain:
    """The gains that give the target the mean amplitudes of the source."""
    gain = bounded(source.amplitude, target.amplitude, least=_LEAST)
    return FourierGain(gain=(gain + gain[:, ::-1, ::-1]) / 2)  # exactly symmetric, so that the result is real


def _mean(channel: NDArray[np.float64]) -> float:
    known = channel[np.isfinite(channel)]
    return float(known.mean()) if known.size else 0.0
