"""A convolutional path in three dimensions that meets the encoder's tokens, as the detail path of class tokens does.

    volume -> stride s, 2 s, ... patch in the plane; slices are halved at the last levels only
    taps and neck of every token plane -> norms -> joined -> + coarsest level -> up, + finer level -> ... -> classes

A slice of thick-slice CT or MR is not finer than it is thick: the path halves rows and columns down to the patch, and
slices only ``depth_halvings`` times. It answers for every slice, also where several were merged into one token plane.

Source:
    UNETR, arXiv:2103.10504, section 3.1 (transformer features in a 3D U-Net decoder); instance norm, leaky ReLU and
    strides that follow the spacing as in nnU-Net, arXiv:1809.10486. Its 2D form is ``adapters.decoders.detail``.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.class_tokens import resolve_taps
from samgraft.adapters.decoders.detail import finest_stride
from samgraft.adapters.decoders.sam_parts import taps_of
from samgraft.adapters.decoders.semantic import SemanticConfig
from samgraft.errors import ConfigError
from samgraft.volumetric.heads.levels import conv_block, resized
from samgraft.volumetric.stack import channels_first, image_volume, slice_maps

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True)
class Detail3dConfig(SemanticConfig):
    """A 3D U-Net path around the frozen encoder."""

    method: ClassVar[str] = "detail_3d"
    volumetric: ClassVar[bool] = True
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks read beside the neck: "auto" (after a quarter, half and three quarters), "none", or indices."""
    width: int = 8
    """Channels of the finest level, where most of the work is; the next has four times as many, coarser ones eight."""
    fused: int = 64
    """Channels of the joined tokens."""
    stride: int | None = None
    """Pixels per side of the finest level, a power of 2; None: a quarter of the patch or the next power of 2 below."""
    depth_halvings: int = 1
    """How many of the coarsest levels have half as many slices as the one before: 0 for thick slices, more for volumes
    whose slices are as thin as their pixels."""
    dropout: float = 0.0
    """Probability of dropping whole channels of the joined tokens while training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        if isinstance(self.taps, str):
            check_choice(self.method, "taps", self.taps, ("auto", "none"))
        for name in ("width", "fused"):
            if getattr(self, name) < 4:
                raise ConfigError(f"detail_3d: {name} is {getattr(self, name)}; expected at least 4 channels")
        if self.depth_halvings < 0:
            raise ConfigError(f"detail_3d: depth_halvings is {self.depth_halvings}; expected 0 or more")
        if self.stride is not None and (self.stride < 1 or self.stride & (self.stride - 1)):
            raise ConfigError(f"detail_3d: stride is {self.stride}; expected a power of 2, or None")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"detail_3d: dropout is {self.dropout}; expected a probability in [0, 1)")

    def build(self, backbone: Backbone) -> "Detail3dHead":
        """Create the head; ``backbone`` is only read."""
        return Detail3dHead(self, backbone)


class TokenVolume(nn.Module):
    """Norms of taps, joined with the neck: (B, C, D, h, w).

    Args:
        taps: Number of taps.
        embed_dim: Width of a tap.
        neck: Channels of the neck.
        width: Channels C.
    """

    def __init__(self, taps: int, embed_dim: int, neck: int, width: int) -> None:
        """Create norms and the linear map."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(taps))
        self.join = nn.Linear(taps * embed_dim + neck, width, bias=False)
        self.norm = nn.InstanceNorm3d(width, affine=True)

    def forward(self, taps: list[Tensor], neck: Tensor, depth: int) -> Tensor:
        """Of taps (B * D, h, w, d) and a neck (B * D, N, h, w)."""
        parts = [norm(tap) for norm, tap in zip(self.norms, taps, strict=True)]
        joined = self.join(torch.cat([*parts, neck.permute(0, 2, 3, 1)], dim=-1))
        normed: Tensor = self.norm(channels_first(joined, depth))
        return normed


class Residual3d(nn.Module):
    """Two convolutions beside a linear shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create the convolutions."""
        super().__init__()
        self.body = nn.Sequential(conv_block(inputs, outputs), conv_block(outputs, outputs))
        self.shortcut = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, h, w) to (B, outputs, D, h, w)."""
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


class Detail3dHead(DecoderPatch):
    """Down from the volume, up from the tokens."""

    splits_planes: ClassVar[bool] = True

    def __init__(self, config: Detail3dConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config, spec, like = config, backbone.spec, next(backbone.parameters())
        self.taps = resolve_taps(config.taps, spec.num_blocks, "detail_3d")
        self.stride = config.stride or finest_stride(spec.patch_size)
        steps = max(0, round(math.log2(spec.patch_size / self.stride)))
        widths = [config.width * (1, 4, 8)[min(level, 2)] for level in range(steps + 1)]
        deep = [2 if level > steps - config.depth_halvings else 1 for level in range(1, steps + 1)]
        strides = [(1, 1, 1), *((slices, 2, 2) for slices in deep)]
        with torch.device(like.device):
            self.tokens = TokenVolume(len(self.taps), spec.embed_dim, spec.neck_channels, config.fused)
            self.dropout = nn.Dropout3d(config.dropout)
            inputs = [3 * self.stride**2, *widths[:-1]]
            self.down = nn.ModuleList(
                nn.Sequential(conv_block(before, after, stride=stride), conv_block(after, after))
                for before, after, stride in zip(inputs, widths, strides, strict=True)
            )
            self.top = Residual3d(config.fused + widths[-1], widths[-1])
            self.up = nn.ModuleList(Residual3d(coarse + fine, fine) for coarse, fine in pairwise(widths[::-1]))
            self.classifier = nn.Conv3d(widths[0], config.num_channels, 1)
        self.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B * D, K, H / s, W / s) of images (B * D, 3, H, W); ``prompts`` are not used."""
        del backbone, prompts
        planes, depth = features.depth, len(image) * features.depth // len(features.neck)
        fused = self.dropout(self.tokens(taps_of("detail_3d", self.taps, features), features.neck, planes))
        small = functional.pixel_unshuffle(image.to(fused.dtype) * 4 - 2, self.stride)
        x, levels = image_volume(small, depth), []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = self.top(torch.cat([resized(fused, x.shape[2:]), x], dim=1))
        for up, level in zip(self.up, levels[-2::-1], strict=True):
            x = up(torch.cat([resized(x, level.shape[2:]), level], dim=1))
        return SemanticOutput(logits=slice_maps(self.classifier(x)), activation=self.config.activation)
