"""Visual prompt tuning: learned tokens that all image tokens attend to, once (shallow) or anew in every block (deep).

    deep     block i:  attention over [image, p_i]          p_i learned per block, what becomes of it is dropped
    shallow  block 0:  attention over [image, p]            p attends to the image and goes on through the other blocks

In a windowed block every window sees all tokens; what they read is averaged over windows. Relative positions hold
between image tokens only. Tokens never enter the grid of the image, so windows, neck and decoder are as before.

Source:
    Visual Prompt Tuning, arXiv:2203.12119, section 3.2. Windows: replicated and averaged, as its authors do for Swin.
Deviations:
    ``init="identity"`` multiplies what the tokens change in the image by a learned gate per block, which starts at 0:
    more keys always change a softmax, so without it no start could equal the frozen model. It costs a second attention.
    ``init="published"`` has no gate and draws tokens from U(-v, v) with v^2 = 6 / (3 patch^2 + d).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import ExtraTokens
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft, select_blocks, site_list
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VptConfig(GraftConfig):
    """Learned tokens: p d parameters per block (deep) or once (shallow), and a gate per block."""

    method: ClassVar[str] = "vpt"
    tokens: int = 5
    """Number p of tokens."""
    deep: bool = True
    """New tokens in every block; else those of the first block go on through the rest."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        if self.tokens < 1:
            raise ConfigError(f"vpt: tokens is {self.tokens}; expected at least 1")

    def build(self, backbone: Backbone) -> "VptGraft":
        """Create the tokens for ``backbone``."""
        return VptGraft(self, backbone)


class PromptTokens(ExtraTokens):
    """The tokens of one block.

    Attributes:
        tokens: (p, D), or None where those of the block before go on.
    """

    def __init__(self, tokens: Tensor | None, gate: Tensor | None, *, carried: bool) -> None:
        """Hold what is learned."""
        super().__init__()
        self.tokens = None if tokens is None else nn.Parameter(tokens)
        self.gate = None if gate is None else nn.Parameter(gate)
        self.carried = carried

    def forward(self, former: Tensor | None, batch: int) -> Tensor:
        """(B, p, D)."""
        if self.tokens is not None:
            return self.tokens.expand(batch, -1, -1)
        if former is None:
            raise ConfigError("vpt: the block before carried no tokens on; run all blocks from the first grafted one")
        return former


class VptGraft(SiteGraft):
    """Tokens for the chosen blocks."""

    merge_refusal = "its tokens take part in attention beside those of the image; no weight can hold them"

    def __init__(self, config: VptConfig, backbone: Backbone) -> None:
        """Build the tokens; ``backbone`` is only read."""
        super().__init__(config)
        spec, like = backbone.spec, next(backbone.parameters())
        chosen = select_blocks(config.blocks, spec.num_blocks)
        if not config.deep and chosen != tuple(range(chosen[0], spec.num_blocks)):
            raise ConfigError(
                f"vpt: blocks {list(chosen)} with deep=False; tokens go on to the last block; choose 'all' or 'last:N'"
            )
        bound = math.sqrt(6 / (3 * spec.patch_size**2 + spec.embed_dim))
        for block in chosen:
            site_list(backbone, block, "tokens")
            fresh = config.deep or block == chosen[0]
            tokens = torch.empty(config.tokens, spec.embed_dim, device=like.device, dtype=like.dtype)
            if fresh:
                nn.init.uniform_(tokens, -bound, bound)
            carried = not config.deep and block + 1 < spec.num_blocks
            gate = like.new_zeros(1) if config.init == "identity" else None
            self.place(block, "tokens", PromptTokens(tokens if fresh else None, gate, carried=carried))

    def claims(self) -> frozenset[str]:
        """One method can have the tokens of a block."""
        return frozenset(f"block_sites.{block}.tokens" for block, _, _ in self.placements())
