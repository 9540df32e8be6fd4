"""Insertion points of the encoder: empty lists of modules that grafts append to, and what such a module is told.

Every grafted module is called as ``module(x, context)`` and returns a DELTA that is added to ``x``. All modules of one
point see the same ``x``; their deltas are summed. An empty list is skipped, so the frozen output stays bit-equal.

Source: specs/adapters.md 13.1 (I0 to I8). I7 and I9 are linear layers and are wrapped by module name instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_SITES = ("block_input", "qkv", "attention_output", "after_attention", "parallel_mlp_raw", "parallel_mlp")
"""Names of the points of one transformer block: I1, I2, I3, I4, I5, I6."""

ENCODER_SITES = ("patch_embed", "neck")
"""Names of the points of the whole encoder: I0, I8."""


@dataclass(frozen=True)
class WindowInfo:
    """How tokens of a windowed block are laid out at the points inside attention (I2, I3)."""

    size: int
    """Side of a window in tokens."""
    counts: tuple[int, int]
    """Windows per image, (rows, columns). Windows are ordered (image, row, column) in the batch axis."""
    padded: tuple[int, int]
    """(h, w) in tokens after zero padding at the bottom and right; equals ``counts * size``."""


@dataclass(frozen=True, eq=False)
class SiteContext:
    """What a grafted module knows besides its input."""

    grid_size: tuple[int, int]
    """(h, w): tokens of the image without padding."""
    image: Tensor
    """(B, 3, H, W): the normalised image."""
    windows: WindowInfo | None = None
    """Layout of ``x`` at I2 and I3 of a windowed block; None where ``x`` is (B, h, w, D)."""
    depth: int = 1
    """So many rows of the batch that follow each other are the token planes of one volume, in the order of slices."""


class BlockSites(nn.Module):
    """The points of one transformer block; shapes of ``x`` are channel-last.

    Attributes:
        block_input: I1, block input before norm1, (B, h, w, D).
        qkv: I2, the attention input, (B, h, w, D) or (B * windows, s, s, D); a module returns (dq, dk, dv), each of the
            shape of ``x`` or None, added to the slices of the fused projection before heads are split.
        attention_output: I3, projected attention output before windows are undone, shape as at I2.
        after_attention: I4, after the attention residual, before norm2, (B, h, w, D).
        parallel_mlp_raw: I5, reads the un-normed MLP input, (B, h, w, D); the delta joins the MLP's output.
        parallel_mlp: I6, reads norm2(x), (B, h, w, D); the delta joins the MLP's output.
        tokens: At most one :class:`ExtraTokens`, whose tokens all image tokens attend to.
        across_slices: :class:`AcrossSlices`; read queries, keys and values of all slices of a volume, and what
            attention within slices gave; the delta joins the latter.
    """

    def __init__(self) -> None:
        """Create empty lists."""
        super().__init__()
        self.block_input = nn.ModuleList()
        self.qkv = nn.ModuleList()
        self.attention_output = nn.ModuleList()
        self.after_attention = nn.ModuleList()
        self.parallel_mlp_raw = nn.ModuleList()
        self.parallel_mlp = nn.ModuleList()
        self.tokens = nn.ModuleList()
        self.across_slices = nn.ModuleList()


class AcrossSlices(nn.Module):
    """Attention between the slices of a volume, beside the attention within each."""

    def forward(self, attn: Any, qkv: Tensor, projected: Tensor, context: SiteContext) -> Tensor:
        """Delta (B, h, w, D) that joins ``projected``.

        Args:
            attn: The frozen attention of the block; its projection and position tables can be read.
            qkv: (B, H, W, 3 D): queries, keys, values side by side; the rows and columns beyond ``context.grid_size``
                are padding.
            projected: (B, h, w, D): what attention within slices gave, projected.
            context: Tells the number of slices of a volume.
        """
        raise NotImplementedError


class MergedPlanes(nn.Module):
    """Makes fewer token planes of the slices of a volume, before positions are added."""

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Tokens (B * depth, h, w, D) to (B * :meth:`count`, h, w, D)."""
        raise NotImplementedError

    def count(self, depth: int) -> int:
        """Token planes of a volume of ``depth`` slices."""
        raise NotImplementedError

    def centres(self, depth: int) -> list[int]:
        """The slice in the middle of every plane."""
        raise NotImplementedError


class ExtraTokens(nn.Module):
    """Learned tokens beside those of the image, in one block.

    In a windowed block every window sees all of them. If they are carried, they attend to the image too (in each
    window, averaged over windows), pass the MLP, and go on to the next block.

    Attributes:
        gate: (1,) factor on what the tokens change in the image; None for 1, at half the price.
        carried: Whether the next block gets what became of them.
    """

    gate: Tensor | None
    carried: bool

    def forward(self, former: Tensor | None, batch: int) -> Tensor:
        """The tokens (B, p, D) of this block; ``former`` are those that the block before carried on."""
        raise NotImplementedError


class EncoderSites(nn.Module):
    """The points outside the blocks.

    Attributes:
        planes: At most one :class:`MergedPlanes`, before positions are added.
        patch_embed: I0, patch embedding plus position table, (B, h, w, D).
        neck: I8, output of the neck, (B, C, h, w).
    """

    def __init__(self) -> None:
        """Create empty lists."""
        super().__init__()
        self.planes = nn.ModuleList()
        self.patch_embed = nn.ModuleList()
        self.neck = nn.ModuleList()


def add_deltas(modules: nn.ModuleList, x: Tensor, context: SiteContext, onto: Tensor | None = None) -> Tensor:
    """Add the delta of every module to ``x``, or to ``onto`` where the modules read another tensor than they change.

    Args:
        modules: One list of a :class:`BlockSites` or :class:`EncoderSites`.
        x: What the modules read.
        context: Passed on.
        onto: What the deltas are added to; ``x`` if None.
    """
    total = x if onto is None else onto
    for module in modules:
        total = total + module(x, context)
    return total


def add_qkv_deltas(modules: nn.ModuleList, x: Tensor, qkv: Tensor, context: SiteContext) -> Tensor:
    """Add (dq, dk, dv) of every module to the slices of the fused projection.

    Args:
        modules: ``BlockSites.qkv``.
        x: Attention input, (..., D).
        qkv: Fused projection of ``x``, (..., 3 D).
        context: Passed on.
    """
    if len(modules) == 0:
        return qkv
    slices = list(qkv.chunk(3, dim=-1))
    for module in modules:
        for index, delta in enumerate(module(x, context)):
            if delta is not None:
                slices[index] = slices[index] + delta
    return torch.cat(slices, dim=-1)
