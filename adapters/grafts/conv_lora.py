"""Conv-LoRA: LoRA on q, k and v whose low-rank map is also convolved, at a scale that a gate chooses per image.

    z = A x                          (r channels, as a map)      A (r, d), Kaiming uniform
    z <- z + sum_i g_i(z) E_i(z)     E_i: bicubic up by i, 3 x 3 convolution r to r, GELU, bicubic back
    dqkv = (alpha / r) B z           B (3 d, r), zero, so that the output at step 0 is the frozen one

gate "soft": g = softmax(mean(z) W), all scales are computed, and W (r, E), zero at first, learns from the task.
gate "published": one scale per map has g_i = 1, the others 0: the largest of mean(z) W + N(0, 1) softplus(mean(z) N),
in evaluation without the noise. Parameters per block with the target "qkv": 4 r d + E (9 r^2 + r) + r E (soft) or
+ 2 r E (published): 9,936 / 13,008 / 16,080 in SAM B / L / H at r = 3 with the 8 published scales.

Source:
    Convolution Meets LoRA, arXiv:2401.17868, section 3; rank, alpha, initial values and the gate from autogluon,
    multimodal/models/adaptation_layers.py. Noisy choice and balance: arXiv:1701.06538, sections 2.1 and 4, appendix A.
Deviations:
    gate="soft" is the default, with three scales. In the published code the chosen expert has the factor 1, so the
    loss of the task says nothing to its gate: that is trained only to use all experts equally often (``balance``), and
    experts that are not chosen get no gradient. gate="published" keeps all that, and keeps its scope: in a windowed
    block every window has a choice and a border of its own. The soft gate sees the whole image in all blocks: windows
    are undone, padded tokens are dropped, the convolution runs over the image's map, and padded tokens get no update.
    Expert outputs are placed where they belong; the published sum goes through exp and log, which overflows in fp16.
    ``init="published"`` is the same as "identity": B is zero there.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.backbones.windowing import partition, unpartition
from samgraft.adapters.config import check_choice
from samgraft.adapters.grafts.base import SITE_LABELS, GraftConfig, SiteGraft
from samgraft.adapters.grafts.targets import SLICES, check_lora
from samgraft.errors import ConfigError

SCALES = {"soft": (1, 2, 4), "published": tuple(range(1, 9))}
"""Gate -> scales of its experts, where none are named."""
NOISE_FLOOR = 1e-2
"""Smallest standard deviation of the noise on a gate."""


@dataclass(frozen=True, kw_only=True)
class ConvLoraConfig(GraftConfig):
    """LoRA with convolutions at several scales on the attention input of encoder blocks."""

    method: ClassVar[str] = "conv_lora"
    targets: tuple[str, ...] = ("qkv",)
    """"qkv" (fused, one A), or any of "q", "k", "v", each with an A, a gate and experts of its own."""
    rank: int = 3
    """Rank r: channels of the map that is convolved."""
    alpha: float = 32.0
    """Numerator of the scale alpha / r."""
    gate: Literal["soft", "published"] = "soft"
    """"soft": all experts, weighed per image. "published": one expert per window or image, noisy while training."""
    scales: tuple[int, ...] | None = None
    """Factors by which experts enlarge the map; None: 1, 2, 4 (soft) or 1 to 8 (published)."""
    balance: float = 1e-2
    """Weight of the published gate's balance in the loss; the soft gate has none."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        check_lora(self.method, self.targets, ("qkv", *SLICES), self.rank, self.alpha, 0.0)
        if "qkv" in self.targets and len(self.targets) > 1:
            raise ConfigError(f"conv_lora: targets are {list(self.targets)}; name either 'qkv' or slices of it")
        check_choice(self.method, "gate", self.gate, tuple(SCALES))
        fewest = 2 if self.gate == "published" else 1
        known = self.experts
        if (
            len(known) < fewest
            or len(set(known)) < len(known)
            or any(scale != int(scale) or scale < 1 for scale in known)
        ):
            raise ConfigError(
                f"conv_lora: scales are {list(known)}; expected {fewest} or more different whole numbers from 1"
            )
        if not 0 <= self.balance < math.inf:
            raise ConfigError(f"conv_lora: balance is {self.balance}; expected 0 or a number above it")

    @property
    def experts(self) -> tuple[int, ...]:
        """The scales, resolved."""
        return SCALES[self.gate] if self.scales is None else self.scales

    def build(self, backbone: Backbone) -> "ConvLoraGraft":
        """Create the parts for ``backbone``."""
        return (PublishedConvLoraGraft if self.gate == "published" else ConvLoraGraft)(self, backbone)


class ScaleExpert(nn.Conv2d):
    """GELU of a 3 x 3 convolution, zero-padded, at another scale of the map.

    Args:
        channels: Of the map.
        scale: The map is that many times larger while it is convolved.
    """

    def __init__(self, channels: int, scale: int) -> None:
        """Zero the bias."""
        super().__init__(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(cast(nn.Parameter, self.bias))
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        """(n, r, h, w) to the same shape, computed in the type of ``z``."""
        size = (z.shape[-2], z.shape[-1])
        if self.scale != 1:
            z = functional.interpolate(z, size=(size[0] * self.scale, size[1] * self.scale), mode="bicubic")
        bias = cast(nn.Parameter, self.bias).to(z.dtype)
        found = functional.gelu(functional.conv2d(z, self.weight.to(z.dtype), bias, padding=1))
        return found if self.scale == 1 else functional.interpolate(found, size=size, mode="bicubic")


class SoftMixture(nn.Module):
    """All experts, weighed by a softmax over the mean of the map.

    Attributes:
        experts: One per scale.
        gate: (r, E), zero at first: equal weights. None where there is one expert.
    """

    gate: nn.Parameter | None

    def __init__(self, channels: int, scales: tuple[int, ...]) -> None:
        """Create experts and gate."""
        super().__init__()
        self.experts = nn.ModuleList(ScaleExpert(channels, scale) for scale in scales)
        gate = nn.Parameter(torch.zeros(channels, len(scales))) if len(scales) > 1 else None
        self.register_parameter("gate", gate)

    def forward(self, z: Tensor) -> Tensor:
        """(B, r, h, w) to the same shape."""
        found = [expert(z) for expert in self.experts]
        if self.gate is None:
            return cast(Tensor, found[0])
        weights = project(z.mean(dim=(2, 3)), self.gate).softmax(dim=-1)
        total = torch.zeros_like(z)
        for index, one in enumerate(found):
            total = total + weights[:, index, None, None, None] * one
        return total


class NoisyTopOne(nn.Module):
    """One expert per map, chosen by a gate that is noisy in training.

    Attributes:
        experts: One per scale.
        gate: (r, E), zero at first.
        noise: (r, E), zero at first; the noise has the standard deviation softplus(mean(z) noise) + 0.01.
        imbalance: CV^2 of how many maps each expert got, plus CV^2 of how many it would get on average over the noise,
            of the last forward pass in training; else None. Only the second has a gradient.
    """

    def __init__(self, channels: int, scales: tuple[int, ...]) -> None:
        """Create experts and gate."""
        super().__init__()
        self.experts = nn.ModuleList(ScaleExpert(channels, scale) for scale in scales)
        self.gate = nn.Parameter(torch.zeros(channels, len(scales)))
        self.noise = nn.Parameter(torch.zeros(channels, len(scales)))
        self.imbalance: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without a last forward pass, whose graph could not be copied."""
        return {**self.__dict__, "imbalance": None}

    def forward(self, z: Tensor) -> Tensor:
        """(n, r, h, w) to the same shape."""
        chosen = self.choose(z.mean(dim=(2, 3)))
        total = torch.zeros_like(z)
        for index, expert in enumerate(self.experts):
            if z.is_meta:  # a plan of memory and time, without values: maps are dealt in turn
                rows = torch.arange(len(z), device=z.device)[index :: len(self.experts)]
            else:
                rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                total = total.index_copy(0, rows, expert(z[rows]).to(z.dtype))
        return total

    def choose(self, mean: Tensor) -> Tensor:
        """(n,) index of the expert of each map with the channel means ``mean`` (n, r)."""
        clean, self.imbalance = project(mean, self.gate), None
        if not self.training:
            return clean.argmax(dim=-1)
        spread = functional.softplus(project(mean, self.noise)) + NOISE_FLOOR
        noisy = clean + spread * torch.randn_like(clean)
        chosen = noisy.argmax(dim=-1)
        count = functional.one_hot(chosen, len(self.experts)).to(clean.dtype).sum(dim=0)
        self.imbalance = variation(count) + variation(load(clean, noisy, spread))
        return chosen


def project(mean: Tensor, matrix: Tensor) -> Tensor:
    """(n, r) times (r, E), without a matrix product: autocast leaves its type alone."""
    return (mean[:, :, None] * matrix.to(mean.dtype)).sum(dim=1)


def load(clean: Tensor, noisy: Tensor, spread: Tensor) -> Tensor:
    """How many maps each expert would get if its noise alone were drawn again: (E,), from three tensors (n, E)."""
    best = noisy.topk(2, dim=-1).values
    rival = torch.where(noisy > best[:, 1:], best[:, 1:], best[:, :1])  # the best of the others
    chances: Tensor = torch.special.ndtr((clean - rival) / spread)
    return chances.sum(dim=0)


def variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation: unbiased variance over the squared mean."""
    squared: Tensor = values.var() / (values.mean().square() + 1e-10)
    return squared


class ConvLowRank(nn.Module):
    """Low-rank update of one target, with a mixture of convolutions in the middle.

    Args:
        embed_dim: Width d of the tokens.
        out_dim: Width of the update.
        config: Everything else.
    """

    def __init__(self, embed_dim: int, out_dim: int, config: ConvLoraConfig) -> None:
        """Create A, B and the mixture."""
        super().__init__()
        self.a = nn.Linear(embed_dim, config.rank, bias=False)
        self.b = nn.Linear(config.rank, out_dim, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)
        self.by_window = config.gate == "published"
        kind = NoisyTopOne if self.by_window else SoftMixture
        self.mixture = kind(config.rank, config.experts)
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor, context: SiteContext) -> Tensor:
        """Update (..., out) for the attention input ``x`` (..., d) of a block, in windows or not."""
        z = self.a(x)
        windows = None if self.by_window else context.windows
        maps = z if windows is None else unpartition(z, windows, context.grid_size)
        maps = maps.to(torch.promote_types(z.dtype, torch.float32)).permute(0, 3, 1, 2)
        maps = (maps + self.mixture(maps)).permute(0, 2, 3, 1)
        maps = maps if windows is None else partition(maps, windows)
        update: Tensor = self.b(maps.to(z.dtype))
        return self.scale * update


class ConvSlices(nn.Module):
    """Updates of the targets of one block; a module for the site "qkv"."""

    def __init__(self, embed_dim: int, config: ConvLoraConfig) -> None:
        """Create one update per target."""
        super().__init__()
        self.targets = nn.ModuleDict(
            {
                target: ConvLowRank(embed_dim, 3 * embed_dim if target == "qkv" else embed_dim, config)
                for target in ("qkv", *SLICES)
                if target in config.targets
            }
        )

    def forward(self, x: Tensor, context: SiteContext) -> tuple[Tensor | None, ...]:
        """Deltas (dq, dk, dv) for the attention input ``x`` (..., D); None where a slice has none."""
        if "qkv" in self.targets:
            fused: Tensor = self.targets["qkv"](x, context)
            return fused.chunk(3, dim=-1)
        return tuple(self.targets[name](x, context) if name in self.targets else None for name in SLICES)


class ConvLoraGraft(SiteGraft):
    """A module at the site "qkv" of every chosen block."""

    merge_refusal: ClassVar[str] = "its update depends on the image through convolutions and a gate"

    def __init__(self, config: ConvLoraConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config)
        width = backbone.spec.embed_dim
        self.place_in_blocks(backbone, {"qkv": lambda: ConvSlices(width, config)})
        slices = "/".join(name for name in SLICES if name in config.targets or "qkv" in config.targets)
        self.points = (SITE_LABELS["qkv"].replace("q/k/v", slices),)


class PublishedConvLoraGraft(ConvLoraGraft):
    """The same with the published gate, which has to be balanced."""

    compile_refusal: ClassVar[str] = "which expert runs depends on the data"

    def penalty(self) -> Tensor | None:
        """Imbalance of all gates in the last forward pass, weighted; None where that was not in training."""
        gates = [module for module in self.modules() if isinstance(module, NoisyTopOne)]
        found = [gate.imbalance for gate in gates if gate.imbalance is not None]
        return cast(ConvLoraConfig, self.config).balance * torch.stack(found).sum() if found else None
