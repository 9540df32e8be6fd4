"""AutoSAM as published: a second encoder sees the image, and a pyramid decoder writes SAM's dense prompt.

    image (reduced) -> stages at 1/4, 1/8, 1/16
    1/16 -> x2, joined with 1/8 -> two convs, norm, leaky ReLU -> x2, joined with 1/4 -> two convs, norm, leaky ReLU
      -> conv, norm, ReLU -> conv -> b tanh(x / b) -> the neck's grid: one dense prompt (C, h, w) per class

There are no points, and SAM stays frozen: the gradient goes through its mask decoder to the prompt. The image is
reduced by a factor of a quarter of the patch, so that the pyramid's 1/4 is the neck's grid, as with the published 256
pixels beside SAM's 1024. With stages of (192, 320, 720) channels and C = 256 the decoder has 6,168,576 parameters.

With ``init="identity"`` tanh(0) is added to the embedding of "no mask", so that at step 0 the masks are those of the
unprompted model; published, tanh takes its place. Logits are read through a sigmoid, so that an empty answer is
possible. With ``min_max`` each map is scaled to [0, 1] by its own smallest and largest value, as published: then there
is always some foreground.

Source:
    AutoSAM: Adapting SAM to Medical Images by Overloading the Prompt Encoder, arXiv:2306.06370, section 3; shapes from
    its code (talshaharabany/AutoSAM, models/model_single.py and models/base.py), which has no licence and of which no
    line was taken.
Deviations:
    Stages of residual convolutions stand for HarDNet-85 with weights from ImageNet, which is no part of this package;
    the published channels are an option. Group norm stands for batch norm, since batches are small. The published
    decoder counts 512 parameters more, of a norm that is never used. Maps are resized by pixel centres (published:
    aligned corners). The released code keeps the checkpoint with the best IoU on the test set.
    The bound is 8 instead of 1. The prompt is added to the neck, whose values have a root mean square of 0.84 in
    graft-tiny, and within 1 it cannot switch the decoder off: on toy images without an object 71 to 113 of 1,024 cells
    stayed foreground after 150 steps with a bound of 1, 8 to 11 with 2, up to 3 with 4, and none with 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.prompts.autosam import no_mask_cell, residual
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features
    from samgraft.adapters.decoders.base import SemanticOutput

SMALLEST = 1e-6
"""Least difference of the smallest and the largest logit that is scaled, and of a probability from 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class AutoSamPyramidConfig(PrompterConfig):
    """Dense prompts from a second encoder on the image."""

    method: ClassVar[str] = "autosam_pyramid"
    point: ClassVar[str] = "dense prompt"
    num_classes: int = 1
    """Foreground classes; each gets its own dense prompt and mask."""
    widths: tuple[int, int, int] = (32, 64, 128)
    """Channels of the stages at 1/4, 1/8 and 1/16 of the reduced image, multiples of 8; published: (192, 320, 720)."""
    depth: int = 1
    """Residual blocks per stage."""
    shrink: int | None = None
    """The encoder sees the image reduced by this factor; None: a quarter of the patch."""
    tanh: bool = True
    """Bound the prompt by a tanh, as published."""
    bound: float = 8.0
    """What it is bound to: (-bound, bound); published: 1."""
    min_max: bool = False
    """Scale each class map by its own smallest and largest value, as published; nothing can be empty then."""
    init: Literal["identity", "published"] = "identity"
    """"identity": "no mask" plus a prompt that starts at zero; "published": the prompt alone."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        check_choice(self.method, "init", self.init, ("identity", "published"))
        if self.num_classes < 1 or self.depth < 0:
            raise ConfigError(
                f"autosam_pyramid: num_classes {self.num_classes}, depth {self.depth}; expected at least 1 and 0"
            )
        if len(self.widths) != 3 or any(width < 8 or width % 8 for width in self.widths):
            raise ConfigError(f"autosam_pyramid: widths are {list(self.widths)}; expected three multiples of 8")
        check_positive(self.method, "bound", self.bound)
        if self.shrink is not None and self.shrink < 1:
            raise ConfigError(f"autosam_pyramid: shrink is {self.shrink}; expected at least 1")

    def build(self, backbone: "Backbone") -> "AutoSamPyramid":
        """Create the generator; ``backbone`` is only read."""
        return AutoSamPyramid(self, backbone)


class AutoSamPyramid(PromptGenerator):
    """Image to dense embeddings.

    Attributes:
        encoder: Stages at 1/4, 1/8 and 1/16.
        decoder: Stages to num_classes * C channels at 1/4.
    """

    no_mask: Tensor

    def __init__(self, config: AutoSamPyramidConfig, backbone: "Backbone") -> None:
        """Build; ``backbone`` is only read (the "no mask" embedding is copied, and not saved)."""
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.shrink = config.shrink or max(1, backbone.spec.patch_size // 4)
        self.encoder = PyramidEncoder(config.widths, config.depth)
        self.decoder = PyramidDecoder(config.widths, backbone.spec.neck_channels, config.num_classes)
        if config.init == "identity":
            nn.init.zeros_(self.decoder.last.weight)
            nn.init.zeros_(cast(Tensor, self.decoder.last.bias))
        self.register_buffer("no_mask", no_mask_cell(backbone), persistent=False)

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Dense prompts (B * classes, C, h, w), image-major; no points, no boxes."""
        del context
        batch, _, height, width = features.neck.shape
        seen = (image * 4 - 2).to(features.neck.dtype)
        if self.shrink > 1:
            size = [-(-side // self.shrink) for side in image.shape[-2:]]
            seen = functional.interpolate(seen, size=size, mode="area")
        prompt = self.decoder(self.encoder(seen))
        if self.config.tanh:
            prompt = self.config.bound * (prompt / self.config.bound).tanh()
        dense = resize(prompt, (height, width)).unflatten(1, (self.num_classes, -1)).flatten(0, 1)
        index = torch.arange(batch, device=image.device).repeat_interleave(self.num_classes)
        return Prompts(image_index=index, dense=dense + self.no_mask if self.config.init == "identity" else dense)

    def finish(self, output: "SemanticOutput") -> "SemanticOutput":
        """Class maps scaled by themselves, where the configuration says so."""
        if not self.config.min_max:
            return output
        return type(output)(logits=min_max(output.logits), activation=output.activation, scores=output.scores)


class PyramidEncoder(nn.Module):
    """Strided convolutions and residual blocks.

    Args:
        widths: Channels at 1/4, 1/8 and 1/16.
        depth: Residual blocks per stage.
    """

    def __init__(self, widths: tuple[int, int, int], depth: int) -> None:
        """Create the stages."""
        super().__init__()
        self.stem = _strided(3, max(8, widths[0] // 2))
        inputs = (max(8, widths[0] // 2), *widths[:2])
        self.down = nn.ModuleList(_strided(before, after) for before, after in zip(inputs, widths, strict=True))
        self.blocks = nn.ModuleList(nn.ModuleList(residual(width) for _ in range(depth)) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/4, 1/8 and 1/16 of (B, 3, H, W), rounded up."""
        x, found = self.stem(image), []
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = down(x)
            for block in cast(nn.ModuleList, blocks):
                x = x + block(x)
            found.append(x)
        return found


class PyramidDecoder(nn.Module):
    """Maps at 1/4, 1/8 and 1/16 to prompts at 1/4.

    Args:
        widths: Channels of the maps.
        channels: C of a prompt.
        prompts: Prompts per image.
    """

    def __init__(self, widths: tuple[int, int, int], channels: int, prompts: int) -> None:
        """Create the stages."""
        super().__init__()
        fine, middle, coarse = widths
        self.up = nn.ModuleList([_joined(coarse + middle, middle), _joined(middle + fine, fine)])
        self.head = nn.Sequential(nn.Conv2d(fine, channels, 3, padding=1), _norm(channels), nn.ReLU())
        self.last = nn.Conv2d(channels, channels * prompts, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """(B, prompts * C, h, w) at the size of the first map."""
        x = maps[-1]
        for up, level in zip(self.up, maps[-2::-1], strict=True):
            x = up(torch.cat([resize(x, level.shape[-2:]), level], dim=1))
        prompt: Tensor = self.last(self.head(x))
        return prompt


def min_max(logits: Tensor) -> Tensor:
    """Logits (B, K, h, w) of the probabilities that each map has when its values are scaled to [0, 1].

    A sigmoid of the result is the scaled map, but for its two ends, which stay a millionth away from 0 and 1.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    low, high = wide.amin(dim=(2, 3), keepdim=True), wide.amax(dim=(2, 3), keepdim=True)
    return ((wide - low) / (high - low).clamp_min(SMALLEST)).logit(eps=SMALLEST)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``x`` (B, C, h, w) interpolated to ``size``, or as it is."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def _strided(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), _norm(outputs), nn.GELU())


def _joined(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        _norm(outputs),
        nn.LeakyReLU(0.01),
    )


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of about eight channels."""
    return nn.GroupNorm(max(1, channels // 8) if channels % 8 == 0 else 1, channels)
