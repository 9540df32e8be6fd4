"""Convolutional head of Learnable Ophthalmology SAM: class maps from the frozen neck, without prompts or mask decoder.

    neck (B, C, h, w) -> 2 x [transposed conv 2x2 stride 2, halving channels -> norm over channels -> GELU]
      -> 4 groups of channels: 1x1, and depthwise 3x3 with dilation 1, 2, 3 -> joined -> group norm -> GELU
      -> 1x1 -> (B, K, 4h, 4w)

165,296 + 65 K parameters for a neck of 256 channels. Made for the graft "learnable_prompt"; works with any other.

Source:
    Learnable Ophthalmology SAM, arXiv:2304.13425, its section on the task head; layers from its code
    (Qsingle/LearnablePromptSAM, learnerable_seg.py, classes PromptSAM and MSConv2d).
Deviations:
    GroupNorm, one group per scale, stands for BatchNorm: it was trained with one image per batch, and running
    statistics of so few images would make training and use differ. Logits stay at four per patch side, as those of
    other decoders; whoever wants more resizes them with ``SemanticOutput.resize`` (pixel centres; published: aligned
    corners). Background is an explicit channel or, with "sigmoid", none; the released code leaves that to the user.
    Channels after the second halving are rounded up to a multiple of 4, so that a neck of any width works.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.semantic import SemanticConfig

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

DILATIONS = (1, 2, 3)
"""Of the depthwise convolutions; one more group of channels has a 1x1."""


@dataclass(frozen=True, kw_only=True)
class ConvHeadConfig(SemanticConfig):
    """Semantic decoder of convolutions on the neck, with explicit background."""

    method: ClassVar[str] = "conv_head"

    def build(self, backbone: Backbone) -> "ConvHead":
        """Create the head; ``backbone`` is only read."""
        return ConvHead(self, backbone)


class ConvHead(DecoderPatch):
    """Upsampling, a multi-scale block and a classifier."""

    def __init__(self, config: ConvHeadConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        like, channels = next(backbone.parameters()), backbone.spec.neck_channels
        groups = 1 + len(DILATIONS)
        half, quarter = -(-channels // 2), -(-channels // (4 * groups)) * groups
        with torch.device(like.device):
            self.upscale = nn.Sequential(*doubled(channels, half), *doubled(half, quarter))
            self.scales = MultiScale(quarter)
            self.classifier = nn.Conv2d(quarter, config.num_channels, 1)
        self.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, 4h, 4w) of the neck (B, C, h, w); nothing else is read."""
        del backbone, image, prompts
        logits: Tensor = self.classifier(self.scales(self.upscale(features.neck)))
        return SemanticOutput(logits=logits, activation=self.config.activation)


class MultiScale(nn.Module):
    """A group of channels for every scale, then group norm and GELU.

    Args:
        channels: A multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        """Create one convolution per group."""
        super().__init__()
        width = channels // (1 + len(DILATIONS))
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(width, width, 1),
                *(nn.Conv2d(width, width, 3, padding=d, dilation=d, groups=width) for d in DILATIONS),
            ]
        )
        self.norm = nn.GroupNorm(len(self.convs), channels)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        parts = [conv(part) for conv, part in zip(self.convs, x.chunk(len(self.convs), dim=1), strict=True)]
        result: Tensor = self.activation(self.norm(torch.cat(parts, dim=1)))
        return result


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, h, w), at each place."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as ``input``."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def doubled(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Layers that give twice the height and width: transposed convolution, norm over channels, GELU."""
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2), ChannelNorm(outputs, eps=1e-6), nn.GELU()
