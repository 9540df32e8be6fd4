"""A retina camera that does not exist: what it does to a picture is drawn once per seed, and is written down here.

In this order, on values in [0, 1]: colours are mixed by a matrix and weighted per channel, the rim is darkened, the
tone curve is bent, the optics blur, the sensor adds noise. The black surround stays black but for the noise.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
CROSSTALK = (0.05, 0.20)
"""Share of each of the two other channels that a channel takes."""
GAINS = ((0.55, 0.80), (0.80, 1.10), (1.10, 1.60))
"""Of red, green and blue."""
VIGNETTE = (0.35, 0.60)
"""Share of the light that is missing in the corners; it falls with the square of the distance."""
GAMMA = (1.3, 1.8)
BLUR = (1.0, 2.0)
"""Standard deviation in pixels."""
NOISE = (0.02, 0.04)
"""Standard deviation at mid grey; it grows with the square root of the value, as that of counted light does."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One camera."""

    matrix: tuple[tuple[float, float, float], ...]
    """Row i: shares of red, green and blue in the new channel i, gain included."""
    vignette: float
    gamma: float
    blur: float
    noise: float
    seed: int
    """Of the noise, together with the name of a picture."""

    def shoot(self, picture: Float, name: str) -> Float:
        """The picture (H, W, 3) in [0, 1] as this camera would have taken it; ``name`` decides the noise."""
        matrix = np.asarray(self.matrix, dtype=np.float32)
        seen = picture @ matrix.T * self._falloff(picture.shape[:2])[..., None]
        bent = np.clip(seen, 0, 1) ** self.gamma
        soft = ndimage.gaussian_filter(bent, (self.blur, self.blur, 0))
        drawn = np.random.default_rng([self.seed, crc32(name.encode())]).standard_normal(soft.shape)
        noisy = soft + self.noise * np.sqrt(np.maximum(soft, 0.02) / 0.5) * drawn
        return np.asarray(np.clip(noisy, 0, 1), dtype=np.float32)

    def _falloff(self, shape: tuple[int, ...]) -> Float:
        """(H, W) share of the light: 1 in the middle, ``1 - vignette`` in the corners."""
        rows, cols = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
        return np.asarray(1 - self.vignette * (rows[:, None] ** 2 + cols[None] ** 2) / 2, dtype=np.float32)


def draw(seed: int) -> Camera:
    """The camera of a seed."""
    rng = np.random.default_rng([seed, 8])
    matrix = np.zeros((3, 3))
    for row, span in enumerate(GAINS):
        others = rng.uniform(*CROSSTALK, size=2)
        shares = np.insert(others, row, 1 - others.sum())
        matrix[row] = shares * rng.uniform(*span)
    drawn = [float(rng.uniform(*span)) for span in (VIGNETTE, GAMMA, BLUR, NOISE)]
    rows = tuple((float(r), float(g), float(b)) for r, g, b in matrix)
    return Camera(matrix=rows, vignette=drawn[0], gamma=drawn[1], blur=drawn[2], noise=drawn[3], seed=seed)
