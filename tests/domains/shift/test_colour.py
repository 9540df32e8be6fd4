"""Moments undo a gain and an offset; Reinhard moves means and spreads in CIELAB."""

import numpy as np
import pytest
from skimage import color

from samgraft.domains.shift.colour import MOST_GAIN, fit_moments, fit_reinhard, from_lab, to_lab
from tests.domains.shift._images import grainy, stats_of


def test_gain_and_offset_of_a_camera_are_undone() -> None:
    image = grainy(low=0.2, high=0.7)
    gain, offset = np.array([1.2, 0.8, 0.5])[:, None, None], np.array([-0.1, 0.05, 0.2])[:, None, None]
    shifted = (image * gain + offset).astype(np.float32)
    fitted = fit_moments(stats_of(shifted), stats_of(image))
    np.testing.assert_allclose(fitted.gain, 1 / gain[:, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(fitted.apply(shifted), image, atol=1e-4)
    assert fitted.describe().startswith("gains 0.833, 1.25, 2, offsets 0.0833")


def test_conversion_is_that_of_the_standard() -> None:
    image = np.random.default_rng(0).random((3, 40, 30), dtype=np.float32)
    image[:, 0, :6] = np.array([[0, 1, 1, 0, 0, 0.5], [0, 1, 0, 1, 0, 0.5], [0, 1, 0, 0, 1, 0.5]])
    lab = to_lab(image)
    np.testing.assert_allclose(lab, color.rgb2lab(image, channel_axis=0), atol=2e-3)
    np.testing.assert_allclose(lab[:, 0, 1], [100, 0, 0], atol=5e-3)  # white
    np.testing.assert_allclose(lab[:, 0, 2], [53.24, 80.09, 67.20], atol=0.02)  # red
    np.testing.assert_allclose(from_lab(lab), image, atol=2e-5)


def test_reinhard_gives_the_moments_of_the_source() -> None:
    image = grainy((80, 90), low=0.3, high=0.7)
    cast = np.clip(image * np.array([1.1, 0.9, 0.7])[:, None, None] + 0.03, 0, 1).astype(np.float32)
    fitted = fit_reinhard(stats_of(cast), stats_of(image))
    found = to_lab(fitted.apply(cast))
    wanted = to_lab(image)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), wanted.mean(axis=(1, 2)), atol=0.3)
    np.testing.assert_allclose(found.std(axis=(1, 2)), wanted.std(axis=(1, 2)), rtol=0.03)
    assert np.abs(to_lab(cast).mean(axis=(1, 2)) - wanted.mean(axis=(1, 2))).max() > 5


@pytest.mark.parametrize("fit", [fit_moments, fit_reinhard])
def test_noise_is_not_blown_up(fit) -> None:  # type: ignore[no-untyped-def]
    almost_flat = 0.5 + 0.004 * np.random.default_rng(1).standard_normal((3, 30, 30))
    fitted = fit(stats_of(almost_flat), stats_of(grainy(low=0.0, high=1.0)))
    assert fitted.gain.max() == MOST_GAIN
    flat = fit(stats_of(np.full((3, 5, 5), 0.5)), stats_of(grainy()))
    assert flat.gain.tolist() == [1, 1, 1]
