"""Images with a known object away from the diagonal, not square, and references made of them."""

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.prompts import References, make_references

SIZE = (64, 96)
BOX = (56, 8, 79, 31)
"""x0, y0, x1, y1: upper right, far from the diagonal; on whole cells of 8 pixels."""


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Image (1, 3, H, W) with bright boxes on dark noise, and their mask (1, 1, H, W)."""
    mask = torch.zeros(1, 1, *size)
    for x0, y0, x1, y1 in boxes or (BOX,):
        mask[..., y0 : y1 + 1, x0 : x1 + 1] = 1
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return 0.15 * noise + 0.8 * mask, mask


def shown(backbone: Backbone, image: Tensor, mask: Tensor) -> tuple[Features, References]:
    """Features of an image with all taps, and the same image as a reference."""
    taps = tuple(range(backbone.spec.num_blocks))
    with torch.no_grad():
        return backbone.encode(image, taps), make_references(image, mask).encode(backbone, taps)


def inside(points: Tensor, box: tuple[int, int, int, int] = BOX) -> list[bool]:
    """Whether points (p, 2) lie in a box."""
    return [bool(box[0] <= x <= box[2] and box[1] <= y <= box[3]) for x, y in points.tolist()]


def overlap(a: Tensor, b: Tensor) -> float:
    """IoU of two boolean masks."""
    return float((a & b).sum() / (a | b).sum().clamp_min(1))
