"""Masks of found objects: how sure they are, whether anybody labelled what they show, which of them say the same."""

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.prompts.objects import FoundObjects


def certainty(logits: Tensor) -> Tensor:
    """(N,) in [0.5, 1): mean probability within each mask (N, h, w); 0 for an empty one."""
    inside = logits > 0
    total = (logits.sigmoid() * inside).sum(dim=(1, 2))
    return total / inside.sum(dim=(1, 2)).clamp_min(1)


def in_the_unknown(logits: Tensor, known: Tensor) -> Tensor:
    """(B, Q) bool: whether more than half of a mask (B, Q, h, w) lies where ``known`` (B, H, W) is False."""
    size = (logits.shape[-2], logits.shape[-1])
    unknown = 1 - functional.adaptive_avg_pool2d(known[:, None].to(logits.dtype), size)
    inside = (logits > 0).to(logits.dtype)
    return (inside * unknown).sum(dim=(2, 3)) > 0.5 * inside.sum(dim=(2, 3))


def mask_nms(found: FoundObjects, threshold: float) -> Tensor:
    """Rows (n,) of objects to keep, by falling score: none overlaps a better one of its image by more than this IoU."""
    order = found.scores.argsort(descending=True, stable=True)
    if threshold >= 1 or len(order) < 2:
        return order
    masks = (found.logits[order] > 0).flatten(1).float()
    area, both = masks.sum(dim=1), masks @ masks.T
    iou = both / (area[:, None] + area - both).clamp_min(1)
    image = found.image_index[order]
    rivals = ((iou > threshold) & (image[:, None] == image)).cpu().tolist()
    kept: list[int] = []
    for row, near in enumerate(rivals):
        if not any(near[better] for better in kept):
            kept.append(row)
    return order[torch.tensor(kept, device=order.device)]
