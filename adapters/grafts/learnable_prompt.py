"""Learnable prompt layer: before each block a small convolutional network adds to the tokens what it reads from them.

    x <- x + P(x)
    P: 1x1 d -> d/r, norm, GELU, depthwise 3x3 without bias, norm, GELU, 1x1 d/r -> d, norm, GELU

Norms are over the channels of one token. 2 d^2/r + (14/r + 3) d parameters per block; with r = 4, d^2/2 + 6.5 d.
The published head that goes with it is the decoder "conv_head".

Source:
    Learnable Ophthalmology SAM, arXiv:2304.13425, its section on the prompt layer; layers from its code
    (Qsingle/LearnablePromptSAM, learnerable_seg.py, class PromptGen).
Deviations:
    ``init="identity"`` starts scale and shift of the last norm at zero; its slope through GELU is 1/2 there, so it
    learns from the first step. The published unit scale adds a map of about unit variance to every block's input.
    1x1 convolutions are linear layers on channel-last tokens, and their norms plain LayerNorms: the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft
from samgraft.errors import ConfigError

EPSILON = 1e-6
"""Added to the variance in every norm, as in SAM's LayerNorm2d."""


@dataclass(frozen=True, kw_only=True)
class LearnablePromptConfig(GraftConfig):
    """A prompt layer before every block."""

    method: ClassVar[str] = "learnable_prompt"
    reduction: int = 4
    """Divisor r of the embedding width for the inner width."""

    def __post_init__(self) -> None:
        """Check the divisor."""
        super().__post_init__()
        if self.reduction < 1:
            raise ConfigError(f"learnable_prompt: reduction is {self.reduction}; expected at least 1")

    def build(self, backbone: Backbone) -> "LearnablePromptGraft":
        """Create the layers for ``backbone``."""
        return LearnablePromptGraft(self, backbone)


class PromptLayer(nn.Module):
    """P(x) of the module's docstring.

    Args:
        embed_dim: Width d of the tokens.
        hidden_dim: Inner width.
        identity: Zero the last norm's scale and shift, so that the output is zero at step 0.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, *, identity: bool = True) -> None:
        """Create the layers."""
        super().__init__()
        self.down = nn.Linear(embed_dim, hidden_dim)
        self.down_norm = nn.LayerNorm(hidden_dim, eps=EPSILON)
        self.mix = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, bias=False)
        self.mix_norm = nn.LayerNorm(hidden_dim, eps=EPSILON)
        self.up = nn.Linear(hidden_dim, embed_dim)
        self.up_norm = nn.LayerNorm(embed_dim, eps=EPSILON)
        if identity:
            nn.init.zeros_(self.up_norm.weight)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Delta (B, h, w, d) for tokens ``x`` of the same shape."""
        del context
        inner = functional.gelu(self.down_norm(self.down(x)))
        inner = self.mix(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        inner = functional.gelu(self.mix_norm(inner))
        return functional.gelu(self.up_norm(self.up(inner)))


class LearnablePromptGraft(SiteGraft):
    """Prompt layers at I1 of the chosen blocks."""

    merge_refusal: ClassVar[str] = "its layers are convolutions, norms and GELUs on the tokens, which no weight holds"

    def __init__(self, config: LearnablePromptConfig, backbone: Backbone) -> None:
        """Build the layers; ``backbone`` is only read."""
        super().__init__(config)
        width = backbone.spec.embed_dim
        hidden = max(1, width // config.reduction)
        make = partial(PromptLayer, width, hidden, identity=config.init == "identity")
        self.place_in_blocks(backbone, {"block_input": make})
