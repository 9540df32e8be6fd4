"""Calibrate trust in propagated objects: a tight box on the key slice of every structure of the validation cases.

The boxes are made of labels, as a person would draw them, so that the calibration is about results of drawn boxes; it
is stored as ``meta.extra["trust"]["prompted"]`` and used by ``samgraft segment --propagate`` with the same flips.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.backbones.base import Promptable
from samgraft.domains.datasets.index import Case
from samgraft.domains.datasets.nnunet import read_nnunet
from samgraft.errors import ConfigError
from samgraft.recipes.engine.propagated import VolumeOptions, segment_volume
from samgraft.recipes.engine.volume_slices import FLIPS
from samgraft.recipes.metrics import overlap
from samgraft.recipes.prompting import ObjectPrompt, coarsest_axis
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts
from samgraft.volumetric.propagation.slices import box_of
from samgraft.volumetric.trust import Calibration, Signals, calibrate


def validation_cases(data: str | Path) -> tuple[Case, ...]:
    """Validation cases with labels of a data set in nnU-Net layout; all cases where it has no split.

    Raises:
        InputError: no data set there.
    """
    index = read_nnunet(data)
    cases = index.part("val") if index.splits else index.cases
    return tuple(case for case in cases if case.label is not None)


def fit_prompted_trust(
    network: Promptable,
    cases: Iterable[Case],
    *,
    options: VolumeOptions | None = None,
    good_dice: float = 0.8,
    form: str = "logistic",
    flag_below: float = 0.5,
    **look: Any,
) -> Calibration:
    """Calibrate objects that are propagated from a box on their key slice (the one with the largest area).

    Args:
        network: Any backbone, or one with parts attached that answers prompts.
        cases: Validation cases with labels.
        options: Propagation and flips, as they will be used; None takes all flips.
        good_dice: An object is good from this Dice on.
        form: "logistic" or "isotonic".
        flag_below: Probability below which an object is flagged.
        look: ``size``, ``context`` and the like, as for ``segment_volume``.

    Raises:
        ConfigError: no structure in any case.
    """
    chosen = replace(options or VolumeOptions(flips=tuple(FLIPS)), calibration=None, uncertainty=None)
    signals: list[Signals] = []
    dice: list[float] = []
    for case in cases:
        scene, labels = case.load_image(), case.load_label()
        axis = coarsest_axis(scene.grid)
        stack = np.moveaxis(labels, axis, 0)
        values = [int(v) for v in np.unique(stack) if v]
        objects = []
        for value in values:
            key = int((stack == value).sum(axis=(1, 2)).argmax())
            objects.append(VolumePrompt(slices=(ObjectPrompt(box=box_of(stack[key] == value), slice=key),)))
        if not objects:
            continue
        prompts = VolumePrompts(objects=tuple(objects), axis=axis, from_ground_truth=True)
        result = segment_volume(scene, network, prompts, options=chosen, **look)
        for value, one in zip(values, result.objects, strict=True):
            signals.append(one.signals)
            dice.append(overlap(one.mask, stack == value)[0])
    if not signals:
        raise ConfigError("no validation case shows a structure, so there is nothing to calibrate; add labelled cases")
    return calibrate(signals, dice, good_dice=good_dice, form=form, flag_below=flag_below)
