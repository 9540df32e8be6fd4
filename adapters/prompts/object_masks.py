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


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """(n, m) IoU of masks (n, h, w) bool with masks (m, h, w) bool; 0 where both are empty."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp_min(1)


def suppress_masks(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows of masks (n, h, w) bool that stay, the best first: none overlaps a better one by more than ``threshold``."""
    order = scores.argsort(descending=True, stable=True)
    overlap = mask_iou(masks[order], masks[order]) > threshold
    kept = torch.ones(len(order), dtype=torch.bool, device=masks.device)
    for place in range(len(order)):
        if kept[place]:
            kept[place + 1 :] &= ~overlap[place, place + 1 :]
    return order[kept]


def best_of_each_image(found: FoundObjects, threshold: float) -> Tensor:
    """Rows (n,) of objects to keep, image by image and the best first; see :func:`suppress_masks`."""
    kept = []
    for number in found.image_index.unique().tolist():
        rows = (found.image_index == number).nonzero().flatten()
        kept.append(rows[suppress_masks(found.logits[rows] > 0, found.scores[rows], threshold)])
    return torch.cat(kept) if kept else found.image_index[:0]


def mask_nms(found: FoundObjects, threshold: float) -> Tensor:
    """Rows (n,) of objects to keep, by falling score: none overlaps a better one of its image by more than this IoU."""
    stays = torch.zeros(len(found), dtype=torch.bool, device=found.scores.device)
    stays[best_of_each_image(found, threshold)] = True
    order = found.scores.argsort(descending=True, stable=True)
    return order[stays[order]]
