"""UNETR-like mask branch: taps of the encoder and one embedding per prompt to logits at four times the resolution.

    level d = 0, 1, 2 (deepest tap first): residual unit D -> c_d, then d times [transposed conv 2x2, residual unit]
    level 0 joined with the embedding -> residual unit -> x2, joined with level 1 -> residual unit
      -> x2, joined with level 2 -> residual unit -> 1x1 -> logits

Levels 0 to 2 belong to the image and are computed once for all its prompts.

Source:
    DeSAM, arXiv:2306.00499, its prompt-decoupled mask module; layers from its code (yifangao112/DeSAM,
    desam/modeling/mask_decoder.py, class PIMMDecoder). Squeeze and excitation: arXiv:1709.01507.
Deviations:
    Instance norms have scale and shift, and the classifier a bias. The classifier of the coarser level, which the
    released code builds for a deep supervision that it leaves off, is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.decoders.detail import conv_norm

LEVELS = 3
"""Resolutions: that of the neck, twice and four times as fine."""
REDUCTION = 16
"""Of channels, where they are weighed."""


class Squeeze(nn.Module):
    """Weighs channels by what is in the whole map (squeeze and excitation).

    Args:
        channels: Of the map.
    """

    def __init__(self, channels: int) -> None:
        """Create two layers without bias."""
        super().__init__()
        inner = max(1, channels // REDUCTION)
        self.down = nn.Linear(channels, inner, bias=False)
        self.up = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        weights = self.up(functional.relu(self.down(x.mean(dim=(2, 3))))).sigmoid()  # (B, C)
        scaled: Tensor = x * weights[..., None, None]
        return scaled


class SqueezeResidual(nn.Module):
    """Two convolutions, the second one weighed by channel, beside a shortcut; instance norm and leaky ReLU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create the layers; the shortcut has one only where channels change."""
        super().__init__()
        self.first = conv_norm(inputs, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(outputs, affine=True)
        self.squeeze = Squeeze(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _one_by_one(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        weighed = self.squeeze(self.norm(self.second(self.first(x))))
        return functional.leaky_relu(weighed + self.shortcut(x), 0.01)


class MaskBranch(nn.Module):
    """The branch; see the module.

    Args:
        embed_dim: Width D of the taps.
        embedding: Channels of the prompt's embedding.
        width: Channels c_0 of the coarsest level; halved at each finer one. A multiple of 4.
        outputs: Channels of the logits.
    """

    def __init__(self, embed_dim: int, embedding: int, width: int, outputs: int) -> None:
        """Create the layers."""
        super().__init__()
        widths = [width // 2**level for level in range(LEVELS)]
        self.context = nn.ModuleList(_context(embed_dim, own, level) for level, own in enumerate(widths))
        self.join = SqueezeResidual(embedding + width, width)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.doubling = nn.ModuleList(_double(coarse, fine) for coarse, fine in pairs)
        self.merge = nn.ModuleList(SqueezeResidual(2 * fine, fine) for _, fine in pairs)
        self.classifier = nn.Conv2d(widths[-1], outputs, 1)

    def levels(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to the images: (B, c_d, 2^d h, 2^d w) for d = 0, 1, 2.

        Args:
            taps: (B, h, w, D) each, the deepest last. With fewer than three the first one is read again.
        """
        deepest_first = [taps[max(0, len(taps) - 1 - level)] for level in range(LEVELS)]
        parts = zip(self.context, deepest_first, strict=True)
        return [context(tap.permute(0, 3, 1, 2)) for context, tap in parts]

    def forward(self, embedding: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Logits (n, outputs, 4h, 4w) of prompts.

        Args:
            embedding: (n, C, h, w).
            levels: What :meth:`levels` gave, one row per prompt.
        """
        x: Tensor = self.join(torch.cat([embedding, levels[0]], dim=1))
        for double, merge, level in zip(self.doubling, self.merge, levels[1:], strict=True):
            x = merge(torch.cat([double(x), level], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def _context(embed_dim: int, width: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = [SqueezeResidual(embed_dim, width)]
    for _ in range(doublings):
        layers += [_double(width, width), SqueezeResidual(width, width)]
    return nn.Sequential(*layers)


def _double(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)


def _one_by_one(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.InstanceNorm2d(outputs, affine=True))
