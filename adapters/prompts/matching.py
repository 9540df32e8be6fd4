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

from samgraft.adapters.prompts.mask_losses import (
    MaskLosses,
    at_least_float,
    cell_share,
    mask_bce,
    mask_dice,
    mask_losses,
    pairwise_losses,
    pixels_at,
    read_at,
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
    """(1, P, 2) shares of the image; None where the places are the cells of the logits."""

    def read(self, logits: Tensor) -> Tensor:
        """Mask logits (Q, P) at the places, from maps (Q, h, w)."""
        return logits.flatten(1) if self.points is None else read_at(logits, self.points.expand(len(logits), -1, -1))


class Truth:
    """The objects of a batch as targets for mask logits of one size; worked out once, used for every layer.

    Args:
        objects: Of the batch.
        size: (h, w) of the mask logits.
        points: Places per mask, where it has more than twice as many cells; otherwise all cells are compared, which
            is exact and costs less than drawing.
        dtype: Of targets and weights.
    """

    def __init__(self, objects: Objects, size: tuple[int, int], *, points: int, dtype: torch.dtype) -> None:
        """Prepare the targets."""
        self.objects = objects
        self.points = points if size[0] * size[1] > 2 * points else 0
        images = range(len(objects.known))
        if self.points:
            self.images = [self._drawn(image, dtype) for image in images]
            return
        self.weights = cell_share(objects.known, size, dtype).flatten(1)  # (B, P)
        index = objects.image_index
        inside = cell_share(objects.masks & objects.known[index], size, dtype).flatten(1)
        self.targets = share_of_known(inside, self.weights[index])  # (N, P)
        self.images = [self._celled(image) for image in images]

    def losses(self, logits: Tensor, rows: Tensor) -> MaskLosses:
        """Losses of masks (n, h, w) that should be the objects ``rows`` (n,)."""
        index = self.objects.image_index[rows]
        if self.points:
            return mask_losses(logits, self.objects.masks[rows], self.objects.known[index], points=self.points)
        found, targets, weights = at_least_float(logits).flatten(1), self.targets[rows], self.weights[index]
        return MaskLosses(bce=mask_bce(found, targets, weights), dice=mask_dice(found, targets, weights))

    def _celled(self, image: int) -> ImageTargets:
        rows = self.objects.of(image)
        classes = self.objects.classes[rows]
        return ImageTargets(
            rows=rows, classes=classes, targets=self.targets[rows], weights=self.weights[image], points=None
        )

    def _drawn(self, image: int, dtype: torch.dtype) -> ImageTargets:
        rows, known = self.objects.of(image), self.objects.known[image][None]
        points = torch.rand(1, self.points, 2, device=known.device, dtype=dtype)
        targets = pixels_at(self.objects.masks[rows], points.expand(len(rows), -1, -1), dtype)
        weights = pixels_at(known, points, dtype)[0]
        return ImageTargets(
            rows=rows, classes=self.objects.classes[rows], targets=targets, weights=weights, points=points
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
