"""MA-SAM: FacT on queries and values, and two adapters per block that convolve over neighbouring slices.

    x <- x + up(gelu(conv(down(norm(x)))))     conv: 3 x 1 x 1 over (slices, rows, columns), h -> h, with a bias
                                               norm: over channels; down: d -> h, up: h -> d, no biases

One stands before norm1 and one after the attention residual, both on tokens that are in no window, so that the axis of
the convolution is the true order of slices; beyond the first and the last slice there are zeros. A slice is reached by
two more neighbours on either side with every block. 2 h d + 3 h^2 + h + 2 d parameters per adapter, beside FacT's.

Source:
    MA-SAM, arXiv:2309.08842, section 3; layers, their places and the width of 384 from its code (cchen-cc/MA-SAM,
    sam_fact_tt_image_encoder.py and segment_anything/modeling/image_encoder.py).
Deviations:
    ``init="identity"`` starts ``up`` at zero; published, all layers have PyTorch's default, which changes the output
    before the first step. The published width of 384 is kept for SAM B, L and H; a narrower backbone takes half of its
    own. Stacks have any number of slices, published 5. The decoder is a head of its own, "progressive".
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.config import check_choice
from samgraft.adapters.grafts.base import Graft
from samgraft.adapters.grafts.fact import FactConfig, FactGraft
from samgraft.errors import ConfigError
from samgraft.volumetric.stack import as_slices, as_volumes, depth_conv

SITES = ("block_input", "after_attention")
WIDTH = 384
"""Published inner width."""


@dataclass(frozen=True, kw_only=True)
class MaSamConfig(FactConfig):
    """FacT and depth adapters."""

    method: ClassVar[str] = "ma_sam"
    volumetric: ClassVar[bool] = True
    hidden: int | None = None
    """Inner width of a depth adapter; None takes 384, or half of the backbone's width if that is less."""
    sites: tuple[str, ...] = SITES
    """Where depth adapters stand: "block_input" (I1), "after_attention" (I4)."""

    def __post_init__(self) -> None:
        """Check the width and the sites."""
        super().__post_init__()
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"ma_sam: hidden is {self.hidden}; expected at least 1, or None")
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"ma_sam: sites are {list(self.sites)}; name at least one of {', '.join(SITES)}, once")
        for site in self.sites:
            check_choice(self.method, "site", site, SITES)

    def build(self, backbone: Backbone) -> "MaSamGraft":
        """Create the parts for ``backbone``."""
        return MaSamGraft(self, backbone)


class DepthAdapter(nn.Module):
    """up(gelu(conv(down(norm(x))))); a module for a site whose tokens are in no window.

    Args:
        embed_dim: Width d of the tokens.
        hidden: Inner width h.
        identity: Zero ``up``.

    Attributes:
        conv: Weight (h, h, 3) over slices, and bias; called through ``depth_conv``.
    """

    def __init__(self, embed_dim: int, hidden: int, *, identity: bool) -> None:
        """Create the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.down = nn.Linear(embed_dim, hidden, bias=False)
        self.conv = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.up = nn.Linear(hidden, embed_dim, bias=False)
        if identity:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, context: SiteContext) -> Tensor:
        """Delta (B * D, h, w, d) for tokens ``x`` of the same shape."""
        inner = as_volumes(self.down(self.norm(x)), context.depth)
        mixed = depth_conv(inner, self.conv.weight, self.conv.bias)
        delta: Tensor = self.up(functional.gelu(as_slices(mixed)))
        return delta


class MaSamGraft(FactGraft):
    """FacT at I2, depth adapters at I1 and I4 of the chosen blocks."""

    merge_refusal: ClassVar[str] = "its depth adapters look at other slices, which no weight of a block sees"

    def __init__(self, config: MaSamConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config, backbone)
        width = backbone.spec.embed_dim
        hidden = config.hidden or max(1, min(WIDTH, width // 2))

        def make() -> DepthAdapter:
            return DepthAdapter(width, hidden, identity=config.init == "identity")

        self.place_in_blocks(backbone, {site: make for site in SITES if site in config.sites})

    def merge(self, backbone: Backbone) -> None:
        """Refused.

        Raises:
            ConfigError: always.
        """
        Graft.merge(self, backbone)
