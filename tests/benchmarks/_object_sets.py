"""Sets for methods that find objects without a person: windows with instance maps, folds, how a result is scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.recipes.augment import augment
from samgraft.recipes.data.fit import Fit, windows
from samgraft.recipes.instances import iou_matrix
from tests.benchmarks._data import Case, evenly, picture
from tests.benchmarks._metrics import dice
from tests.benchmarks._object_data import TreeCase, crowns, trees
from tests.benchmarks._object_metrics import (
    Near,
    Overlaps,
    best_threshold,
    box_iou,
    boxes_hit,
    coco_average_precision,
    competition_score,
    distances,
    mean_best_iou,
    points_hit,
)
from tests.benchmarks._sets import AERIAL, SPECS, SetSpec, choose, split
from tests.benchmarks._train import batches

T = TypeVar("T", Near, Overlaps)
Place = tuple[slice, slice]
Kind = Literal["masks", "points", "boxes", "classes"]
"""What a result is compared with. "classes": Dice, and no objects are counted."""
Fold = tuple[list[Case], list[Case]]
"""Training and scored cases."""
BATCH = {"cardiac_mr": 4, "buildings_banepa": 2}
"""As in the benchmark of grafts."""


@dataclass(frozen=True, kw_only=True)
class ObjectSet:
    """A set of pictures with objects."""

    spec: SetSpec
    kind: Kind
    metric: str
    """What methods are compared by."""
    overlap: float = 0.25
    """Least overlap of windows in use as a share of their side."""
    fractions: tuple[str, ...] = ("5", "all")

    @property
    def batch(self) -> int:
        """Pictures in a step."""
        return BATCH.get(self.spec.name, self.spec.batch)

    @property
    def aerial(self) -> bool:
        """Whether it was taken from the air, all pictures at about one ground sampling distance."""
        return self.spec.augment is AERIAL


def _aerial(name: str, *, window: int, size: int, batch: int, min_area: int, headline: tuple[str, ...]) -> SetSpec:
    return SetSpec(
        name=name,
        size=size,
        window=window,
        classes=3,
        budget=240,
        headline=(*headline, "ap50"),
        augment=AERIAL,
        batch=batch,
        full_resolution=True,
        border=1,
        min_area=min_area,
        class_weights=(1.0, 1.0, 2.0),
    )


SETS = {
    found.spec.name: found
    for found in (
        ObjectSet(spec=SPECS["nuclei"], kind="masks", metric="ap50"),
        ObjectSet(spec=SPECS["buildings_banepa"], kind="masks", metric="ap50"),
        ObjectSet(
            spec=_aerial("trees_naip", window=64, size=128, batch=4, min_area=8, headline=("f1", "recall")),
            kind="points",
            metric="f1",
        ),
        ObjectSet(
            spec=_aerial("tree_crowns_neon", window=256, size=256, batch=2, min_area=64, headline=("recall",)),
            kind="boxes",
            metric="ap50",
            fractions=("all",),
        ),
        ObjectSet(spec=SPECS["retina_vessels"], kind="classes", metric="dice"),
        ObjectSet(spec=SPECS["cardiac_mr"], kind="classes", metric="dice_patient"),
    )
}


def folds(chosen: ObjectSet, count: int | None, seed: int, *, tune: bool) -> list[Fold]:
    """What is trained on and scored, one after the other.

    One fold, but for tree_crowns_neon: each of its three pictures is scored by a network that saw the other two.

    Args:
        chosen: The set.
        count: Number of training cases; None for all.
        seed: Which ones.
        tune: Score held-out training cases; the val split is not read. The crowns have no split to tune on.

    Raises:
        ValueError: ``tune`` on tree_crowns_neon.
    """
    name = chosen.spec.name
    if name == "tree_crowns_neon":
        if tune:
            raise ValueError("tree_crowns_neon has three pictures and no split; tune on another set")
        pictures: list[Case] = list(crowns())
        return [([other for other in pictures if other is not one], [one]) for one in pictures]
    if name != "trees_naip":
        return [split(name, count, seed, tune=tune)]
    train: list[Case] = list(trees("train"))
    if tune:
        return [(choose([c for i, c in enumerate(train) if i % 5], count, seed), train[::5])]
    return [(choose(train, count, seed), list(trees("val")))]


def places(chosen: ObjectSet, shape: tuple[int, int]) -> list[Place]:
    """Windows of a picture (H, W) in use."""
    return windows(shape, chosen.spec.window, chosen.overlap)


def fit_of(place: Place, size: int) -> Fit:
    """How a window becomes a network input."""
    return Fit(source=(place[0].stop - place[0].start, place[1].stop - place[1].start), size=size)


def crops(chosen: ObjectSet, cases: Sequence[Case], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: windows (B, 3, S, S) in [0, 1] and instance maps (B, S, S) with ``IGNORE``.

    Every picture gives one window per round, at a random place, so that large pictures count as much as small ones;
    then both are changed as the set says. Of "classes" the labels are class numbers: the pixels of a class are one
    object.
    """
    pictures = [(picture(case), torch.from_numpy(case.label.astype(np.int64))) for case in cases]
    for index in batches(len(cases), chosen.batch, generator):
        images, labels = zip(*(_crop(chosen, *pictures[i], generator) for i in index.tolist()), strict=True)
        yield augment(torch.stack(images), torch.stack(labels), generator, chosen.spec.augment)


def _crop(chosen: ObjectSet, image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A window at a random place, or the whole picture, as the network sees it."""
    parts = []
    for length in label.shape:
        side = min(length, chosen.spec.window or length)
        start = int(torch.randint(length - side + 1, (1,), generator=generator))
        parts.append(slice(start, start + side))
    fit = fit_of((parts[0], parts[1]), chosen.spec.size)
    return fit.image(image[:, parts[0], parts[1]]), fit.labels(label[parts[0], parts[1]])


def shown_windows(chosen: ObjectSet, cases: Sequence[Case], most: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` windows (n, 3, S, S) that hold an object, evenly spaced, and where it is (n, S, S) bool."""
    pairs = []
    for case in cases:
        image, label = picture(case), torch.from_numpy(case.label.astype(np.int64))
        for place in places(chosen, (case.label.shape[0], case.label.shape[1])):
            fit = fit_of(place, chosen.spec.size)
            mask = fit.labels(label[place]) > 0
            if mask.any():
                pairs.append((fit.image(image[:, place[0], place[1]]), mask))
    picked = [pairs[i] for i in evenly(len(pairs), most)]
    return torch.stack([image for image, _ in picked]), torch.stack([mask for _, mask in picked])


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a method says of one picture."""

    labels: NDArray[np.int32]
    """(H, W): objects 1..n, 0 where there is none."""
    scores: NDArray[np.float64]
    """(n,)."""

    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) x0, y0, x1, y1, first and last pixel."""
        found = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in ndimage.find_objects(self.labels)]
        return np.asarray(found, dtype=np.float64).reshape(-1, 4)

    def centroids(self) -> NDArray[np.float64]:
        """(n, 2) mean (x, y) of the pixels."""
        area = np.bincount(self.labels.ravel(), minlength=len(self.scores) + 1)[1:]
        y, x = np.indices(self.labels.shape)
        sums = [np.bincount(self.labels.ravel(), weights=at.ravel(), minlength=len(area) + 1)[1:] for at in (x, y)]
        centres: NDArray[np.float64] = np.stack(sums, axis=1) / np.maximum(area, 1)[:, None]
        return centres


def result_of(labels: NDArray[np.integer], scores: Sequence[float] | NDArray[np.floating]) -> Result:
    """A result without the objects that have no pixel.

    Args:
        labels: (H, W): 0, or 1 plus the place of the object in ``scores``.
        scores: (n,).
    """
    present = np.unique(labels[labels > 0])
    table = np.zeros(len(scores) + 1, dtype=np.int32)
    table[present] = np.arange(1, len(present) + 1)
    return Result(labels=table[labels], scores=np.asarray(scores, dtype=np.float64)[present - 1])


def overlaps(result: Result, case: Case) -> Overlaps:
    """Masks against masks, or boxes against boxes where the case has them."""
    boxes = case.boxes if isinstance(case, TreeCase) else None
    iou = iou_matrix(result.labels, case.label) if boxes is None else box_iou(result.boxes(), boxes)
    return Overlaps(scores=result.scores, iou=iou)


def _near(result: Result, case: Case) -> Near:
    if not isinstance(case, TreeCase) or case.points is None:
        raise TypeError(f"{case.name} has no points to compare with")
    return Near(scores=result.scores, distance=distances(result.centroids(), case.points, case.metre))


def score(
    chosen: ObjectSet, results: Sequence[Result], cases: Sequence[Case], thresholds: Sequence[float]
) -> dict[str, float | int]:
    """All figures of a set; ``thresholds`` are the scores from which objects count, per case (not for "masks")."""
    values: dict[str, float | int] = {"n": len(cases)}
    pairs = list(zip(results, cases, strict=True))
    if chosen.kind == "classes":
        masks = [kept(result, least) for result, least in zip(results, thresholds, strict=True)]
        return values | _dices(masks, cases)
    if chosen.kind == "points":
        near = [above(_near(*pair), least) for pair, least in zip(pairs, thresholds, strict=True)]
        hits = points_hit(near, 0.0)
        return values | {"f1": hits.f1, "recall": hits.recall, "precision": hits.precision, "predicted": hits.predicted}
    found = [overlaps(*pair) for pair in pairs]
    curve = coco_average_precision(found)
    values |= {"ap50": float(curve[0]), "ap75": float(curve[5]), "ap": float(curve.mean())}
    values |= {"best_iou": mean_best_iou(found), "true": sum(f.iou.shape[1] for f in found)}
    if chosen.spec.name == "nuclei":
        values["dsb2018"] = competition_score(found)
    if chosen.kind == "boxes":
        shown = [above(one, least) for one, least in zip(found, thresholds, strict=True)]
        hits = boxes_hit(shown, 0.0)
        values |= {"f1": hits.f1, "recall": hits.recall, "precision": hits.precision}
    return values | {"predicted": sum(len(f.scores) for f in found)}


def above(one: T, least: float) -> T:
    """Only the predictions with a score of at least ``least``, with score 1."""
    rows = one.scores >= least
    ones = np.ones(int(rows.sum()))
    if isinstance(one, Near):
        return Near(scores=ones, distance=one.distance[rows])
    return Overlaps(scores=ones, iou=one.iou[rows])


def kept(result: Result, least: float) -> NDArray[np.bool_]:
    """(H, W): pixels of objects with a score of at least ``least``."""
    return np.append(False, result.scores >= least)[result.labels]


def _dices(masks: Sequence[NDArray[np.bool_]], cases: Sequence[Case]) -> dict[str, float]:
    """Mean over pictures, and over patients with all their pictures together, as in ``_sets.evaluate``."""
    counts: dict[str, NDArray[np.float64]] = {}
    each = []
    for mask, case in zip(masks, cases, strict=True):
        truth = case.label > 0
        each.append(dice(mask, truth))
        own = np.array([2.0 * (mask & truth).sum(), mask.sum() + truth.sum()])
        counts[case.id] = counts.get(case.id, np.zeros(2)) + own
    patients = [a / b for a, b in counts.values() if b]
    return {"dice": float(np.mean(each)), "dice_patient": float(np.mean(patients))}


def choose_threshold(chosen: ObjectSet, results: Sequence[Result], cases: Sequence[Case]) -> float:
    """The score from which objects count, by F1 or Dice on training cases; 0 where nothing needs one."""
    pairs = list(zip(results, cases, strict=True))
    if chosen.kind == "points":
        return best_threshold([_near(*pair) for pair in pairs], "points")
    if chosen.kind == "boxes":
        return best_threshold([overlaps(*pair) for pair in pairs], "boxes")
    if chosen.kind == "classes":
        tried = np.linspace(0, 0.95, 20)
        values = [_dices([kept(r, least) for r in results], cases)["dice"] for least in tried]
        return float(tried[int(np.argmax(values))])
    return 0.0
