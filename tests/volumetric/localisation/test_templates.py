"""Normalised cross-correlation against the definition, and templates that are found again."""

import numpy as np
import pytest
import torch

from samgraft.volumetric.localisation import templates
from samgraft.volumetric.localisation.landmarks import landmarks_of
from samgraft.volumetric.localisation.templates import LEAST_DEVIATION, correlation, cut_template, moved_landmarks

SPACING = 2.0


def texture(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def test_correlation_is_that_of_every_window():
    volume, template = texture((7, 9, 11)), texture((3, 4, 2), seed=1)
    found = correlation(volume, template)
    assert found.shape == (5, 6, 10)
    for place in ((0, 0, 0), (4, 5, 9), (2, 0, 7)):
        window = volume[tuple(slice(a, a + n) for a, n in zip(place, template.shape, strict=True))]
        assert found[place] == pytest.approx(np.corrcoef(window.ravel(), template.ravel())[0, 1], abs=1e-9)


def test_light_and_contrast_change_nothing():
    volume = texture((12, 13, 14))
    template = volume[3:8, 5:9, 2:9]
    for changed in (volume, 0.3 * volume + 0.5):
        found = correlation(changed, template)
        assert np.unravel_index(found.argmax(), found.shape) == (3, 5, 2)
        assert found.max() == pytest.approx(1.0, abs=1e-6)


def test_flat_places_are_like_nothing():
    volume = np.full((9, 9, 9), 0.4)
    volume += 0.1 * LEAST_DEVIATION * texture(volume.shape)
    assert abs(correlation(volume, texture((3, 3, 3), seed=1))).max() < 0.1
    assert abs(correlation(texture((9, 9, 9)), np.full((3, 3, 3), 0.7))).max() < 1e-6


def case(offset, shape=(30, 34, 38)):
    """A textured organ of 6 x 9 x 12 voxels that begins at ``offset``, its texture always the same."""
    image, organ = np.zeros(shape), np.zeros(shape, dtype=bool)
    place = tuple(slice(a, a + n) for a, n in zip(offset, (6, 9, 12), strict=True))
    image[place], organ[place] = 0.3 + 0.5 * texture((6, 9, 12)), True
    return torch.from_numpy(image).float(), landmarks_of(organ, (SPACING,) * 3)


def test_template_holds_the_margin_as_far_as_the_volume_reaches():
    image, landmarks = case((1, 10, 20))
    one = cut_template(image, landmarks, SPACING, margin=2.5 * SPACING)
    assert one.image.shape == (1 + 6 + 3, 3 + 9 + 3, 3 + 12 + 3)
    assert one.image.dtype == torch.float16
    expected = landmarks - np.array([0, 7, 17]) * SPACING
    assert one.landmarks.numpy() == pytest.approx(expected)
    bare = cut_template(image, landmarks, SPACING, margin=0.0)
    assert bare.image.shape == (6, 9, 12) and float(bare.image.min()) > 0.25


@pytest.mark.parametrize("largest", [128, 20, 10])
@pytest.mark.parametrize("offset", [(0, 0, 0), (24, 25, 26), (13, 2, 19)])
def test_landmarks_move_with_the_organ(monkeypatch, largest, offset):
    monkeypatch.setattr(templates, "LARGEST_SIDE", largest)  # 20 and 10: every 2nd and 4th voxel first
    some = [cut_template(*case(at), SPACING, 4.0) for at in ((3, 3, 3), (10, 11, 12))]
    image, truth = case(offset)
    found = moved_landmarks(image, some, SPACING)
    assert found.shape == (2, 6, 3)
    assert found.numpy() == pytest.approx(np.stack([truth, truth]), abs=1e-4)


def test_volume_smaller_than_the_template():
    image, landmarks = case((10, 11, 12))
    one = cut_template(image, landmarks, SPACING, margin=8 * SPACING)
    small = image[8:20, 5:30, 7:30]
    found = moved_landmarks(small, [one], SPACING)[0]
    assert found.numpy() == pytest.approx(landmarks - np.array([8, 5, 7]) * SPACING, abs=1e-4)
