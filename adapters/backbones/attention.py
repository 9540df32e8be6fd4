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

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

MAX_BIAS = 2**23
"""Largest bias, in elements (B * heads * S * S), that is built at once; above it heads go in turn.

Measured on one core, float32, forward CPU time whole / in turn, in ms:

- 64 windows of 8 x 8, 6 heads (1.6 million): 16 / 20
- 16 images of 16 x 16, 6 heads (6.3 million): 33 / 36
- one image of 32 x 32, 6 heads (6.3 million): 26 / 26
- 25 windows of 14 x 14, 12 heads (11.5 million): 85 / 97, another time 133 / 107
- one image of 64 x 64, 6 heads (101 million): 568 / 324
"""


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


def attend(
    query: Tensor, key: Tensor, value: Tensor, rel: tuple[Tensor, Tensor] | None, grid: tuple[int, int]
) -> Tensor:
    """Attention over all tokens of ``grid``; exact. The bias is built whole or head by head, by :data:`MAX_BIAS`.

    Args:
        query: (B, heads, h * w, d); key and value likewise.
        key: See ``query``.
        value: See ``query``.
        rel: Tables of :func:`relative_table`, (h, h, d) and (w, w, d); None for no relative positions.
        grid: (h, w) in tokens.

    Returns:
        (B, heads, h * w, d).
    """
    if rel is None:
        return functional.scaled_dot_product_attention(query, key, value)
    batch, heads, tokens, width = query.shape
    cells = query.reshape(batch * heads, *grid, width)
    rows = torch.einsum("bhwc,hkc->bhwk", cells, rel[0]).reshape(batch, heads, *grid, grid[0]).to(query.dtype)
    cols = torch.einsum("bhwc,wkc->bhwk", cells, rel[1]).reshape(batch, heads, *grid, grid[1]).to(query.dtype)
    parts = (query, key, value, rows, cols)
    if batch * heads * tokens * tokens <= MAX_BIAS:
        return _biased_attention(*parts)
    return torch.cat([_biased_attention(*(part[:, i : i + 1] for part in parts)) for i in range(heads)], dim=1)


def _biased_attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    out: Tensor = _BiasedAttention.apply(query, key, value, rows, cols)  # type: ignore[no-untyped-call]
    return out


def _bias(rows: Tensor, cols: Tensor) -> Tensor:
    """(B, n, S, S) from (B, n, h, w, h) and (B, n, h, w, w)."""
    batch, heads, height, columns, _ = rows.shape
    bias = rows[..., :, None] + cols[..., None, :]
    return bias.reshape(batch, heads, height * columns, height * columns)


class _BiasedAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d) + bias) v, the bias given as two factors; the backward pass computes the logits anew."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=_bias(rows, cols))
        ctx.save_for_backward(query, key, value, rows, cols, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, rows, cols, out = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        logits = torch.matmul(query * scale, key.transpose(-1, -2)).add_(_bias(rows, cols))
        weights = logits.softmax(dim=-1)
        grad_value = torch.matmul(weights.transpose(-1, -2), grad)
        # derivative of softmax: p * (dp - sum(p * dp)), and sum(p * dp) over keys is grad . out
        change = torch.matmul(grad, value.transpose(-1, -2)).sub_((grad * out).sum(dim=-1, keepdim=True))
        grad_logits = change.mul_(weights)
        grad_query = torch.matmul(grad_logits, key).mul_(scale)
        grad_key = torch.matmul(grad_logits.transpose(-1, -2), query).mul_(scale)
        pairs = grad_logits.reshape(*rows.shape, cols.shape[-1])
        return grad_query, grad_key, grad_value, pairs.sum(dim=-1), pairs.sum(dim=-2)
