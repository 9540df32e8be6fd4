"""Try alignments of the input on the views of the target: how much nearer do the frozen features come?

An alignment that makes histograms equal need not make pictures alike. So each one is applied to the target's views,
they are encoded again, and the shift of the features is measured as before. No label is involved, and none of this
promises a better mask.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.statistics import ImageStatistics
from samgraft.errors import SamgraftError
from samgraft.recipes.shift.distances import standardised_shift
from samgraft.recipes.shift.features import Encoder, Moments
from samgraft.recipes.shift.probe import linear_probe
from samgraft.recipes.shift.seen import SetSummary, labelled
from samgraft.recipes.shift.views import View

Apply = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(3, h, w) in [0, 1], NaN where missing -> the same."""
Aligner = Callable[[ImageStatistics, ImageStatistics], Apply]
"""Statistics of the target, then of the source -> what changes an image of the target."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One alignment."""

    name: str
    standardised: float
    """Root mean square shift of the features that is left, in standard deviations."""
    auc: float | None
    """Of a linear probe on what is left; None where the source is an adapter's memory."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"name": self.name, "standardised": self.standardised, "auc": self.auc}


def try_alignments(
    views: Iterable[View],
    source: SetSummary,
    target: SetSummary,
    encoder: Encoder,
    aligners: Mapping[str, Aligner],
    *,
    seed: int = 0,
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """Apply every alignment to every view of the target.

    Args:
        views: Of the target, those that were measured.
        source: With features or moments.
        target: As it was seen without alignment.
        encoder: Its backbone and size are used.
        aligners: Name -> how it is fitted.
        seed: Of the probe's folds.

    Returns:
        Trials, the nearest first; and a remark for every alignment that could not be fitted.
    """
    if source.moments is None or not aligners:
        return (), ()
    fitted: dict[str, Apply] = {}
    remarks = []
    for name, fit in aligners.items():
        try:
            fitted[name] = fit(target.statistics, source.statistics)
        except SamgraftError as error:
            remarks.append(f"alignment {name} was not tried: {error}")
    encoders = {name: Encoder(encoder.backbone, encoder.size) for name in fitted}
    for view in views:
        for name, apply in fitted.items():
            encoders[name].add(apply(view.image))
    trials = [_trial(name, source, target, encoders[name].rows(), seed) for name in fitted]
    return tuple(sorted(trials, key=lambda one: one.standardised)), tuple(remarks)


def _trial(name: str, source: SetSummary, target: SetSummary, features: NDArray[np.float64], seed: int) -> Trial:
    one, two = source.moments, Moments.of_rows(features)
    if one is None:
        raise TypeError("trials need the moments of the source")
    rows = labelled(source, replace(target, features=features))
    return Trial(
        name=name,
        standardised=standardised_shift((one.mean, two.mean), (one.variance, two.variance)),
        auc=None if rows is None else linear_probe(rows, seed=seed).auc,
    )
