"""3DSAM-adapter: three dimensions from the patch embedding on, with attention in cubes and spatial adapters.

    tokens of slices -> depthwise convolution over slices (stride s) -> + positions -> + depth positions
    every block:     x <- x + up(relu(dwconv 3x3x3(relu(down(x)))))                          before norm1
                     attention in cubes of 8 x 8 x 8 tokens, every second block half a cube later, frozen q, k, v
                     relative positions of depth start as the mean of those of rows and columns, and are trained

The 2D patch kernel is frozen; with the convolution over slices it makes a factorised 3D patch embedding of (k + 1) d
parameters. A spatial adapter has 2 h d + 29 h + d parameters, h = d / 2.

Source:
    3DSAM-adapter, arXiv:2306.13465, section 3.1; layers from its code (med-air/3DSAM-adapter,
    modeling/Med_SAM/image_encoder.py).
Deviations:
    ``init="identity"``: a gate per block, zero at the start, mixes attention in cubes with that within the slice
    (``x + a + gate (cubes - a)``, at the price of both); ``up`` starts at zero, and without the ReLU behind it, which
    would let no gradient through at zero and only non-negative corrections later; the convolution over slices passes
    the slice in the middle; depth positions start at zero. ``init="published"`` has attention in cubes alone, the ReLU,
    and ones for depth positions.
    The released code computes the mask of shifted windows for 32 x 32 x 32 tokens only; here cubes are cut for any
    grid, without a mask (``samgraft.volumetric.cubic``). It resizes tables of relative positions to the cube; here two
    tokens of a slice keep the relative position that they have in the frozen block. Norms stay frozen; add the graft
    "layer_norm" to train them. Slices are taken at their own spacing and not resampled; ``depth_patch`` is how many of
    them one token spans (published 16 of the slices of a volume that was enlarged four times). The published necks and
    decoder are the head "mla_3d".
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import AcrossSlices, EncoderSites, MergedPlanes, SiteContext
from samgraft.adapters.config import check_positive
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft, select_blocks, site_list
from samgraft.errors import ConfigError, NoMatchError
from samgraft.volumetric.cubic import attend_cubes
from samgraft.volumetric.stack import as_slices, as_volumes, channels_first, channels_last


@dataclass(frozen=True, kw_only=True)
class Adapter3dsamConfig(GraftConfig):
    """Patch embedding, positions, attention and adapters in three dimensions."""

    method: ClassVar[str] = "adapter_3dsam"
    volumetric: ClassVar[bool] = True
    window: int = 8
    """Largest side of a cube of attention, tokens."""
    ratio: float = 0.5
    """Inner width of a spatial adapter as a share of the embedding width."""
    embedding: bool = True
    """Convolution over slices and depth positions at the patch embedding; without them leading blocks stay frozen."""
    depth_patch: int = 1
    """Slices that one token spans. Above 1 a head is needed that answers for every slice (detail_3d, mla_3d)."""
    depth_kernel: int | None = None
    """Slices that the convolution sees; None: ``depth_patch``, or 3 where that is 1."""
    planes: int = 32
    """Entries of the table of depth positions; resized to the token planes of a volume."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_positive(self.method, "ratio", self.ratio)
        for name in ("window", "depth_patch", "depth_kernel", "planes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"adapter_3dsam: {name} is {value}; expected at least 1")
        if self.kernel < self.depth_patch:
            raise ConfigError(
                f"adapter_3dsam: depth_kernel {self.kernel} is less than depth_patch {self.depth_patch}, so that "
                "slices would be skipped; give at least that many"
            )
        if self.depth_patch > 1 and not self.embedding:
            raise ConfigError("adapter_3dsam: depth_patch merges slices in the embedding; leave embedding=True")

    @property
    def kernel(self) -> int:
        """Slices that the convolution sees."""
        return self.depth_kernel or (3 if self.depth_patch == 1 else self.depth_patch)

    def build(self, backbone: Backbone) -> "Adapter3dsamGraft":
        """Create the parts for ``backbone``."""
        return Adapter3dsamGraft(self, backbone)


class SliceEmbedding(MergedPlanes):
    """Depthwise convolution over slices; beyond the ends of a volume its outermost slices repeat.

    Args:
        embed_dim: Width d.
        kernel: Slices k that it sees.
        stride: Slices s per plane.
        identity: It passes the slice in the middle.

    Attributes:
        weight: (k, d).
        bias: (d,).
    """

    def __init__(self, embed_dim: int, kernel: int, stride: int, *, identity: bool) -> None:
        """Create the convolution."""
        super().__init__()
        self.stride, self.first = stride, -((kernel - stride) // 2)
        self.middle = stride // 2 - self.first  # entry that meets the slice in the middle of a plane
        bound = kernel**-0.5  # as a depthwise convolution: a fan-in of k
        self.weight = nn.Parameter(torch.empty(kernel, embed_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(embed_dim).uniform_(-bound, bound))
        if identity:
            nn.init.zeros_(self.weight)
            nn.init.ones_(self.weight[self.middle])
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Tokens (B * D, h, w, d) to (B * planes, h, w, d)."""
        slices = as_volumes(x, depth)
        total = sum(slices[:, self._seen(depth, step)] * weight for step, weight in enumerate(self.weight))
        return as_slices(cast(Tensor, total) + self.bias)

    def count(self, depth: int) -> int:
        """Token planes of ``depth`` slices."""
        return -(-depth // self.stride)

    def centres(self, depth: int) -> list[int]:
        """The slice that ``init="identity"`` passes, for every plane."""
        return self._seen(depth, self.middle)

    def _seen(self, depth: int, step: int) -> list[int]:
        """The slice under entry ``step`` of the kernel, for every plane."""
        places = (plane * self.stride + self.first + step for plane in range(self.count(depth)))
        return [min(max(place, 0), depth - 1) for place in places]


class DepthPositions(nn.Module):
    """A learned vector per token plane; a module for the site "patch_embed".

    Args:
        planes: Entries of the table.
        embed_dim: Width d.
        identity: Start at zero, else at one.

    Attributes:
        table: (planes, d).
    """

    def __init__(self, planes: int, embed_dim: int, *, identity: bool) -> None:
        """Create the table."""
        super().__init__()
        self.table = nn.Parameter(torch.zeros(planes, embed_dim) if identity else torch.ones(planes, embed_dim))

    def forward(self, x: Tensor, context: SiteContext) -> Tensor:
        """Delta (B * D, 1, 1, d) for tokens (B * D, h, w, d); the table is resized linearly to D entries."""
        table: Tensor = self.table
        depth = context.depth
        if len(table) != depth:
            table = functional.interpolate(table.T[None], size=depth, mode="linear", align_corners=False)[0].T
        return table.repeat(len(x) // depth, 1)[:, None, None]


class SpatialAdapter(nn.Module):
    """up(relu(dwconv(relu(down(x))))); a module for the site "block_input".

    Args:
        embed_dim: Width d of the tokens.
        hidden: Inner width h.
        identity: Zero ``up``; else PyTorch's default, and a ReLU at the end.
    """

    def __init__(self, embed_dim: int, hidden: int, *, identity: bool) -> None:
        """Create the layers."""
        super().__init__()
        self.down = nn.Linear(embed_dim, hidden)
        self.conv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.up = nn.Linear(hidden, embed_dim)
        self.identity = identity
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, context: SiteContext) -> Tensor:
        """Delta (B * D, h, w, d) for tokens of the same shape."""
        inner = channels_first(functional.relu(self.down(x)), context.depth)
        # in bfloat16 on a CPU, torch 2.13 sometimes gives the weights of this convolution a gradient that is no number
        with torch.autocast(device_type=inner.device.type, enabled=False):
            mixed = self.conv(inner.to(self.conv.weight.dtype))
        delta: Tensor = self.up(channels_last(functional.relu(mixed)))
        return delta if self.identity else functional.relu(delta)


class CubicAttention(AcrossSlices):
    """Attention in cubes instead of within slices; a module for the site "across_slices".

    Args:
        rel_pos_depth: (L, c): where the table of relative positions along depth starts; None for no positions.
        window: Largest side of a cube, tokens.
        shifted: Cubes start half a cube later.
        gate: Start with attention within slices alone.

    Attributes:
        gate: (1,), or None.
    """

    def __init__(self, rel_pos_depth: Tensor | None, window: int, *, shifted: bool, gate: bool) -> None:
        """Create the table and the gate."""
        super().__init__()
        self.window, self.shifted = window, shifted
        start = None if rel_pos_depth is None else nn.Parameter(rel_pos_depth.detach().clone())
        self.register_parameter("rel_pos_depth", start)
        self.register_parameter("gate", nn.Parameter(torch.zeros(1)) if gate else None)

    def forward(self, attn: Any, qkv: Tensor, projected: Tensor, context: SiteContext) -> Tensor:
        """Delta (B * D, h, w, d); arguments as for :class:`AcrossSlices`."""
        height, width = context.grid_size
        own = as_volumes(qkv[:, :height, :width], context.depth)
        sides = (max(context.grid_size), height, width)
        if context.windows is not None:
            sides = (context.windows.size,) * 3
        depth_table = cast(Tensor | None, self.rel_pos_depth)
        tables = None if depth_table is None else (depth_table, attn.rel_pos_h, attn.rel_pos_w)
        seen = attend_cubes(own, attn.num_attention_heads, self.window, tables, shifted=self.shifted, sides=sides)
        delta: Tensor = attn.proj(as_slices(seen)) - projected
        gate = cast(Tensor | None, self.gate)
        return delta if gate is None else gate * delta


class Adapter3dsamGraft(SiteGraft):
    """Parts at I0, before norm1 and beside attention.

    Attributes:
        embedding: Convolution over slices, or None.
        positions: Depth positions, or None.
    """

    merge_refusal: ClassVar[str] = "it mixes slices, which no weight of a block sees"

    def __init__(self, config: Adapter3dsamConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config)
        spec, like, identity = backbone.spec, next(backbone.parameters()), config.init == "identity"
        width = spec.embed_dim
        hidden = max(1, round(width * config.ratio))
        self.embedding: SliceEmbedding | None = None
        self.positions: DepthPositions | None = None
        with torch.device(like.device):
            if config.embedding:
                _encoder_sites(backbone)
                kernel, stride = config.kernel, config.depth_patch
                self.embedding = SliceEmbedding(width, kernel, stride, identity=identity).to(like.dtype)
                self.positions = DepthPositions(config.planes, width, identity=identity).to(like.dtype)
                self.points = ("I0 slices to token planes", "I0 depth positions")
        self.place_in_blocks(backbone, {"block_input": lambda: SpatialAdapter(width, hidden, identity=identity)})
        for block in select_blocks(config.blocks, spec.num_blocks):
            site_list(backbone, block, "across_slices")
            start = _depth_table(backbone, block)
            with torch.device(like.device):
                part = CubicAttention(start, config.window, shifted=block % 2 == 0, gate=identity)
            self.place(block, "across_slices", part.to(like.dtype))

    def claims(self) -> frozenset[str]:
        """One method can merge slices."""
        return frozenset() if self.embedding is None else frozenset({"encoder_sites.planes"})

    def install(self, backbone: Backbone) -> None:
        """Append every part to its list."""
        super().install(backbone)
        if self.embedding is not None and self.positions is not None:
            sites = _encoder_sites(backbone)
            sites.planes.append(self.embedding)
            sites.patch_embed.append(self.positions)

    def remove(self, backbone: Backbone) -> None:
        """Delete every part from its list."""
        super().remove(backbone)
        sites = _encoder_sites(backbone)
        for modules, own in ((sites.planes, self.embedding), (sites.patch_embed, self.positions)):
            for index in [i for i, other in enumerate(modules) if other is own]:
                del modules[index]


def _encoder_sites(backbone: Backbone) -> EncoderSites:
    """Points outside the blocks.

    Raises:
        NoMatchError: the backbone has none.
    """
    sites = getattr(backbone, "encoder_sites", None)
    if not isinstance(sites, EncoderSites):
        raise NoMatchError(
            f"backbone {backbone.spec.name!r} has no insertion points at its patch embedding; nothing was changed; "
            "choose another graft, or embedding=False"
        )
    return sites


def _depth_table(backbone: Backbone, block: int) -> Tensor | None:
    """Mean of the frozen tables of rows and columns of one block, (L, c)."""
    attn: Any = backbone.get_submodule(f"sam.vision_encoder.layers.{block}.attn")
    return (attn.rel_pos_h + attn.rel_pos_w) / 2 if attn.use_rel_pos else None
