"""3DSAM-adapter's decoder: four levels of the encoder, each with a 3D neck, joined at twice the tokens' resolution.

    tap (d) -> 1x1x1 -> norm -> 3x3x3 -> norm -> (N)      after every quarter of the blocks
      -> 2 x [3x3x3 -> instance norm -> ReLU] -> (N / 2) -> x2      all four, and the volume itself, side by side
      -> 3x3x3 -> instance norm -> ReLU -> 3x3x3 -> (K) -> x2 in the plane

Doubling is trilinear; slices are doubled only up to their number, so that token planes that were merged from several
slices come back to all of them. With ``clicks`` a click encoder (``samgraft.volumetric.heads.clicks``) changes the last
level where there are clicks; training then simulates them from labels, in half of the volumes. For SAM-B with two
channels: necks 7,868,416 and decoder 7,088,256 parameters.

Source:
    3DSAM-adapter, arXiv:2306.13465, sections 3.2 and 3.3; layers from its code (med-air/3DSAM-adapter,
    modeling/Med_SAM/mask_decoder.py, class VIT_MLAHead_h, and image_encoder.py).
Deviations:
    Background is an explicit channel (published: two channels for one tumour class). The levels' width is half of the
    neck's (published 128 of 256). The volume beside the levels is the mean of the three channels. Logits stay at four
    per patch side, as those of other heads. The released code builds a click encoder per level and uses the last one;
    here there is that one. Slices are taken as they are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.sam_parts import taps_of
from samgraft.adapters.decoders.semantic import SemanticConfig
from samgraft.errors import ConfigError
from samgraft.volumetric.heads.clicks import ClickEncoder, VolumeClicks, simulate_clicks
from samgraft.volumetric.heads.levels import VolumeNorm, quarters, resized, tap_volumes
from samgraft.volumetric.stack import as_volumes, image_volume, slice_maps

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True)
class Mla3dConfig(SemanticConfig):
    """Four levels in three dimensions."""

    method: ClassVar[str] = "mla_3d"
    volumetric: ClassVar[bool] = True
    width: int | None = None
    """Channels of each level; None: half of the neck's."""
    clicks: int = 0
    """Most clicks that training simulates in a volume; 0 builds no click encoder. One foreground class only, since a
    click says nothing about which one it means."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ConfigError(f"mla_3d: width is {self.width}; expected at least 1, or None")
        if self.clicks < 0:
            raise ConfigError(f"mla_3d: clicks is {self.clicks}; expected 0 or more")
        if self.clicks and self.num_classes > 1:
            raise ConfigError(
                f"mla_3d: a click means one object, and there are {self.num_classes} classes; train one, or clicks=0"
            )

    def build(self, backbone: Backbone) -> "Mla3dHead":
        """Create the head; ``backbone`` is only read."""
        return Mla3dHead(self, backbone)


class Mla3dHead(DecoderPatch):
    """Necks, levels and the last two convolutions.

    Attributes:
        clicks: Click encoder, or None.
    """

    splits_planes: ClassVar[bool] = True

    def __init__(self, config: Mla3dConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config, spec, like = config, backbone.spec, next(backbone.parameters())
        self.taps = quarters(spec.num_blocks)
        neck, width = spec.neck_channels, config.width or max(1, spec.neck_channels // 2)
        with torch.device(like.device):
            self.necks = nn.ModuleList(_neck(spec.embed_dim, neck) for _ in self.taps)
            self.levels = nn.ModuleList(nn.Sequential(*_conv(neck, width), *_conv(width, width)) for _ in self.taps)
            self.join = nn.Sequential(*_conv(len(self.taps) * width + 1, width))
            self.classifier = nn.Conv3d(width, config.num_channels, 3, padding=1, bias=False)
            self.clicks = ClickEncoder(neck) if config.clicks else None
        self.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B * D, K, 4h, 4w) of images (B * D, 3, H, W); ``prompts``, which are of slices, are not used."""
        del backbone, prompts
        return self.answer(features, image, None)

    def answer(self, features: Features, image: Tensor, clicks: VolumeClicks | None) -> SemanticOutput:
        """The same with clicks.

        Args:
            features: Of the slices of B volumes, with :attr:`taps`.
            image: (B * D, 3, H, W) in [0, 1].
            clicks: Of B volumes, or None.

        Raises:
            ConfigError: clicks, and the head was built without a click encoder.
        """
        depth = len(image) * features.depth // len(features.neck)
        volumes = tap_volumes(taps_of("mla_3d", self.taps, features), features)
        found = [neck(volume) for neck, volume in zip(self.necks, volumes, strict=True)]
        if clicks is not None:
            if self.clicks is None:
                raise ConfigError("this mla_3d was trained without clicks; train one with head_options {clicks: 10}")
            found[-1] = self.clicks(found[-1], clicks.within((depth, *image.shape[-2:])))
        planes, height, width = found[0].shape[2:]
        fine = (min(depth, 2 * planes), 2 * height, 2 * width)
        levels = [resized(level(x), fine) for level, x in zip(self.levels, found, strict=True)]
        gray = resized(image_volume(image.mean(dim=1, keepdim=True), depth).to(levels[0].dtype), fine)
        logits = self.classifier(self.join(torch.cat([*levels, gray], dim=1)))
        logits = resized(logits, (depth, 4 * height, 4 * width))
        return SemanticOutput(logits=slice_maps(logits), activation=self.config.activation)

    def learn(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None", labels: Tensor
    ) -> tuple[SemanticOutput, Tensor | None]:
        """As :meth:`forward`, in half of the calls with simulated clicks if there is a click encoder."""
        del backbone, prompts
        clicks = None
        if self.clicks is not None and bool(torch.rand(()) < 0.5):
            depth = len(image) * features.depth // len(features.neck)
            clicks = simulate_clicks(as_volumes(labels, depth), self.config.clicks)
        return self.answer(features, image, clicks), None


def _neck(inputs: int, outputs: int) -> nn.Sequential:
    """The encoder's neck in three dimensions."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 1, bias=False),
        VolumeNorm(outputs, eps=1e-6),
        nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
        VolumeNorm(outputs, eps=1e-6),
    )


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """3 x 3 x 3 convolution, instance norm without parameters, ReLU."""
    return nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.InstanceNorm3d(outputs), nn.ReLU()
