"""Whether a person should look at a structure: signals of one result, and their calibration on validation cases.

A signal is a number in [0, 1] that needs no label: how well results agree when the input is flipped, how well walks
from two sides agree, what IoU the decoder predicts. A :class:`Calibration` turns signals into the probability that the
structure is good (its Dice reaches a level); it is fitted on validation cases, whose Dice is known, and stored with the
adapter. Below ``flag_below`` the structure is flagged: "look at this one".

Two forms: logistic regression on all signals (with a small ridge on standardised signals, so that few cases do not
give infinite slopes), or isotonic regression on their mean (any rising curve; needs more cases).

Source:
    Platt, "Probabilistic outputs for support vector machines" (1999), for soft targets of the logistic form; Zadrozny
    and Elkan, "Transforming classifier scores into accurate multiclass probability estimates" (KDD 2002), for the
    isotonic form; expected calibration error: Guo et al., arXiv:1706.04599, section 2.
Deviations:
    Several signals go into the logistic form, with a ridge of 1e-2 (of 1 for fewer than 20 cases). The isotonic form
    ends at Platt's soft targets instead of 0 and 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from samgraft.errors import ConfigError, ShapeError

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
FORMS = ("logistic", "isotonic")
FEW_CASES = 20


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What is known about one structure of one result without a label; None where it was not measured."""

    flips: float | None = None
    """Mean Dice between every two of the results of flipped inputs."""
    directions: float | None = None
    """Dice of walks from two sides (``Propagated.direction_agreement``)."""
    predicted_iou: float | None = None
    """What the decoder predicts, or the mean probability inside the mask where there is no such prediction."""

    def measured(self) -> dict[str, float]:
        """The signals that are there."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


def agreement(masks: Sequence[Mask]) -> float:
    """Mean Dice between every two masks; two empty ones agree fully.

    Raises:
        ShapeError: fewer than two masks.
    """
    if len(masks) < 2:
        raise ShapeError(f"{len(masks)} masks; agreement needs at least two")
    found = []
    for number, one in enumerate(masks):
        for other in masks[number + 1 :]:
            areas = int(one.sum()) + int(other.sum())
            found.append(2 * int((one & other).sum()) / areas if areas else 1.0)
    return float(np.mean(found))


def uncertainty(probabilities: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Entropy in bits of the mean probability of several results, voxel by voxel: 0 sure, 1 undecided.

    Args:
        probabilities: Maps in [0, 1] of one shape, one per flip or direction.
    """
    mean = np.mean([np.asarray(p, dtype=np.float32) for p in probabilities], axis=0, dtype=np.float64)
    inner = np.clip(mean, 1e-12, 1 - 1e-12)
    entropy = -(inner * np.log2(inner) + (1 - inner) * np.log2(1 - inner))
    return np.where((mean <= 0) | (mean >= 1), 0.0, entropy).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From signals to the probability that a structure is good. JSON types only."""

    form: str
    """"logistic" or "isotonic"."""
    signals: tuple[str, ...]
    """Names of the signals, in the order of ``mean``, ``scale`` and ``weights``."""
    good_dice: float
    """A structure is good from this Dice on."""
    cases: int
    """Validation cases that it was fitted on."""
    good: int
    """How many of them were good."""
    flag_below: float = 0.5
    """A probability below this raises the flag."""
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    """Logistic: probability = sigmoid(bias + weights . (signals - mean) / scale)."""
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: (mean signal, probability), rising; linear between, constant beyond."""

    def __post_init__(self) -> None:
        """Check what a file may hold."""
        if self.form not in FORMS or not self.signals:
            raise ConfigError(
                f"calibration: form is {self.form!r} with signals {list(self.signals)}; expected one of "
                f"{', '.join(FORMS)} and at least one signal"
            )
        for name in ("signals", "mean", "scale", "weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "knots", tuple((float(x), float(y)) for x, y in self.knots))

    def probability(self, signals: Signals) -> float:
        """Probability in [0, 1] that the structure is good.

        Raises:
            ConfigError: a signal that the calibration was fitted with was not measured.
        """
        known = signals.measured()
        missing = [name for name in self.signals if name not in known]
        if missing:
            raise ConfigError(
                f"calibration needs the signals {list(self.signals)}; {missing} were not measured; segment with the "
                "same flips and directions as in calibration"
            )
        values = np.array([known[name] for name in self.signals])
        if self.form == "isotonic":
            xs, ys = (np.array(part) for part in zip(*self.knots, strict=True))
            return float(np.interp(values.mean(), xs, ys))
        score = self.bias + float((np.array(self.weights) * (values - self.mean) / np.array(self.scale)).sum())
        return float(_sigmoid(np.array(score)))

    def flag(self, signals: Signals) -> bool:
        """Whether a person should look at the structure."""
        return self.probability(signals) < self.flag_below

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the header of an adapter."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown or a missing field.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"calibration: {error}; the header was written by another version") from error


def calibrate(
    signals: Sequence[Signals],
    dice: Sequence[float],
    *,
    good_dice: float = 0.8,
    form: str = "logistic",
    flag_below: float = 0.5,
) -> Calibration:
    """Fit on validation cases.

    Args:
        signals: Of one structure in every case; only signals that all cases have are used.
        dice: Of the same structures, against their labels.
        good_dice: A structure is good from here on.
        form: "logistic" or "isotonic".
        flag_below: See :class:`Calibration`.

    Raises:
        ConfigError: no case, an unknown form, or no signal that all cases have.
    """
    if form not in FORMS or len(signals) != len(dice) or not len(signals):
        raise ConfigError(
            f"calibration of form {form!r} with {len(signals)} cases and {len(dice)} Dice values; expected one of "
            f"{', '.join(FORMS)} and one Dice per case"
        )
    measured = [one.measured() for one in signals]
    names = tuple(name for name in Signals.__dataclass_fields__ if all(name in one for one in measured))
    if not names:
        raise ConfigError("calibration: no signal was measured in all cases; segment them with flips or directions")
    values = np.array([[one[name] for name in names] for one in measured])
    good = np.array(dice) >= good_dice
    shared: dict[str, Any] = {"signals": names, "good_dice": good_dice, "cases": len(good), "good": int(good.sum())}
    shared |= {"form": form, "flag_below": flag_below}
    targets = _soft_targets(good)
    if form == "isotonic":
        return Calibration(knots=_isotonic(values.mean(axis=1), targets), **shared)
    return Calibration(**shared, **_logistic(values, targets))


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How far stated probabilities are from what happened."""

    error: float
    """Expected calibration error: mean over bins of |stated - happened|, weighted by cases."""
    brier: float
    """Mean squared difference of probability and outcome."""
    bins: tuple[tuple[float, float, int], ...]
    """(mean stated probability, share that was good, cases) of every bin that is not empty."""


def reliability(stated: Sequence[float], good: Sequence[bool], bins: int = 10) -> Reliability:
    """Compare stated probabilities with outcomes, in ``bins`` equal parts of [0, 1]."""
    p, y = np.asarray(stated, dtype=np.float64), np.asarray(good, dtype=np.float64)
    if p.shape != y.shape or not p.size:
        raise ShapeError(f"{p.size} probabilities and {y.size} outcomes; give one outcome per probability")
    number = np.minimum((p * bins).astype(int), bins - 1)
    rows = [(p[number == b], y[number == b]) for b in np.unique(number)]
    error = sum(len(a) * abs(a.mean() - b.mean()) for a, b in rows) / len(p)
    table = tuple((float(a.mean()), float(b.mean()), len(a)) for a, b in rows)
    return Reliability(error=float(error), brier=float(((p - y) ** 2).mean()), bins=table)


def _soft_targets(good: NDArray[np.bool_]) -> Float:
    """Platt's targets: (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so that few cases do not claim certainty."""
    positive, negative = int(good.sum()), int((~good).sum())
    return np.where(good, (positive + 1) / (positive + 2), 1 / (negative + 2))


def _logistic(values: Float, targets: Float) -> dict[str, Any]:
    """Weights on standardised signals, with a ridge."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1.0)
    inputs = (values - mean) / scale
    ridge = 1e-2 if len(values) >= FEW_CASES else 1.0

    def loss(theta: Float) -> tuple[float, Float]:
        z = inputs @ theta[1:] + theta[0]
        p = _sigmoid(z)
        value = np.mean(np.logaddexp(0, z) - targets * z) + 0.5 * ridge * float((theta[1:] ** 2).sum()) / len(values)
        slope = inputs.T @ (p - targets) / len(values) + ridge * theta[1:] / len(values)
        return float(value), np.concatenate([[float((p - targets).mean())], slope])

    found = minimize(loss, np.zeros(1 + values.shape[1]), jac=True, method="L-BFGS-B").x
    return {
        "mean": tuple(float(v) for v in mean),
        "scale": tuple(float(v) for v in scale),
        "weights": tuple(float(v) for v in found[1:]),
        "bias": float(found[0]),
    }


def _isotonic(scores: Float, targets: Float) -> tuple[tuple[float, float], ...]:
    """Knots of the rising curve; equal scores share one knot."""
    xs, inverse = np.unique(scores, return_inverse=True)
    counts = np.bincount(inverse)
    means = np.bincount(inverse, weights=targets) / counts
    curve = isotonic_regression(means, weights=counts.astype(np.float64)).x
    return tuple((float(x), float(y)) for x, y in zip(xs, curve, strict=True))


def _sigmoid(values: Float) -> Float:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))
