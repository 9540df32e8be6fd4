"""Dice, IoU, and for volumes NSD, HD95 and volume error of one case on its own grid; tables say over how many cases.

Convention for a class: both masks empty gives 1 (HD95: 0 mm), only one empty gives 0 (HD95: the diagonal of the
volume); no case is skipped. Means are over cases (within a patient first), never over pixels of pooled cases, and come
with n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ShapeError
from samgraft.recipes.surface import NSD_TOLERANCE_MM, surface_score

_MM3_PER_ML = 1000.0
_FIGURES = (("dice", "dice"), ("iou", "iou"))
_FIGURES_MM = (("nsd", "nsd"), ("hd95_mm", "hd95"), ("volume_error_ml", "volume_off"))


@dataclass(frozen=True, kw_only=True)
class Score:
    """Overlap of one class in one case."""

    case: str
    class_name: str
    dice: float
    """0 to 1."""
    iou: float
    """0 to 1."""
    truth_voxels: int
    """Elements of the class in the truth."""
    predicted_voxels: int
    """Elements of the class in the prediction."""
    group: str = ""
    """Patient or site; figures are averaged within a group first."""
    nsd: float | None = None
    """Normalised surface Dice, 0 to 1; None without a spacing."""
    hd95: float | None = None
    """mm."""
    volume_error: float | None = None
    """Predicted minus true volume in ml."""

    @property
    def volume_off(self) -> float | None:
        """Size of the volume error in ml, whatever its sign."""
        return None if self.volume_error is None else abs(self.volume_error)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean of a figure over cases."""

    name: str
    mean: float
    std: float
    n: int


def overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Dice and IoU of two masks of the same shape; (1, 1) if both are empty, (0, 0) if only one is.

    Raises:
        ShapeError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ShapeError(f"predicted mask is {predicted.shape}; truth is {truth.shape}; compare masks on one grid")
    a, b = int(predicted.sum()), int(truth.sum())
    if a + b == 0:
        return 1.0, 1.0
    both = int(np.logical_and(predicted, truth).sum())
    return 2.0 * both / (a + b), both / (a + b - both)


def score_case(
    case: str,
    predicted: NDArray[np.integer],
    truth: NDArray[np.integer],
    classes: Mapping[int, str],
    *,
    ignore: int = -1,
    group: str = "",
    spacing: Sequence[float] | None = None,
    tolerance: float = NSD_TOLERANCE_MM,
) -> list[Score]:
    """Score every class of one case.

    Args:
        case: Name of the case.
        predicted: Label array of any shape.
        truth: Label array of the same shape; elements equal to ``ignore`` do not count.
        classes: Label value -> name, without background.
        ignore: Value in ``truth`` that marks unknown elements.
        group: Patient or site; the case itself if empty.
        spacing: mm per axis of the arrays; adds NSD, HD95 and volume error.
        tolerance: mm within which borders count as equal, for NSD.
    """
    if predicted.shape != truth.shape:
        raise ShapeError(f"{case}: prediction is {predicted.shape}; truth is {truth.shape}; compare labels on one grid")
    known = truth != ignore
    rows = []
    for value, name in classes.items():
        p, t = (predicted == value) & known, (truth == value) & known
        dice, iou = overlap(p, t)
        size = {"truth_voxels": int(t.sum()), "predicted_voxels": int(p.sum())}
        row = Score(case=case, class_name=name, dice=dice, iou=iou, group=group or case, **size)
        rows.append(row if spacing is None else _in_mm(row, p, t, spacing, tolerance))
    return rows


def _in_mm(
    row: Score, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> Score:
    """The same score with figures of the border and of the volume."""
    border = surface_score(predicted, truth, spacing, tolerance=tolerance)
    error = (row.predicted_voxels - row.truth_voxels) * float(np.prod(spacing)) / _MM3_PER_ML
    return replace(row, nsd=border.nsd, hd95=border.hd95, volume_error=error)


def summarise(name: str, values: Sequence[float]) -> Summary:
    """Mean, standard deviation (population) and n; NaN for an empty list."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Summary(name=name, mean=float("nan"), std=float("nan"), n=0)
    return Summary(name=name, mean=float(array.mean()), std=float(array.std()), n=len(array))


@dataclass
class MetricTable:
    """Collects scores of many cases."""

    scores: list[Score] = field(default_factory=list)

    def add(self, scores: Sequence[Score]) -> None:
        """Append the scores of a case."""
        self.scores.extend(scores)

    def summaries(self) -> list[Summary]:
        """Every figure per class, and its mean over classes as ``dice/mean``, ...; each a mean over n groups."""
        out: list[Summary] = []
        names = list(dict.fromkeys(s.class_name for s in self.scores))
        measured = bool(self.scores) and all(s.nsd is not None for s in self.scores)
        for figure, field_name in (*_FIGURES, *(_FIGURES_MM if measured else ())):
            for name in names:
                out.append(summarise(f"{figure}/{name}", self._per_group(field_name, [name])))
            out.append(summarise(f"{figure}/mean", self._per_group(field_name, names)))
        return out

    def _per_group(self, figure: str, names: Sequence[str]) -> list[float]:
        """Mean over classes per case, then over the cases of each group."""
        cases: dict[tuple[str, str], list[float]] = {}
        for s in self.scores:
            if s.class_name in names:
                cases.setdefault((s.group, s.case), []).append(getattr(s, figure))
        groups: dict[str, list[float]] = {}
        for (group, _), values in cases.items():
            groups.setdefault(group, []).append(float(np.mean(values)))
        return [float(np.mean(values)) for values in groups.values()]

    def as_dict(self) -> dict[str, float]:
        """Name -> mean, plus ``n``: the number of groups (of cases, where none are grouped)."""
        result = {s.name: s.mean for s in self.summaries()}
        result["n"] = float(len({s.group for s in self.scores}))
        return result
