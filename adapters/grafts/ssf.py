"""SSF: what norms and linear layers of a block give is scaled and shifted, channel by channel.

    y = gamma * f(x) + beta      f: norm1, qkv, proj, norm2, lin1 or lin2, frozen; gamma and beta one number per channel

gamma = 1 and beta = 0 at step 0. 22 d parameters per block for all six. Afterwards it disappears into the weights:
W' = diag(gamma) W, b' = gamma b + beta. Padded tokens of windowed blocks get gamma b + beta from qkv, as they would
from the merged weights.

Source:
    Scaling & Shifting Your Features, arXiv:2210.08823, section 3; initial values from its code, init_ssf_scale_shift.
Deviations:
    Only inside blocks: the patch embedding, which the published code scales too, stays frozen, so that ``blocks`` says
    where anything changes. ``init="identity"`` starts at exactly 1 and 0; ``init="published"`` draws gamma from
    N(1, 0.02^2) and beta from N(0, 0.02^2), which changes the output before the first step.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig, select_blocks
from samgraft.adapters.grafts.targets import LINEARS, POINTS, block_linear, check_targets
from samgraft.adapters.grafts.wrapping import Wrapped, WrappedGraft, Wrapper
from samgraft.errors import NoMatchError

PATHS = {
    "norm1": "layer_norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "layer_norm2",
    "lin1": "mlp.lin1",
    "lin2": "mlp.lin2",
}
"""Target -> path below a block, in the order of the forward pass."""
SPREAD = 0.02
"""Published standard deviation of gamma and beta."""


@dataclass(frozen=True, kw_only=True)
class SsfConfig(GraftConfig):
    """A scale and a shift per channel after norms and linear layers."""

    method: ClassVar[str] = "ssf"
    targets: tuple[str, ...] = tuple(PATHS)
    """Any of "norm1", "qkv", "proj", "norm2", "lin1", "lin2"."""

    def __post_init__(self) -> None:
        """Check targets."""
        super().__post_init__()
        check_targets(self.method, self.targets, tuple(PATHS))

    def build(self, backbone: Backbone) -> "SsfGraft":
        """Create scales and shifts for ``backbone``."""
        return SsfGraft(self, backbone)


class ScaleShift(nn.Module):
    """gamma * y + beta over the last axis.

    Args:
        width: Channels.
        like: A tensor with the dtype and device to use.
        identity: 1 and 0; else drawn as published.

    Attributes:
        gamma: (width,).
        beta: (width,).
    """

    def __init__(self, width: int, like: Tensor, *, identity: bool) -> None:
        """Create both vectors."""
        super().__init__()
        spread = 0.0 if identity else SPREAD
        self.gamma = nn.Parameter(1 + spread * torch.randn(width, device=like.device).to(like.dtype))
        self.beta = nn.Parameter(spread * torch.randn(width, device=like.device).to(like.dtype))

    def forward(self, y: Tensor) -> Tensor:
        """(..., width), of the type of ``y``: under autocast the sum is rounded once, not gamma and beta before it."""
        return torch.addcmul(self.beta, y, self.gamma).to(y.dtype)


class Rescaled(Wrapper):
    """A frozen module and what happens to its output; takes the module's place in the backbone."""

    def __init__(self, base_layer: nn.Module, change: ScaleShift) -> None:
        """Hold both."""
        super().__init__(base_layer)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        changed: Tensor = self.change(self.base_layer(x))
        return changed

    def merged(self) -> dict[str, Tensor]:
        """Rows of the weight and the bias scaled, the bias shifted."""
        return merged_tensors(self.base_layer, self.change)


class SsfGraft(WrappedGraft):
    """Wrappers around modules of the chosen blocks."""

    merge_first: ClassVar[bool] = True

    def __init__(self, config: SsfConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        targets = [target for target in PATHS if target in config.targets]
        like, wrappers = next(backbone.parameters()), {}
        for block in select_blocks(config.blocks, backbone.spec.num_blocks):
            for target in targets:
                path, module = _find(backbone, block, target)
                width = module.out_features if isinstance(module, nn.Linear) else module.normalized_shape[-1]
                change = ScaleShift(width, like, identity=config.init == "identity")
                wrappers[path] = (f"{block}_{target}", Rescaled(module, change))
        super().__init__(config, [POINTS.get(target, target) for target in targets], Wrapped(backbone, wrappers))


@torch.no_grad()
def merged_tensors(module: nn.Module, change: ScaleShift) -> dict[str, Tensor]:
    """Weight and bias with which ``module`` alone gives what ``change`` makes of it; computed in float32 or better.

    Args:
        module: Linear layer or layer norm; one without a bias gets one.
        change: What follows it.
    """
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    wide = torch.promote_types(weight.dtype, torch.float32)
    gamma, beta = change.gamma.to(wide), change.beta.to(wide)
    rows = gamma[:, None] if weight.ndim == 2 else gamma
    shift = beta if bias is None else gamma * bias.to(wide) + beta
    return {"weight": (rows * weight.to(wide)).to(weight.dtype), "bias": shift.to(weight.dtype)}


def _find(backbone: Backbone, block: int, target: str) -> tuple[str, nn.Linear | nn.LayerNorm]:
    if target in LINEARS:
        return block_linear(backbone, block, target)
    pattern = rf"vision_encoder\.layers\.{block}\.{re.escape(PATHS[target])}$"
    for path, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm) and re.search(pattern, path):
            return path, module
    raise NoMatchError(f"ssf: block {block} of {backbone.spec.name!r} has no layer norm {PATHS[target]!r}")
