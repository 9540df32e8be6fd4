"""SAM-Med2D's adapter: beside the MLP, channels are gated by the image's mean, then space is seen at half resolution.

    xn = norm2(x)                                                         (B, h, w, d)
    g  = sigmoid(expand(relu(squeeze(mean of xn over h, w))))             squeeze: d -> d/4, expand: d/4 -> d, no biases
    u  = relu(conv_transposed 4x4 stride 2 (relu(conv 3x3 stride 2 (g * xn))))     no biases
    x <- x + MLP(xn) + LayerNorm(xn + u)

d^2/2 + 25 d + 2 d parameters per block with depthwise convolutions, d^2/2 + 25 d^2 + 2 d with those of the paper.

Source:
    SAM-Med2D, arXiv:2308.16184, its section on the image encoder; layers, biases and initialisation from its code
    (OpenGVLab/SAM-Med2D, segment_anything/modeling/image_encoder.py, class Adapter_Layer).
Deviations:
    Convolutions are depthwise unless ``depthwise=False``: the published ones hold 180.5 million parameters on SAM-B,
    twice the encoder that they adapt. For them the fan-out counts what one channel feeds, d / groups times the kernel.
    ``init="identity"`` starts scale and shift of the LayerNorm at zero; the published unit scale adds a map of unit
    variance to the MLP of every block at step 0. Grids of odd sides work: the finer map is cut at the bottom and right.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft


@dataclass(frozen=True, kw_only=True)
class ChannelSpatialConfig(GraftConfig):
    """Channel gate and strided convolutions beside every MLP."""

    method: ClassVar[str] = "channel_spatial"
    depthwise: bool = True
    """One kernel per channel. False: the published full convolutions, 25 d^2 parameters per block."""

    def build(self, backbone: Backbone) -> "ChannelSpatialGraft":
        """Create the adapters for ``backbone``."""
        return ChannelSpatialGraft(self, backbone)


class ChannelSpatial(nn.Module):
    """LayerNorm(x + spatial(gate(x) * x)).

    Args:
        embed_dim: Width d of the tokens.
        depthwise: One kernel per channel.
        identity: Zero the norm's scale and shift, so that the output is zero at step 0.
    """

    def __init__(self, embed_dim: int, *, depthwise: bool = True, identity: bool = True) -> None:
        """Create the layers; all but the norm start from a Kaiming normal with fan-out."""
        super().__init__()
        hidden, groups = max(1, embed_dim // 4), embed_dim if depthwise else 1
        self.squeeze = nn.Linear(embed_dim, hidden, bias=False)
        self.expand = nn.Linear(hidden, embed_dim, bias=False)
        self.shrink = nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1, groups=groups, bias=False)
        self.grow = nn.ConvTranspose2d(embed_dim, embed_dim, 4, stride=2, padding=1, groups=groups, bias=False)
        self.norm = nn.LayerNorm(embed_dim)
        for linear in (self.squeeze, self.expand):
            nn.init.normal_(linear.weight, std=math.sqrt(2 / linear.out_features))
        for conv in (self.shrink, self.grow):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.weight[0, 0].numel() * embed_dim / groups)))
        if identity:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Delta (B, h, w, d) for normed tokens ``x`` of the same shape."""
        del context
        gate = self.expand(functional.relu(self.squeeze(x.mean(dim=(1, 2), keepdim=True)))).sigmoid()  # (B, 1, 1, d)
        coarse = functional.relu(self.shrink((gate * x).permute(0, 3, 1, 2)))
        fine = functional.relu(self.grow(coarse))[:, :, : x.shape[1], : x.shape[2]]  # an odd side comes back one longer
        delta: Tensor = self.norm(x + fine.permute(0, 2, 3, 1))
        return delta


class ChannelSpatialGraft(SiteGraft):
    """Adapters at I6 of the chosen blocks."""

    merge_refusal: ClassVar[str] = "it mixes neighbouring tokens and gates channels by the image, which no weight does"

    def __init__(self, config: ChannelSpatialConfig, backbone: Backbone) -> None:
        """Build the adapters; ``backbone`` is only read."""
        super().__init__(config)
        make = partial(ChannelSpatial, depthwise=config.depthwise, identity=config.init == "identity")
        self.place_in_blocks(backbone, {"parallel_mlp": partial(make, backbone.spec.embed_dim)})
