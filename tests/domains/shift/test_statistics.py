"""Statistics of image sets: shares, moments, colours and amplitudes worked out by hand; JSON; what is refused."""

import json
from typing import Any

import numpy as np
import pytest

from samgraft.domains.shift.statistics import ImageStatistics, image_statistics
from samgraft.errors import CheckpointError, InputError, ShapeError


def flat(red: float, green: float, blue: float, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    """(3, h, w) of one colour."""
    return np.broadcast_to(np.array([red, green, blue], dtype=np.float32)[:, None, None], (3, *shape)).copy()


def noise(seed: int, shape: tuple[int, int] = (40, 70)) -> np.ndarray:
    """(3, h, w) of independent values."""
    return np.random.default_rng(seed).random((3, *shape)).astype(np.float32)


def test_every_image_counts_the_same_whatever_its_size() -> None:
    found = image_statistics([flat(0.25, 0.5, 1.0, (2, 3)), flat(0.75, 0.5, 0.0, (50, 70))])
    assert found.count == 2 and found.shape == (26.0, 36.5) and found.spacing is None
    np.testing.assert_allclose(found.mean, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(found.std, [0.25, 0.0, 0.5])
    expected = np.zeros((3, 256))
    expected[0, [64, 192]] = expected[2, [0, 255]] = 0.5  # 1 lies in the last bin
    expected[1, 128] = 1.0
    np.testing.assert_allclose(found.histogram, expected)


def test_missing_pixels_count_nowhere() -> None:
    image = flat(0.2, 0.4, 0.6, (5, 8))
    image[:, :2] = 0.9
    holes = image.copy()
    holes[:, 2:, 3:] = np.nan
    holes[1, 4, 0] = np.nan  # one channel is enough
    found = image_statistics([holes, np.full((3, 4, 4), np.nan, dtype=np.float32)])
    left = 2 * 8 + 3 * 3 - 1
    np.testing.assert_allclose(found.mean, (0.9 * 16 + np.array([0.2, 0.4, 0.6]) * (left - 16)) / left, rtol=1e-6)
    assert found.count == 1


def test_colours_are_those_of_cielab() -> None:
    red = image_statistics([flat(1, 0, 0)])
    np.testing.assert_allclose(red.lab_mean, [53.24, 80.09, 67.20], atol=0.02)
    np.testing.assert_allclose(red.lab_std, 0, atol=1e-4)
    assert not red.gray
    gray = image_statistics([flat(0.3, 0.3, 0.3), flat(0.8, 0.8, 0.8)])
    assert gray.gray and gray.lab_std[0] > 20


def test_amplitudes_of_a_cosine() -> None:
    place = np.arange(256) / 256
    wave = 0.5 + 0.2 * np.cos(2 * np.pi * 3 * place)
    image = np.stack([np.tile(wave, (256, 1)), np.tile(wave[:, None], (1, 256)), np.full((256, 256), 0.25)])
    found = image_statistics([image]).amplitude
    expected = np.zeros((3, 15, 15))
    expected[:, 7, 7] = [0.5, 0.5, 0.25]
    expected[0, 7, [4, 10]] = expected[1, [4, 10], 7] = 0.1
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_amplitudes_do_not_depend_on_the_size_of_the_image() -> None:
    def waves(height: int, width: int) -> np.ndarray:
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        one = 0.5 + 0.2 * np.cos(2 * np.pi * 2 * y)[:, None] * np.cos(2 * np.pi * x)[None]
        return np.stack([one] * 3).astype(np.float32)

    small, large = (image_statistics([waves(*shape)]).amplitude for shape in ((128, 320), (512, 700)))
    np.testing.assert_allclose(small, large, atol=2e-3)


def test_pixel_size_is_the_median_per_axis_of_those_known() -> None:
    sizes = [(1.0, 2.0), None, (3.0, 2.5), (5.0, 8.0)]
    assert image_statistics([flat(0, 0, 0)] * 4, sizes).spacing == (3.0, 2.5)


def test_json_brings_back_every_bit() -> None:
    tissue = np.ones((3, 30, 40)) - 0.6 * np.random.default_rng(0).random((3, 30, 40)) * [[[0.5]], [[0.9]], [[0.3]]]
    before = image_statistics([tissue.astype(np.float32)], [(0.25, 0.5)], stained=True)
    after = ImageStatistics.from_json(json.loads(json.dumps(before.to_json())))
    for name in ("histogram", "mean", "std", "lab_mean", "lab_std", "amplitude", "spectrum"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert before.stain is not None and after.stain is not None
    np.testing.assert_array_equal(after.stain.vectors, before.stain.vectors)
    np.testing.assert_array_equal(after.stain.maxima, before.stain.maxima)
    assert (after.count, after.spacing, after.shape) == (1, (0.25, 0.5), (30.0, 40.0))
    assert len(json.dumps(before.to_json())) < 60_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 2"),
        ({"mean": None}, "cannot be read"),
        ({"std": [0.1, 0.2]}, r"std is \(2,\)"),
        ({"histogram": [[1.0] * 256] * 3}, "sum to 1"),
        ({"count": 0}, "0 images"),
        ({"spacing": [1.0]}, "cannot be read"),
        ({"colour": 3}, "'colour'"),
        ({"stain": {"vectors": [[1, 0, 0]], "maxima": [1, 1]}}, "stain vectors"),
    ],
)
def test_a_damaged_header_is_refused(change: dict[str, Any], match: str) -> None:
    stored = image_statistics([noise(0)]).to_json()
    with pytest.raises(CheckpointError, match=match):
        ImageStatistics.from_json(stored | change)


def test_a_missing_key_is_refused() -> None:
    stored = image_statistics([noise(0)]).to_json()
    del stored["amplitude"]
    with pytest.raises(CheckpointError, match="write the adapter again"):
        ImageStatistics.from_json(stored)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (np.zeros((3, 4, 4), dtype=np.uint8), ShapeError, "uint8"),
        (np.zeros((4, 4), dtype=np.float32), ShapeError, r"\(4, 4\)"),
        (np.zeros((1, 4, 4), dtype=np.float32), ShapeError, r"\(1, 4, 4\)"),
        (np.full((3, 4, 4), 1.5, dtype=np.float32), InputError, "apply its look"),
        (np.full((3, 4, 4), -0.5, dtype=np.float32), InputError, "-0.5 to 0"),
        (np.full((3, 4, 4), np.nan, dtype=np.float32), InputError, "no image"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        image_statistics([image])


def test_as_many_pixel_sizes_as_images() -> None:
    with pytest.raises(ValueError, match="shorter"):
        image_statistics([noise(0), noise(1)], [(1.0, 1.0)])
