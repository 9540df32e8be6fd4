"""Macenko's estimate finds the stains that pixels were made of, and is not asked about other pictures."""

import numpy as np
import pytest

from samgraft.domains.shift.stain_basis import StainBasis, amounts, looks_stained, optical_density, stain_basis
from samgraft.errors import ShapeError

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
STAINS = np.stack([v / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN)])


def slide(top: tuple[float, float] = (1.2, 0.8), count: int = 20_000) -> np.ndarray:
    """(n, 3) pixels: glass, and tissue with amounts of both stains up to ``top``."""
    rng = np.random.default_rng(0)
    given = rng.random((count, 2)) * top
    given[: count // 10, 0] = given[count // 10 : count // 5, 1] = 0  # some tissue has one stain only
    given[-count // 5 :] = 0
    return np.exp(-given @ STAINS)


def degrees(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(first @ second, -1, 1))))


def test_the_stains_of_a_slide_are_found_in_order() -> None:
    found = stain_basis(slide())
    assert found is not None
    assert degrees(found.vectors[0], STAINS[0]) < 4 and degrees(found.vectors[1], STAINS[1]) < 4
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_twice_the_stain_is_twice_the_amount() -> None:
    thin, thick = stain_basis(slide((0.6, 0.5))), stain_basis(slide((1.2, 1.0)))
    assert thin is not None and thick is not None
    np.testing.assert_allclose(thick.maxima / thin.maxima, 2, rtol=0.15)


def test_amounts_are_those_of_the_mixture() -> None:
    given = np.array([[0.3, 0.9], [1.1, 0.0], [0.0, 0.4]])
    np.testing.assert_allclose(amounts(given @ STAINS, STAINS), given, atol=1e-12)


def test_density_is_finite_and_zero_for_white() -> None:
    np.testing.assert_allclose(optical_density(np.array([1.0, np.exp(-0.5), 0.0])), [0, 0.5, np.log(255)])


def picture(base: tuple[float, float, float], spread: float) -> np.ndarray:
    """(n, 3) of colours around ``base``."""
    rng = np.random.default_rng(1)
    return np.clip(np.array(base) + spread * rng.standard_normal((5000, 1)) * [1, 1, 1], 0, 1)


@pytest.mark.parametrize(
    ("base", "spread"),
    [((0.05, 0.05, 0.05), 0.1), ((0.5, 0.5, 0.5), 0.25), ((0.35, 0.55, 0.3), 0.2), ((0.7, 0.35, 0.12), 0.1)],
    ids=["fluorescence", "gray", "vegetation", "fundus"],
)
def test_other_pictures_are_not_stained(base: tuple[float, float, float], spread: float) -> None:
    pixels = picture(base, spread)
    assert not looks_stained(pixels) and stain_basis(pixels) is None


def test_the_caller_decides_if_he_wants() -> None:
    assert stain_basis(slide(), stained=False) is None
    tinted = stain_basis(picture((0.5, 0.3, 0.5), 0.2) * [1, 0.7, 0.9], stained=True)
    assert tinted is not None
    assert np.linalg.norm(tinted.vectors, axis=1) == pytest.approx([1.0, 1.0]) and (tinted.maxima > 0).all()
    assert stain_basis(np.ones((500, 3)), stained=True) is None  # glass only


def test_a_basis_has_its_shape() -> None:
    with pytest.raises(ShapeError, match=r"expected \(2, 3\)"):
        StainBasis(vectors=np.zeros((3, 2)), maxima=np.ones(2))
    with pytest.raises(ShapeError, match="not finite"):
        StainBasis(vectors=np.full((2, 3), np.nan), maxima=np.ones(2))
