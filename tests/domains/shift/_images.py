"""Statistics and images whose alignment can be worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.stain_basis import StainBasis
from samgraft.domains.shift.statistics import ImageStatistics, image_statistics

HE = np.array([[0.65, 0.70, 0.29], [0.27, 0.85, 0.45]])
"""Optical density of haematoxylin and eosin, not yet of length 1."""
OTHER = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]])
"""The same in another laboratory."""


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def stats_of(*images: NDArray[Any], **changes: Any) -> ImageStatistics:
    """Statistics of images (3, h, w), with some fields given by hand."""
    return replace(image_statistics(image.astype(np.float32) for image in images), **changes)


def grainy(shape: tuple[int, int] = (40, 50), seed: int = 0, *, low: float = 0.05, high: float = 0.9) -> Any:
    """(3, h, w) float32, every channel in another part of the range, on the levels of 8 bits."""
    rng = np.random.default_rng(seed)
    ends = np.array([[low, high * 0.8], [low + 0.05, high * 0.9], [low + 0.1, high]])[:, :, None, None]
    values = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * rng.beta(2, 3, (3, *shape))
    return (np.round(values * 255) / 255).astype(np.float32)


def amounts_map(shape: tuple[int, int] = (64, 64), seed: int = 1) -> NDArray[np.float64]:
    """(2, h, w) amounts: clear glass, pure first stain, pure second stain and mixtures, a quarter each."""
    rng = np.random.default_rng(seed)
    amounts = np.zeros((2, *shape))
    half, mid = shape[0] // 2, shape[1] // 2
    amounts[0, :half, mid:] = rng.uniform(0.8, 1.5, (half, shape[1] - mid))
    amounts[1, half:, :mid] = rng.uniform(0.8, 1.5, (shape[0] - half, mid))
    amounts[:, half:, mid:] = rng.uniform(0.2, 0.75, (2, shape[0] - half, shape[1] - mid))
    return amounts


def stained(vectors: NDArray[np.float64], amounts: NDArray[np.float64]) -> NDArray[np.float32]:
    """(3, h, w) in [0, 1]: light after two stains with optical densities ``vectors`` (2, 3)."""
    density = np.tensordot(unit(vectors).T, amounts, axes=1)
    return np.exp(-density).astype(np.float32)


def basis(vectors: NDArray[np.float64], maxima: tuple[float, float]) -> StainBasis:
    return StainBasis(vectors=unit(vectors), maxima=np.array(maxima))
