"""SD-Trans of Med-SA: beside attention within a slice, the same frozen attention over the slices at every place.

    a = proj(attention within the slice)      b = proj(attention over the D slices at (y, x)), the same q, k, v
    x <- x + a + space(a) + depth(b)          space, depth: Linear(d, d/4), GELU, Linear(d/4, d)
    x <- x + MLP(norm2(x)) + s * mlp(norm2(x))

Both branches share norm1, the fused projection and the output projection, so the queries, keys and values are computed
once. Every slice sees every other one in a single block. Three adapters of d^2/2 + 1.25 d parameters per block.

Source:
    Medical SAM Adapter, arXiv:2304.12620, section 3 (Space-Depth Transpose); layers from its code
    (SuperMedIntel/Medical-SAM-Adapter, models/ImageEncoder/vit/adapter_block.py).
Deviations:
    The depth branch works on tokens that are in no window and in the order of slices. The released code transposes
    after windows are cut, where the batch axis holds windows innermost, so that in windowed blocks its "depth" mixes
    windows of one slice. It folds D into a grid of two factors, which makes distant slices neighbours; here depth is
    one axis whose relative positions are the mean of the frozen tables of rows and columns, resized to 2 D - 1.
    ``init="identity"`` starts second layers at zero, as in the graft "bottleneck", whose two adapters these are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from samgraft.adapters.backbones.attention import attend, relative_table
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import AcrossSlices, SiteContext
from samgraft.adapters.grafts.bottleneck import Bottleneck, BottleneckConfig, BottleneckGraft
from samgraft.volumetric.stack import as_slices, as_volumes


@dataclass(frozen=True, kw_only=True)
class SdTransConfig(BottleneckConfig):
    """Med-SA's three adapters per block."""

    method: ClassVar[str] = "sd_trans"
    volumetric: ClassVar[bool] = True

    def build(self, backbone: Backbone) -> "SdTransGraft":
        """Create the adapters for ``backbone``."""
        return SdTransGraft(self, backbone)


class DepthBranch(AcrossSlices):
    """depth(proj(attention over slices)); a module for the site "across_slices".

    Args:
        adapter: What follows the frozen projection.
    """

    def __init__(self, adapter: Bottleneck) -> None:
        """Hold the adapter."""
        super().__init__()
        self.adapter = adapter

    def forward(self, attn: Any, qkv: Tensor, projected: Tensor, context: SiteContext) -> Tensor:
        """Delta (B * D, h, w, d); arguments as for :class:`AcrossSlices`."""
        del projected
        height, width = context.grid_size
        own = as_volumes(qkv[:, :height, :width], context.depth)
        delta: Tensor = self.adapter(attn.proj(attention_over_slices(attn, own)))
        return delta


def attention_over_slices(attn: Any, qkv: Tensor) -> Tensor:
    """What each token sees of the tokens at the same place in all slices: (B * D, h, w, d), before the projection.

    Args:
        attn: Tells the number of heads, and has the tables of relative positions.
        qkv: (B, D, h, w, 3 d).
    """
    volumes, depth, height, width, _ = qkv.shape
    split = qkv.unflatten(-1, (3, attn.num_attention_heads, -1))  # (B, D, h, w, 3, heads, c)
    query, key, value = split.permute(4, 0, 2, 3, 5, 1, 6).flatten(1, 3).unbind(0)  # (B h w, heads, D, c)
    rel = None
    if attn.use_rel_pos:
        table = relative_table((attn.rel_pos_h + attn.rel_pos_w) / 2, depth)
        rel = (table, table.new_zeros(1, 1, table.shape[-1]))  # a map of D rows and one column
    seen = attend(query, key, value, rel).unflatten(0, (volumes, height, width))
    return as_slices(seen.permute(0, 4, 1, 2, 3, 5).flatten(4))


class SdTransGraft(BottleneckGraft):
    """The adapters of "bottleneck", and a depth branch in the chosen blocks."""

    merge_refusal: ClassVar[str] = "it attends over other slices, which no weight of a block sees"

    def __init__(self, config: SdTransConfig, backbone: Backbone) -> None:
        """Build the adapters; ``backbone`` is only read."""
        super().__init__(config, backbone)
        width = backbone.spec.embed_dim
        hidden, identity = max(1, round(width * config.ratio)), config.init == "identity"

        def make() -> DepthBranch:
            return DepthBranch(Bottleneck(width, hidden, identity=identity))

        self.place_in_blocks(backbone, {"across_slices": make})
