"""Maps for detectors out of a frozen plain encoder: taps of many blocks joined into one map, a pyramid of that map.

    tap_i (B, h, w, D) -> 1x1 to `hidden`, norm, ReLU -> 3x3, norm, ReLU -> f_i
    x = 0;  for each i:  x <- x + f_i;  x <- x + CNR_i(x)          (CNR: 3x3, norm, ReLU)
    x -> 1x1 to `out`, norm, ReLU -> 3x3, norm, ReLU -> 3x3 -> (B, out, h, w)

A pyramid of the map (:class:`SimpleFpn`) has strides of patch / 4, patch / 2, patch, 2 patch and 4 patch pixels. What
is read from these maps knows no place, so :func:`sine_positions` is added where a place is needed; :func:`sine_tokens`
keeps learned prompt tokens in the range of SAM's own.

Source:
    RSPrompter, arXiv:2306.16269, section 3 (feature aggregator, sine-regularised tokens), in the form of the second
    release of its code (KyanChen/RSPrompter, branch release, mmdet/rsprompter/models.py: RSFeatureAggregator,
    RSSimpleFPN). Simple pyramid: ViTDet, arXiv:2203.16527, section 3. Positions: DETR, arXiv:2005.12872, appendix A.4.
Deviations:
    Group norm by default: the released BatchNorm has running statistics of one or two images per step, and training
    and use then differ; ``norm="batch"`` gives the published layers (the numbers of parameters are the same).
    Encoders with fewer than 12 blocks are read after every block, not every other one. The levels above the patch
    are average and maximum pools that keep a last incomplete cell, so that any number of tokens works; the released
    extra level takes every other cell of the one before, which moves it by half a cell.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamLayerNorm

from samgraft.adapters.config import check_choice
from samgraft.errors import ShapeError

Norm = Literal["group", "batch"]
"""Kinds of normalisation that a :class:`FeatureAggregator` can have."""


def taps_for(num_blocks: int) -> tuple[int, ...]:
    """Blocks whose output is read: every other one from the first, or every one of an encoder with fewer than 12.

    The published selection, hidden states 1, 3, 5, ... with the patch embedding as number 0, is blocks 0, 2, 4, ...:
    6 maps of SAM-B, 12 of L, 16 of H.
    """
    return tuple(range(0, num_blocks, 2 if num_blocks >= 12 else 1))


class FeatureAggregator(nn.Module):
    """Joins taps (B, h, w, D) to one map (B, out, h, w).

    Args:
        embed_dim: Width D of a tap.
        maps: Number of taps.
        hidden: Channels in which taps are added up.
        out: Channels of the result.
        norm: "group", or "batch" as published.
    """

    def __init__(self, embed_dim: int, maps: int, hidden: int = 32, out: int = 256, *, norm: Norm = "group") -> None:
        """Create the layers."""
        super().__init__()
        check_choice("feature aggregator", "norm", norm, ("group", "batch"))
        self.reduce = nn.ModuleList(
            nn.Sequential(*_conv(embed_dim, hidden, 1, norm), *_conv(hidden, hidden, 3, norm)) for _ in range(maps)
        )
        self.refine = nn.ModuleList(nn.Sequential(*_conv(hidden, hidden, 3, norm)) for _ in range(maps))
        self.fuse = nn.Sequential(
            *_conv(hidden, out, 1, norm), *_conv(out, out, 3, norm), nn.Conv2d(out, out, 3, padding=1)
        )

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """(B, out, h, w).

        Args:
            taps: As many tensors (B, h, w, D) as ``maps``, from the first block to the last.

        Raises:
            ShapeError: another number of taps.
        """
        if len(taps) != len(self.reduce):
            raise ShapeError(f"{len(taps)} taps were given; this aggregator joins {len(self.reduce)}; encode with them")
        x: Tensor | None = None
        for tap, reduce, refine in zip(taps, self.reduce, self.refine, strict=True):
            found = reduce(tap.permute(0, 3, 1, 2))  # (B, hidden, h, w)
            x = found if x is None else x + found
            x = x + refine(x)
        fused: Tensor = self.fuse(x)
        return fused


class SimpleFpn(nn.Module):
    """Pyramid of one map (B, C, h, w): five levels (B, out, ...) with strides of 1/4, 1/2, 1, 2 and 4 patches.

    Cell (i, j) of a level with a stride of s pixels covers rows s i to s (i + 1) and columns s j to s (j + 1). Levels
    have 4h, 2h, h, ceil(h / 2) and ceil(h / 4) rows.

    Args:
        channels: Channels C; a multiple of 4.
        out: Channels of every level; None for as many as come in.
    """

    STRIDES = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Pixels per cell of each level, as a share of the patch."""

    def __init__(self, channels: int, out: int | None = None) -> None:
        """Create the layers."""
        super().__init__()
        width = out or channels
        half, quarter = channels // 2, channels // 4
        self.scale = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(channels, half, 2, stride=2),
                    channel_norm(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(channels, half, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, width, 1, bias=False),
                channel_norm(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                channel_norm(width),
            )
            for inputs in (quarter, half, channels, channels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Levels from fine to coarse."""
        levels = [smooth(scale(x)) for scale, smooth in zip(self.scale, self.smooth, strict=True)]
        coarsest = functional.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False)
        return (*levels, coarsest)


def sine_tokens(x: Tensor) -> Tensor:
    """Prompt tokens (..., C) of free numbers (..., 2C): ``sin(even channels) + odd channels``.

    The first part stays within [-1, 1], like SAM's position code; the second is as free as its learned embeddings.
    """
    return x[..., 0::2].sin() + x[..., 1::2]


def sine_positions(grid: tuple[int, int], channels: int, *, like: Tensor) -> Tensor:
    """Position code of the cell centres of a map, (channels, h, w), in [-1, 1].

    Half of the channels is for rows, half for columns, each with pairs of sine and cosine at frequencies from 1 down
    to 1 / 10000, over angles from 0 to 2 pi across the map.

    Args:
        grid: (h, w).
        channels: A multiple of 4.
        like: Gives device and type of the result.

    Raises:
        ShapeError: ``channels`` is no multiple of 4.
    """
    if channels % 4:
        raise ShapeError(f"a sine position code cannot have {channels} channels; give a multiple of 4")
    pairs = channels // 4
    wide = torch.promote_types(like.dtype, torch.float32)
    powers = torch.arange(pairs, device=like.device, dtype=wide) / pairs
    lines = []
    for cells in grid:
        place = (torch.arange(cells, device=like.device, dtype=wide) + 0.5) / cells * 2 * math.pi
        angle = place[None] / 10000 ** powers[:, None]  # (pairs, cells)
        lines.append(torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1))  # (channels / 2, cells)
    rows, columns = lines
    height, width = grid
    code = torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])
    return code.to(like.dtype)


def channel_norm(channels: int) -> nn.Module:
    """LayerNorm over the channels of (B, C, h, w), at each place."""
    norm: nn.Module = SamLayerNorm(channels, eps=1e-6, data_format="channels_first")
    return norm


def _conv(inputs: int, outputs: int, kernel: int, norm: Norm) -> tuple[nn.Module, ...]:
    """Convolution of the same size, norm, ReLU."""
    kind = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), kind, nn.ReLU()
