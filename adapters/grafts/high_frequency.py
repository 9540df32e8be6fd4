"""SAM-Adapter (after EVP): every block's input is prompted by the image's fine structure and its patch embedding.

    F_hfc = conv(|highpass(image)|)          patch-sized, strided: 3 -> r
    F_pe  = embedding(patches of the image)  the frozen patch embedding before positions: d -> r
    P_i   = up(gelu(tune_i(F_hfc + F_pe)))   tune_i: r -> r of block i;  up: r -> d, shared by all blocks
    x <- x + P_i                             before block i;  r = d / scale_factor

The high pass zeroes a centred square of the normalised image's spectrum. For patch p and L blocks the whole generator
has (3 p^2 + 1) r + 2 d r + r + d + L (r^2 + r) parameters; for patch 16, 769 r + 2 d r + r + d + L (r^2 + r).

Source:
    SAM-Adapter, arXiv:2304.09148, section 3; EVP, arXiv:2303.10883, section 3. Layers, initialisation and that the
    real part is taken before the absolute value come from code (tianrun-chen/SAM-Adapter-PyTorch,
    models/mmseg/models/sam/image_encoder.py, class PromptGenerator).
Deviations:
    ``init="identity"`` starts ``up`` at zero; published, all linear layers are drawn with 0.02, which is small but not
    nothing. F_pe is one convolution of the image with the product of ``embedding`` and the frozen patch embedding:
    equal up to rounding. The published square wraps around on an image more than four times as long as wide; here it
    ends at the border of the spectrum. Any size works; the released code wants the one it was built for.
Cost:
    The high pass is computed once per encoded batch and kept beside the normalised image for as long as that lives, so
    also for checkpointing. It is computed in every block where that cannot be: under ``torch.compile`` or export, and
    where the image itself asks for a gradient. Both convolutions are computed in every block.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.config import check_positive
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft, select_blocks, site_list
from samgraft.errors import ConfigError, NoMatchError

KEPT = "_samgraft_high_pass"
"""Attribute of a normalised image: share of the spectrum -> (version of the image, its high pass)."""
LINEAR_STD = 0.02
"""Standard deviation of the truncated normal that linear layers start from."""


@dataclass(frozen=True, kw_only=True)
class HighFrequencyConfig(GraftConfig):
    """One prompt generator for all chosen blocks."""

    method: ClassVar[str] = "high_frequency"
    scale_factor: int = 32
    """Divisor of the embedding width for the inner width r."""
    removed: float = 0.25
    """Share of the spectrum, by area, that the high pass takes out, in (0, 1)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.scale_factor < 1:
            raise ConfigError(f"high_frequency: scale_factor is {self.scale_factor}; expected at least 1")
        check_positive(self.method, "removed", self.removed)
        if self.removed >= 1:
            raise ConfigError(f"high_frequency: removed is {self.removed}; expected a share below 1")

    def build(self, backbone: Backbone) -> "HighFrequencyGraft":
        """Create the generator for ``backbone``."""
        return HighFrequencyGraft(self, backbone)


class FrequencyPrompt(nn.Module):
    """P_i of one block: its own ``tune``, and the generator, which is registered at the graft and only read here."""

    def __init__(self, generator: "HighFrequencyGraft", rank: int) -> None:
        """Create ``tune``."""
        super().__init__()
        self.tune = nn.Linear(rank, rank)
        self._generator = (generator,)  # in a tuple, a module is not registered

    def forward(self, x: Tensor, context: SiteContext) -> Tensor:
        """Delta (B, h, w, d) for tokens ``x`` of the same shape, of which only the image in ``context`` matters."""
        del x
        generator = self._generator[0]
        delta: Tensor = generator.up(functional.gelu(self.tune(generator.features(context.image))))
        return delta


class HighFrequencyGraft(SiteGraft):
    """The generator, and prompts at I1 of the chosen blocks.

    Attributes:
        embedding: Patch embedding (d) to the inner width r.
        conv: High-passed image to the inner width, one cell per patch.
        up: Inner width to d, shared by all blocks.
    """

    merge_refusal: ClassVar[str] = "it adds what it computes from the image, which no weight of a block sees"

    def __init__(self, config: HighFrequencyConfig, backbone: Backbone) -> None:
        """Build the generator; ``backbone`` is only read, its patch embedding in every forward pass."""
        super().__init__(config)
        self._removed = config.removed
        self._patch = (_patch_convolution(backbone),)
        spec, like = backbone.spec, next(backbone.parameters())
        rank, chosen = max(1, spec.embed_dim // config.scale_factor), select_blocks(config.blocks, spec.num_blocks)
        for block in chosen:
            site_list(backbone, block, "block_input")
        with torch.device(like.device):
            self.embedding = nn.Linear(spec.embed_dim, rank)
            self.conv = nn.Conv2d(3, rank, spec.patch_size, stride=spec.patch_size)
            self.up = nn.Linear(rank, spec.embed_dim)
            for block in chosen:
                self.place(block, "block_input", FrequencyPrompt(self, rank))
        self._initialise()
        self.to(like.dtype)

    def features(self, image: Tensor) -> Tensor:
        """F_hfc + F_pe, (B, h, w, r), of normalised images (B, 3, H, W)."""
        patch = self._patch[0]
        weight = torch.einsum("rd,dcij->rcij", self.embedding.weight, patch.weight)
        bias = None if patch.bias is None else self.embedding.weight @ patch.bias
        fine = self.conv(kept_high_pass(image, self._removed))
        plain = functional.conv2d(image, weight, bias, stride=patch.stride)
        features: Tensor = (fine + plain).permute(0, 2, 3, 1) + self.embedding.bias
        return features

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
                nn.init.zeros_(module.bias)
        fan_out = self.conv.weight[0, 0].numel() * self.conv.out_channels
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(cast(Tensor, self.conv.bias))
        if self.config.init == "identity":
            nn.init.zeros_(self.up.weight)


def high_pass(image: Tensor, removed: float) -> Tensor:
    """Absolute value of what is left of an image without its low frequencies.

    A square of ``2 n`` frequencies per axis, from -n to n - 1, is zeroed; n = floor(sqrt(h w removed) / 2). The square
    is not symmetric, so the inverse transform is complex; its real part is taken. That equals a half-spectrum transform
    with the mean of the square and its mirror image, which is what is computed.

    Args:
        image: (..., H, W), real; half types are computed in float32.
        removed: Share of the spectrum that is zeroed.

    Returns:
        As ``image``, at least 0.
    """
    height, width = image.shape[-2:]
    half = int(math.sqrt(height * width * removed) // 2)
    wide = image.to(torch.promote_types(image.dtype, torch.float32))
    rows, rows_mirrored = _low(height, half, wide)
    columns, columns_mirrored = _low(width, half, wide)
    low = (rows[:, None] * columns + rows_mirrored[:, None] * columns_mirrored) / 2
    spectrum = torch.fft.rfft2(wide) * (1 - low[:, : width // 2 + 1])
    left: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return left.abs().to(image.dtype)


def kept_high_pass(image: Tensor, removed: float) -> Tensor:
    """:func:`high_pass` of ``image``, computed once for as long as that tensor lives.

    Kept as an attribute of the tensor itself: threads that encode have an image each, and nothing outlives it.
    """
    if torch.compiler.is_compiling() or image.requires_grad:
        return high_pass(image, removed)
    kept: dict[float, tuple[int, Tensor]] = image.__dict__.setdefault(KEPT, {})
    version = 0 if image.is_inference() else image._version
    found = kept.get(removed)
    if found is None or found[0] != version:
        with torch.no_grad():
            found = (version, high_pass(image, removed))
        kept[removed] = found
    return found[1]


def _low(length: int, half: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(length,) 1 where a frequency, in the order of an FFT, lies from -half to half - 1; the same of its negative."""
    index = torch.arange(length, device=like.device)
    frequency = torch.where(index < length - length // 2, index, index - length)
    inside = (frequency >= -half) & (frequency < half)
    mirrored = inside[(length - index) % length]
    return inside.to(like.dtype), mirrored.to(like.dtype)


def _patch_convolution(backbone: Backbone) -> nn.Conv2d:
    """The frozen convolution that makes patches into tokens.

    Raises:
        NoMatchError: the backbone has none where SAM has it.
    """
    encoder = getattr(getattr(backbone, "sam", None), "vision_encoder", None)
    patch = getattr(getattr(encoder, "patch_embed", None), "projection", None)
    if not isinstance(patch, nn.Conv2d):
        raise NoMatchError(
            f"backbone {backbone.spec.name!r} has no patch convolution of SAM's kind, which high_frequency reads; "
            "nothing was changed; choose another graft"
        )
    return patch
