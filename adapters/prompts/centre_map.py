"""A map of where objects have their centres: the target, its loss, and the cells to begin with.

Every object is a bell of height 1 around its centre of mass; the cell that holds the centre is 1 exactly. The loss is a
focal cross-entropy in which cells near a centre count less as background.

Source:
    CenterNet, arXiv:1904.07850, section 3 (exponents 2 and 4; peaks are the largest of their 3 x 3 neighbours).
Deviations:
    The centre of mass stands for the middle of the box, and the bell has a quarter of the diameter of a disc of the
    same area as its standard deviation, at least half a cell. Cells count as much as they are known.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.prompts.mask_losses import cell_share
from samgraft.adapters.prompts.objects import Objects


def centre_map(objects: Objects, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(B, h, w) in [0, 1], for cells that cover H / h by W / w pixels.

    Args:
        objects: Of B images.
        size: (h, w).
        dtype: Of the result.
    """
    found = torch.zeros(len(objects.known), *size, device=objects.masks.device, dtype=dtype)
    if len(objects) == 0:
        return found
    scale = size[0] / objects.masks.shape[1]  # cells are square
    middle, area = centres(objects.masks, dtype)
    middle = middle * scale  # (N, 2), (x, y)
    spread = (area / math.pi).sqrt() * scale / 2
    y, x = (torch.arange(n, device=found.device, dtype=dtype) + 0.5 for n in size)
    square = (x - middle[:, :1]).square()[:, None] + (y - middle[:, 1:]).square()[:, :, None]  # (N, h, w)
    bells = torch.exp(-square / (2 * spread.clamp_min(0.5).square()[:, None, None]))
    column, row = middle.long().unbind(dim=1)
    bells[torch.arange(len(bells), device=found.device), row.clamp(0, size[0] - 1), column.clamp(0, size[1] - 1)] = 1
    for image in objects.image_index.unique().tolist():
        found[image] = bells[objects.of(image)].amax(dim=0)
    return found


def centres(masks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Centres of mass (N, 2), (x, y) where pixel (i, j) has its own at (j + 0.5, i + 0.5), and areas (N,).

    Args:
        masks: (N, H, W) bool.
        dtype: Of the results.
    """
    lines = [masks.sum(dim=axis).to(dtype) for axis in (1, 2)]  # per column, per row
    area = lines[0].sum(dim=1)
    places = [line @ (torch.arange(line.shape[1], device=masks.device, dtype=dtype) + 0.5) for line in lines]
    return torch.stack(places, dim=1) / area.clamp_min(1)[:, None], area


def centre_loss(logits: Tensor, objects: Objects) -> Tensor:
    """Mean per object of the focal cross-entropy of logits (B, h, w)."""
    size = (logits.shape[-2], logits.shape[-1])
    wanted, known = (
        centre_map(objects, size, logits.dtype),
        cell_share(objects.known, size, logits.dtype),
    )
    found = logits.sigmoid()
    hit = (1 - found).square() * functional.softplus(-logits)
    false = (1 - wanted) ** 4 * found.square() * functional.softplus(logits)
    return (torch.where(wanted == 1, hit, false) * known).sum() / max(len(objects), 1)


def best_cells(logits: Tensor, count: int) -> Tensor:
    """(B, min(count, h w)) cells of maps (B, h, w), row by row from 0: peaks by falling value, then the others."""
    peaks = functional.max_pool2d(logits[:, None], 3, stride=1, padding=1)[:, 0] == logits
    order = torch.where(peaks, logits.sigmoid() + 1, logits.sigmoid()).flatten(1)
    return order.topk(min(count, order.shape[1]), dim=1).indices
