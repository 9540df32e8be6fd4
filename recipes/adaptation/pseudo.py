"""Pseudo labels of the teacher's answers: the most certain share of every class; the rest counts for nothing.

Pixels of class maps are taken where their confidence reaches the threshold of their class. Objects are taken whole or
not at all, by their score; pixels of an object that was not taken, and doubtful background, count for nothing.

Source:
    Class-balanced self-training, arXiv:1810.07911, sections 3 and 4: the threshold of a class is the confidence that a
    given share of its pixels reaches, and the share grows.
Deviations:
    Thresholds are measured on a sample of tiles before each round, and never lie below a least confidence.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from samgraft.errors import ShapeError
from samgraft.recipes.adaptation.answers import Answer
from samgraft.recipes.losses import IGNORE

BINS = 1000
"""Steps of confidence between 0 and 1."""


def class_thresholds(answers: Iterable[tuple[Answer, Tensor]], channels: int, *, portion: float, least: float) -> Tensor:
    """Least confidence per class, so that ``portion`` of its pixels are taken.

    Args:
        answers: Answers with the known pixels (N, S, S) bool of each.
        channels: K, number of classes with background.
        portion: Share in (0, 1].
        least: No threshold is below this.

    Returns:
        (K,) float32, in steps of a thousandth; a class that was not seen has the highest of the others'.
    """
    counts = torch.zeros(channels, BINS + 1)
    for answer, known in answers:
        steps = (answer.confidence * BINS).floor().long().clamp(0, BINS)
        code = (answer.classes * (BINS + 1) + steps)[known].cpu()
        counts += torch.bincount(code, minlength=channels * (BINS + 1)).view(channels, BINS + 1)
    total = counts.sum(dim=1)
    reached = counts.flip(1).cumsum(dim=1).flip(1)  # pixels at or above each step
    enough = reached >= (portion * total)[:, None]
    steps = torch.where(enough, torch.arange(BINS + 1), 0).max(dim=1).values
    found = (steps / BINS).clamp_min(least)
    seen = total > 0
    return torch.where(seen, found, found[seen].max() if bool(seen.any()) else torch.tensor(1.0))


def pseudo_labels(answer: Answer, thresholds: Tensor, known: Tensor) -> Tensor:
    """What is learned: (N, S, S) int64 classes, or objects 1, 2, ... of each image; ``IGNORE`` elsewhere.

    Args:
        answer: Of the teacher.
        thresholds: (K,) of :func:`class_thresholds`.
        known: (N, S, S) bool: pixels that may count.

    Raises:
        ShapeError: ``known`` is of another shape.
    """
    if known.shape != answer.labels.shape:
        raise ShapeError(f"known is {tuple(known.shape)}; the answer is {tuple(answer.labels.shape)}")
    least = thresholds.to(answer.confidence)[answer.classes]
    taken = known & (_in_steps(answer.confidence) >= least - 1e-6)
    return answer.labels.where(taken, torch.full_like(answer.labels, IGNORE))


def _in_steps(confidence: Tensor) -> Tensor:
    """Rounded down as in the histogram, so that exactly the pixels that were counted are taken."""
    return (confidence * BINS).floor() / BINS
