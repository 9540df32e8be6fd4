"""Move images of a target so that they look like the source that an adapter was trained on; from statistics alone.

An alignment is fitted once, from the statistics of the target scene and those in the adapter's header, and then applied
with fixed numbers. No image of the source is needed.
"""

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.colour import fit_moments, fit_reinhard
from samgraft.domains.shift.fourier import fit_fourier
from samgraft.domains.shift.histogram import fit_histogram
from samgraft.domains.shift.stain import fit_stain
from samgraft.domains.shift.statistics import ImageStatistics
from samgraft.registry import Registry

AUTO, NONE = "auto", "none"
"""Two further words where an alignment is chosen by name."""
SEVERAL = 8
"""Images (slices, blocks) from which on a histogram is that of what there is to see, and not of one picture."""
NEAR = 0.02
"""Mean distance of histograms, in units of [0, 1], up to which ``auto`` leaves the images alone: five gray levels."""


class Alignment(Protocol):
    """Fixed numbers, made for one scene or set."""

    @property
    def name(self) -> str:
        """In the registry."""
        ...

    @property
    def pointwise(self) -> bool:
        """Whether a pixel's value depends on that pixel alone; else on the whole picture, which must not be cut."""
        ...

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, h, w) in [0, 1] to the same; NaN (missing) stays NaN."""
        ...

    def describe(self) -> str:
        """What it does, in words."""
        ...


Fit = Callable[[ImageStatistics, ImageStatistics], Alignment]
"""Statistics of target and source -> the alignment of the target."""
ALIGNMENTS: Registry[Fit] = Registry("alignment")
ALIGNMENTS.register("histogram")(fit_histogram)
ALIGNMENTS.register("moments")(fit_moments)
ALIGNMENTS.register("reinhard")(fit_reinhard)
ALIGNMENTS.register("macenko")(fit_stain)
ALIGNMENTS.register("fourier")(fit_fourier)


def fit_alignment(name: str, target: ImageStatistics, source: ImageStatistics) -> Alignment:
    """Fit an alignment by name.

    Args:
        name: One of ``ALIGNMENTS``.
        target: Of the images that will be changed.
        source: Of the images that they shall look like.

    Raises:
        NoMatchError: an unknown name.
        InputError: "macenko", and one side is not stained.
    """
    return ALIGNMENTS.get(name)(target, source)


def choose_alignment(target: ImageStatistics, source: ImageStatistics) -> tuple[str, str]:
    """The alignment that ``auto`` takes, and why.

    In this order: "none" where the histograms are near each other (:data:`NEAR`), or where only one side is stained
    tissue, which no map of colours makes of the other; "macenko" where both are; "reinhard" where both have colours;
    otherwise (gray, or gray and colour) "histogram", or "moments" for a target of fewer than :data:`SEVERAL` images.

    Returns:
        A name of ``ALIGNMENTS`` or "none", and the reason in words.
    """
    far = histogram_distance(target, source)
    if far <= NEAR:
        return NONE, f"histograms differ by {far:.3f} only, up to {NEAR:g} is near"
    if (target.stain is None) != (source.stain is None):
        stained = "image is" if source.stain is None else "training images are"
        return NONE, f"only the {stained} stained tissue, which no map of colours brings to the other"
    if target.stain is not None:
        return "macenko", "both are stained tissue"
    if not target.gray and not source.gray:
        return "reinhard", f"both have colours, and histograms differ by {far:.3f}"
    if target.count < SEVERAL:
        return "moments", f"gray values of few images, and histograms differ by {far:.3f}"
    return "histogram", f"gray values, and histograms differ by {far:.3f}"


def histogram_distance(target: ImageStatistics, source: ImageStatistics) -> float:
    """Wasserstein distance of the histograms, mean over channels, in units of [0, 1]."""
    return float(np.abs(np.cumsum(target.histogram - source.histogram, axis=1)).mean())


def as_gray(stats: ImageStatistics) -> ImageStatistics:
    """The same statistics for pictures of one channel: what belongs to channels is averaged, colours are none.

    An alignment between two of these leaves gray images gray, as slices of a volume have to be.
    """
    none = np.array([1.0, 0.0, 0.0])
    return replace(
        stats,
        histogram=_mean(stats.histogram),
        mean=_mean(stats.mean),
        std=_mean(stats.std),
        lab_mean=stats.lab_mean * none,
        lab_std=stats.lab_std * none,
        stain=None,
        amplitude=_mean(stats.amplitude),
    )


def facts_of(alignment: Alignment) -> dict[str, Any]:
    """What decides about an alignment, as JSON: its name and a hash of its numbers."""
    digest = hashlib.sha256()
    for field in fields(alignment):  # type: ignore[arg-type]
        value = getattr(alignment, field.name)
        if isinstance(value, np.ndarray):
            digest.update(field.name.encode() + np.ascontiguousarray(value).tobytes())
    return {"name": alignment.name, "what": alignment.describe(), "sha256": digest.hexdigest()}


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the first axis, for all three channels."""
    same: NDArray[np.float64] = np.repeat(values.mean(axis=0, keepdims=True), len(values), axis=0)
    return same
