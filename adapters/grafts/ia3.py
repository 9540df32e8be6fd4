"""(IA)^3 on the encoder, through peft: learned factors on keys, values and the inside of the MLP, and nothing else.

    k' = l_k * k        v' = l_v * v        MLP(x) = lin2(l * gelu(lin1(x)))        one factor per channel

All factors start at 1, so the output at step 0 is the frozen one. 2 d + mlp parameters per block, 6 d for SAM. Merged,
they scale rows (and biases) of the fused qkv and columns of lin2.

Source:
    (IA)^3, arXiv:2205.05638, section 3.3. The layer is peft's (``IA3Config``).
Deviations:
    peft's layer on a fused qkv would also scale the queries. Here each slice has its own layer, and "q" has to be asked
    for. Padded tokens of windowed blocks get scaled keys and values too, as they would from merged weights.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from peft import IA3Config as PeftIa3Config
from peft.tuners.ia3 import Linear as Ia3Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig, select_blocks
from samgraft.adapters.grafts.peft_linear import ADAPTER_NAME, PassLinear
from samgraft.adapters.grafts.targets import LINEARS, POINTS, SLICES, block_linear, check_targets
from samgraft.adapters.grafts.wrapping import Wrapped, WrappedGraft, Wrapper

TARGETS = (*SLICES, "proj", "lin1", "lin2")


@dataclass(frozen=True, kw_only=True)
class Ia3Config(GraftConfig):
    """Learned factors on channels of encoder blocks."""

    method: ClassVar[str] = "ia3"
    targets: tuple[str, ...] = ("k", "v", "lin2")
    """Any of "q", "k", "v" (slices), "proj" and "lin1" (their output) and "lin2" (its input)."""

    def __post_init__(self) -> None:
        """Check targets."""
        super().__post_init__()
        check_targets(self.method, self.targets, TARGETS)

    def build(self, backbone: Backbone) -> "Ia3Graft":
        """Create the factors for ``backbone``."""
        return Ia3Graft(self, backbone)


def factors(base: nn.Linear, *, inputs: bool = False) -> BaseTunerLayer:
    """Layer of peft around ``base``: factors on what it gives, or with ``inputs`` on what it gets."""
    layer: BaseTunerLayer = Ia3Linear(base, ADAPTER_NAME, PeftIa3Config(), is_feedforward=inputs)
    return layer


class ScaledSlices(Wrapper):
    """A fused qkv projection, some of whose slices are scaled.

    Args:
        base_layer: (D) to (3 D).
        slices: Which of "q", "k", "v".
    """

    def __init__(self, base_layer: nn.Linear, slices: tuple[str, ...]) -> None:
        """Create one layer of factors per slice."""
        super().__init__(base_layer)
        width, like = base_layer.out_features // 3, base_layer.weight
        layers = {name: cast(nn.Module, factors(PassLinear(width, width, like))) for name in slices}
        self.slices = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 3 D)."""
        parts = zip(SLICES, self.base_layer(x).chunk(3, dim=-1), strict=True)
        return torch.cat([self.slices[name](part) if name in self.slices else part for name, part in parts], dim=-1)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Rows of the weight, and the bias, times the factors; in float32 or better."""
        weight, bias = self.base_layer.get_parameter("weight"), cast(Tensor | None, self.base_layer.bias)
        wide = torch.promote_types(weight.dtype, torch.float32)
        one = torch.ones(len(weight) // 3, dtype=wide, device=weight.device)
        known = {name: cast(Ia3Linear, layer).ia3_l[ADAPTER_NAME].flatten() for name, layer in self.slices.items()}
        rows = torch.cat([known.get(name, one).to(wide) for name in SLICES])
        scaled = {"weight": rows[:, None] * weight.to(wide)}
        return scaled if bias is None else scaled | {"bias": rows * bias.to(wide)}


class Ia3Graft(WrappedGraft):
    """Wrapped linear layers of the chosen blocks."""

    merge_first: ClassVar[bool] = True

    def __init__(self, config: Ia3Config, backbone: Backbone) -> None:
        """Build the factors; ``backbone`` is only read."""
        slices = tuple(target for target in SLICES if target in config.targets)
        linears = [target for target in LINEARS if target in config.targets]
        wrappers: dict[str, tuple[str, nn.Module]] = {}
        for block in select_blocks(config.blocks, backbone.spec.num_blocks):
            if slices:
                path, linear = block_linear(backbone, block, "qkv")
                wrappers[path] = (f"{block}_qkv", ScaledSlices(linear, slices))
            for target in linears:
                path, linear = block_linear(backbone, block, target)
                wrappers[path] = (f"{block}_{target}", cast(nn.Module, factors(linear, inputs=target == "lin2")))
        points = [f"I2 {'/'.join(slices)}"] if slices else []
        super().__init__(config, [*points, *(POINTS[target] for target in linears)], Wrapped(backbone, wrappers))
