"""Calibrate "look at this one" on validation cases, and keep the calibration in the adapter's header.

Two kinds of results have calibrations of their own: "automatic" (an adapter that needs no prompt: agreement of mirror
images and mean probability inside the mask, per class) and "prompted" (objects of prompts that were propagated:
agreement of mirror images, of directions, predicted IoU). The header keeps them as ``meta.extra["trust"]``:

    {"automatic": {"tumour": {...}}, "prompted": {"": {...}}}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.bundle import BundleMeta, read_meta, replace_meta
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.inference import Network, slice_probabilities
from samgraft.recipes.metrics import overlap
from samgraft.volumetric.trust import Calibration, Signals, agreement, calibrate, uncertainty

if TYPE_CHECKING:
    from samgraft.recipes.tasks import SegmentationTask

KEY = "trust"
MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes of (..., H, W) that are turned round."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Flipped:
    """What an adapter gives for one case, averaged over mirror images of its slices."""

    labels: NDArray[np.uint8]
    """(n, h, w) class with the largest mean probability."""
    signals: Mapping[int, Signals]
    """Class -> what is known without a label."""
    uncertainty: NDArray[np.float32]
    """(n, h, w) bits in [0, 1]: entropy of the mean probability of foreground."""


def predict_flipped(
    network: Network, case: CaseArrays, *, classes: int, mirrors: Sequence[tuple[int, ...]] = MIRRORS, **options: Any
) -> Flipped:
    """Predict a case and its mirror images.

    Args:
        network: Maps squares (B, 3, S, S) to logits.
        case: A volume, cut into slices; its labels are not read.
        classes: Foreground classes.
        mirrors: Axes that are turned round, one tuple per image.
        options: As in :func:`~samgraft.recipes.inference.slice_probabilities`.
    """
    runs = [slice_probabilities(_mirrored(network, axes), case, **options) for axes in mirrors]
    stack: list[list[NDArray[np.uint8]]] = [[] for _ in mirrors]
    labels, entropy = [], []
    inside = np.zeros((2, classes + 1))
    for parts in zip(*runs, strict=True):
        maps = [probabilities for _, probabilities in parts]
        mean = torch.stack(maps).mean(dim=0)
        chosen = mean.argmax(dim=0).numpy().astype(np.uint8)
        labels.append(chosen)
        entropy.append(uncertainty([1 - mean[0].numpy()]))
        for number, own in enumerate(maps):
            stack[number].append(own.argmax(dim=0).numpy().astype(np.uint8))
        for value in range(1, classes + 1):
            own_pixels = chosen == value
            inside[0, value] += float(mean[value].numpy()[own_pixels].sum())
            inside[1, value] += int(own_pixels.sum())
    volumes = [np.stack(run) for run in stack]
    signals = {
        value: Signals(
            flips=agreement([volume == value for volume in volumes]) if len(volumes) > 1 else None,
            predicted_iou=float(inside[0, value] / inside[1, value]) if inside[1, value] else 0.0,
        )
        for value in range(1, classes + 1)
    }
    return Flipped(labels=np.stack(labels), signals=signals, uncertainty=np.stack(entropy))


def _mirrored(network: Network, axes: tuple[int, ...]) -> Network:
    """The same network behind a mirror: squares are turned round, and logits turned back."""

    def call(squares: Tensor) -> Tensor:
        if not axes:
            return network(squares)
        return network(squares.flip(axes)).flip(axes)

    return call


def fit_trust(
    task: "SegmentationTask",
    cases: Iterator[CaseArrays] | Sequence[CaseArrays],
    *,
    good_dice: float = 0.8,
    form: str = "logistic",
    flag_below: float = 0.5,
) -> dict[str, Calibration]:
    """Calibrate an adapter on validation cases: class name -> calibration.

    Args:
        task: The adapter with its settings, as ``samgraft.recipes.training.load_adapted`` gives it.
        cases: Validation cases; their labels are compared with what came out, and reach no network.
        good_dice: A structure is good from this Dice on.
        form: "logistic" or "isotonic".
        flag_below: Probability below which a structure is flagged.

    Raises:
        ConfigError: an adapter for objects.
    """
    if task.representation.kind == "instance":
        raise ConfigError("trust is calibrated per class of a volume; this adapter separates objects")
    data = task.config.data
    options: dict[str, Any] = {
        "size": task.size,
        "window": data.window,
        "overlap": data.overlap,
        "batch_size": data.batch_size,
        "slab": data.slab,
        "slab_overlap": data.slab_overlap,
    }
    signals: dict[int, list[Signals]] = {}
    dice: dict[int, list[float]] = {}
    for case in cases:
        found = predict_flipped(task, case, classes=task.num_classes, **options)
        for value, known in found.signals.items():
            signals.setdefault(value, []).append(known)
            dice.setdefault(value, []).append(overlap(found.labels == value, case.labels == value)[0])
    return {
        name: calibrate(signals[value], dice[value], good_dice=good_dice, form=form, flag_below=flag_below)
        for value, name in enumerate(task.class_names, start=1)
        if value in signals
    }


def with_trust(meta: BundleMeta, kind: str, calibrations: Mapping[str, Calibration]) -> BundleMeta:
    """A header that holds these calibrations beside those of other kinds."""
    kept = dict(meta.extra.get(KEY) or {})
    kept[kind] = {name: one.to_dict() for name, one in calibrations.items()}
    return replace(meta, extra={**meta.extra, KEY: kept})


def calibration_of(meta: BundleMeta, kind: str, name: str = "") -> Calibration | None:
    """The calibration of a class ("" for objects of prompts), or None if the header has none.

    Raises:
        CheckpointError: the header holds something else there.
    """
    kinds = meta.extra.get(KEY)
    if kinds is None:
        return None
    if not isinstance(kinds, Mapping) or not all(isinstance(some, Mapping) for some in kinds.values()):
        raise CheckpointError(
            f"the adapter's header has {KEY} = {kinds!r:.80}; expected calibrations by kind and class"
        )
    found = kinds.get(kind, {}).get(name)
    return None if found is None else Calibration.from_dict(found)


def store_trust(path: str | PathLike[str], kind: str, calibrations: Mapping[str, Calibration]) -> None:
    """Write calibrations into an adapter's header; its tensors stay as they are, bit by bit."""
    replace_meta(Path(path), with_trust(read_meta(path), kind, calibrations))
