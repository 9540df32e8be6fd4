"""AdaptFormer: a narrow network beside the MLP of each block, which reads the same tokens before they are normed.

    x <- x + MLP(norm2(x)) + s * up(dropout(relu(down(x))))        down: d -> h, up: h -> d, both with biases

2 h d + h + d parameters per block: with h = 64, 128 d + 64 + d.

Source:
    AdaptFormer, arXiv:2205.13535, section 3.2. That the tokens are read un-normed, dropout 0.1 and s = 0.1 come from
    its code (ShoufaChen/AdaptFormer, models/adapter.py and the scripts that call it).
Deviations:
    A learned s (``learned_scale``) starts at ``scale``; the released code starts it at 1, which ``scale=1.0`` gives.
    The branch reads x as it is, not norm2(x), and x is added once: a port for SAM (micro-sam) does neither, and so does
    not start from the frozen model. ``init="identity"`` and ``init="published"`` are the same: ``up`` starts at zero.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_positive
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(GraftConfig):
    """A bottleneck of fixed width beside every MLP."""

    method: ClassVar[str] = "adaptformer"
    hidden: int = 64
    """Inner width h; it does not grow with the backbone."""
    dropout: float = 0.1
    """Probability of dropping an inner value while training, in [0, 1)."""
    scale: float = 0.1
    """Factor s on the branch."""
    learned_scale: bool = False
    """Train s, one number per block that starts at ``scale``."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.hidden < 1:
            raise ConfigError(f"adaptformer: hidden is {self.hidden}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adaptformer: dropout is {self.dropout}; expected a probability in [0, 1)")
        check_positive(self.method, "scale", self.scale)

    def build(self, backbone: Backbone) -> "AdaptFormerGraft":
        """Create the branches for ``backbone``."""
        return AdaptFormerGraft(self, backbone)


class ParallelBranch(nn.Module):
    """s * up(dropout(relu(down(x)))).

    Args:
        embed_dim: Width d of the tokens.
        config: Inner width, dropout and scale.

    Attributes:
        scale: (1,) parameter, or a plain number.
    """

    def __init__(self, embed_dim: int, config: AdaptFormerConfig) -> None:
        """Create both layers; biases and ``up`` start at zero."""
        super().__init__()
        self.down = nn.Linear(embed_dim, config.hidden)
        self.up = nn.Linear(config.hidden, embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.scale: nn.Parameter | float = config.scale
        if config.learned_scale:
            self.scale = nn.Parameter(torch.full((1,), config.scale))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Delta (..., d) for un-normed tokens ``x`` (..., d)."""
        del context
        delta: Tensor = self.up(self.dropout(functional.relu(self.down(x)))) * self.scale
        return delta


class AdaptFormerGraft(SiteGraft):
    """Branches at I5 of the chosen blocks."""

    merge_refusal: ClassVar[str] = "a ReLU stands between its two layers, so no single weight equals it"

    def __init__(self, config: AdaptFormerConfig, backbone: Backbone) -> None:
        """Build the branches; ``backbone`` is only read."""
        super().__init__(config)
        width = backbone.spec.embed_dim
        self.place_in_blocks(backbone, {"parallel_mlp_raw": lambda: ParallelBranch(width, config)})
