"""Dice + cross-entropy on class logits, with pixels that do not count.

Single-channel (binary) logits x become two channels (0, x): softmax of one channel is constantly 1, so its
cross-entropy is constantly 0 and nothing would be learned.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.errors import ShapeError

IGNORE = -1
"""Label of a pixel that counts neither for the loss nor for a metric."""
_CERTAIN = 30.0
_SMOOTH = 1e-5
"""Added to both sides of the Dice ratio: a class that is nowhere, and is predicted nowhere, costs nothing."""


def as_multiclass(logits: Tensor) -> Tensor:
    """Give binary logits (B, 1, ...) an explicit background channel: (B, 2, ...); others pass unchanged.

    ``softmax(result)[:, 1]`` equals ``sigmoid(logits)[:, 0]``.
    """
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def at_least_float(tensor: Tensor) -> Tensor:
    """Half precision to float32; wider types pass unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class SegmentationLoss(nn.Module):
    """Weighted sum of soft Dice (foreground classes, over the whole batch) and cross-entropy.

    Dice is pooled over the batch, so that a slice without a class does not push that class to nothing. Both terms are
    ratios of sums over pixels; where processes share a batch, ``reduce`` adds up the sums before the ratios are taken,
    since a mean of ratios is another figure.

    Args:
        dice_weight: Weight of Dice.
        ce_weight: Weight of cross-entropy.
        class_weights: Cross-entropy weight per class, background first.
        reduce: Adds a vector of sums over processes (:func:`samgraft.recipes.ranks.sum_over_ranks`); None for one
            process.

    Source:
        The sum, Dice without background and its smoothing follow ``monai.losses.DiceCELoss(batch=True)``, which has no
        ignored label; on one process the value equals MONAI's.
    """

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Remember the weights."""
        super().__init__()
        weight = torch.ones(0) if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weight, persistent=False)
        self.dice_weight, self.ce_weight, self.reduce = dice_weight, ce_weight, reduce

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: (B, K, H, W) or (B, K, D, H, W), K classes with background first; K = 1 means binary.
            labels: (B, H, W) or (B, D, H, W) int64, 0 .. K-1, or ``IGNORE``.

        Raises:
            ShapeError: sizes differ, or a label or class weight does not fit K.
        """
        logits = as_multiclass(at_least_float(logits))
        self._check(logits, labels)
        sums = torch.cat([self._overlaps(logits, labels), self._cross_entropy(logits, labels)])
        if self.reduce is not None:
            sums = self.reduce(sums)
        hit, predicted, true = sums[:-2].view(3, -1)
        ratio = (2 * hit + _SMOOTH) / (2 * (hit + (predicted - hit) * 0.5 + (true - hit) * 0.5) + _SMOOTH)
        loss: Tensor = self.dice_weight * (1 - ratio).mean() + self.ce_weight * sums[-2] / sums[-1].clamp_min(1e-6)
        return loss

    def _overlaps(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums of p t, p and t over all pixels, per foreground class, (3 (K - 1),).

        Ignored pixels are made certain background, which no foreground sum sees.
        """
        certain = torch.zeros_like(logits)
        certain[:, 0] = _CERTAIN
        known = (labels != IGNORE).unsqueeze(1)
        predicted = torch.where(known, logits, certain).softmax(dim=1)[:, 1:]
        true = torch.zeros_like(logits).scatter_(1, labels.clamp_min(0).unsqueeze(1), 1.0)[:, 1:]
        axes = (0, *range(2, logits.ndim))
        return torch.cat([(predicted * true).sum(axes), predicted.sum(axes), true.sum(axes)])

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum over the pixels that count, and their weight, (2,); the mean is 0 if there is none."""
        weights = self._weights()
        weights = None if weights is None else weights.to(logits.dtype)
        total = functional.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")
        counted = labels[labels != IGNORE]
        mass = weights[counted].sum() if weights is not None else total.new_tensor(float(len(counted)))
        return torch.stack([total, mass])

    def _weights(self) -> Tensor | None:
        weights = self.get_buffer("class_weights")
        return weights if len(weights) else None

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        classes = logits.shape[1]
        if logits.shape[2:] != labels.shape[1:] or len(logits) != len(labels):
            raise ShapeError(
                f"labels are {tuple(labels.shape)}; logits {tuple(logits.shape)} need (B, H, W) of the same size"
            )
        if int(labels.max()) >= classes:
            raise ShapeError(
                f"a label is {int(labels.max())}; {classes} classes allow 0 to {classes - 1}; check class_names"
            )
        weights = self._weights()
        if weights is not None and len(weights) != classes:
            raise ShapeError(
                f"class_weights has {len(weights)} values; the network has {classes} classes with background"
            )
