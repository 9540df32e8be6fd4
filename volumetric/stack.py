"""Slices of volumes stand one after the other in the batch; here they are brought back into volumes and out again.

Row b * D + z of a batch is slice z of volume b (docs/adr/0007-volumes.md).
"""

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ShapeError


def as_volumes(x: Tensor, depth: int) -> Tensor:
    """(B * D, ...) to (B, D, ...), D = ``depth``.

    Raises:
        ShapeError: the rows are no multiple of ``depth``.
    """
    if depth < 1 or len(x) % depth:
        raise ShapeError(f"{len(x)} rows are no volumes of {depth} slices; give a multiple of that many")
    volumes: Tensor = x.unflatten(0, (-1, depth))
    return volumes


def as_slices(x: Tensor) -> Tensor:
    """(B, D, ...) to (B * D, ...)."""
    return x.flatten(0, 1)


def channels_first(x: Tensor, depth: int) -> Tensor:
    """Tokens (B * D, h, w, C) to (B, C, D, h, w)."""
    return as_volumes(x, depth).permute(0, 4, 1, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, D, h, w) to tokens (B * D, h, w, C)."""
    return as_slices(x.permute(0, 2, 3, 4, 1))


def image_volume(image: Tensor, depth: int) -> Tensor:
    """Images (B * D, C, H, W) to (B, C, D, H, W)."""
    return as_volumes(image, depth).transpose(1, 2)


def slice_maps(x: Tensor) -> Tensor:
    """Maps (B, K, D, h, w) to (B * D, K, h, w)."""
    return as_slices(x.transpose(1, 2))


def depth_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution over slices, zeros beyond the first and the last: one product instead of a convolution.

    Args:
        x: (B, D, ..., C).
        weight: (O, C, k), k odd; entry [:, :, 0] meets the slice (k - 1) / 2 before.
        bias: (O,) or None.

    Returns:
        (B, D, ..., O).
    """
    reach, depth = weight.shape[2] // 2, x.shape[1]
    pads = [0, 0] * (x.ndim - 2) + [reach, reach]
    padded = functional.pad(x, pads)
    around = torch.cat([padded[:, step : step + depth] for step in range(weight.shape[2])], dim=-1)
    return functional.linear(around, weight.transpose(1, 2).flatten(1), bias)
