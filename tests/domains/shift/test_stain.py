"""Macenko's transfer on stains that were mixed with known vectors and amounts."""

import numpy as np
import pytest

from samgraft.domains.shift.stain import fit_stain
from samgraft.errors import InputError
from tests.domains.shift._images import HE, OTHER, amounts_map, basis, grainy, stained, stats_of, unit


def test_the_vectors_of_the_mixture_are_found() -> None:
    found = stats_of(stained(HE, amounts_map())).stain
    assert found is not None
    np.testing.assert_allclose(found.vectors, unit(HE), atol=0.01)
    np.testing.assert_allclose(found.maxima, np.quantile(amounts_map(), 0.99, axis=(1, 2)), rtol=0.03)


def test_known_stains_are_exchanged_amount_for_amount() -> None:
    amounts = amounts_map((8, 9))
    target = stats_of(stained(HE, amounts), stain=basis(HE, (1.5, 1.2)))
    source = stats_of(stained(OTHER, amounts), stain=basis(OTHER, (0.75, 1.8)))
    fitted = fit_stain(target, source)
    np.testing.assert_allclose(fitted.scale, [0.5, 1.5])
    expected = stained(OTHER, amounts * np.array([0.5, 1.5])[:, None, None])
    np.testing.assert_allclose(fitted.apply(stained(HE, amounts)), expected, atol=2e-5)
    assert fitted.describe() == "two stains, amounts times 0.5 and 1.5"


def test_one_laboratory_becomes_the_other_from_pixels_alone() -> None:
    amounts = amounts_map()
    here, there = stained(HE, amounts), stained(OTHER, amounts)
    found = fit_stain(stats_of(here), stats_of(there)).apply(here)
    assert np.abs(here - there).mean() > 0.03
    assert np.abs(found - there).mean() < 0.006


def test_white_stays_white_and_other_pigment_is_kept() -> None:
    target, source = (stats_of(stained(v, amounts_map()), stain=basis(v, (1.0, 1.0))) for v in (HE, OTHER))
    fitted = fit_stain(target, source)
    assert (fitted.apply(np.ones((3, 2, 2), np.float32)) == 1).all()
    normal = np.cross(*unit(HE))  # a pigment outside of the plane of both stains
    pixel = np.exp(-(unit(HE)[0] * 0.8 + normal * 0.3))[:, None, None].astype(np.float32)
    density = -np.log(fitted.apply(pixel))[:, 0, 0]
    np.testing.assert_allclose(density, unit(OTHER)[0] * 0.8 + normal * 0.3, atol=1e-4)


@pytest.mark.parametrize("dark", [0.0, 1 / 512])
def test_black_stays_finite(dark: float) -> None:
    target, source = (stats_of(stained(v, amounts_map())) for v in (HE, OTHER))
    found = fit_stain(target, source).apply(np.full((3, 2, 3), dark, np.float32))
    assert np.isfinite(found).all() and found.max() < 0.02


def test_what_is_not_stained_is_refused_by_name() -> None:
    slide, photo = stats_of(stained(HE, amounts_map())), stats_of(grainy())
    assert photo.stain is None
    with pytest.raises(InputError, match="'macenko' .* and the image does not look like it.*reinhard"):
        fit_stain(photo, slide)
    with pytest.raises(InputError, match="the adapter's training set does not look like it"):
        fit_stain(slide, photo)
