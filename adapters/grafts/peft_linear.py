"""Linear layers of a frozen backbone wrapped by peft's LoRA layer: find, wrap, unwrap, merge. The maths is peft's.

Two forms. :class:`WrappedLinears` replaces an ``nn.Linear`` in the module tree by ``peft.tuners.lora.Linear``.
:class:`SliceLora` runs the same peft layer beside a fused qkv projection, on a base layer that contributes zero.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import peft
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.quantize import Int8Linear
from samgraft.adapters.grafts.base import replace_module
from samgraft.adapters.grafts.swapped import SwappedParameters
from samgraft.errors import ConfigError, NoMatchError

ADAPTER_NAME = "graft"
"""The adapter's name inside peft layers, hence in tensor keys."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What peft needs to know; see :class:`samgraft.adapters.grafts.lora.LoraConfig` for the meanings."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool

    def wrap(self, base: nn.Linear) -> PeftLinear:
        """Return peft's LoRA layer around ``base``; A Kaiming-uniform, B zero."""
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=cast(int, self.alpha), lora_dropout=self.dropout, use_rslora=self.rslora
        )
        return PeftLinear(base, ADAPTER_NAME, config, r=self.rank, lora_alpha=cast(int, self.alpha))


class ZeroLinear(nn.Linear):
    """A base layer for peft that has a shape, a device and a dtype, but no weight: its output is zero."""

    def __init__(self, in_features: int, out_features: int, like: Tensor) -> None:
        """Keep an empty, unsaved tensor so that peft finds dtype and device."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", like.new_empty(0), persistent=False)
        self.bias = cast(nn.Parameter, None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear's argument
        """Zeros of shape (..., out_features)."""
        return input.new_zeros(*input.shape[:-1], self.out_features)


class SliceLora(nn.Module):
    """Low-rank deltas for some of q, k, v of a fused projection; a module for the site "qkv".

    Args:
        slices: Which of "q", "k", "v".
        embed_dim: Width D of the block and of each slice.
        options: Rank and scale.
        like: A tensor with the dtype and device to use.
    """

    def __init__(self, slices: tuple[str, ...], embed_dim: int, options: LoraOptions, like: Tensor) -> None:
        """Create one peft layer per slice."""
        super().__init__()
        self.embed_dim = embed_dim
        self.slices = nn.ModuleDict({name: options.wrap(ZeroLinear(embed_dim, embed_dim, like)) for name in slices})

    def forward(self, x: Tensor, context: object) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Deltas (dq, dk, dv) for the attention input ``x`` (..., D); None where a slice has none."""
        del context
        dq, dk, dv = (self.slices[name](x) if name in self.slices else None for name in ("q", "k", "v"))
        return dq, dk, dv

    def delta_weight(self) -> Tensor:
        """(3D, D): what the slices add to the fused weight."""
        parts = []
        first = cast(PeftLinear, next(iter(self.slices.values())))
        for name in ("q", "k", "v"):
            if name in self.slices:
                parts.append(cast(PeftLinear, self.slices[name]).get_delta_weight(ADAPTER_NAME))
            else:
                like = cast(nn.Linear, first.lora_A[ADAPTER_NAME]).weight
                parts.append(like.new_zeros(self.embed_dim, self.embed_dim))
        return torch.cat(parts).detach()


class WrappedLinears(nn.Module):
    """Linear layers, by path in the backbone, each wrapped by peft. Holds A, B and dropout only: no frozen tensor.

    Keys of the state are ``<name>.lora_A.graft.weight`` and ``<name>.lora_B.graft.weight``.

    Args:
        linears: Path in the backbone -> (name of the part, the frozen layer).
        options: Rank and scale.
    """

    def __init__(self, linears: Mapping[str, tuple[str, nn.Linear]], options: LoraOptions) -> None:
        """Create the wrappers; the backbone is not touched."""
        super().__init__()
        self.parts = nn.ModuleDict()
        self._wrappers: dict[str, PeftLinear] = {}
        for path, (name, linear) in linears.items():
            wrapper = options.wrap(linear)
            self._wrappers[path] = wrapper
            self.parts[name.replace(".", "_")] = nn.ModuleDict(
                {"lora_A": wrapper.lora_A, "lora_B": wrapper.lora_B, "lora_dropout": wrapper.lora_dropout}
            )

    @property
    def paths(self) -> frozenset[str]:
        """Module paths that are replaced."""
        return frozenset(self._wrappers)

    def install(self, backbone: Backbone) -> None:
        """Put each wrapper in the place of its layer."""
        for path, wrapper in self._wrappers.items():
            replace_module(backbone, path, wrapper)

    def remove(self, backbone: Backbone) -> None:
        """Put the original layers back."""
        for path, wrapper in self._wrappers.items():
            replace_module(backbone, path, wrapper.get_base_layer())

    def deltas(self) -> dict[str, tuple[nn.Linear, Tensor]]:
        """Path -> (frozen layer, what LoRA adds to its weight)."""
        return {
            path: (cast(nn.Linear, wrapper.get_base_layer()), wrapper.get_delta_weight(ADAPTER_NAME).detach())
            for path, wrapper in self._wrappers.items()
        }


class MergedWeights(SwappedParameters):
    """Weights of linear layers plus what a graft adds to them."""

    def add(self, linear: nn.Linear, delta: Tensor) -> None:
        """Replace ``linear.weight`` by itself plus ``delta``, added in float32 or better."""
        original = linear.weight
        wide = torch.promote_types(original.dtype, torch.float32)
        merged = (original.detach().to(wide) + delta.to(original.device, wide)).to(original.dtype)
        self.swap(linear, "weight", nn.Parameter(merged, requires_grad=False))


def find_linears(backbone: Backbone, pattern: str) -> dict[str, nn.Linear]:
    """Linear layers whose path in ``backbone`` matches ``pattern`` (a regular expression, searched).

    Raises:
        ConfigError: a layer is already wrapped by another graft, or quantised.
        NoMatchError: nothing matches; the message lists paths of linear layers that exist.
    """
    found: dict[str, nn.Linear] = {}
    for path, module in backbone.named_modules():
        if re.search(pattern, path):
            if isinstance(module, PeftLinear):
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
