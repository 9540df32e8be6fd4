"""The one forward of a ViT block in this project, with its named insertion points.

    x -> [I1] -> norm1 -> qkv -> windows [I2] -> attention + relative positions -> windows undone -> projection [I3]
      -> + x -> [I4] -> norm2 -> MLP [I5, I6] -> + x        extra tokens [tokens] join as keys and values

It runs on the modules of a ``transformers`` ``SamVisionLayer``, called as modules, so that wrapped linear layers (LoRA)
take effect. norm1 comes before the padding: padded tokens are zero vectors that take part in attention, as in SAM.

Source:
    Segment Anything, arXiv:2304.02643; windowed blocks after ViTDet, arXiv:2203.16527.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.attention import attend, exporting, relative_table
from samgraft.adapters.backbones.sites import (
    BlockSites,
    ExtraTokens,
    SiteContext,
    WindowInfo,
    add_deltas,
    add_qkv_deltas,
)

MLP_TOKENS = 1024
"""Tokens that go through an MLP together: the four times wider layer between then stays in the cache."""
STRIP_TOKENS = 1024
"""Images of more tokens than this pass through windowed attention one row of windows at a time, for the same reason."""


def block_forward(
    layer: Any, sites: BlockSites, x: Tensor, image: Tensor, extra: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run one block.

    Args:
        layer: ``SamVisionLayer``, or anything with its ``layer_norm1``, ``layer_norm2``, ``mlp``, ``window_size`` (0:
            global) and ``attn``.
        sites: Grafted modules of this block.
        x: (B, h, w, D).
        image: (B, 3, H, W), normalised; what grafts may look at.
        extra: (B, p, D) tokens that the block before carried on, or None.

    Returns:
        (B, h, w, D), and the tokens (B, p, D) that this block carries on, or None.
    """
    grid = (x.shape[1], x.shape[2])
    context = SiteContext(grid_size=grid, image=image)
    x = add_deltas(sites.block_input, x, context)
    inside = replace(context, windows=window_layout(grid, layer.window_size)) if layer.window_size else context
    normed = layer.layer_norm1(x)
    if len(sites.tokens) == 0:
        x = _sum(attention_forward(layer.attn, sites, normed, inside), x)
    else:
        learned = cast(ExtraTokens, sites.tokens[0])
        extra = learned(extra, len(x))
        tokens = Tokens(layer.layer_norm1(extra), learned.gate)
        x = _sum(attention_forward(layer.attn, sites, normed, inside, tokens), x)
        extra = _carry(layer, extra, tokens.answer) if learned.carried else None
    x = add_deltas(sites.after_attention, x, context)
    normed = layer.layer_norm2(x)
    change = mlp_forward(layer.mlp, normed)
    change = add_deltas(sites.parallel_mlp_raw, x, context, onto=change)
    change = add_deltas(sites.parallel_mlp, normed, context, onto=change)
    return _sum(change, x), extra


@dataclass(eq=False)
class Tokens:
    """Extra tokens inside the attention of one block."""

    normed: Tensor
    """(B, p, D)."""
    gate: Tensor | None
    """Factor on what they change in the image; None for 1."""
    answer: Tensor | None = None
    """(B, p, D): what they read from the image, written by :func:`attention_forward`."""


def _carry(layer: Any, extra: Tensor, answer: Tensor | None) -> Tensor:
    """The tokens after attention and MLP."""
    extra = extra if answer is None else extra + answer
    return extra + cast(Tensor, layer.mlp(layer.layer_norm2(extra)))


def _sum(change: Tensor, x: Tensor) -> Tensor:
    """``change + x``; in the memory of ``change``, which nobody else holds, where no gradient is asked for.

    Under autocast the change is in half precision and the tokens are not; then the sum is as wide as the tokens.
    """
    return change + x if torch.is_grad_enabled() or change.dtype != x.dtype else change.add_(x)


def attention_forward(
    attn: Any, sites: BlockSites, x: Tensor, context: SiteContext, tokens: Tokens | None = None
) -> Tensor:
    """Self-attention of the tokens of ``x`` (B, h, w, D), in windows if ``context`` says so; returns the same shape.

    Padded tokens are keys and values like any other, but no linear layer is run on them: their projection is that of
    one zero vector. Extra ``tokens`` are keys and values of every window.
    """
    windows = context.windows
    if windows is not None and tokens is None and _in_strips(sites, x, windows):
        strips = x.split(windows.size, dim=1)
        return torch.cat([attention_forward(attn, sites, s, _strip_context(s, context)) for s in strips], dim=1)
    query, key, value = project_heads(attn, sites, x, context).unbind(0)
    height, width = context.grid_size if windows is None else (windows.size, windows.size)
    rel = (relative_table(attn.rel_pos_h, height), relative_table(attn.rel_pos_w, width)) if attn.use_rel_pos else None
    if tokens is None:
        seen = attend(query, key, value, rel, (height, width))
    else:
        seen = _attend_with(attn, tokens, (query, key, value), rel, (height, width))
    out = seen.transpose(1, 2).reshape(-1, height, width, x.shape[-1])
    if windows is None:
        return add_deltas(sites.attention_output, attn.proj(out), context)
    projected: Tensor = attn.proj(unpartition(out, windows, context.grid_size))
    if not sites.attention_output:
        return projected
    changed = add_deltas(sites.attention_output, partition(projected, windows), context)
    return unpartition(changed, windows, context.grid_size)


def _attend_with(
    attn: Any,
    tokens: Tokens,
    image: tuple[Tensor, Tensor, Tensor],
    rel: tuple[Tensor, Tensor] | None,
    grid: tuple[int, int],
) -> Tensor:
    """Attention of image tokens to each other and to extra tokens, which have no relative position."""
    query, key, value = image
    count = len(query) // len(tokens.normed)  # windows per image
    projected = attn.qkv(tokens.normed).unflatten(-1, (3, attn.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
    own_query, own_key, own_value = projected.repeat_interleave(count, dim=1).unbind(0)
    keys, values = torch.cat([key, own_key], dim=2), torch.cat([value, own_value], dim=2)
    read = functional.scaled_dot_product_attention(own_query, keys, values)  # (B * windows, heads, p, d)
    tokens.answer = attn.proj(read.unflatten(0, (-1, count)).mean(dim=1).transpose(1, 2).flatten(2))
    joint = attend(query, keys, values, rel, grid)
    if tokens.gate is None:
        return joint
    alone = attend(query, key, value, rel, grid)
    return alone + tokens.gate * (joint - alone)


def project_heads(attn: Any, sites: BlockSites, x: Tensor, context: SiteContext) -> Tensor:
    """Queries, keys and values of ``x`` (B, h, w, D) by head: (3, B * windows, heads, tokens, d), in one piece.

    One copy here, or slower products for every head.
    """
    heads, windows = attn.num_attention_heads, context.windows
    qkv = attn.qkv(x)
    if windows is None:
        counts = (1, 1)
    else:
        fill = attn.qkv(x.new_zeros(x.shape[-1])) if windows.padded != context.grid_size else None
        qkv, counts = pad_to(qkv, windows, fill), windows.counts
    if sites.qkv:
        if windows is not None:
            x, qkv, counts = partition(x, windows), cut(qkv, windows), (1, 1)
        qkv = add_qkv_deltas(sites.qkv, x, qkv, context)
    cells = qkv.unflatten(3, (3, heads, -1)).unflatten(2, (counts[1], -1)).unflatten(1, (counts[0], -1))
    batch, rows, height, columns, width, _, _, depth = cells.shape
    split: Tensor = cells.permute(5, 0, 1, 3, 6, 2, 4, 7)
    return split.reshape(3, batch * rows * columns, heads, height * width, depth).contiguous()


def _in_strips(sites: BlockSites, x: Tensor, windows: WindowInfo) -> bool:
    """Whether rows of windows go one after the other: large images, nothing grafted, no gradient asked for."""
    grafted = bool(sites.qkv) or bool(sites.attention_output)
    large = x.shape[1] * x.shape[2] > STRIP_TOKENS and windows.counts[0] > 1
    return large and not grafted and not torch.is_grad_enabled()


def _strip_context(strip: Tensor, context: SiteContext) -> SiteContext:
    """The context of one row of windows (B, at most s, w, D)."""
    grid, windows = (strip.shape[1], strip.shape[2]), context.windows
    return replace(context, grid_size=grid, windows=window_layout(grid, windows.size) if windows else None)


def mlp_forward(mlp: Any, x: Tensor) -> Tensor:
    """The MLP of ``x`` (B, h, w, D), :data:`MLP_TOKENS` at a time where no gradient is asked for."""
    if torch.is_grad_enabled() or exporting() or x.shape[:-1].numel() <= MLP_TOKENS:
        result: Tensor = mlp(x)
        return result
    changes = torch.empty_like(x, memory_format=torch.contiguous_format)
    pairs = zip(x.flatten(0, -2).split(MLP_TOKENS), changes.flatten(0, -2).split(MLP_TOKENS), strict=True)
    for part, change in pairs:
        change.copy_(mlp(part))
    return changes


def window_layout(grid: tuple[int, int], size: int) -> WindowInfo:
    """Windows of ``size`` tokens that cover ``grid`` (h, w), padded at the bottom and right."""
    rows, columns = -(-grid[0] // size), -(-grid[1] // size)
    return WindowInfo(size=size, counts=(rows, columns), padded=(rows * size, columns * size))


def partition(x: Tensor, windows: WindowInfo, fill: Tensor | None = None) -> Tensor:
    """Cut (B, h, w, D) into (B * windows, s, s, D), padding with ``fill`` (D,), or zeros."""
    return cut(pad_to(x, windows, fill), windows)


def pad_to(x: Tensor, windows: WindowInfo, fill: Tensor | None = None) -> Tensor:
    """Pad (B, h, w, D) to whole windows, at the bottom and right, with ``fill`` (D,), or zeros."""
    _, height, width, _ = x.shape
    if windows.padded == (height, width):
        return x
    x = functional.pad(x, (0, 0, 0, windows.padded[1] - width, 0, windows.padded[0] - height))
    if fill is not None:
        x[:, height:], x[:, :height, width:] = fill, fill
    return x


def cut(x: Tensor, windows: WindowInfo) -> Tensor:
    """Cut (B, H, W, D) of whole windows into (B * windows, s, s, D)."""
    (rows, columns), size, dim = windows.counts, windows.size, x.shape[-1]
    return x.reshape(-1, rows, size, columns, size, dim).transpose(2, 3).reshape(-1, size, size, dim)


def unpartition(x: Tensor, windows: WindowInfo, grid: tuple[int, int]) -> Tensor:
    """Undo :func:`partition`: (B * windows, s, s, D) to (B, h, w, D) of ``grid``, padding dropped."""
    (rows, columns), size, dim = windows.counts, windows.size, x.shape[-1]
    x = x.reshape(-1, rows, columns, size, size, dim).transpose(2, 3).reshape(-1, *windows.padded, dim)
    return x[:, : grid[0], : grid[1]]
