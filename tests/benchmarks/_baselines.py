"""Three ways to fill a box without learning: the floor that a promptable model has to beat.

Each takes a gray picture (H, W) in [0, 1] and a box (x0, y0, x1, y1), first and last pixel inside; it gives (H, W)
bool. None of them sees a label.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import random_walker
from skimage.transform import resize

Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]


def ellipse(gray: Float, box: Box, scale: float = 1.0) -> Mask:
    """The ellipse that touches the four sides of the box; ``scale`` shrinks it about its centre."""
    x0, y0, x1, y1 = box
    rows, cols = np.ogrid[: gray.shape[0], : gray.shape[1]]
    u = (cols - (x0 + x1) / 2) / (scale * (x1 - x0 + 1) / 2)
    v = (rows - (y0 + y1) / 2) / (scale * (y1 - y0 + 1) / 2)
    return np.asarray(u * u + v * v <= 1)


def inside(shape: tuple[int, ...], box: Box) -> Mask:
    """The pixels of a box."""
    mask = np.zeros(shape, dtype=bool)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return mask


def grow(box: Box, shape: tuple[int, ...], fraction: float, at_least: int = 2) -> Box:
    """The box widened on each side by a fraction of its longer side, clipped to the picture."""
    pad = max(at_least, round(fraction * max(box[2] - box[0] + 1, box[3] - box[1] + 1)))
    return max(box[0] - pad, 0), max(box[1] - pad, 0), min(box[2] + pad, shape[1] - 1), min(box[3] + pad, shape[0] - 1)


def otsu(gray: Float, box: Box) -> Mask:
    """Otsu's threshold of the pixels in the box, holes filled.

    The object is the side that is more frequent in the box than in the ring round it. Where the box fills the picture,
    its own outermost pixels stand in for the ring.
    """
    within = inside(gray.shape, box)
    values = gray[within]
    if np.ptp(values) < 1e-6:
        return within
    threshold = float(threshold_otsu(values))
    ring = inside(gray.shape, grow(box, gray.shape, 0.15)) & ~within
    if not ring.any():
        ring = within & ~inside(gray.shape, (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1))
    bright = float((gray[ring] > threshold).mean()) <= float((values > threshold).mean())
    return np.asarray(ndimage.binary_fill_holes(within & ((gray > threshold) == bright)))


def walker(gray: Float, box: Box, *, centre: float = 0.7, beta: float = 1000.0, most: int = 256) -> Mask:
    """Random walker from a central ellipse (foreground) against the outside of the box (background).

    Seed size and beta were chosen on train splits among 0.25, 0.5, 0.7 and 10, 130, 1000, in the baseline's favour.

    Args:
        gray: (H, W) in [0, 1].
        box: Given box.
        centre: Size of the seed ellipse relative to the box.
        beta: Penalty on gray-level steps, as in scikit-image.
        most: A larger crop is walked at reduced size, with this longer side.
    """
    x0, y0, x1, y1 = grow(box, gray.shape, 0.15)
    crop = gray[y0 : y1 + 1, x0 : x1 + 1]
    local = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    seeds = np.where(inside(crop.shape, local), 0, 2)
    seeds[ellipse(crop, local, centre)] = 1
    seeds[round((local[1] + local[3]) / 2), round((local[0] + local[2]) / 2)] = 1
    if not (seeds == 2).any():
        seeds[[0, -1], :] = 2
        seeds[:, [0, -1]] = 2
    found = _walk(crop, seeds, beta, most)
    mask = np.zeros(gray.shape, dtype=bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = found
    return mask & inside(gray.shape, box)


def _walk(crop: Float, seeds: NDArray[np.int_], beta: float, most: int) -> Mask:
    shape, factor = crop.shape, max(crop.shape) / most
    if factor > 1:
        small = tuple(max(3, round(n / factor)) for n in shape)
        crop = resize(crop, small, order=1, anti_aliasing=True).astype(np.float32)
        seeds = resize(seeds, small, order=0, preserve_range=True, anti_aliasing=False).astype(int)
    if np.ptp(crop) < 1e-6 or not {1, 2} <= set(np.unique(seeds)):
        return np.ones(shape, dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = random_walker(crop, seeds, beta=beta, mode="cg_j", tol=1e-3) == 1
    return np.asarray(found if found.shape == shape else resize(found.astype(np.float32), shape, order=1) > 0.5)


BASELINES = {"ellipse": ellipse, "otsu": otsu, "walker": walker}
