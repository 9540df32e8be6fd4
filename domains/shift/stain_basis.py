"""Macenko's stain estimate: two directions in optical density that span the colours of a stained slide.

Light that passes a stain is weakened by a factor per channel, so in optical density, -ln(intensity), the colours of a
slide with two stains are sums of two vectors with positive amounts. They lie in the plane of the two largest
eigenvectors of the covariance; the outermost angles in that plane are the stains.

Source:
    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", ISBI, section 2: density
    threshold 0.15, plane of the two largest eigenvectors, 1st and 99th percentile of the angle, 99th percentile of the
    amounts.
Deviations:
    White is 1 (255), not 240. The threshold is for the mean of the channels, since eosin hardly absorbs red: asked in
    every channel, it would leave out tissue with eosin alone. Pixels of a whole set are pooled. Whether the set is
    stained at all is decided first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ShapeError

DARKEST = 1 / 255
"""Intensities below this count as this, so that the density is finite."""
THRESHOLD = 0.15
"""Optical density, averaged over the channels, that a pixel must reach to count as tissue."""
PERCENTILES = (1.0, 99.0)
"""Of the angles, for the two stains."""
TOP = 99.0
"""Percentile of the amounts that stands for their maximum."""
_FEWEST = 64
"""Tissue pixels below which nothing is estimated."""
_WHITE = 0.6
"""The 98th percentile of the darkest channel of a pixel: a bright field has clear glass somewhere."""
_CHROMA = 8.0
"""Median CIELAB chroma of tissue; grey pictures stay below."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StainBasis:
    """Two stains and how much of each there is.

    Raises:
        ShapeError: other shapes, or values that are not finite.
    """

    vectors: NDArray[np.float64]
    """(2, 3) optical density per channel of one unit of each stain, length 1; the first absorbs more red
    (haematoxylin)."""
    maxima: NDArray[np.float64]
    """(2,) 99th percentile of the amount of each stain."""

    def __post_init__(self) -> None:
        """Check shapes."""
        if self.vectors.shape != (2, 3) or self.maxima.shape != (2,):
            raise ShapeError(
                f"stain vectors {self.vectors.shape}, maxima {self.maxima.shape}; expected (2, 3) and (2,)"
            )
        if not (np.isfinite(self.vectors).all() and np.isfinite(self.maxima).all()):
            raise ShapeError("stain vectors or maxima are not finite; measure them again on images with tissue")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"vectors": self.vectors.tolist(), "maxima": self.maxima.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StainBasis":
        """Inverse of :meth:`to_json`.

        Raises:
            ShapeError: other shapes.
            KeyError: a key is missing.
        """
        return cls(
            vectors=np.array(values["vectors"], dtype=np.float64), maxima=np.array(values["maxima"], dtype=np.float64)
        )


def optical_density(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """-ln of intensities in [0, 1]; 0 for white, at most ln 255 for black."""
    density: NDArray[np.float64] = -np.log(np.maximum(np.asarray(values, dtype=np.float64), DARKEST))
    return density


def looks_stained(pixels: NDArray[np.floating[Any]]) -> bool:
    """Whether colours are those of stained tissue in bright field.

    Three signs must hold together: clear glass (98th percentile of the darkest channel above 0.6), coloured tissue
    (median chroma above 8) and green light absorbed more than red, as haematoxylin, eosin and DAB all do. Vegetation
    and grey towns fail the last two, fundus pictures and fluorescence the first.

    Args:
        pixels: (n, 3) in [0, 1].
    """
    if np.percentile(pixels.min(axis=1), 98) < _WHITE:
        return False
    tissue = pixels[_tissue(optical_density(pixels))]
    if len(tissue) < _FEWEST:
        return False
    from skimage.color import rgb2lab

    lab = rgb2lab(tissue[None])[0]
    density = optical_density(tissue).mean(axis=0)
    return bool(np.median(np.hypot(lab[:, 1], lab[:, 2])) > _CHROMA and density[1] > density[0])


def stain_basis(pixels: NDArray[np.floating[Any]], *, stained: bool | None = None) -> StainBasis | None:
    """Estimate the two stains of pooled pixels.

    Args:
        pixels: (n, 3) in [0, 1].
        stained: None decides by :func:`looks_stained`; True estimates in any case; False does not.

    Returns:
        The stains, or None where there are none, or the tissue has fewer than 64 pixels or only one colour.
    """
    if not (looks_stained(pixels) if stained is None else stained):
        return None
    density = optical_density(pixels)
    tissue = density[_tissue(density)]
    if len(tissue) < _FEWEST:
        return None
    _, vectors = np.linalg.eigh(np.cov(tissue.T))
    plane = vectors[:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1.0, 1.0)  # towards positive densities, else angles wrap around
    angle = np.arctan2(*(tissue @ plane).T[::-1])
    low, high = np.percentile(angle, PERCENTILES)
    found = np.stack([plane @ (np.cos(a), np.sin(a)) for a in (low, high)])
    found *= np.where(found.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    if np.linalg.matrix_rank(found, tol=1e-3) < 2:
        return None
    first = found[np.argsort(-found[:, 0], kind="stable")]
    return StainBasis(vectors=first, maxima=np.percentile(amounts(density, first), TOP, axis=0))


def amounts(density: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares amounts (n, 2) of two stains (2, 3) in densities (n, 3); may be slightly negative."""
    solved: NDArray[np.float64] = np.linalg.lstsq(vectors.T, density.T, rcond=None)[0].T
    return solved


def _tissue(density: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(density.mean(axis=1) >= THRESHOLD)
