"""VeRA on the encoder, through peft: one pair of frozen random matrices for all layers, and two trained vectors each.

    W' = W + diag(b) B diag(d) A       A (r, in), B (out, r) random, never trained; d (r,) and b (out,) per layer

b starts at zero, so W' = W at step 0; d starts at ``d_initial``. r + out parameters per layer or slice: 2 (r + d) per
block for q and v. A and B are not in a file: they are drawn again from ``seed`` on the CPU, in float32, so that a file
gives the same output on every device. Layers of different sizes use the first rows and columns of the same matrices.

Source:
    VeRA, arXiv:2310.11454, equation 2 and section 3.3 (initialisation). The layer and the way to draw are peft's.
Deviations:
    Rank 128 instead of 256: A and B are multiplied with in full, and at width 768 rank 256 for q and v would cost two
    fifths of the fused qkv itself.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft import VeraConfig as PeftVeraConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.layer import Linear as VeraLinear
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_positive
from samgraft.adapters.grafts.lora import PeftConfig, PeftGraft
from samgraft.adapters.grafts.peft_linear import ADAPTER_NAME, Wrap
from samgraft.adapters.grafts.targets import LINEARS, SLICES, block_linear, check_rank
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VeraConfig(PeftConfig):
    """VeRA on encoder blocks."""

    method: ClassVar[str] = "vera"
    targets: tuple[str, ...] = ("q", "v")
    """Any of "q", "k", "v" (slices), "qkv" (fused), "proj", "lin1", "lin2". "qkv" excludes the slices."""
    rank: int = 128
    """Rank r of the random matrices; costs time, and one number per layer."""
    seed: int = 0
    """From which A and B are drawn; part of what a file means."""
    d_initial: float = 0.1
    """What d starts at."""
    dropout: float = 0.0
    """Probability of dropping an input of A while training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check targets and numbers."""
        super().__post_init__()
        check_rank(self.method, self.rank, self.dropout)
        check_positive(self.method, "d_initial", self.d_initial)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"vera: seed is {self.seed}; expected a whole number from 0 to 2^63 - 1")

    def build(self, backbone: Backbone) -> PeftGraft:
        """Create vectors and draw matrices for ``backbone``."""
        return PeftGraft(self, backbone, self._wrap(backbone))

    def _wrap(self, backbone: Backbone) -> Wrap:
        width = backbone.spec.embed_dim
        sizes = [(width, width)] if any(target in SLICES for target in self.targets) else []
        for target in (target for target in LINEARS if target in self.targets):
            _, linear = block_linear(backbone, 0, target)
            sizes.append((linear.in_features, linear.out_features))
        first, second = random_matrices(max(size[0] for size in sizes), max(size[1] for size in sizes), self)
        shared = BufferDict({ADAPTER_NAME: first}), BufferDict({ADAPTER_NAME: second})
        config = PeftVeraConfig(r=self.rank, vera_dropout=self.dropout, d_initial=self.d_initial)

        def wrap(base: nn.Linear) -> BaseTunerLayer:
            layer: BaseTunerLayer = VeraLinear(base, *shared, ADAPTER_NAME, config=config, r=self.rank)
            return layer

        return wrap


def random_matrices(in_features: int, out_features: int, config: VeraConfig) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r), uniform with the variance 2 / columns, in float32 on the CPU."""
    generator = torch.Generator(device="cpu").manual_seed(config.seed)

    def draw(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(6 / columns)
        empty = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
        return empty.uniform_(-bound, bound, generator=generator)

    return draw(config.rank, in_features), draw(out_features, config.rank)
