"""One-to-one matching of queries with the true objects of an image, and the targets that follow from it.

Every object is given to one query so that the sum of costs is least. The cost of a pair is
``class x -p(class) + bce x cross-entropy + dice x Dice``, with mask terms at the same places for all pairs of an image:
every cell of the mask logits, or random points where that would be many.

Source:
    DETR, arXiv:2005.12872, section 3.1; costs at points as in Mask2Former, arXiv:2112.01527, section 3.3; weights 2, 5, 5
    of RSPrompter, arXiv:2306.16269 (KyanChen/RSPrompter, branch lightning).
Deviations:
    Pixels that are not known count in no cost.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from samgraft.adapters.prompts.mask_losses import pairwise_losses, read_at, resize_targets, targets_at
from samgraft.adapters.prompts.objects import Objects

UNUSABLE = 1e6
"""Stands for a cost that is not finite, as after an overflow in half precision: the step is skipped later."""


@dataclass(frozen=True, kw_only=True)
class MatchWeights:
    """Weights of the parts of a cost, and of the losses of the same name."""

    classes: float = 2.0
    bce: float = 5.0
    dice: float = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTargets:
    """The n objects of one image at P places."""

    rows: Tensor
    """(n,) rows of ``Objects``."""
    classes: Tensor
    """(n,) int64."""
    targets: Tensor
    """(n, P) in [0, 1]."""
    weights: Tensor
    """(P,): how well each place is known, 0 to 1."""
    points: Tensor | None
    """(P, 2) shares of the image; None where the places are the cells of the logits."""

    def read(self, logits: Tensor) -> Tensor:
        """Mask logits (Q, P) at the places, from maps (Q, h, w)."""
        return logits.flatten(1) if self.points is None else read_at(logits, self.points.expand(len(logits), -1, -1))


def image_targets(
    objects: Objects, image: int, size: tuple[int, int], *, points: int, dtype: torch.dtype
) -> ImageTargets:
    """Targets of one image.

    Args:
        objects: Of the batch.
        image: Which image.
        size: (h, w) of the mask logits.
        points: 0 for the cells of the logits, else the number of random points.
        dtype: Of targets and weights.
    """
    rows = objects.of(image)
    masks, known = objects.masks[rows], objects.known[image][None]
    everywhere = known.expand(len(rows), -1, -1)
    if points:
        where = torch.rand(1, points, 2, device=masks.device, dtype=dtype)
        targets, _ = targets_at(masks, everywhere, where.expand(len(rows), -1, -1), dtype)
        _, weights = targets_at(known, known, where, dtype)
    else:
        targets, _ = resize_targets(masks, everywhere, size, dtype)
        _, weights = resize_targets(known, known, size, dtype)
    return ImageTargets(
        rows=rows,
        classes=objects.classes[rows],
        targets=targets.flatten(1),
        weights=weights.flatten(),
        points=where[0] if points else None,
    )


@torch.no_grad()
def match(class_logits: Tensor, found: Tensor, wanted: ImageTargets, weights: MatchWeights) -> tuple[Tensor, Tensor]:
    """Queries and the objects they are given: two tensors (min(Q, n),) int64, ascending by query.

    Args:
        class_logits: (Q, C + 1), "no object" last.
        found: (Q, P) mask logits at the places of ``wanted``.
        wanted: n objects; the second result counts them from 0.
        weights: Of the parts of the cost.
    """
    probabilities = class_logits.float().softmax(dim=-1)
    masks = pairwise_losses(found, wanted.targets, wanted.weights)
    cost = weights.bce * masks.bce + weights.dice * masks.dice - weights.classes * probabilities[:, wanted.classes]
    return assign(cost)


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (min(Q, n),) of a cost (Q, n) whose sum is least, each used at most once; ascending rows."""
    usable = torch.nan_to_num(cost.detach().double(), nan=UNUSABLE, posinf=UNUSABLE, neginf=UNUSABLE)
    rows, columns = linear_sum_assignment(usable.cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)
