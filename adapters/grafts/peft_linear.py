"""Linear layers of a frozen backbone with layers of peft: find, wrap, what is trained, merge. The maths is peft's.

Two forms. A peft layer around an ``nn.Linear`` takes its place (:class:`samgraft.adapters.grafts.wrapping.Wrapped`).
:class:`SliceDeltas` runs the same peft layers beside a fused qkv projection, on base layers that contribute zero.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import peft
import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.quantize import READS_WEIGHT, Int8Linear
from samgraft.adapters.grafts.swapped import SwappedParameters
from samgraft.errors import ConfigError, NoMatchError

ADAPTER_NAME = "graft"
"""The adapter's name inside peft layers, hence in tensor keys."""

Wrap = Callable[[nn.Linear], BaseTunerLayer]
"""Makes a layer of peft around a linear layer."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What peft needs to know; see :class:`samgraft.adapters.grafts.lora.LoraConfig` for the meanings."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool = False

    def wrap(self, base: nn.Linear) -> PeftLinear:
        """Return peft's LoRA layer around ``base``; A Kaiming-uniform, B zero, magnitudes those of the weight."""
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.alpha),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        layer = PeftLinear(base, ADAPTER_NAME, config, r=self.rank, lora_alpha=cast(int, self.alpha))
        if self.dora:
            layer.__dict__[READS_WEIGHT] = True
        return layer


class EmptyLinear(nn.Linear):
    """A base layer for peft that has a shape, a device and a dtype, but no weight."""

    def __init__(self, in_features: int, out_features: int, like: Tensor) -> None:
        """Keep an empty, unsaved tensor so that peft finds dtype and device."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", like.new_empty(0), persistent=False)
        self.bias = cast(nn.Parameter, None)


class ZeroLinear(EmptyLinear):
    """Gives zeros."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear's argument
        """Zeros of shape (..., out_features)."""
        return input.new_zeros(*input.shape[:-1], self.out_features)


class PassLinear(EmptyLinear):
    """Gives what it gets; as many channels out as in."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear's argument
        """``input`` itself."""
        return input


class SliceDeltas(nn.Module):
    """Deltas of peft layers for some of q, k, v of a fused projection; a module for the site "qkv".

    Args:
        slices: Which of "q", "k", "v".
        embed_dim: Width D of the block and of each slice.
        wrap: Makes the peft layer; what it adds to its base layer is the delta.
        like: A tensor with the dtype and device to use.
    """

    def __init__(self, slices: tuple[str, ...], embed_dim: int, wrap: Wrap, like: Tensor) -> None:
        """Create one peft layer per slice."""
        super().__init__()
        self.embed_dim = embed_dim
        layers = {name: cast(nn.Module, wrap(ZeroLinear(embed_dim, embed_dim, like))) for name in slices}
        self.slices = nn.ModuleDict(layers)

    def forward(self, x: Tensor, context: object) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Deltas (dq, dk, dv) for the attention input ``x`` (..., D); None where a slice has none."""
        del context
        dq, dk, dv = (self.slices[name](x) if name in self.slices else None for name in ("q", "k", "v"))
        return dq, dk, dv

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """(3D, D): what the slices add to the fused weight."""
        known = {name: cast(Tensor, _delta(layer)) for name, layer in self.slices.items()}
        none = torch.zeros_like(next(iter(known.values())))
        return torch.cat([known.get(name, none) for name in ("q", "k", "v")])


def _delta(layer: nn.Module) -> object:
    return layer.get_delta_weight(ADAPTER_NAME)  # type: ignore[operator]


def trained_parts(layer: BaseTunerLayer) -> dict[str, nn.Module]:
    """What belongs to a graft of a peft layer, by peft's names: trained tensors, random ones and dropout."""
    names = dict.fromkeys((*layer.adapter_layer_names, *layer.other_param_names))
    found = {name: getattr(layer, name, None) for name in names}
    return {
        name: part for name, part in found.items() if isinstance(part, nn.Module) and len(cast(nn.ModuleDict, part))
    }


@torch.no_grad()
def merged_tensors(layer: BaseTunerLayer) -> dict[str, Tensor]:
    """Weight and bias with which the frozen layer alone gives what ``layer`` gives, by peft's own merge.

    It runs on a copy, in float32 or better: peft's ``unmerge`` is not bit-exact, and it would change frozen tensors.
    """
    twin = copy.deepcopy(layer)
    weight = cast(Tensor, layer.get_base_layer().weight)
    cast(nn.Module, twin).to(torch.promote_types(weight.dtype, torch.float32))
    twin.merge(safe_merge=False)
    base = cast(nn.Linear, twin.get_base_layer())
    return {name: tensor.to(weight.dtype) for name, tensor in base.named_parameters()}


class MergedWeights(SwappedParameters):
    """Tensors of frozen layers plus what a graft adds to them, or in its stead."""

    def add(self, linear: nn.Module, delta: Tensor) -> None:
        """Replace ``linear.weight`` by itself plus ``delta``, added in float32 or better."""
        original = linear.get_parameter("weight")
        wide = torch.promote_types(original.dtype, torch.float32)
        self.put(linear, {"weight": original.detach().to(wide) + delta.to(original.device, wide)})

    def put(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Replace parameters of ``module`` by ``tensors``, in the type of its weight; it may get a bias."""
        for name, tensor in tensors.items():
            value = tensor.detach().to(module.get_parameter("weight").dtype)
            self.swap(module, name, nn.Parameter(value, requires_grad=False))


def find_linears(backbone: Backbone, pattern: str) -> dict[str, nn.Linear]:
    """Linear layers whose path in ``backbone`` matches ``pattern`` (a regular expression, searched).

    Raises:
        ConfigError: a layer is already wrapped by another graft, or quantised.
        NoMatchError: nothing matches; the message lists paths of linear layers that exist.
    """
    found: dict[str, nn.Linear] = {}
    for path, module in backbone.named_modules():
        if re.search(pattern, path):
            if isinstance(module, BaseTunerLayer):
                raise ConfigError(
                    f"layer {path!r} is already wrapped by a graft; detach that one or attach both together"
                )
            if isinstance(module, Int8Linear):
                raise ConfigError(
                    f"layer {path!r} is quantised to int8 and cannot be adapted; load the backbone in float32, attach "
                    "or load the adapter, and quantise after that"
                )
            if isinstance(module, nn.Linear):
                found[path] = module
    if not found:
        linears = [path for path, module in backbone.named_modules() if isinstance(module, nn.Linear)]
        raise NoMatchError(f"no linear layer matches {pattern!r}; nothing was changed; there are {linears[:8]} ...")
    return found
