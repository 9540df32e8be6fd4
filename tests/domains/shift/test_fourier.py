"""Low-frequency amplitudes: a known wave is rescaled, phases and high frequencies stay."""

import numpy as np
import pytest

from samgraft.domains.shift.fourier import FourierGain, fit_fourier
from tests.domains.shift._images import grainy, stats_of


def wave(shape: tuple[int, int], cycles: tuple[int, int], height: float, phase: float = 0.3) -> np.ndarray:
    """(h, w) cosine with so many cycles along rows and columns."""
    rows, cols = (np.arange(n) / n for n in shape)
    return height * np.cos(2 * np.pi * (cycles[0] * rows[:, None] + cycles[1] * cols[None]) + phase)


def gain_at(rows: int, cols: int, value: float) -> FourierGain:
    gain = np.ones((3, 15, 15))
    gain[:, 7 + rows, 7 + cols] = gain[:, 7 - rows, 7 - cols] = value
    return FourierGain(gain=gain)


@pytest.mark.parametrize("shape", [(48, 64), (33, 51)])
def test_one_frequency_is_rescaled_and_the_others_stay(shape: tuple[int, int]) -> None:
    low, high = wave(shape, (2, -3), 0.1), wave(shape, (1, 11), 0.05, 1.0)
    image = np.repeat((0.5 + low + high)[None], 3, axis=0).astype(np.float32)
    found = gain_at(2, -3, 2.5).apply(image)
    np.testing.assert_allclose(found[1], 0.5 + 2.5 * low + high, atol=1e-5)


def test_lighting_across_the_picture_is_undone() -> None:
    image = np.clip(grainy((64, 96), low=0.3, high=0.6), 0, 1)
    light = wave((64, 96), (0, 1), 0.12)
    lit = np.clip(image + light, 0, 1).astype(np.float32)
    found = fit_fourier(stats_of(lit), stats_of(image)).apply(lit)
    assert np.abs(lit - image).mean() > 0.07 and np.abs(found - image).mean() < 0.035


def test_brightness_follows_the_mean() -> None:
    fitted = fit_fourier(stats_of(np.full((3, 20, 30), 0.4)), stats_of(np.full((3, 50, 10), 0.6)))
    np.testing.assert_allclose(fitted.apply(np.full((3, 20, 30), 0.4, np.float32)), 0.6, atol=1e-5)
    assert fitted.describe() == "means times 1.5, 1.5, 1.5; other amplitudes times 1 (median)"


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (4, 3), (15, 15)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    fitted = FourierGain(gain=np.full((3, 15, 15), 1.25))
    found = fitted.apply(np.full((3, *shape), 0.4, np.float32))
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_missing_pixels_count_as_the_mean() -> None:
    image = np.full((3, 12, 12), 0.4, np.float32)
    image[:, 2:5, 3:9] = np.nan
    found = gain_at(0, 0, 1.5).apply(image)
    known = ~np.isnan(image)
    np.testing.assert_allclose(found[known], 0.6, atol=1e-6)
    assert np.isnan(found[~known]).all()
