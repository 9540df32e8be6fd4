"""The two plain heads beside AutoSAM's class-prompted decoder: class maps of the neck by convolutions alone.

Both give logits at four times the neck's resolution and look at nothing but the neck.

Source:
    How to Efficiently Adapt Large Segmentation Model (SAM) to Medical Images, arXiv:2306.13731, section on the
    prediction heads; layers from its code (xhu248/AutoSAM, models/SamFeatSeg.py, SegDecoderLinear and SegDecoderCNN).
Deviations:
    The linear head ends without the published ReLU, under which no logit can fall below zero. The two finest stages of
    the CNN have the published layers; ``depth`` counts the stages, of which the last two double the resolution.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.conv_head import doubled
from samgraft.adapters.decoders.semantic import SemanticConfig
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True)
class LinearHeadConfig(SemanticConfig):
    """Upscaling as in SAM's mask decoder, and two 1x1 convolutions.

    neck (B, C, h, w) -> transposed conv to C / 4 -> norm over channels -> GELU -> transposed conv to C / 8 -> GELU
      -> 1x1 -> ReLU -> 1x1 -> (B, K, 4h, 4w)
    """

    method: ClassVar[str] = "linear_head"

    def build(self, backbone: Backbone) -> "NeckHead":
        """Create the head; ``backbone`` is only read."""
        channels = backbone.spec.neck_channels
        quarter, eighth = max(1, channels // 4), max(1, channels // 8)
        with torch.device(next(backbone.parameters()).device):
            layers = [
                *doubled(channels, quarter),
                nn.ConvTranspose2d(quarter, eighth, 2, stride=2),
                nn.GELU(),
                nn.Conv2d(eighth, eighth, 1),
                nn.ReLU(),
                nn.Conv2d(eighth, self.num_channels, 1),
            ]
            return NeckHead(self, backbone, layers)


@dataclass(frozen=True, kw_only=True)
class CnnHeadConfig(SemanticConfig):
    """A convolutional network without skips on the neck.

    neck -> 1x1 to 2^depth w -> ReLU -> 1x1 -> ReLU -> depth stages of [3x3 -> ReLU -> 3x3 -> ReLU], each of which
      halves the channels, the last two also by a transposed convolution that doubles the resolution
      -> 3x3 -> 1x1 -> (B, K, 4h, 4w)
    """

    method: ClassVar[str] = "cnn_head"
    width: int = 16
    """w: channels at the end; published: 64, which makes 34 million parameters with ``depth`` 4."""
    depth: int = 4
    """Stages; at least 2."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.width < 1 or self.depth < 2:
            raise ConfigError(f"cnn_head: width {self.width}, depth {self.depth}; expected at least 1 and 2")

    def build(self, backbone: Backbone) -> "NeckHead":
        """Create the head; ``backbone`` is only read."""
        widths = [self.width * 2 ** (self.depth - stage) for stage in range(self.depth + 1)]
        with torch.device(next(backbone.parameters()).device):
            layers: list[nn.Module] = [
                nn.Conv2d(backbone.spec.neck_channels, widths[0], 1),
                nn.ReLU(),
                nn.Conv2d(widths[0], widths[0], 1),
                nn.ReLU(),
            ]
            for stage, (coarse, fine) in enumerate(zip(widths, widths[1:], strict=False)):
                doubles = stage >= self.depth - 2
                layers += [nn.Conv2d(coarse, coarse, 3, padding=1), nn.ReLU()]
                layers += [nn.Conv2d(coarse, coarse if doubles else fine, 3, padding=1), nn.ReLU()]
                layers += [nn.ConvTranspose2d(coarse, fine, 2, stride=2)] if doubles else []
            layers += [nn.Conv2d(self.width, self.width, 3, padding=1), nn.Conv2d(self.width, self.num_channels, 1)]
            return NeckHead(self, backbone, layers)


class NeckHead(DecoderPatch):
    """Layers from the neck to class maps."""

    def __init__(self, config: SemanticConfig, backbone: Backbone, layers: list[nn.Module]) -> None:
        """Hold the layers, in the type of ``backbone``."""
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(*layers).to(next(backbone.parameters()).dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, 4h, 4w) of the neck (B, C, h, w); nothing else is read."""
        del backbone, image, prompts
        logits: Tensor = self.layers(features.neck)
        return SemanticOutput(logits=logits, activation=self.config.activation)
