"""Med-SA's adapters in the mask decoder: three per layer of the two-way transformer, the first steered by the prompt.

    tokens to image    a' = a + up(relu(norm(down(a) W)))      W = reshape(linear(mean of the attention's queries))
    MLP                m' = mlp(x) + 0.5 up(gelu(down(x)))
    image to tokens    k' = layer_norm4(k + up(gelu(down(k))))     k: image tokens after the residual

a is what the prompt tokens read from the image. W (L, L), one per prompt, is the hyper-prompting adapter (HyP-Adpt):
one linear layer turns the embedded prompt into a weight for the down-projected tokens, so that what the adapter does
depends on what was asked. With C channels and an inner width h = C / 4, an MLP or image adapter has 2 C h + h + C
parameters and the first one 2 C L + 3 L + C, of which SAM (C = 256, L = 16) has 8,496, plus (C + 1) L^2 = 65,792 for
the linear layer that makes W. Together 140,464 per layer of SAM, 280,928 for both. L = 64, as in the encoder, would
make that layer alone 1,052,672.

Source:
    Medical SAM Adapter, arXiv:2304.12620, section 3.3 (hyper-prompting adapter) and figure of the decoder. The paper's
    description only: the released code trains the whole decoder instead.
Deviations:
    The prompt embedding is the mean over the attention's queries, that is over prompt tokens and the decoder's own;
    the paper concatenates and reduces click, box and attributes of a fixed number. The hyper adapter is narrower than
    the others, for the reason above. ``init="identity"`` zeroes each last layer; ``init="published"`` leaves PyTorch's
    initialisation, which perturbs the decoder at step 0. ReLU in the first adapter as the text has it, GELU in the
    others as in the released encoder.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_positive
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.adapters.grafts.bottleneck import Bottleneck
from samgraft.adapters.grafts.targets import check_targets
from samgraft.adapters.grafts.wrapping import Wrapped, WrappedGraft, Wrapper
from samgraft.errors import ConfigError, NoMatchError

PATHS = {
    "token_to_image": "cross_attn_token_to_image",
    "mlp": "mlp",
    "image_to_token": "layer_norm4",
}
"""Target -> module of a two-way layer that is wrapped."""


@dataclass(frozen=True, kw_only=True)
class DecoderBottleneckConfig(GraftConfig):
    """Med-SA's three adapters per layer of the mask decoder."""

    method: ClassVar[str] = "decoder_bottleneck"
    part: ClassVar[Literal["encoder", "decoder"]] = "decoder"
    targets: tuple[str, ...] = tuple(PATHS)
    """Any of "token_to_image" (the one steered by the prompt), "mlp" and "image_to_token"."""
    hyper: bool = True
    """Steer the first adapter by the prompt; else it is a bottleneck like the others, with a skip."""
    width: int = 16
    """Inner width L of the hyper adapter; costs (C + 1) L^2 parameters per layer."""
    ratio: float = 0.25
    """Inner width of the other adapters as a share of the decoder's width."""
    scale: float = 0.5
    """Factor on the adapter beside the MLP."""

    def __post_init__(self) -> None:
        """Check targets and numbers."""
        super().__post_init__()
        check_targets(self.method, self.targets, tuple(PATHS))
        check_positive(self.method, "ratio", self.ratio)
        check_positive(self.method, "scale", self.scale)
        if self.width < 2:
            raise ConfigError(f"decoder_bottleneck: width is {self.width}; expected at least 2, for it is normalised")

    def build(self, backbone: Backbone) -> "DecoderBottleneckGraft":
        """Create the adapters for the decoder of ``backbone``."""
        return DecoderBottleneckGraft(self, backbone)


class HyperBottleneck(nn.Module):
    """up(relu(norm(down(x) W))) with W made from an embedding of the prompt.

    Args:
        embed_dim: Width C of tokens and of the embedding.
        hidden_dim: Inner width L.
        identity: Zero ``up``, so that the output is zero at step 0; else PyTorch's default initialisation.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, *, identity: bool = True) -> None:
        """Create the layers."""
        super().__init__()
        self.down = nn.Linear(embed_dim, hidden_dim)
        self.hyper = nn.Linear(embed_dim, hidden_dim * hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.up = nn.Linear(hidden_dim, embed_dim)
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Delta (..., T, C) for tokens ``x`` (..., T, C) and one ``prompt`` (..., C) for all T of them."""
        down = self.down(x)  # (..., T, L)
        weight = self.hyper(prompt).unflatten(-1, (down.shape[-1], down.shape[-1]))  # (..., L, L)
        delta: Tensor = self.up(functional.relu(self.norm(down @ weight)))
        return delta


class PromptedAttention(Wrapper):
    """Cross attention of prompt tokens to the image, and an adapter on what they read; ``SamAttention`` to callers."""

    def __init__(self, base_layer: nn.Module, adapter: HyperBottleneck | Bottleneck) -> None:
        """Hold both."""
        super().__init__(base_layer)
        self.adapter = adapter

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """What attention gives for queries (..., T, C), first of the pair adapted; queries hold the prompt."""
        read, weights = self.base_layer(query=query, key=key, value=value, **options)
        if isinstance(self.adapter, HyperBottleneck):
            return read + self.adapter(read, query.mean(dim=-2)), weights
        return read + self.adapter(read), weights


class Beside(Wrapper):
    """A module and an adapter that reads the same input: f(x) + adapter(x)."""

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck) -> None:
        """Hold both."""
        super().__init__(base_layer)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        total: Tensor = self.base_layer(x) + self.adapter(x)
        return total


class Before(Wrapper):
    """A module whose input passes an adapter with a skip first: f(x + adapter(x))."""

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck) -> None:
        """Hold both."""
        super().__init__(base_layer)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        result: Tensor = self.base_layer(x + self.adapter(x))
        return result


class DecoderBottleneckGraft(WrappedGraft):
    """Wrapped modules of the two-way transformer."""

    merge_refusal: ClassVar[str] = "an activation stands between the two layers of each adapter"

    def __init__(self, config: DecoderBottleneckConfig, backbone: Backbone) -> None:
        """Build the adapters; ``backbone`` is only read."""
        wrappers: dict[str, tuple[str, nn.Module]] = {}
        like = next(backbone.parameters())
        for path, layer in two_way_layers(backbone).items():
            for target in (target for target in PATHS if target in config.targets):
                name = f"{path.rpartition('.')[2]}.{target}"
                with torch.device(like.device):
                    wrapper = _wrap(config, target, layer, backbone.spec.neck_channels)
                for part in wrapper.parts().values():
                    part.to(like.dtype)
                wrappers[f"{path}.{PATHS[target]}"] = (name, wrapper)
        super().__init__(config, (f"I9 decoder {', '.join(config.targets)}",), Wrapped(backbone, wrappers))


def _wrap(config: DecoderBottleneckConfig, target: str, layer: nn.Module, width: int) -> Wrapper:
    hidden, identity = max(1, round(width * config.ratio)), config.init == "identity"
    frozen = cast(nn.Module, getattr(layer, PATHS[target]))
    if target == "mlp":
        return Beside(frozen, Bottleneck(width, hidden, scale=config.scale, identity=identity))
    if target == "token_to_image" and config.hyper:
        return PromptedAttention(frozen, HyperBottleneck(width, config.width, identity=identity))
    plain = Bottleneck(width, hidden, identity=identity)
    return PromptedAttention(frozen, plain) if target == "token_to_image" else Before(frozen, plain)


def two_way_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Layers of the two-way transformer, by path.

    Raises:
        NoMatchError: the backbone has no such decoder.
    """
    sam = getattr(backbone, "sam", None)
    layers = getattr(getattr(getattr(sam, "mask_decoder", None), "transformer", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(x, name) for x in layers for name in PATHS.values()):
        raise NoMatchError(
            f"the decoder of {backbone.spec.name!r} has no two-way transformer of SAM's shape; nothing was changed"
        )
    return {f"sam.mask_decoder.transformer.layers.{index}": layer for index, layer in enumerate(layers)}
