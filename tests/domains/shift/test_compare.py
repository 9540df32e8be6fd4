"""Distances of sets: known gamma, known blur, known pixel sizes, the same set twice, nothing in common."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from samgraft.domains.shift.compare import (
    Comparison,
    compare_statistics,
    jensen_shannon,
    sharpness_shift,
    skewness,
    spectral_distance,
    wasserstein,
)
from samgraft.domains.shift.spectra import ring_frequencies, ring_means
from samgraft.domains.shift.statistics import image_statistics
from samgraft.errors import ShapeError


def compared(source: np.ndarray, target: np.ndarray, *spacings: tuple[float, float]) -> Comparison:
    """Of single images (3, h, w)."""
    sizes = [[s] for s in spacings] or [None, None]
    one, two = (image_statistics([i], s) for i, s in zip((source, target), sizes, strict=True))
    return compare_statistics(one, two)


def texture(seed: int = 0, shape: tuple[int, int] = (256, 384)) -> np.ndarray:
    """(3, h, w) gray noise within [0.2, 0.8]."""
    return np.repeat(0.2 + 0.6 * np.random.default_rng(seed).random((1, *shape)), 3, axis=0)


def test_a_known_gamma_moves_values_by_a_sixth() -> None:
    ramp = np.broadcast_to((np.arange(4096) + 0.5) / 4096, (3, 5, 4096))
    found = compared(ramp, ramp**2)
    np.testing.assert_allclose(found.wasserstein, 1 / 6, atol=1e-3)  # integral of u - u^2
    np.testing.assert_allclose(found.mean_shift, 1 / 3 - 1 / 2, atol=1e-4)
    np.testing.assert_allclose(found.contrast_ratio, np.sqrt((1 / 5 - 1 / 9) * 12), rtol=1e-3)


def test_one_channel_differs() -> None:
    other = texture()
    other[1] = other[1] * 0.5
    found = compared(texture(), other)
    assert found.jensen_shannon[0] == found.jensen_shannon[2] == 0 < 0.5 < found.jensen_shannon[1]
    assert found.contrast_ratio == pytest.approx((1, 0.5, 1))
    assert found.mean_shift == pytest.approx((0, -0.25, 0), abs=2e-3)
    assert found.colour_difference > 10 and found.lightness_difference < -5


def test_the_same_set_twice() -> None:
    found = compared(texture(), texture(), (0.5, 0.7), (0.5, 0.7))
    assert found.jensen_shannon == found.wasserstein == found.mean_shift == (0, 0, 0)
    assert (found.spectral_distance, found.sharpness_shift, found.colour_difference) == pytest.approx((0, 0, 0))
    assert found.spacing_ratio == (1, 1) and found.stain_angle is None


def test_nothing_in_common() -> None:
    found = compared(np.full((3, 8, 8), 0.1), np.full((3, 8, 8), 0.9))
    assert found.jensen_shannon == (1, 1, 1)
    np.testing.assert_allclose(found.wasserstein, 0.8, atol=1 / 256)
    assert np.isnan(found.contrast_ratio).all() and found.to_json()["contrast_ratio"] == [None] * 3
    assert found.spectral_distance is None and found.sharpness_shift is None


def test_a_known_blur_is_seen_and_has_a_sign() -> None:
    sigma = 0.6
    blurred = ndimage.gaussian_filter(texture(), (0, sigma, sigma), truncate=6)
    found = compared(texture(), blurred)
    impulse = ndimage.gaussian_filter(np.eye(1, 128, 64)[0], sigma, truncate=6)
    down, across = np.abs(np.fft.fft(impulse)) ** 2, np.abs(np.fft.rfft(impulse)) ** 2
    attenuation = 10 * np.log10(ring_means(np.outer(down, across)))  # dB of power
    expected = attenuation[16:].mean() - attenuation[:16].mean()
    assert found.sharpness_shift == pytest.approx(expected, rel=0.05)
    assert compared(blurred, texture()).sharpness_shift == pytest.approx(-expected, rel=0.05)


def test_pixel_sizes_are_compared_per_axis() -> None:
    assert compared(texture(), texture(1), (0.5, 0.25), (1.0, 1.0)).spacing_ratio == (2, 4)
    assert compared(texture(), texture(1)).spacing_ratio is None


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0, 3.0])
def test_spectra_are_compared_at_the_same_place_in_the_world(zoom: float) -> None:
    decay = 12.0  # power falls off exponentially per cycle and source pixel
    source, target = np.exp(-decay * ring_frequencies()), np.exp(-decay * ring_frequencies() / zoom)
    assert spectral_distance(source, target, zoom=zoom) == pytest.approx(0, abs=1e-9)
    assert sharpness_shift(source, target, zoom=zoom) == pytest.approx(0, abs=1e-9)
    if zoom != 1:
        assert spectral_distance(source, target) > 1


def test_spectral_distance_by_hand() -> None:
    source, target = np.ones(32) / 32, np.concatenate([np.full(16, 1.0), np.full(16, 0.1)])
    levels = 10 * np.log10(target / target.sum() * 32)
    assert spectral_distance(source, target) == pytest.approx(np.sqrt((levels**2).mean()))
    assert sharpness_shift(source, target) == pytest.approx(-10)


def test_too_little_in_common_is_no_distance() -> None:
    flat = np.ones(32) / 32
    assert spectral_distance(flat, flat, zoom=12.0) is None and sharpness_shift(flat, flat, zoom=12.0) is None
    assert spectral_distance(flat, np.zeros(32)) is None
    with pytest.raises(ShapeError, match="zoom 0"):
        spectral_distance(flat, flat, zoom=0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([1, 0], [0, 1], 1.0), ([0.5, 0.5], [0.5, 0.5], 0.0), ([1, 0], [0.5, 0.5], 0.557923)],
)
def test_jensen_shannon_by_hand(first: Any, second: Any, expected: float) -> None:
    assert jensen_shannon(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-6)


def test_wasserstein_by_hand() -> None:
    assert wasserstein(np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0, 1.0])) == pytest.approx(2.5 / 4)
    with pytest.raises(ShapeError, match="same"):
        wasserstein(np.ones(3), np.ones(4))


def test_skewness_tells_bright_on_dark_from_dark_on_bright() -> None:
    bright = np.zeros((3, 256))
    bright[:, 20], bright[:, 200] = 0.9, 0.1
    assert skewness(bright) == pytest.approx((1 - 0.2) / np.sqrt(0.1 * 0.9))
    assert skewness(bright[:, ::-1]) == pytest.approx(-skewness(bright))
    assert skewness(np.eye(256)[:3] * 0 + np.eye(256)[5]) == 0


def test_stains_are_compared_in_degrees_and_strength() -> None:
    rng = np.random.default_rng(0)
    given = rng.random((2, 64, 64))

    def slide(first: list[float], strength: float) -> np.ndarray:
        one, two = (np.array(v) / np.linalg.norm(v) for v in (first, [0.07, 0.99, 0.11]))
        return np.exp(-strength * (one[:, None, None] * given[0] + two[:, None, None] * given[1])).astype(np.float32)

    one, two = (
        image_statistics([slide(*a)], stained=True) for a in (([0.65, 0.7, 0.29], 1.0), ([0.65, 0.7, 0.29], 1.5))
    )
    found = compare_statistics(one, two)
    assert found.stain_angle is not None and found.stain_angle < 3
    np.testing.assert_allclose(found.stain_ratio, 1.5, rtol=0.1)
    turned = compare_statistics(one, image_statistics([slide([0.3, 0.6, 0.75], 1.0)], stained=True))
    assert turned.stain_angle is not None and turned.stain_angle > 15


def test_a_comparison_is_plain_json() -> None:
    text = json.dumps(compared(texture(), texture(1), (1, 1), (2, 1)).to_json(), allow_nan=False)
    assert json.loads(text)["spacing_ratio"] == [2.0, 1.0]
