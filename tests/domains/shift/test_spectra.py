"""Spectra: where a wave lies, what blur does to noise, and what brightness and contrast do not do."""

import numpy as np
import pytest
from scipy import ndimage

from samgraft.domains.shift.spectra import RINGS, low_frequencies, radial_spectrum, ring_frequencies, ring_means
from samgraft.errors import ShapeError


def noise(shape: tuple[int, int] = (300, 420)) -> np.ndarray:
    """(h, w) white noise around one half."""
    return 0.5 + 0.1 * np.random.default_rng(3).standard_normal(shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("cycles", "ring"), [(20.5 / 128, 10), (51 / 128, 25)])
def test_a_wave_lies_in_its_ring(axis: int, cycles: float, ring: int) -> None:
    place = np.arange(256 if axis == 0 else 400)
    wave = 0.5 + 0.3 * np.cos(2 * np.pi * cycles * place)
    found = radial_spectrum(np.broadcast_to(wave[:, None] if axis == 0 else wave, (256, 400)))
    assert found.argmax() == ring
    assert found[ring - 1 : ring + 2].sum() > 0.99 and found.sum() == pytest.approx(1)


def test_white_noise_is_flat() -> None:
    found = radial_spectrum(noise())
    np.testing.assert_allclose(found[4:], 1 / RINGS, rtol=0.25)


def test_blur_takes_what_the_formula_says() -> None:
    sigma = 0.8
    sharp, blurred = radial_spectrum(noise()), radial_spectrum(ndimage.gaussian_filter(noise(), sigma, truncate=6))
    ratio = (blurred / sharp)[1:20]
    expected = np.exp(-((2 * np.pi * ring_frequencies()[1:20] * sigma) ** 2))
    np.testing.assert_allclose(ratio / ratio[0], expected / expected[0], rtol=0.1)


def test_brightness_contrast_and_size_do_not_count() -> None:
    image = noise()
    np.testing.assert_allclose(radial_spectrum(0.1 + 0.3 * image), radial_spectrum(image), rtol=1e-6)
    tiled = radial_spectrum(np.tile(image[:128, :128], (2, 3)))
    np.testing.assert_allclose(tiled, radial_spectrum(image[:128, :128]), rtol=1e-6)  # the same segments


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (128, 128), (700, 130)])
def test_a_constant_image_has_no_spectrum(shape: tuple[int, int]) -> None:
    assert not radial_spectrum(np.full(shape, 0.3, dtype=np.float32)).any()


def test_ring_means_weigh_the_half_plane() -> None:
    full = np.abs(np.fft.fft2(np.random.default_rng(0).random((128, 128)))) ** 2
    frequency = np.fft.fftfreq(128)
    ring = np.floor(np.hypot(frequency[:, None], frequency) * 64).astype(int)
    full[0, 0] = np.nan
    expected = [np.nanmean(full[ring == i]) for i in range(RINGS)]
    half = np.nan_to_num(full[:, :65], nan=1e6)  # the constant must not count
    np.testing.assert_allclose(ring_means(half), expected)


@pytest.mark.parametrize(
    ("image", "side"), [(np.zeros((3, 4)), 15), (np.zeros((3, 4, 4)), 14), (np.zeros((3, 4, 4)), 257)]
)
def test_wrong_shapes_are_refused(image: np.ndarray, side: int) -> None:
    with pytest.raises(ShapeError, match="odd side"):
        low_frequencies(image, side)


def test_a_spectrum_is_of_one_channel() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 8, 8\)"):
        radial_spectrum(np.zeros((3, 8, 8)))
