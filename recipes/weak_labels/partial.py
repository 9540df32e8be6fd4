"""Sets in which not every class was annotated in every case: a pixel without a label is background or one of the rest.

The probability of every class that was not annotated in an image is added to that of background before the loss, so
that such a pixel says nothing about which of them it is (marginal loss). A pixel that has a label is of no other class,
annotated or not; the overlap of the rest with labelled pixels is one more loss (exclusion).

Source:
    Shi et al., Marginal loss and exclusion loss for partially supervised multi-organ segmentation, arXiv:2007.03868,
    sections 3.2 and 3.3.
Deviations:
    Both are taken on logits (log-sum-exp), so that the usual loss with its ignored pixels and class weights serves
    unchanged. The exclusion loss is a mean over labelled pixels and no Dice, whose denominator falls behind when those
    classes are predicted anywhere else, so that it rewards them there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.datasets.index import read_json
from samgraft.errors import ConfigError, InputError, ShapeError
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.losses import as_multiclass

FILE = "annotated.json"
"""Name of the list where ``data.annotated`` names none."""
_NEVER = -1e4
"""Logit of a class that is part of background."""


def read_annotated(
    config: DataConfig, kind: Kind, names: Mapping[int, str], cases: Sequence[str]
) -> dict[str, frozenset[int]]:
    """Which classes were annotated in which case.

    Args:
        config: Where the list lies.
        kind: Of the task.
        names: Class number -> name.
        cases: Ids of all labelled cases.

    Raises:
        ConfigError: separate objects are of one class, so that none can be missing.
        InputError: the list is missing or damaged, lacks a case, or names an unknown class.
    """
    if kind != "semantic":
        raise ConfigError(
            "data.partial is for task.kind 'semantic'; separate objects are of one class; set it to false"
        )
    path = Path(config.path) / (config.annotated or FILE)
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise InputError(f'{path}: expected {{"case": ["class", ...], ...}}')
    missing = sorted(set(cases) - set(content))
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} cases, such as {missing[:3]}; name the classes annotated in each"
        )
    number = {name: label for label, name in names.items()}
    found: dict[str, frozenset[int]] = {}
    for case in cases:
        unknown = sorted({str(name) for name in content[case]} - set(number))
        if unknown:
            raise InputError(f"{path}: {case} has the classes {unknown}; known: {', '.join(number)}; correct the file")
        if not content[case]:
            raise InputError(f"{path}: {case} has no annotated class, so it teaches nothing; leave its label out")
        found[case] = frozenset(number[str(name)] for name in content[case])
    return found


def require_annotated(
    case: str, labels: NDArray[np.integer], annotated: frozenset[int] | None, names: Sequence[str]
) -> None:
    """Refuse labels of a class that, as the list says, was not annotated.

    Raises:
        InputError: there are such labels.
    """
    if annotated is None:
        return
    odd = [names[v - 1] for v in np.unique(labels).tolist() if v > 0 and v not in annotated]
    if odd:
        raise InputError(f"{case} has pixels of {', '.join(odd)}, not annotated there by the list; add it to the list")


def annotated_flags(annotated: frozenset[int] | None, classes: int) -> Tensor:
    """(classes,) bool: which were annotated."""
    flags = torch.ones(classes, dtype=torch.bool)
    if annotated is not None:
        flags[[label - 1 for label in range(1, classes + 1) if label not in annotated]] = False
    return flags


def marginal_logits(logits: Tensor, annotated: Tensor) -> Tensor:
    """Logits in which background stands for everything that was not annotated.

    Args:
        logits: (B, 1 + K, H, W), background first; (B, 1, H, W) is binary.
        annotated: (B, K) bool, K foreground classes.

    Returns:
        (B, 1 + K, H, W) whose softmax is that of ``logits`` with the probabilities of other classes added to
        background; those classes themselves have probability 0.

    Raises:
        ShapeError: other numbers of classes.
    """
    logits = as_multiclass(logits)
    if annotated.shape != (len(logits), logits.shape[1] - 1):
        raise ShapeError(f"annotated is {tuple(annotated.shape)}; logits {tuple(logits.shape)} need (B, K) of them")
    missing = ~annotated.to(logits.device)[:, :, None, None]
    joined = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~missing, _NEVER)], dim=1).logsumexp(1, keepdim=True)
    return torch.cat([joined, logits[:, 1:].masked_fill(missing, _NEVER)], dim=1)


def exclusion_loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Mean probability of classes that were not annotated, at pixels that have a label of another; 0 without any.

    Args:
        logits: (B, 1 + K, H, W), background first.
        labels: (B, H, W) 0 .. K or ``IGNORE``.
        annotated: (B, K) bool.
    """
    logits = as_multiclass(logits)
    missing = ~annotated.to(logits.device)[:, :, None, None]
    other = (logits.softmax(dim=1)[:, 1:] * missing).sum(dim=1)
    labelled = (labels > 0) & missing.any(dim=1)
    return (other * labelled).sum() / labelled.sum().clamp_min(1)
