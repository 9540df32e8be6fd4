"""The one forward of a ViT block in this project, with its named insertion points.

    x -> [I1] -> norm1 -> qkv -> windows [I2] -> attention + relative positions -> windows undone -> projection [I3]
      -> + x -> [I4] -> norm2 -> MLP [I5, I6] -> + x        extra tokens [tokens] join as keys and values
    slices of a volume stand in the batch; [across slices] beside the attention sees q, k and v of all of them

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
from samgraft.adapters.backbones.windowing import (
    by_head,
    cut,
    from_heads,
    pad_to,
    partition,
    spans,
    unpartition,
    window_layout,
)

MLP_TOKENS = 1024
"""Tokens that go through an MLP together: the four times wider layer between then stays in the cache."""
STRIP_TOKENS = 1024
"""Images of more tokens than this pass through windowed attention one row of windows at a time, for the same reason."""


def block_forward(
    layer: Any, sites: BlockSites, x: Tensor, image: Tensor, extra: Tensor | None = None, depth: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Run one block.

    Args:
        layer: ``SamVisionLayer``, or anything with its ``layer_norm1``, ``layer_norm2``, ``mlp``, ``window_size`` (0:
            global) and ``attn``.
        sites: Grafted modules of this block.
        x: (B, h, w, D).
        image: (B, 3, H, W), normalised; what grafts may look at.
        extra: (B, p, D) tokens that the block before carried on, or None.
        depth: So many rows of B are the token planes of one volume.

    Returns:
        (B, h, w, D), and the tokens (B, p, D) that this block carries on, or None.
    """
    grid = (x.shape[1], x.shape[2])
    context = SiteContext(grid_size=grid, image=image, depth=depth)
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
    one zero vector. They ask nothing. Extra ``tokens`` are keys and values of every window.
    """
    windows = context.windows
    if windows is not None and tokens is None and _in_strips(sites, x, windows):
        strips = x.split(windows.size, dim=1)
        return torch.cat([attention_forward(attn, sites, s, _strip_context(s, context)) for s in strips], dim=1)
    qkv = project(attn, sites, x, context)
    height, width = context.grid_size if windows is None else (windows.size, windows.size)
    rel = (relative_table(attn.rel_pos_h, height), relative_table(attn.rel_pos_w, width)) if attn.use_rel_pos else None
    if tokens is None:
        seen = attend_windows(attn, qkv, rel, context)
    else:
        seen = _attend_with(attn, tokens, qkv, rel, context)
    projected: Tensor = attn.proj(seen)
    if windows is None or not sites.attention_output:
        changed = add_deltas(sites.attention_output, projected, context)
    else:
        changed = add_deltas(sites.attention_output, partition(projected, windows), context)
        changed = unpartition(changed, windows, context.grid_size)
    for across in sites.across_slices:
        changed = changed + across(attn, qkv, projected, context)
    return changed


def project(attn: Any, sites: BlockSites, x: Tensor, context: SiteContext) -> Tensor:
    """Queries, keys and values of ``x`` (B, h, w, D) side by side: (B, h, w, 3 D), padded to whole windows."""
    windows, qkv = context.windows, attn.qkv(x)
    if windows is None:
        return add_qkv_deltas(sites.qkv, x, qkv, context) if sites.qkv else qkv
    fill = attn.qkv(x.new_zeros(x.shape[-1])) if windows.padded != context.grid_size else None
    qkv = pad_to(qkv, windows, fill)
    if sites.qkv:
        changed = add_qkv_deltas(sites.qkv, partition(x, windows), cut(qkv, windows), context)
        qkv = unpartition(changed, windows, windows.padded)
    return qkv


def attend_windows(attn: Any, qkv: Tensor, rel: tuple[Tensor, Tensor] | None, context: SiteContext) -> Tensor:
    """Attention within every window, or over the whole image: (B, h, w, D).

    Windows that reach beyond the image are computed apart from the others, so that no padded token asks. Large images
    go one row of windows at a time, grafted or not: the roundings of a product depend on the number of its rows.

    Args:
        attn: Tells the number of heads.
        qkv: (B, H, W, 3 D) of :func:`project`.
        rel: Tables of :func:`relative_table` for one window, or None.
        context: Size of the image in tokens, and its windows.
    """
    heads, grid = attn.num_attention_heads, context.grid_size
    size = grid if context.windows is None else (context.windows.size, context.windows.size)
    lines = []
    for rows in spans(grid[0], size[0], apart=grid[0] * grid[1] > STRIP_TOKENS):
        line = []
        for cols in spans(grid[1], size[1]):
            region, inside = qkv[:, rows.place, cols.place], (rows.inside, cols.inside)
            if inside == size:
                query, key, value = by_head(region, heads, size).unbind(0)
            else:
                asking, width = region[:, : rows.length, : cols.length], region.shape[-1] // 3
                query = by_head(asking[..., :width], heads, inside, of=1)[0]
                key, value = by_head(region[..., width:], heads, size, of=2).unbind(0)
            near = None if rel is None else (rel[0][: inside[0]], rel[1][: inside[1]])
            line.append(from_heads(attend(query, key, value, near), inside, (rows.length, cols.length)))
        lines.append(torch.cat(line, dim=2) if len(line) > 1 else line[0])
    return torch.cat(lines, dim=1) if len(lines) > 1 else lines[0]


def _attend_with(
    attn: Any, tokens: Tokens, qkv: Tensor, rel: tuple[Tensor, Tensor] | None, context: SiteContext
) -> Tensor:
    """What image tokens see of each other and of extra tokens, which have no relative position: (B, h, w, D).

    Args:
        attn: Projects the extra tokens.
        tokens: Keys and values of every window; what they read themselves is written into them.
        qkv: (B, H, W, 3 D) of :func:`project`.
        rel: Tables for one window, or None.
        context: Size of the image in tokens, and its windows.
    """
    heads, (height, width), windows = attn.num_attention_heads, context.grid_size, context.windows
    size = context.grid_size if windows is None else (windows.size, windows.size)
    query, key, value = by_head(qkv, heads, size).unbind(0)
    count = len(query) // len(tokens.normed)  # windows per image
    projected = attn.qkv(tokens.normed).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    own_query, own_key, own_value = projected.repeat_interleave(count, dim=1).unbind(0)
    keys, values = torch.cat([key, own_key], dim=2), torch.cat([value, own_value], dim=2)
    read = functional.scaled_dot_product_attention(own_query, keys, values)  # (B * windows, heads, p, d)
    tokens.answer = attn.proj(read.unflatten(0, (-1, count)).mean(dim=1).transpose(1, 2).flatten(2))
    joint = from_heads(attend(query, keys, values, rel), size, (qkv.shape[1], qkv.shape[2]))[:, :height, :width]
    if tokens.gate is None:
        return joint
    alone = attend_windows(attn, qkv, rel, context)
    return alone + tokens.gate * (joint - alone)


def _in_strips(sites: BlockSites, x: Tensor, windows: WindowInfo) -> bool:
    """Whether rows of windows go one after the other: large images, nothing grafted, no gradient asked for."""
    grafted = bool(sites.qkv) or bool(sites.attention_output) or bool(sites.across_slices)
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
