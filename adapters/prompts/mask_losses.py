"""Losses between N mask logits and N true masks, where parts of the image may be unknown.

Each mask has a binary cross-entropy (mean over its known pixels) and a Dice loss. Both are computed on the whole grid of
the logits, with targets that are the true share of every cell, or at points of the continuous image plane, most of them
where the logits are least certain. A cell of (h, w) logits covers H / h by W / w pixels of the network input; nothing
moves by half a pixel on the way.

Source:
    Dice: V-Net, arXiv:1606.04797, section 3, with 1 added above and below as in DETR, arXiv:2005.12872, A.2. Points:
    PointRend, arXiv:1912.08193, section 3.1 (3 N candidates, 75 % of the points the least certain of them), with
    12,544 points as in Mask2Former, arXiv:2112.01527, section 3.3, and RSPrompter, arXiv:2306.16269.
Deviations:
    Points near the border of the image read its last pixels instead of zeros beyond them. Pixels that are not known
    count nowhere; the sources have none.
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
        targets, weights = targets_at(masks, known, where, logits.dtype)
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

    Cells that are smaller than a pixel take the pixel in which their centre lies.

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
    stacked = torch.stack([masks & known, known], dim=1).to(dtype)
    if stacked.shape[0] == 0:
        empty = stacked.new_zeros(0, *size)
        return empty, empty
    fine = size[0] > masks.shape[1] or size[1] > masks.shape[2]
    cells = functional.interpolate(stacked, size=size, mode="nearest-exact" if fine else "area")
    return _share(cells[:, 0], cells[:, 1])


def targets_at(masks: Tensor, known: Tensor, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same at points (N, P, 2), read with linear interpolation between pixel centres; two tensors (N, P)."""
    inside, weights = (read_at(part.to(dtype), points) for part in (masks & known, known))
    return _share(inside, weights)


def read_at(maps: Tensor, points: Tensor) -> Tensor:
    """Values (N, P) of maps (N, h, w) at points (N, P, 2), linear between cell centres, constant beyond the last.

    Args:
        maps: One per row of ``points``.
        points: (x, y) as shares of width and height: (0, 0) is the corner of the image, (1, 1) the opposite one.
    """
    if len(maps) == 0:
        return maps.new_zeros(0, points.shape[1])
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


def _share(inside: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Share of what is known that is inside, and the share that is known."""
    return (inside / known.clamp_min(_tiny(known))).clamp(0, 1), known


def _tiny(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).eps)
