"""The losses of an adaptation beside the one of pseudo labels: contrast with the source, entropy, shares of classes.

Source:
    Contrast of pooled features: WeSAM, arXiv:2312.03502, section 3.3; zhang-haojie/wesam ``losses.py``: cosine of every
    pair over a temperature, -log of the sum over the same instance relative to the sum over all pairs of an image.
    Entropy and class shares: AdaMI, arXiv:2108.03152, section 2.
Deviations:
    The released code of WeSAM contrasts teacher and anchor; the student, which learns, is contrasted here. Regions of
    class maps are the classes of an image with background, so that two objects of one class are not pushed apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.recipes.losses import IGNORE

_SMALL = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Mean direction of the features of each labelled region of one image."""

    values: Tensor
    """(m,) int64 labels, ascending."""
    directions: Tensor
    """(m, C), length 1."""


def pooled(neck: Tensor, labels: Tensor) -> list[Regions]:
    """Mean direction of each labelled region, per image.

    Args:
        neck: (N, C, h, w).
        labels: (N, S, S) with ``IGNORE``.
    """
    directions = functional.normalize(neck.float(), dim=1)
    found = []
    for image in range(len(neck)):
        values = labels[image][labels[image] != IGNORE].unique()
        masks = (labels[image][None] == values[:, None, None]).float()
        mean = neck.new_zeros(0, neck.shape[1])
        if len(values):
            weights = functional.interpolate(masks[None], size=neck.shape[-2:], mode="area")[0]
            mean = torch.einsum("mhw,chw->mc", weights, directions[image])
        found.append(Regions(values=values, directions=functional.normalize(mean, dim=1)))
    return found


def contrast(student: Sequence[Regions], source: Sequence[Regions], *, temperature: float) -> Tensor:
    """The same region alike in both networks, others apart; 0 without an image of two regions that both have.

    Args:
        student: Regions of each image.
        source: Of the same images.
        temperature: Divides cosines.

    Returns:
        Scalar: mean over images of -log(sum_i e^(s_ii / t) / sum_ij e^(s_ij / t)), s the cosines.
    """
    losses = []
    for one, other in zip(student, source, strict=True):
        mine, theirs = torch.isin(one.values, other.values), torch.isin(other.values, one.values)
        if int(mine.sum()) < 2:
            continue
        pairs = one.directions[mine] @ other.directions[theirs].T / temperature
        losses.append(pairs.flatten().logsumexp(0) - pairs.diagonal().logsumexp(0))
    return torch.stack(losses).mean() if losses else torch.zeros(())


def entropy(logits: Tensor, known: Tensor) -> Tensor:
    """Mean entropy of class logits (N, K, S, S) over known pixels, as a share of the largest possible."""
    logs = logits.log_softmax(dim=1)
    each = -(logs.exp() * logs).sum(dim=1) / torch.log(torch.tensor(float(logits.shape[1])))
    return (each * known).sum() / known.sum().clamp_min(1)


class ClassShares:
    """Shares of the classes over recent batches, against those of the source's training images.

    Args:
        expected: (K,) shares with background, summing to 1.
        memory: How much of the running shares stays per batch.
    """

    def __init__(self, expected: Tensor, *, memory: float = 0.9) -> None:
        """Nothing was seen."""
        self.expected, self.memory = expected / expected.sum(), memory
        self.running: Tensor | None = None

    def __call__(self, logits: Tensor, known: Tensor, weight: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the expected shares from the running ones; the gradient is this batch's.

        Args:
            logits: (N, K, S, S).
            known: (N, S, S).
            weight: (N,) how much each image stands for.
        """
        mass = known * weight[:, None, None]
        own = (logits.softmax(dim=1) * mass[:, None]).sum(dim=(0, 2, 3)) / mass.sum().clamp_min(_SMALL)
        shares = own if self.running is None else self.memory * self.running + (1 - self.memory) * own
        self.running = shares.detach()
        expected = self.expected.to(shares)
        divergence: Tensor = (expected * (expected.clamp_min(_SMALL).log() - shares.clamp_min(_SMALL).log())).sum()
        return divergence
