"""A linear probe: how well frozen features tell the two sets apart on patients or scenes it has not seen.

Takes features with labels and groups; gives the area under the ROC curve: 0.5 means that nothing linear tells the sets
apart, 1 that every pair of images is told apart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from samgraft.recipes.shift.distances import Labelled, shrunk_covariance

FOLDS = 5
REPEATS = 5
"""Times that the folds are drawn."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Result of a cross-validated probe."""

    auc: float
    """Mean over folds and draws, 0 to 1."""
    deviation: float
    """Standard deviation over draws of the folds."""
    folds: int
    """Folds of a draw."""
    unit: str
    """What never stands on both sides of a fold: "groups", or "views" where a set has only one group."""


def area_under_curve(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    ranks = stats.rankdata(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def linear_probe(rows: Labelled, *, seed: int = 0) -> Probe:
    """Cross-validate a linear discriminant.

    Features are scaled by the training folds; the direction is the inverse of the shrunken covariance within the sets
    times the difference of their means. The curve is taken per fold, since scores of two folds have no common zero, and
    averaged by its number of pairs.

    Args:
        rows: Features with labels and groups; a group is never split over folds.
        seed: Of the draws.
    """
    sides = [set(rows.groups[rows.target == side].tolist()) for side in (False, True)]
    by_group = min(map(len, sides)) >= 2
    groups = rows.groups if by_group else np.arange(len(rows.groups))
    smaller = min(len(set(groups[rows.target == side].tolist())) for side in (False, True))
    folds = min(FOLDS, smaller)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(REPEATS):
        fold = deal_folds(groups, rows.target, folds, generator)
        results = [_one_fold(rows, fold == number) for number in range(folds)]
        areas, pairs = (np.array(column) for column in zip(*results, strict=True))
        found.append(float((areas * pairs).sum() / pairs.sum()))
    return Probe(
        auc=float(np.mean(found)),
        deviation=float(np.std(found)),
        folds=folds,
        unit="groups" if by_group else "views",
    )


def deal_folds(
    groups: NDArray[np.int64], target: NDArray[np.bool_], folds: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """(n,) fold of every row, so that no group is split and every fold has both sets.

    Args:
        groups: (n,).
        target: (n,).
        folds: At most as many as the set with fewer groups has.
        generator: Draws the order.
    """
    source, other = (set(groups[target == side].tolist()) for side in (False, True))
    both = sorted(source & other)
    fold_of: dict[int, int] = {}
    for members, start in ((both, 0), (sorted(source - other), len(both)), (sorted(other - source), len(both))):
        order = generator.permutation(len(members))
        fold_of |= {members[i]: (start + place) % folds for place, i in enumerate(order.tolist())}
    return np.array([fold_of[group] for group in groups.tolist()], dtype=np.int64)


def _one_fold(rows: Labelled, held: NDArray[np.bool_]) -> tuple[float, int]:
    """Area under the curve on the rows held out, and their number of pairs."""
    train, label = rows.features[~held], rows.target[~held]
    centre, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    scaled = (train - centre) / deviation
    means = [scaled[label == side].mean(axis=0) for side in (False, True)]
    within = shrunk_covariance(np.concatenate([scaled[label == side] - means[side] for side in (False, True)]))
    within += 1e-9 * np.eye(len(within))  # constant features leave a zero
    direction = np.linalg.solve(within, means[1] - means[0])
    scores = np.round((rows.features[held] - centre) / deviation @ direction, 9)  # the same image twice is a tie
    tested = rows.target[held]
    return area_under_curve(scores, tested), int(tested.sum() * (~tested).sum())
