"""Losses between N mask logits and N true masks, where parts of the image may be unknown.

Each mask has a binary cross-entropy (mean over its known pixels) and a Dice loss. Both are computed on the whole grid
of the logits, with targets that are the true share of every cell, or at points of the continuous image plane, most of
them where the logits are least certain. A cell of (h, w) logits covers H / h by W / w pixels of the network input;
nothing moves by half a pixel on the way.

Source:
    Dice: V-Net, arXiv:1606.04797, section 3, with 1 added above and below as in DETR, arXiv:2005.12872, A.2. Points:
    PointRend, arXiv:1912.08193, section 3.1 (3 N candidates, 75 % of the points the least certain of them), with
    12,544 points as in Mask2Former, arXiv:2112.01527, section 3.3, and RSPrompter, arXiv:2306.16269.
Deviations:
    A point takes the true value of the pixel in which it lies; the sources interpolate masks there. Near the border of
    the image it reads the last logits instead of zeros beyond them. Pixels that are not known count nowhere; the
    sources have none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ShapeError

POINTS = 12544
"""Published number of points per mask (112 squared)."""
OVERSAMPLE = 3
"""Candidates per point."""
IMPORTANCE = 0.75
"""Share of points that are the least certain candidates."""
CHUNK = 32
"""Masks that are resized at once: as numbers they take four times the memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskLosses:
    """Losses of N masks."""

    bce: Tensor
    """(N,): mean binary cross-entropy of known pixels."""
    dice: Tensor
    """(N,) in [0, 1]."""


def mask_losses(
    logits: Tensor, masks: Tensor, known: Tensor, *, points: int = 0, generator: torch.Generator | None = None
) -> MaskLosses:
    """Losses of N masks over the whole network input.

    Args:
        logits: (N, h, w).
        masks: (N, H, W) bool, true masks at the size of the network input.
        known: (N, H, W) bool, where each mask is known.
        points: 0 for every cell of the logits, else the number of points per mask (:data:`POINTS`).
        generator: For the points; None for torch's own.
    """
    logits = at_least_float(logits)
    if points:
        where = uncertain_points(logits.detach(), points, generator=generator)
        weights = pixels_at(known, where, logits.dtype)
        targets = pixels_at(masks, where, logits.dtype)
        found = read_at(logits, where)
    else:
        size = (logits.shape[-2], logits.shape[-1])
        targets, weights = (part.flatten(1) for part in resize_targets(masks, known, size, logits.dtype))
        found = logits.flatten(1)
    return MaskLosses(bce=mask_bce(found, targets, weights), dice=mask_dice(found, targets, weights))


def mask_bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(N,): weighted mean binary cross-entropy of logits (N, P) with targets in [0, 1]; 0 where no weight is."""
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (each * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(_tiny(weights))


def mask_dice(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(N,): 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) over weighted cells (N, P); p are the probabilities."""
    probabilities = logits.sigmoid() * weights
    both = (probabilities * targets).sum(dim=1)
    total = probabilities.sum(dim=1) + (targets * weights).sum(dim=1)
    return 1 - (2 * both + 1) / (total + 1)


def pairwise_losses(logits: Tensor, targets: Tensor, weights: Tensor) -> MaskLosses:
    """Losses of every one of Q masks with every one of n true ones of the same image, each (Q, n).

    Args:
        logits: (Q, P), at P places.
        targets: (n, P) in [0, 1].
        weights: (P,): how well each place is known, 0 to 1.
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):  # differences of large sums
        logits = at_least_float(logits)
        wanted = (targets * weights).T  # (P, n)
        # cross-entropy of logit x with target t is softplus(x) - x t
        bce = (functional.softplus(logits) @ weights)[:, None] - logits @ wanted
        probabilities = logits.sigmoid()
        total = (probabilities @ weights)[:, None] + wanted.sum(dim=0)
        dice = 1 - (2 * probabilities @ wanted + 1) / (total + 1)
        return MaskLosses(bce=bce / weights.sum().clamp_min(_tiny(weights)), dice=dice)


def resize_targets(masks: Tensor, known: Tensor, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets and weights of cells: share of each cell's known pixels that is inside, and share that is known.

    Args:
        masks: (N, H, W) bool.
        known: (N, H, W) bool.
        size: (h, w) of the cells.
        dtype: Of the results.

    Returns:
        Two tensors (N, h, w) in [0, 1]; the target is 0 where the weight is.

    Raises:
        ShapeError: masks and known differ in shape.
    """
    if masks.shape != known.shape:
        raise ShapeError(f"masks are {tuple(masks.shape)}, known is {tuple(known.shape)}; give one plane per mask")
    inside, weights = cell_share(masks & known, size, dtype), cell_share(known, size, dtype)
    return share_of_known(inside, weights), weights


def cell_share(masks: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Share (N, h, w) of each cell's pixels that is True in (N, H, W); small cells take the pixel at their centre."""
    fine = size[0] > masks.shape[1] or size[1] > masks.shape[2]
    mode = "nearest-exact" if fine else "area"
    parts = [
        functional.interpolate(few[:, None].to(dtype), size=size, mode=mode)[:, 0]
        for few in masks.split(CHUNK)
        if len(few)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, *size, device=masks.device, dtype=dtype)


def share_of_known(inside: Tensor, known: Tensor) -> Tensor:
    """Share in [0, 1] of what is known that is inside; 0 where nothing is known."""
    return (inside / known.clamp_min(_tiny(known))).clamp(0, 1)


def pixels_at(masks: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the pixel of (N, H, W) bool in which each of the points (N, P, 2) lies is True: (N, P), 0 or 1."""
    height, width = masks.shape[-2:]
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    row = (points[..., 1] * height).long().clamp(0, height - 1)
    return masks.flatten(1).gather(1, row * width + column).to(dtype)


def read_at(maps: Tensor, points: Tensor) -> Tensor:
    """Values (N, P) of maps (N, h, w) at points (N, P, 2), linear between cell centres, constant beyond the last.

    Args:
        maps: One per row of ``points``.
        points: (x, y) as shares of width and height: (0, 0) is the corner of the image, (1, 1) the opposite one.
    """
    if len(maps) == 0:  # an empty result with a graph; kernels refuse to sample nothing
        return maps.sum() * points[..., 0].to(maps.dtype)
    grid = 2 * points[:, None].to(maps.dtype) - 1  # (N, 1, P, 2)
    found = functional.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, 0, 0]


def uncertain_points(
    logits: Tensor,
    count: int,
    *,
    oversample: float = OVERSAMPLE,
    importance: float = IMPORTANCE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points (N, count, 2), (x, y) shares of the image, mostly where |logits| are small.

    Args:
        logits: (N, h, w).
        count: Points per mask.
        oversample: Uniform candidates per point.
        importance: Share of points that are the candidates nearest to 0; the others are uniform.
        generator: None for torch's own.
    """
    number, device, dtype = len(logits), logits.device, logits.dtype
    chosen = int(importance * count)
    drawn = torch.rand(number, int(oversample * count), 2, generator=generator, device=device, dtype=dtype)
    rest = torch.rand(number, count - chosen, 2, generator=generator, device=device, dtype=dtype)
    nearest = read_at(logits, drawn).abs().topk(chosen, dim=1, largest=False).indices
    return torch.cat([drawn.gather(1, nearest[..., None].expand(-1, -1, 2)), rest], dim=1)


def at_least_float(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or as it is if wider: sums over a mask do not fit half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _tiny(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).eps)
