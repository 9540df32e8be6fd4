"""Spectra of one image: the radial power spectrum (how sharp, how noisy), and low-frequency amplitudes (its style).

Takes gray (h, w) or (3, h, w) images in [0, 1] without missing pixels; gives float64 arrays that do not depend on the
size of the image.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ShapeError

RINGS = 32
"""Rings of equal width from 0 to 0.5 cycles per pixel."""
SEGMENT = 128
"""Side in pixels of the windowed segments that are transformed."""
STYLE_SIDE = 256
"""Pixels per side that an image is resized to before its low frequencies are taken."""
_SEGMENTS = 4
"""Segments per axis, at most, evenly spread."""


def radial_spectrum(gray: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Mean power per ring of spatial frequency, scaled to sum 1.

    Segments of 128 x 128 pixels, at most 4 x 4 and evenly spread, lose their mean, are tapered by a Hann window and
    transformed; their powers are averaged. Because of the scaling, neither brightness nor contrast changes the result;
    blur moves it to low rings, noise to high ones.

    Args:
        gray: (h, w), any size; a side below 128 is tapered over its own length and filled up with zeros.

    Returns:
        (32,) float64, ring i from i / 64 to (i + 1) / 64 cycles per pixel; it sums to 1, or is all zero for a constant
        image.

    Raises:
        ShapeError: not two-dimensional, or empty.

    Source:
        Welch 1967, "The use of fast Fourier transform for the estimation of power spectra": averaged, tapered segments.
    """
    if gray.ndim != 2 or not gray.size:
        raise ShapeError(f"image is {gray.shape}; expected (h, w)")
    power = np.zeros((SEGMENT, SEGMENT // 2 + 1))
    for top in _starts(gray.shape[0]):
        for left in _starts(gray.shape[1]):
            segment = np.asarray(gray[top : top + SEGMENT, left : left + SEGMENT], dtype=np.float64)
            taper = np.outer(_hann(segment.shape[0]), _hann(segment.shape[1]))
            centred = segment - (segment * taper).sum() / taper.sum()  # no leak of the mean into the first rings
            power += np.abs(np.fft.rfft2(centred * taper, s=(SEGMENT, SEGMENT))) ** 2
    rings = ring_means(power)
    total = rings.sum()
    # Rounding leaves about 1e-30 of a constant image; that is no spectrum.
    return rings / total if total > 1e-18 else np.zeros(RINGS)


def ring_means(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a (128, 65) half-plane power, as ``rfft2`` orders it, over rings; corners beyond 0.5 are left out."""
    radius = np.hypot(np.fft.fftfreq(SEGMENT)[:, None], np.fft.rfftfreq(SEGMENT)[None, :])
    ring = np.floor(radius * 2 * RINGS).astype(np.int64)
    weight = np.full(power.shape, 2.0)  # the half-plane that rfft2 leaves out mirrors all but two columns
    weight[:, [0, -1]] = 1.0
    weight[0, 0] = 0.0  # the constant
    inside = ring < RINGS
    summed = np.bincount(ring[inside], (weight * power)[inside], minlength=RINGS)
    return summed / np.bincount(ring[inside], weight[inside], minlength=RINGS)


def ring_frequencies() -> NDArray[np.float64]:
    """(32,) middle of each ring, in cycles per pixel."""
    return (np.arange(RINGS) + 0.5) / (2 * RINGS)


def low_frequencies(image: NDArray[np.floating[Any]], side: int) -> NDArray[np.float64]:
    """Amplitude of the lowest frequencies of an image resized to 256 x 256 pixels, whatever its aspect.

    Args:
        image: (c, h, w).
        side: Frequencies per axis, odd: ``-(side // 2)`` to ``side // 2`` cycles per image.

    Returns:
        (c, side, side) float64, the constant in the middle; divided by the number of pixels, so the constant is the
        mean of the channel and one cosine of height a gives a / 2 at each of its two places.

    Raises:
        ShapeError: not (c, h, w), or an even or too large ``side``.
    """
    if image.ndim != 3 or not image.size or side % 2 == 0 or not 0 < side < STYLE_SIDE:
        raise ShapeError(f"image is {image.shape}, side {side}; expected (c, h, w) and an odd side below {STYLE_SIDE}")
    amplitude = np.abs(np.fft.fft2(np.stack([_resized(channel) for channel in image]), norm="forward"))
    middle, half = STYLE_SIDE // 2, side // 2
    kept = slice(middle - half, middle + half + 1)
    low: NDArray[np.float64] = np.fft.fftshift(amplitude, axes=(1, 2))[:, kept, kept]
    return low


def _resized(channel: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(256, 256), bilinear with a support that grows with the reduction, so that nothing is skipped."""
    from PIL import Image

    if channel.shape == (STYLE_SIDE, STYLE_SIDE):
        return np.asarray(channel, dtype=np.float64)
    picture = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return np.asarray(picture.resize((STYLE_SIDE, STYLE_SIDE), Image.Resampling.BILINEAR), dtype=np.float64)


def _starts(length: int) -> list[int]:
    """First pixels of up to four segments that are spread evenly over ``length`` and overlap as little as possible."""
    count = min(_SEGMENTS, max(1, length // SEGMENT))
    return [int(v) for v in np.linspace(0, max(0, length - SEGMENT), count)]


def _hann(length: int) -> NDArray[np.float64]:
    """Hann window without zeros at its ends, so that one pixel still counts."""
    taper: NDArray[np.float64] = np.hanning(length + 2)[1:-1]
    return taper
