"""Where an annotated volume's structure lies in a new volume, by its looks: normalised cross-correlation, no training.

The part of an annotated volume around a structure is a template. Its correlation with every place of a new volume, with
mean and contrast taken out of both, is largest where the new volume looks most like it; the landmarks move along.

Source:
    Normalised cross-correlation as of J. P. Lewis, "Fast Template Matching", Vision Interface 1995: the numerator by
    Fourier transform, sums of the windows from running sums. As an atlas that is moved without being turned or bent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal
from torch import Tensor

LARGEST_SIDE = 128
"""Voxels: larger volumes are searched coarsely first."""
LEAST_DEVIATION = 0.01
"""Of the intensities of a window: flatter ones count as this flat, so that noise in air is like nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """A structure and its surroundings in an annotated volume."""

    image: Tensor
    """(d, h, w) in [0, 1], float16."""
    landmarks: Tensor
    """(6, 3) mm from the template's first voxel."""


def cut_template(image: Tensor, landmarks: NDArray[np.float64], spacing: float, margin: float) -> Template:
    """The part of a volume around landmarks.

    Args:
        image: (D, H, W) in [0, 1].
        landmarks: (6, 3) mm from the volume's first voxel.
        spacing: mm per voxel.
        margin: mm around the structure, as far as the volume reaches.
    """
    limit = np.array(image.shape)
    low = np.floor((np.diagonal(landmarks[::2]) - margin) / spacing + 1e-6).astype(int).clip(0, limit - 1)
    high = np.ceil((np.diagonal(landmarks[1::2]) + margin) / spacing - 1e-6).astype(int).clip(low, limit - 1) + 1
    (d0, h0, w0), (d1, h1, w1) = low.tolist(), high.tolist()
    moved = torch.as_tensor(landmarks - low * spacing, dtype=torch.float32)
    return Template(image=image[d0:d1, h0:h1, w0:w1].half().contiguous(), landmarks=moved)


def moved_landmarks(image: Tensor, templates: Sequence[Template], spacing: float) -> Tensor:
    """(S, 6, 3) mm: where each of S templates says that the landmarks of a volume (D, H, W) in [0, 1] are.

    The structure lies in the volume; the surroundings in a template may reach beyond it, where its edge goes on.
    """
    volume = image.numpy().astype(np.float64)
    return torch.stack([_moved(volume, one, spacing) for one in templates])


def correlation(volume: NDArray[np.float64], template: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised cross-correlation in [-1, 1] of a template that lies wholly inside a volume (D, H, W).

    Returns:
        (D - d + 1, H - h + 1, W - w + 1): at [z, y, x] that of the window that begins there.
    """
    centred = template - template.mean()
    common = signal.fftconvolve(volume, centred[::-1, ::-1, ::-1], mode="valid")
    count = template.size
    # around the volume's mean, so that small variances are not differences of large numbers
    level = volume - volume.mean()
    spread = _window_sums(level**2, template.shape) - _window_sums(level, template.shape) ** 2 / count
    floor = count * LEAST_DEVIATION**2
    scale = np.sqrt(np.maximum(spread, floor) * max(float((centred**2).sum()), floor))
    found: NDArray[np.float64] = common / scale
    return found


def _window_sums(values: NDArray[np.float64], window: Sequence[int]) -> NDArray[np.float64]:
    """Sums over all windows that lie wholly inside."""
    for axis, side in enumerate(window):
        running: NDArray[np.float64] = np.cumsum(np.moveaxis(values, axis, 0), axis=0)
        sums = running[side - 1 :].copy()
        sums[1:] -= running[:-side]
        values = np.moveaxis(sums, 0, axis)
    return values


def _moved(volume: NDArray[np.float64], template: Template, spacing: float) -> Tensor:
    """(6, 3) mm: the landmarks of a template at the place in a volume that looks most like it."""
    picture, ends = template.image.numpy().astype(np.float64), template.landmarks.numpy() / spacing
    before = np.ceil(np.diagonal(ends[::2]) - 1e-4).astype(int)
    after = np.ceil(np.array(picture.shape) - 1 - np.diagonal(ends[1::2]) - 1e-4).astype(int)
    # a structure that is larger than the volume can still lie about it
    after = np.maximum(after, np.array(picture.shape) - volume.shape - before)
    padded = np.pad(volume, list(zip(before.tolist(), after.tolist(), strict=True)), mode="edge")
    place = _place(padded, picture) - before
    return template.landmarks + torch.as_tensor(place * spacing, dtype=torch.float32)


def _place(volume: NDArray[np.float64], template: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) voxels: where the template's first voxel comes to lie; large volumes are searched coarsely first."""
    step = -(-max(volume.shape) // LARGEST_SIDE)
    if step == 1 or min(template.shape) < 2 * step:
        return _best(volume, template)
    coarse = _best(_coarser(volume, step), _coarser(template, step)) * step
    room = np.array(volume.shape) - template.shape
    low = np.clip(coarse - 2 * step, 0, room)
    high = np.clip(coarse + 2 * step, 0, room) + template.shape
    near = volume[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    found: NDArray[np.float64] = low + _best(near, template)
    return found


def _best(volume: NDArray[np.float64], template: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) voxels: the place of the largest correlation."""
    alike = correlation(volume, template)
    return np.array(np.unravel_index(int(alike.argmax()), alike.shape), dtype=np.float64)


def _coarser(values: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Every ``step``-th voxel after a blur."""
    blurred: NDArray[np.float64] = ndimage.gaussian_filter(values, 0.5 * (step - 1), mode="nearest")
    return blurred[::step, ::step, ::step]
