"""Exact self-attention with decomposed relative positions, and the two position tables of a SAM encoder.

With queries q, keys k (d channels per head) and tables R_h, R_w, the logit of tokens i = (y, x) and j = (y', x') is
``q_i . k_j / sqrt(d) + q_i . R_h[y - y'] + q_i . R_w[x - x']``; the position terms use unscaled queries.

The position terms are handed to fused attention as a bias, as transformers does, so that values agree to the last bits.
Left to itself, torch picks another kernel when the bias wants a gradient: then a graft that changes nothing would still
change roundings. Here the forward kernel is the same either way, and the backward pass is written out. It also keeps no
S x S matrix between the two: the bias of one SAM-B block at 1024 px takes 0.8 GB.

Source:
    Segment Anything, arXiv:2304.02643; decomposed positions from MViTv2, arXiv:2112.01526, section 4.1.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from samgraft.adapters.backbones.attention_ways import Way, augmented, choose, flex

CHUNK = 2**22
"""Bias elements that are built at once on a CPU, in one buffer of 16 MB that is written again and again. With less than
768 queries at a time torch's kernel works on narrower blocks; SAM has 4,096 keys at 1024 px."""
CHUNK_ELSEWHERE = 2**26
"""The same on other devices, where many small kernels cost more than memory does."""
exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", bool)
"""Whether ``torch.export`` is recording; there, no buffer can be written twice. Before torch 2.7 it cannot be told."""


def relative_table(table: Tensor, size: int) -> Tensor:
    """Relative vectors of all pairs of positions on an axis.

    Args:
        table: (L, d), one vector per distance from -(S - 1) to S - 1 at the side S that it was trained for.
        size: Tokens n along the axis. If L differs from 2 n - 1, the table is interpolated (linear, pixel centres).

    Returns:
        (n, n, d): entry [i, j] is the vector of distance i - j.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = functional.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


def absolute_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Absolute table (1, S, S, D), interpolated (bicubic, pixel centres) to (1, h, w, D) where ``grid`` differs."""
    if tuple(table.shape[1:3]) == grid:
        return table
    resized = functional.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, rel: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention over all tokens of a map; exact, in the way that suits the device (``attention_ways``).

    Args:
        query: (B, heads, h * w, d): the first h rows and w columns of the map ask.
        key: (B, heads, H * W + p, d): the last p keys belong to tokens without a position, which get no bias.
        value: As ``key``.
        rel: Tables of :func:`relative_table`, (h, H, d) and (w, W, d); None for no relative positions.

    Returns:
        (B, heads, h * w, d).
    """
    if rel is None:
        return functional.scaled_dot_product_attention(query, key, value)
    return attend_terms(query, key, value, *position_terms(query, rel))


def attend_terms(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Attention with two factors of a bias, as :func:`attend` does it: (B, heads, queries, d).

    Args:
        query: (B, heads, queries, d).
        key: (B, heads, H * W + p, d): key y * W + x gets the bias ``rows[..., y] + cols[..., x]``, the last p none.
        value: As ``key``.
        rows: (B, heads, queries, H).
        cols: (B, heads, queries, W).
    """
    if exporting():
        return recorded_attention(query, key, value, rows, cols)
    return WAYS[choose(query, rows, cols, WAYS)](query, key, value, rows, cols)


def recorded_attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """What :func:`attend` computes, in operators that ``torch.export`` can record for any number of images.

    As many heads go together as :data:`CHUNK_ELSEWHERE` allows for one image, so that a runtime without fused attention
    does not hold the logits of all heads (0.8 GB per block of SAM-B at 1024 px).

    Args:
        query: (B, heads, h * w, d).
        key: (B, heads, H * W + p, d), as for :func:`attend`.
        value: As ``key``.
        rows: (B, heads, h * w, H), from :func:`position_terms`.
        cols: (B, heads, h * w, W), likewise.

    Returns:
        (B, heads, h * w, d).
    """
    together = max(1, CHUNK_ELSEWHERE // key.shape[2] ** 2)
    found = []
    for start in range(0, query.shape[1], together):
        some = slice(start, start + together)
        bias = (rows[:, some, :, :, None] + cols[:, some, :, None, :]).flatten(3)
        if key.shape[2] > bias.shape[3]:
            bias = functional.pad(bias, (0, key.shape[2] - bias.shape[3]))
        some_query, some_key, some_value = query[:, some], key[:, some], value[:, some]
        found.append(functional.scaled_dot_product_attention(some_query, some_key, some_value, attn_mask=bias))
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def position_terms(query: Tensor, rel: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The two factors of the bias: (B, heads, h * w, H) for rows and (B, heads, h * w, W) for columns."""
    batch, heads, count, width = query.shape
    cells = query.reshape(batch * heads, len(rel[0]), len(rel[1]), width)
    down = torch.einsum("bhwc,hkc->bhwk", cells, rel[0])
    across = torch.einsum("bhwc,wkc->bhwk", cells, rel[1])
    shape = (batch, heads, count, -1)
    return down.reshape(shape).to(query.dtype), across.reshape(shape).to(query.dtype)


Part = tuple[slice, slice, slice]
"""Images, heads and queries that are computed together."""


def parts(batch: int, heads: int, queries: int, keys: int, most: int) -> Iterator[Part]:
    """Cut (B, n, queries) into parts of at most ``most`` pairs: whole images, else whole heads, else some queries."""
    images = max(1, most // (heads * queries * keys))
    together = heads if heads * queries * keys <= most else max(1, most // (queries * keys))
    length = queries if queries * keys <= most else max(1, most // keys)
    for i in range(0, batch, images):
        for j in range(0, heads, together):
            for k in range(0, queries, length):
                yield slice(i, i + images), slice(j, j + together), slice(k, k + length)


def _work(query: Tensor, keys: int) -> tuple[Iterator[Part], Tensor]:
    """The parts of an attention, and memory for the bias of one of them."""
    batch, heads, queries, _ = query.shape
    most = CHUNK if query.device.type == "cpu" else CHUNK_ELSEWHERE
    rows = min(batch * heads * queries, max(1, most // keys))
    return parts(batch, heads, queries, keys, most), query.new_empty(rows * keys)


def _bias(rows: Tensor, cols: Tensor, keys: int, memory: Tensor) -> Tensor:
    """(B, n, q, keys) from (B, n, q, h) and (B, n, q, w), 0 from key h * w on, in the first elements of ``memory``."""
    height, width = rows.shape[-1], cols.shape[-1]
    shape = (*rows.shape[:-1], keys)
    bias = memory[: math.prod(shape)].view(shape)
    placed = bias[..., : height * width].unflatten(-1, (height, width))
    torch.add(rows[..., :, None], cols[..., None, :], out=placed)
    bias[..., height * width :] = 0
    return bias


class _BiasedAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d) + bias) v, the bias given as two factors; the backward pass computes the logits anew."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        todo, memory = _work(query, key.shape[2])
        out = query.new_empty(query.shape[:3] + value.shape[3:])
        for part in todo:
            bias, pair = _bias(rows[part], cols[part], key.shape[2], memory), part[:2]
            out[part] = functional.scaled_dot_product_attention(query[part], key[pair], value[pair], attn_mask=bias)
        ctx.save_for_backward(query, key, value, rows, cols, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, rows, cols, out = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        wide = torch.promote_types(query.dtype, torch.float32)  # a logit of 30 in bfloat16 is off by 6 % of its weight
        todo, memory = _work(query, key.shape[2])
        change = [torch.empty_like(t) for t in (query, rows, cols)] + [torch.zeros_like(t) for t in (key, value)]
        grad_query, grad_rows, grad_cols, grad_key, grad_value = change
        for part in todo:
            pair = part[:2]
            logits = _bias(rows[part], cols[part], key.shape[2], memory).to(wide)
            logits.add_(torch.matmul(query[part].to(wide), key[pair].to(wide).transpose(-1, -2)), alpha=scale)
            weights = logits.softmax(dim=-1)
            own = grad[part]
            grad_value[pair] += torch.matmul(weights.to(query.dtype).transpose(-1, -2), own)
            # derivative of softmax: p * (dp - sum(p * dp)), and sum(p * dp) over keys is grad . out
            slope = torch.matmul(own, value[pair].transpose(-1, -2)).to(wide)
            slope.sub_((own.to(wide) * out[part].to(wide)).sum(dim=-1, keepdim=True)).mul_(weights)
            height, width = rows.shape[-1], cols.shape[-1]
            pairs = slope[..., : height * width].unflatten(-1, (height, width))
            grad_rows[part], grad_cols[part] = pairs.sum(dim=-1), pairs.sum(dim=-2)
            slope = slope.to(query.dtype)
            grad_query[part] = torch.matmul(slope, key[pair]).mul_(scale)
            grad_key[pair] += torch.matmul(slope.transpose(-1, -2), query[part]).mul_(scale)
        return grad_query, grad_key, grad_value, grad_rows, grad_cols


def in_parts(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Fused attention with the bias of :data:`CHUNK` pairs of tokens at a time; arguments as for ``augmented``."""
    out: Tensor = _BiasedAttention.apply(query, key, value, rows, cols)  # type: ignore[no-untyped-call]
    return out


WAYS: dict[str, Way] = {"parts": in_parts, "augmented": augmented, "flex": flex}
"""All ways of attention with relative positions, by name."""
