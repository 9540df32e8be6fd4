"""Small convolutional parts of the class-token decoder: an image pyramid and residual refinement."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImagePyramid(nn.Module):
    """Local detail of the image at strides 1, 2, 4, ...: what the patch embedding of the frozen encoder averaged away.

    Args:
        channels: Channels per level, first the one at full resolution.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        """Two convolutions per level; every level but the first starts with a stride of 2."""
        super().__init__()
        self.levels = nn.ModuleList()
        previous = 3
        for level, width in enumerate(channels):
            self.levels.append(
                nn.Sequential(conv_norm(previous, width, stride=1 if level == 0 else 2), conv_norm(width, width))
            )
            previous = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of ``image`` (B, 3, H, W) in [0, 1]; item i is (B, channels[i], H / 2^i, W / 2^i)."""
        x = image * 4 - 2
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class Refine(nn.Module):
    """Adds to a feature map what two convolutions make of it and of the image level of the same size.

    Args:
        channels: Channels of the map.
        skip: Channels of the image level.
        hidden: Inner width.
    """

    def __init__(self, channels: int, skip: int, hidden: int) -> None:
        """Create the convolutions."""
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(channels + skip, hidden), conv_norm(hidden, hidden), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Refined map, shaped as ``x`` (B, channels, h, w); ``skip`` is (B, skip, h, w)."""
        refined: Tensor = x + self.body(torch.cat([x, match_size(skip, x)], dim=1))
        return refined


def conv_norm(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, group norm over groups of 4 channels, GELU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(max(1, outputs // 4), outputs),
        nn.GELU(),
    )


def match_size(x: Tensor, like: Tensor) -> Tensor:
    """``x`` as it is, or interpolated to the height and width of ``like`` (patch sizes that are no power of 2)."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
