"""Distances of features by hand, and what they say about sets that are the same, shifted, or paired by patient."""

import numpy as np
import pytest

from samgraft.errors import ShapeError
from samgraft.recipes.shift.distances import (
    Labelled,
    diagonal_frechet,
    frechet,
    kernel,
    mmd,
    p_value,
    relabel,
    shrunk_covariance,
    standardised_shift,
)


def rows(count: int = 60, width: int = 5, seed: int = 0) -> np.ndarray:
    """(n, d) of unequal variances."""
    return np.random.default_rng(seed).standard_normal((count, width)) * np.arange(1, width + 1)


def sets(source: np.ndarray, target: np.ndarray, groups: list[int] | None = None) -> Labelled:
    """Both sets; every row its own group."""
    count = len(source) + len(target)
    label = np.repeat([False, True], [len(source), len(target)])
    named = np.arange(count) if groups is None else np.array(groups)
    return Labelled(features=np.concatenate([source, target]), target=label, groups=named)


def test_a_shift_alone_is_its_squared_length() -> None:
    offset = np.array([3.0, 0, -4, 0, 12])
    assert frechet(rows(), rows() + offset) == pytest.approx(169, rel=1e-6)
    assert frechet(rows(), rows()) == pytest.approx(0, abs=1e-6)


def test_a_scale_alone_is_the_trace() -> None:
    centred = rows() - rows().mean(axis=0)
    assert frechet(centred, 2 * centred) == pytest.approx(np.trace(shrunk_covariance(centred)), rel=1e-6)


def test_shrinking_keeps_the_total_and_makes_it_regular() -> None:
    few = rows(8, 30)
    found, plain = shrunk_covariance(few), np.cov(few.T, bias=True)
    assert np.trace(found) == pytest.approx(np.trace(plain))
    assert np.linalg.eigvalsh(plain)[0] < 1e-9 < 1 < np.linalg.eigvalsh(found)[0]
    many = rows(20_000, 4)
    np.testing.assert_allclose(shrunk_covariance(many), np.cov(many.T, bias=True), atol=0.02)


def test_shrinkage_by_the_definition() -> None:
    few = rows(7, 3)
    centred = few - few.mean(axis=0)
    plain = centred.T @ centred / 7
    level = np.trace(plain) / 3
    spread = ((plain - level * np.eye(3)) ** 2).sum()
    noise = sum(((np.outer(x, x) - plain) ** 2).sum() for x in centred) / 49
    share = min(noise / spread, 1)
    np.testing.assert_allclose(shrunk_covariance(few), (1 - share) * plain + share * level * np.eye(3))


def test_moments_by_hand() -> None:
    means, variances = (np.zeros(2), np.array([3.0, 4.0])), (np.array([1.0, 4.0]), np.array([4.0, 9.0]))
    assert diagonal_frechet(means, variances) == pytest.approx(27)
    means, variances = (np.zeros(2), np.array([2.0, 0.0])), (np.ones(2), np.array([3.0, 1.0]))
    assert standardised_shift(means, variances) == pytest.approx(1)
    assert standardised_shift(means, (np.zeros(2), np.zeros(2))) == 0


def test_mmd_by_loops() -> None:
    data = sets(rows(4, 3), rows(5, 3, seed=1) + 1)
    points = data.features
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    width = np.median(distances[np.triu_indices(9, k=1)])
    values, bandwidth = kernel(points)
    assert bandwidth == pytest.approx(width) and not np.diagonal(values).any()
    k = np.exp(-(distances**2) / (2 * width**2))
    source, target = range(4), range(4, 9)
    expected = (
        sum(k[i, j] for i in source for j in source if i != j) / 12
        + sum(k[i, j] for i in target for j in target if i != j) / 20
        - 2 * sum(k[i, j] for i in source for j in target) / 20
    )
    assert mmd(values, data.target[None])[0] == pytest.approx(expected)
    swapped = mmd(values, np.stack([data.target, ~data.target]))
    assert swapped[0] == pytest.approx(swapped[1])


@pytest.mark.parametrize(("offset", "significant"), [(0.0, False), (2.0, True)])
def test_mmd_is_significant_only_with_a_shift(offset: float, significant: bool) -> None:
    data = sets(rows(40, 6), rows(40, 6, seed=1) + offset)
    values, _ = kernel(data.scaled)
    dealt = relabel(data, 400, seed=0)
    p = p_value(mmd(values, data.target[None])[0], mmd(values, dealt.target))
    assert dealt.unit == "groups" and dealt.smallest_p == pytest.approx(1 / 401)
    assert (p == pytest.approx(1 / 401)) if significant else (p > 0.1)


def test_p_value_counts_the_observed_one() -> None:
    assert p_value(2.0, np.array([1.0, 2.0, 3.0])) == pytest.approx(3 / 4)
    assert p_value(9.0, np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / 4)


def test_a_patient_on_both_sides_swaps_as_a_whole() -> None:
    data = sets(rows(6, 2), rows(6, 2, seed=1), [0, 0, 1, 1, 2, 2] * 2)
    dealt = relabel(data, 200, seed=1)
    assert dealt.smallest_p == pytest.approx(1 / 8) and dealt.unit == "groups"
    for label in dealt.target:
        for patient in range(3):
            first = label[data.groups == patient]
            assert (first[:2] == first[0]).all() and (first[2:] == ~first[0]).all()
    assert len(np.unique(dealt.target, axis=0)) == 8


def test_other_patients_are_shuffled_as_a_whole() -> None:
    data = sets(rows(6, 2), rows(4, 2, seed=1), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    dealt = relabel(data, 300, seed=1)
    assert dealt.smallest_p == pytest.approx(1 / 10)
    assert (dealt.target[:, ::2] == dealt.target[:, 1::2]).all() and (dealt.target.sum(axis=1) == 4).all()
    assert len(np.unique(dealt.target, axis=0)) == 10


def test_one_scene_alone_can_only_exchange_views() -> None:
    data = sets(rows(6, 2), rows(5, 2, seed=1), [0] * 6 + [1, 1, 2, 2, 2])
    dealt = relabel(data, 50, seed=1)
    assert dealt.unit == "views" and (dealt.target.sum(axis=1) == 5).all()


def test_features_are_scaled_over_both_sets() -> None:
    data = sets(np.array([[0.0, 7], [2, 7], [0, 7], [2, 7]]), np.array([[4.0, 7], [6, 7], [4, 7], [6, 7]]))
    np.testing.assert_allclose(data.scaled[:, 0], (data.features[:, 0] - 3) / np.sqrt(5))
    assert not data.scaled[:, 1].any()


def test_too_few_views_are_refused() -> None:
    with pytest.raises(ShapeError, match="3 source and 9 target views"):
        sets(rows(3), rows(9))
    with pytest.raises(ShapeError, match=r"groups \(3,\)"):
        sets(rows(5), rows(5), [0, 1, 2])
