"""Distances between the frozen features of two sets: Frechet, maximum mean discrepancy, and what chance alone gives.

Takes features (n, d), one row per view, and who each row belongs to (a patient, a scene); gives numbers. Rows of one
patient are not independent, so labels are permuted for whole patients.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ShapeError

Floats = NDArray[np.float64]
FEWEST = 4
"""Rows that a set needs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Rows of both sets, source first."""

    features: Floats
    """(n, d)."""
    target: NDArray[np.bool_]
    """(n,) True for rows of the target."""
    groups: NDArray[np.int64]
    """(n,) number of the patient or scene; the same number on both sides is the same patient."""

    def __post_init__(self) -> None:
        """Check shapes."""
        count = len(self.features)
        if self.features.ndim != 2 or self.target.shape != (count,) or self.groups.shape != (count,):
            raise ShapeError(
                f"features are {self.features.shape}, labels {self.target.shape}, groups {self.groups.shape}; "
                "expected (n, d), (n,) and (n,)"
            )
        if min(self.target.sum(), (~self.target).sum()) < FEWEST:
            raise ShapeError(
                f"{int((~self.target).sum())} source and {int(self.target.sum())} target views; "
                f"distances need {FEWEST} each: give more images"
            )

    @property
    def scaled(self) -> Floats:
        """(n, d) features, each with mean 0 and variance 1 over all rows; constant ones become 0."""
        deviation = self.features.std(axis=0)
        centred: Floats = self.features - self.features.mean(axis=0)
        return centred / np.where(deviation > 1e-12, deviation, 1.0)

    def sides(self) -> tuple[Floats, Floats]:
        """Features of the source and of the target."""
        return self.features[~self.target], self.features[self.target]


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabelled:
    """Other ways to deal the labels, all equally likely if there is no shift."""

    target: NDArray[np.bool_]
    """(p, n)."""
    unit: str
    """What was exchanged: "groups", or "views" where a set has only one group."""
    smallest_p: float
    """The smallest p-value that so few units allow."""


def shrunk_covariance(rows: Floats) -> Floats:
    """Covariance (d, d) of rows (n, d), pulled towards a multiple of the identity so that few rows suffice.

    Source:
        Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3.3.
    """
    count, width = rows.shape
    centred = rows - rows.mean(axis=0)
    sample = centred.T @ centred / count
    level = float(np.trace(sample)) / width
    spread = float((sample**2).sum()) - width * level**2
    noise = (float((centred**2).sum(axis=1) @ (centred**2).sum(axis=1)) / count - float((sample**2).sum())) / count
    share = min(max(noise / spread, 0.0), 1.0) if spread > 1e-18 else 1.0
    shrunk: Floats = (1 - share) * sample + share * level * np.eye(width)
    return shrunk


def frechet(first: Floats, second: Floats) -> float:
    """Frechet distance of two normal distributions fitted to rows (n, d) and (m, d), with shrunken covariances.

    Squared distance of the means plus the trace of S1 + S2 - 2 (S1 S2)^(1/2), in squared units of the features.

    Source:
        Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions".
    Deviations:
        The covariances are shrunk (see :func:`shrunk_covariance`): with fewer rows than columns the plain ones are
        singular.
    """
    one, two = shrunk_covariance(first), shrunk_covariance(second)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    means = first.mean(axis=0) - second.mean(axis=0)
    return float(max(means @ means + np.trace(one) + np.trace(two) - 2 * cross, 0.0))


def standardised_shift(means: tuple[Floats, Floats], variances: tuple[Floats, Floats]) -> float:
    """Root mean square, over features, of the shift of the mean in standard deviations (Cohen's d per feature)."""
    pooled = (variances[0] + variances[1]) / 2
    used = pooled > 1e-12
    if not used.any():
        return 0.0
    return float(np.sqrt(np.mean((means[1] - means[0])[used] ** 2 / pooled[used])))


def diagonal_frechet(means: tuple[Floats, Floats], variances: tuple[Floats, Floats]) -> float:
    """Frechet distance of normal distributions whose features are independent: all that stored moments allow."""
    roots = np.sqrt(np.maximum(variances[1], 0)) - np.sqrt(np.maximum(variances[0], 0))
    return float(((means[1] - means[0]) ** 2).sum() + (roots**2).sum())


def kernel(rows: Floats) -> tuple[Floats, float]:
    """Gaussian kernel (n, n) with a zero diagonal, and its bandwidth: the median distance between two rows."""
    squared = (rows**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None, :] - 2 * rows @ rows.T, 0))
    pairs = distances[np.triu_indices(len(rows), k=1)]
    bandwidth = float(np.median(pairs)) or float(pairs.mean()) or 1.0
    values = np.exp(-((distances / bandwidth) ** 2) / 2)
    np.fill_diagonal(values, 0.0)
    return values, bandwidth


def mmd(values: Floats, target: NDArray[np.bool_]) -> Floats:
    """Squared maximum mean discrepancy, unbiased, for one or many ways to deal the labels.

    Args:
        values: (n, n) kernel with a zero diagonal.
        target: (p, n) labels.

    Returns:
        (p,); about 0 without a shift (it may be negative), at most 2.

    Source:
        Gretton et al. 2012, "A kernel two-sample test", JMLR 13, lemma 6 (equation 3).
    """
    second = target.astype(np.float64)
    first = 1.0 - second
    n, m = first.sum(axis=1), second.sum(axis=1)
    across = first @ values
    within = (across * first).sum(axis=1) / (n * (n - 1))
    other = ((second @ values) * second).sum(axis=1) / (m * (m - 1))
    found: Floats = within + other - 2 * (across * second).sum(axis=1) / (n * m)
    return found


def relabel(rows: Labelled, count: int, seed: int) -> Relabelled:
    """Deal the labels anew: patients seen on both sides swap sides or not, the others are shuffled.

    Args:
        rows: Features with labels and groups.
        count: Ways.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    sides = [set(rows.groups[rows.target == side].tolist()) for side in (False, True)]
    if min(map(len, sides)) < 2:
        dealt = np.stack([generator.permutation(rows.target) for _ in range(count)])
        return Relabelled(target=dealt, unit="views", smallest_p=1 / (1 + count))
    both, single = sorted(sides[0] & sides[1]), sorted(sides[0] ^ sides[1])
    label = np.array([group in sides[1] for group in single], dtype=np.bool_)
    dealt = np.stack([_dealt(rows, both, single, label, generator) for _ in range(count)])
    ways = 2 ** len(both) * comb(len(single), int(label.sum()))
    return Relabelled(target=dealt, unit="groups", smallest_p=1 / min(ways, count + 1))


def _dealt(
    rows: Labelled, both: list[int], single: list[int], label: NDArray[np.bool_], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) labels dealt once; so that neither set is left with a single view."""
    while True:
        found = rows.target.copy()
        for group in both:
            if generator.random() < 0.5:
                found[rows.groups == group] ^= True
        for group, side in zip(single, generator.permutation(label), strict=True):
            found[rows.groups == group] = side
        if 2 <= found.sum() <= len(found) - 2:
            return found


def p_value(observed: float, chance: Floats) -> float:
    """Share of relabellings that give at least the observed distance, the observed one counted in."""
    return float((1 + (chance >= observed - 1e-12).sum()) / (1 + len(chance)))
