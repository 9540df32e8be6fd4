"""One-to-one matching of queries with the true objects of an image, and the targets that follow from it.

Every object is given to one query so that the sum of costs is least. The cost of a pair is
``class x -p(class) + bce x cross-entropy + dice x Dice``, with mask terms over the cells of coarse mask logits.

Source:
    DETR, arXiv:2005.12872, section 3.1; weights 2, 5, 5 of RSPrompter, arXiv:2306.16269 (KyanChen/RSPrompter, branch
    lightning).
Deviations:
    Masks are compared on all cells of a coarse grid, with targets that are the true share of each; the released code
    draws 12,544 points, which is more work and less exact. Pixels that are not known count in no cost.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from samgraft.adapters.prompts.mask_losses import (
    MaskLosses,
    at_least_float,
    cell_share,
    mask_bce,
    mask_dice,
    mask_losses,
    pairwise_losses,
    share_of_known,
)
from samgraft.adapters.prompts.objects import Objects

UNUSABLE = 1e6
"""Stands for a cost that is not finite, as after an overflow in half precision: the step is skipped later."""


@dataclass(frozen=True, kw_only=True)
class MatchWeights:
    """Weights of the parts of a cost, and of the losses of the same name."""

    classes: float = 2.0
    bce: float = 5.0
    dice: float = 5.0


class Truth:
    """The objects of a batch as targets for mask logits of one size; worked out once, used for every layer.

    Args:
        objects: Of the batch.
        size: (h, w) of the mask logits.
        points: Places per mask in :meth:`losses`, where it has more than twice as many cells; otherwise, and with 0,
            all cells are compared, which is exact and costs less than drawing.
        dtype: Of targets and weights.
    """

    def __init__(self, objects: Objects, size: tuple[int, int], *, points: int = 0, dtype: torch.dtype) -> None:
        """Prepare the targets."""
        self.objects = objects
        self.points = points if size[0] * size[1] > 2 * points else 0
        if self.points:
            return
        index = objects.image_index
        self.weights = cell_share(objects.known, size, dtype).flatten(1)  # (B, P)
        inside = cell_share(objects.masks & objects.known[index], size, dtype).flatten(1)
        self.targets = share_of_known(inside, self.weights[index])  # (N, P)

    def losses(self, logits: Tensor, rows: Tensor) -> MaskLosses:
        """Losses of masks (n, h, w) that should be the objects ``rows`` (n,)."""
        index = self.objects.image_index[rows]
        if self.points:
            return mask_losses(logits, self.objects.masks[rows], self.objects.known[index], points=self.points)
        found, targets, weights = at_least_float(logits).flatten(1), self.targets[rows], self.weights[index]
        return MaskLosses(bce=mask_bce(found, targets, weights), dice=mask_dice(found, targets, weights))


@torch.no_grad()
def match(
    class_logits: Tensor, masks: Tensor, truth: Truth, image: int, weights: MatchWeights
) -> tuple[Tensor, Tensor]:
    """Queries of one image and the objects they are given: two tensors (min(Q, n),) int64, ascending by query.

    Args:
        class_logits: (Q, C + 1), "no object" last.
        masks: (Q, h, w) logits of the size of ``truth``, all of whose cells are compared.
        truth: The objects, made without ``points``.
        image: Which image; the second result counts rows of ``Objects``.
        weights: Of the parts of the cost.
    """
    rows = truth.objects.of(image)
    probabilities = class_logits.float().softmax(dim=-1)
    pairs = pairwise_losses(masks.flatten(1), truth.targets[rows], truth.weights[image])
    cost = weights.bce * pairs.bce + weights.dice * pairs.dice
    queries, columns = assign(cost - weights.classes * probabilities[:, truth.objects.classes[rows]])
    return queries, rows[columns]


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (min(Q, n),) of a cost (Q, n) whose sum is least, each used at most once; ascending rows."""
    usable = torch.nan_to_num(cost.detach().double(), nan=UNUSABLE, posinf=UNUSABLE, neginf=UNUSABLE)
    rows, columns = linear_sum_assignment(usable.cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)
