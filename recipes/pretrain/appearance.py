"""How painted regions look: brightness, colour, texture, edges, blur, bias field and noise.

Contrast between an object and what surrounds it is drawn over an order of magnitude, down to the noise level: where
nothing can be seen, the best answer to a box is a smooth convex shape, and that has to be learned too.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.recipes.pretrain.shapes import Rng, smooth_noise

Array = NDArray[np.float32]


def render(rng: Rng, regions: NDArray[np.int32], kinds: NDArray[np.int64]) -> Array:
    """Paint ``regions`` (H, W) as a picture (3, H, W) in [0, 1].

    Args:
        rng: Source of randomness.
        regions: Region number of every pixel.
        kinds: Appearance class of every region number; 0 and classes from 100 up are background.
    """
    size = regions.shape[0]
    colour = rng.random() < 0.35
    base = _base_colours(rng, kinds, colour)
    image = base[regions].transpose(2, 0, 1)  # (3, H, W)
    image = image + _textures(rng, regions, kinds, size)[None]
    image = _outline(rng, image, regions)
    image = _optics(rng, image, size)
    if not colour:
        image = np.repeat(image[:1], 3, axis=0)
    return _finish(rng, image)


def _base_colours(rng: Rng, kinds: NDArray[np.int64], colour: bool) -> Array:
    """(R, 3) mean colour of every region: classes differ by a drawn contrast, regions of a class by little."""
    contrast = float(np.exp(rng.uniform(np.log(0.1), np.log(0.8))))
    within = contrast * float(rng.choice([0.0, 0.1, 0.3], p=[0.4, 0.4, 0.2]))
    ground = rng.uniform(0.15, 0.85, 3) if colour else np.full(3, rng.uniform(0.05, 0.85))
    direction = _direction(rng, colour)
    sign = 1.0 if ground.mean() + contrast < 0.98 and (rng.random() < 0.5 or ground.mean() - contrast < 0.02) else -1.0
    table: dict[int, NDArray[np.float64]] = {0: ground}
    out = np.zeros((len(kinds), 3))
    for region, kind in enumerate(kinds.tolist()):
        if kind not in table:
            table[kind] = _class_colour(rng, kind, ground, sign * contrast, direction, colour)
        out[region] = table[kind] + (rng.normal(0, within) * _direction(rng, colour) if kind else 0.0)
    return out.astype(np.float32)


def _direction(rng: Rng, colour: bool) -> NDArray[np.float64]:
    if not colour:
        return np.ones(3)
    vector = np.ones(3) * rng.uniform(0, 1) + rng.normal(0, 1, 3)
    return np.asarray(vector / (np.abs(vector).max() + 1e-6))


def _class_colour(
    rng: Rng, kind: int, ground: NDArray[np.float64], contrast: float, direction: NDArray[np.float64], colour: bool
) -> NDArray[np.float64]:
    if kind >= 100:  # other background: anywhere, sometimes as bright as the objects
        return np.clip(ground + rng.normal(0, 0.25) * _direction(rng, colour), 0.0, 1.0)
    if kind == 1:
        return np.asarray(ground + contrast * direction)
    sign = 1.0 if rng.random() < 0.6 else -1.0
    return np.asarray(ground + sign * contrast * rng.uniform(0.5, 1.5) * _direction(rng, colour))


def _textures(rng: Rng, regions: NDArray[np.int32], kinds: NDArray[np.int64], size: int) -> Array:
    """(H, W) sum of a smooth field, a fine field and stripes, each weighted per appearance class."""
    strength = float(rng.choice([0.0, 0.03, 0.08, 0.2], p=[0.3, 0.3, 0.25, 0.15]))
    out = np.zeros(regions.shape, dtype=np.float32)
    if strength == 0.0:
        return out
    fields = [
        smooth_noise(rng, size, rng.uniform(2, 8)),
        smooth_noise(rng, size, rng.uniform(12, 60)),
        _stripes(rng, size),
    ]
    classes, inverse = np.unique(kinds, return_inverse=True)
    for texture in fields:
        weight = strength * rng.gamma(0.6, 0.7, len(classes)) * (rng.random(len(classes)) < 0.5)
        out += weight[inverse].astype(np.float32)[regions] * texture
    return out


def _stripes(rng: Rng, size: int) -> Array:
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
    rows, cols = np.mgrid[:size, :size].astype(np.float32)
    phase = (rows * np.sin(angle) + cols * np.cos(angle)) * (2 * np.pi / period)
    return np.asarray(np.sin(phase + 1.5 * smooth_noise(rng, size, 3)), dtype=np.float32)


def _outline(rng: Rng, image: Array, regions: NDArray[np.int32]) -> Array:
    """Sometimes draw the borders between regions brighter or darker (membranes, walls, roads)."""
    if rng.random() > 0.2:
        return image
    edge = np.zeros(regions.shape, dtype=np.float32)
    edge[:-1] += regions[:-1] != regions[1:]
    edge[:, :-1] += regions[:, :-1] != regions[:, 1:]
    edge = ndimage.gaussian_filter(np.minimum(edge, 1), rng.uniform(0.4, 1.5))
    return np.asarray(image + rng.normal(0, 0.35) * edge, dtype=np.float32)


def _optics(rng: Rng, image: Array, size: int) -> Array:
    """Point spread and a slowly varying gain and offset."""
    sigma = float(rng.choice([0.0, rng.uniform(0.3, 1.0), rng.uniform(1.0, 2.5)], p=[0.3, 0.5, 0.2]))
    if sigma > 0:
        image = ndimage.gaussian_filter(image, (0, sigma, sigma))
    if rng.random() < 0.5:
        image = image * (1 + rng.uniform(0, 0.35) * smooth_noise(rng, size, rng.uniform(0.7, 2.5)))
    if rng.random() < 0.3:
        image = image + rng.uniform(0, 0.2) * smooth_noise(rng, size, rng.uniform(0.7, 2.0))
    return np.asarray(image, dtype=np.float32)


def _finish(rng: Rng, image: Array) -> Array:
    """Noise of several kinds, gamma, inversion, and the stretch to [0, 1]."""
    gray = bool((image[0] == image[1]).all())
    shape = (1, *image.shape[1:]) if gray else image.shape
    level = float(rng.choice([0.0, 0.02, 0.06, 0.15], p=[0.2, 0.45, 0.25, 0.1]))
    if level > 0:
        noise = rng.standard_normal(shape).astype(np.float32)
        grain = rng.random()
        if grain < 0.35:  # correlated grain
            noise = ndimage.gaussian_filter(noise, (0, 0.7, 0.7)) * 2.4
        elif grain < 0.5:  # speckle: wider along one axis, multiplied
            noise = ndimage.gaussian_filter(noise, (0, 0.5, 1.5)) * 3.0 * (0.3 + 1.5 * np.clip(image, 0, 1))
        image = image + level * noise
    if rng.random() < 0.5:
        low, high = np.quantile(image, [0.005, 0.995])
        image = (image - low) / max(float(high - low), 1e-3)
    image = np.clip(image, 0, 1)
    if rng.random() < 0.4:
        image = image ** float(np.exp(rng.uniform(-0.7, 0.7)))
    return np.asarray(np.clip(image, 0, 1), dtype=np.float32)
