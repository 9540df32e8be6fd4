"""What differs between two sets of images, from their statistics alone.

Takes two :class:`~samgraft.domains.shift.statistics.ImageStatistics`, source and target; gives distances of histograms,
moments, colours, spectra, stains and pixel sizes, each with a unit. No image is needed any more.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.spectra import RINGS, ring_frequencies
from samgraft.domains.shift.stain_basis import StainBasis
from samgraft.domains.shift.statistics import LEVELS, ImageStatistics
from samgraft.errors import ShapeError

FLOOR = 1e-10
"""Share of power below which a ring counts as empty: what a taper leaks."""
FLAT = 1e-6
"""Standard deviation up to which a channel counts as constant."""
FEWEST_RINGS = 4
"""Rings that two spectra must share to be compared."""

Floats = NDArray[np.float64]
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Target against source; triples are per channel."""

    jensen_shannon: Triple
    """Distance of histograms: 0 the same, 1 no value in common."""
    wasserstein: Triple
    """How far values must be moved on average, in units of the [0, 1] range."""
    mean_shift: Triple
    """Mean of the target minus that of the source, in [-1, 1]."""
    contrast_ratio: Triple
    """Standard deviation of the target over that of the source; NaN where the source is constant."""
    colour_difference: float
    """Distance of the mean a and b of CIELAB; about 2 is just visible."""
    lightness_difference: float
    """Mean CIELAB lightness of the target minus that of the source, in [-100, 100]."""
    spectral_distance: float | None
    """Root mean square difference of the spectra in dB, per ring; None where they share no range, or one is empty."""
    sharpness_shift: float | None
    """How much more of the target's power lies in the upper half of the shared range, in dB; negative is blurred."""
    spacing_ratio: tuple[float, float] | None
    """Pixel size of the target over that of the source, (row, column); None where one is unknown."""
    skewness: tuple[float, float]
    """Skewness of the gray values of source and target: positive where few pixels are bright on a dark ground, negative
    where few are dark on a bright one."""
    stain_angle: float | None
    """Largest angle in degrees between a stain and its partner; None where one set is not stained."""
    stain_ratio: tuple[float, float] | None
    """Strength of each stain in the target over that in the source."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def compare_statistics(source: ImageStatistics, target: ImageStatistics) -> Comparison:
    """Compare two sets of images.

    Spectra are compared at the same frequencies on the ground or in the body where both pixel sizes are known, else in
    cycles per pixel.
    """
    ratio = None
    if source.spacing is not None and target.spacing is not None:
        ratio = (target.spacing[0] / source.spacing[0], target.spacing[1] / source.spacing[1])
    zoom = 1.0 if ratio is None else float(np.sqrt(ratio[0] * ratio[1]))
    angle, strength = _stains(source.stain, target.stain)
    shift = target.lab_mean - source.lab_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        contrast = np.where(source.std > FLAT, target.std / source.std, np.nan)
    return Comparison(
        jensen_shannon=_triple([jensen_shannon(a, b) for a, b in _rows(source, target)]),
        wasserstein=_triple([wasserstein(a, b) for a, b in _rows(source, target)]),
        mean_shift=_triple(target.mean - source.mean),
        contrast_ratio=_triple(contrast),
        colour_difference=float(np.hypot(shift[1], shift[2])),
        lightness_difference=float(shift[0]),
        spectral_distance=spectral_distance(source.spectrum, target.spectrum, zoom=zoom),
        sharpness_shift=sharpness_shift(source.spectrum, target.spectrum, zoom=zoom),
        spacing_ratio=ratio,
        skewness=(skewness(source.histogram), skewness(target.histogram)),
        stain_angle=angle,
        stain_ratio=strength,
    )


def jensen_shannon(first: Floats, second: Floats) -> float:
    """Jensen-Shannon distance of two histograms (n,) of shares, 0 to 1.

    Source:
        Endres and Schindelin 2003, "A new metric for probability distributions": the square root of the divergence, in
        bits, is a metric.
    """
    _check_shares(first, second)
    middle = (first + second) / 2
    divergence = sum(float((p[p > 0] * np.log2(p[p > 0] / middle[p > 0])).sum()) for p in (first, second)) / 2
    return float(np.sqrt(min(max(divergence, 0.0), 1.0)))


def wasserstein(first: Floats, second: Floats) -> float:
    """First Wasserstein distance of two histograms (n,) of shares over [0, 1]: the area between cumulative shares."""
    _check_shares(first, second)
    gap = np.abs(np.cumsum(first) - np.cumsum(second))[:-1]  # the last is 0 but for rounding
    return float(gap.sum() / len(first))


def skewness(histogram: Floats) -> float:
    """Third standardised moment of the values of all channels together; 0 for a constant image.

    Args:
        histogram: (c, n) shares per channel, over [0, 1].
    """
    shares = histogram.mean(axis=0)
    centred = (np.arange(len(shares)) + 0.5) / len(shares)
    centred = centred - shares @ centred
    variance = float(shares @ centred**2)
    return float(shares @ centred**3) / variance**1.5 if variance > 1e-12 else 0.0


def spectral_distance(source: Floats, target: Floats, *, zoom: float = 1.0) -> float | None:
    """Log-spectral distance in dB: root mean square over rings of ten times the decadic log of the power ratio.

    Both spectra are first scaled to the same total over the shared rings, so brightness and contrast do not count.

    Args:
        source: (32,), see :func:`samgraft.domains.shift.spectra.radial_spectrum`.
        target: (32,).
        zoom: Pixel size of the target over that of the source.

    Returns:
        None where fewer than 4 rings are shared, or a spectrum is empty.
    """
    levels = _shared_levels(source, target, zoom)
    return None if levels is None else float(np.sqrt(np.mean((levels[1] - levels[0]) ** 2)))


def sharpness_shift(source: Floats, target: Floats, *, zoom: float = 1.0) -> float | None:
    """How the balance between upper and lower half of the shared rings differs, in dB; negative: the target is blurred.

    Args:
        source: (32,).
        target: (32,).
        zoom: As in :func:`spectral_distance`.
    """
    levels = _shared_levels(source, target, zoom)
    if levels is None:
        return None
    difference = levels[1] - levels[0]
    half = len(difference) // 2
    return float(difference[half:].mean() - difference[:half].mean())


def on_source_rings(target: Floats, zoom: float) -> tuple[NDArray[np.bool_], Floats]:
    """The target's spectrum at the frequencies of the source's rings.

    Args:
        target: (32,).
        zoom: Pixel size of the target over that of the source: 2 means that the target resolves half as much.

    Returns:
        (32,) which rings the target reaches, and (n,) its power there, interpolated on a logarithmic scale.
    """
    frequencies = ring_frequencies()
    own = frequencies / zoom  # in cycles per source pixel
    shared = (frequencies >= own[0] - 1e-12) & (frequencies <= own[-1] + 1e-12)
    power = np.exp(np.interp(frequencies[shared], own, np.log(np.maximum(target, FLOOR))))
    return shared, power


def _shared_levels(source: Floats, target: Floats, zoom: float) -> tuple[Floats, Floats] | None:
    """Both spectra in dB over the shared rings, or None."""
    if source.shape != (RINGS,) or target.shape != (RINGS,) or not zoom > 0:
        raise ShapeError(
            f"spectra are {source.shape} and {target.shape}, zoom {zoom}; expected ({RINGS},) and zoom > 0"
        )
    if not source.any() or not target.any():
        return None
    shared, moved = on_source_rings(target, zoom)
    if shared.sum() < FEWEST_RINGS:
        return None
    kept = np.maximum(source[shared], FLOOR)
    return 10 * np.log10(kept / kept.sum()), 10 * np.log10(moved / moved.sum())


def _stains(source: StainBasis | None, target: StainBasis | None) -> tuple[float | None, tuple[float, float] | None]:
    """Largest angle in degrees, and ratio of strengths."""
    if source is None or target is None:
        return None, None
    cosine = np.clip((source.vectors * target.vectors).sum(axis=1), -1.0, 1.0)
    first, second = target.maxima / np.maximum(source.maxima, 1e-6)
    return float(np.degrees(np.arccos(cosine)).max()), (float(first), float(second))


def _rows(source: ImageStatistics, target: ImageStatistics) -> list[tuple[Floats, Floats]]:
    return list(zip(source.histogram, target.histogram, strict=True))


def _check_shares(first: Floats, second: Floats) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ShapeError(f"histograms are {first.shape} and {second.shape}; expected two of the same ({LEVELS},)")


def _triple(values: Any) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _finite(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
