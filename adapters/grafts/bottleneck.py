"""Bottleneck adapters of Med-SA, 2D: one after attention with a skip, one parallel to the MLP.

Each is Linear(d, d/4), GELU, Linear(d/4, d), with biases and no norm: d^2/2 + 1.25 d parameters. After attention the
adapter's output is added to its input (sequential residual); beside the MLP it reads norm2(x) and is scaled by 0.5.

Source:
    Medical SAM Adapter, arXiv:2304.12620, section 3. GELU (its text says ReLU), the factor 0.5 and that the second
    adapter reads norm2(x) come from its code (SuperMedIntel/Medical-SAM-Adapter, models/common/adapter.py and
    models/ImageEncoder/vit/adapter_block.py).
Deviations:
    ``init="identity"`` starts the second layer at zero. ``init="published"`` leaves both layers at PyTorch's default,
    as the released code does; that changes the output before the first step.
    The released code also builds a third adapter per block, for depth, even where images are 2D; here there are two.
    It norms after windows are padded, so that padded tokens carry the bias of the norm; here they are zero, as in SAM.
    It trains the whole mask decoder beside the adapters; add the graft "full_decoder" for that.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft
from samgraft.errors import ConfigError

SITES = ("attention_output", "parallel_mlp")


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(GraftConfig):
    """Med-SA's two adapters per block."""

    method: ClassVar[str] = "bottleneck"
    sites: tuple[str, ...] = SITES
    """Which of the two: "attention_output" (I3, sequential residual) and "parallel_mlp" (I6, scaled)."""
    ratio: float = 0.25
    """Inner width as a share of the embedding width."""
    scale: float = 0.5
    """Factor on the parallel adapter."""

    def __post_init__(self) -> None:
        """Check sites and numbers."""
        super().__post_init__()
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ConfigError(
                f"bottleneck: sites are {list(self.sites)}; name at least one of {', '.join(SITES)}, each once"
            )
        for site in self.sites:
            check_choice(self.method, "site", site, SITES)
        check_positive(self.method, "ratio", self.ratio)
        check_positive(self.method, "scale", self.scale)

    def build(self, backbone: Backbone) -> "BottleneckGraft":
        """Create the adapters for ``backbone``."""
        return BottleneckGraft(self, backbone)


class Bottleneck(nn.Module):
    """scale * up(gelu(down(x))); a module for any channel-last site.

    Args:
        embed_dim: Width d of the tokens.
        hidden_dim: Inner width.
        scale: Factor on the output.
        identity: Zero ``up``, so that the output is zero at step 0; else PyTorch's default initialisation.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, *, scale: float = 1.0, identity: bool = True) -> None:
        """Create both layers."""
        super().__init__()
        self.down = nn.Linear(embed_dim, hidden_dim)
        self.up = nn.Linear(hidden_dim, embed_dim)
        self.scale = scale
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Delta (..., d) for tokens ``x`` (..., d)."""
        del context
        delta: Tensor = self.up(functional.gelu(self.down(x)))
        return delta if self.scale == 1.0 else delta * self.scale


class BottleneckGraft(SiteGraft):
    """Adapters at I3 and I6 of the chosen blocks."""

    merge_refusal: ClassVar[str] = "a GELU stands between its two layers, so no single weight equals it"

    def __init__(self, config: BottleneckConfig, backbone: Backbone) -> None:
        """Build the adapters; ``backbone`` is only read."""
        super().__init__(config)
        width = backbone.spec.embed_dim
        hidden = max(1, round(width * config.ratio))
        make = partial(Bottleneck, width, hidden, identity=config.init == "identity")
        scales = {"attention_output": 1.0, "parallel_mlp": config.scale}
        chosen = [site for site in SITES if site in config.sites]
        self.place_in_blocks(backbone, {site: partial(make, scale=scales[site]) for site in chosen})
