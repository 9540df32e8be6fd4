"""AutoSAM: a small network that writes SAM's dense prompt from the image, so that nobody has to click.

The generator reads the image and the frozen neck and returns, per foreground class, a dense embedding (C, h, w) that
takes the place of "no mask"; there are no points. The frozen decoder answers with one mask logit map per class, read
through a sigmoid, so an empty answer is possible (the published min-max scaling always yields some foreground).
The embedding is "no mask" plus a delta that starts at zero: at step 0 the masks are those of the frozen model
unprompted.

Source:
    AutoSAM, arXiv:2306.06370, section 3 (re-derived from the paper; a small convolutional network instead of
    HarDNet-85, which also sees the neck, and no tanh).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class AutoSamConfig(PrompterConfig):
    """Dense prompts from a small network on image and neck."""

    method: ClassVar[str] = "autosam"
    point: ClassVar[str] = "dense prompt"
    num_classes: int = 1
    """Foreground classes; each gets its own dense prompt and mask."""
    channels: int = 64
    """Width of the network at the resolution of the neck; the first stage has a quarter of it. A multiple of 16."""
    depth: int = 2
    """Residual 3 x 3 convolution blocks at the resolution of the neck."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_classes < 1 or self.depth < 0:
            raise ConfigError(f"autosam: num_classes {self.num_classes}, depth {self.depth}; expected at least 1 and 0")
        if self.channels < 16 or self.channels % 16:
            raise ConfigError(f"autosam: channels is {self.channels}; expected a multiple of 16")

    def build(self, backbone: "Backbone") -> "AutoSamPrompter":
        """Create the generator for the patch size and channels of ``backbone``."""
        return AutoSamPrompter(self, backbone)


class AutoSamPrompter(PromptGenerator):
    """Image and neck to dense embeddings.

    Attributes:
        stem: Image (B, 3, H, W) to (B, channels, h, w) by strided convolutions.
        head: To num_classes * C channels; zero at step 0.
    """

    no_mask: Tensor

    def __init__(self, config: AutoSamConfig, backbone: "Backbone") -> None:
        """Build the network; ``backbone`` is only read (the "no mask" embedding is copied, and not saved)."""
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        neck = backbone.spec.neck_channels
        width = config.channels
        self.stem = _stem(width, backbone.spec.patch_size)
        self.from_neck = nn.Conv2d(neck, width, 1)
        self.body = nn.ModuleList(residual(width) for _ in range(config.depth))
        self.head = nn.Conv2d(width, neck * config.num_classes, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias if self.head.bias is not None else self.head.weight)
        self.register_buffer("no_mask", no_mask_cell(backbone), persistent=False)

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Dense prompts (B * classes, C, h, w), image-major; no points, no boxes."""
        del context
        batch, neck, height, width = features.neck.shape
        x = self.stem(image * 4 - 2) + self.from_neck(features.neck)  # (B, channels, h, w)
        for block in self.body:
            x = x + block(x)
        delta = self.head(functional.gelu(x)).reshape(batch * self.num_classes, neck, height, width)
        index = torch.arange(batch, device=image.device).repeat_interleave(self.num_classes)
        return Prompts(image_index=index, dense=self.no_mask + delta)


def _stem(width: int, patch_size: int) -> nn.Sequential:
    """Halve the resolution log2(patch) times; channels double from width / 4 to width."""
    stages = round(math.log2(patch_size))
    if 2**stages != patch_size:
        raise ConfigError(
            f"autosam: patch size {patch_size} is not a power of 2; this generator cannot reach the neck's grid"
        )
    layers: list[nn.Module] = []
    previous = 3
    for stage in range(stages):
        channels = width // 4 if stage == 0 else width // 2 if stage < stages - 1 else width
        channels = width if stage == stages - 1 else channels
        layers += [
            nn.Conv2d(previous, channels, 3, stride=2, padding=1),
            nn.GroupNorm(channels // 4, channels),
            nn.GELU(),
        ]
        previous = channels
    return nn.Sequential(*layers)


def residual(width: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, to be added to their input; ``width`` is a multiple of 8."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(width // 8, width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
    )


def no_mask_cell(backbone: "Backbone") -> Tensor:
    """(1, C, 1, 1): what the backbone uses when no mask is given."""
    patch = backbone.spec.patch_size
    device = next(backbone.parameters()).device
    with torch.no_grad():
        _, dense = backbone.embed(Prompts(image_index=torch.zeros(1, dtype=torch.int64, device=device)), (patch, patch))
    return dense[:, :, :1, :1].detach().clone()
