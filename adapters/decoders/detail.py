"""Convolutional path from token maps and the image back to fine resolution.

A patch embedding keeps every pixel but orders none of them: borders that run inside a patch are hard to read from
frozen tokens. This path meets the tokens with local features of the image itself, as a U-Net does with its skips.

    image -> stride s, 2 s, ..., patch        tokens (h, w) + coarsest level -> x2 + level -> ... -> stride s

Source:
    UNETR, arXiv:2103.10504, section 3.1 (transformer features in a U-Net decoder); instance norm and leaky ReLU as in
    nnU-Net, arXiv:1809.10486.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class DetailPath(nn.Module):
    """From tokens (B, C, h, w) and the image to a map (B, widths[0], H / stride, W / stride).

    Args:
        tokens: Channels C of the token map.
        patch: Pixels per token side.
        stride: Pixels per side of the finest level, see :func:`finest_stride`; 1 for the image's own resolution.
        width: Channels at a quarter of the patch; doubled at every coarser level, at most four times, and halved at
            every finer one, at least 8.
    """

    def __init__(self, tokens: int, patch: int, *, stride: int, width: int = 16) -> None:
        """Create the levels."""
        super().__init__()
        self.stride = stride
        steps = round(math.log2(patch / stride))
        widths = [_width(width, 4 * stride * 2**level / patch) for level in range(steps + 1)]
        self.widths = tuple(widths)
        inputs = [3 * stride**2, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(conv_norm(before, after, stride=1 if level == 0 else 2), conv_norm(after, after))
            for level, (before, after) in enumerate(zip(inputs, widths, strict=True))
        )
        self.top = Residual(tokens + widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Residual(coarse + fine, fine) for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Fine map.

        Args:
            image: (B, 3, H, W) in [0, 1].
            tokens: (B, C, h, w).
        """
        x: Tensor = functional.pixel_unshuffle(image * 4 - 2, self.stride)
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = self.top(torch.cat([tokens, match_size(levels[-1], tokens)], dim=1))
        for up, level in zip(self.up, levels[-2::-1], strict=True):
            x = up(torch.cat([match_size(x, level), level], dim=1))
        return x


class TokenFusion(nn.Module):
    """Normalises taps of the encoder and joins them with the neck: (B, C, h, w).

    Args:
        taps: Number of taps.
        embed_dim: Width of a tap.
        neck: Channels of the neck.
        width: Channels C of the result.
    """

    def __init__(self, taps: int, embed_dim: int, neck: int, width: int) -> None:
        """Create norms and the linear map."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(taps))
        self.join = nn.Linear(taps * embed_dim + neck, width, bias=False)
        self.norm = nn.InstanceNorm2d(width, affine=True)

    def forward(self, taps: Sequence[Tensor], neck: Tensor) -> Tensor:
        """Join taps (B, h, w, D) and neck (B, N, h, w)."""
        parts = [norm(tap) for norm, tap in zip(self.norms, taps, strict=True)]
        joined = self.join(torch.cat([*parts, neck.permute(0, 2, 3, 1)], dim=-1))
        fused: Tensor = self.norm(joined.permute(0, 3, 1, 2))
        return fused


class Residual(nn.Module):
    """Two convolutions beside a linear shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create the convolutions."""
        super().__init__()
        self.body = nn.Sequential(conv_norm(inputs, outputs), conv_norm(outputs, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


def conv_norm(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, instance norm with scale and shift, leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(0.01),
    )


def finest_stride(patch: int) -> int:
    """Pixels per cell that come near SAM's masks (four cells per patch side): a power of 2 that divides ``patch``."""
    stride = 1
    while patch % (2 * stride) == 0 and 4 * 2 * stride <= patch:
        stride *= 2
    return stride


def match_size(x: Tensor, like: Tensor) -> Tensor:
    """``x`` as it is, or interpolated to the height and width of ``like``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _width(base: int, share: float) -> int:
    return max(8, min(4 * base, round(base * share)))
