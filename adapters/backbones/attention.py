"""Exact self-attention with decomposed relative positions, and the two position tables of a SAM encoder.

With queries q, keys k (d channels per head) and tables R_h, R_w, the logit of tokens i = (y, x) and j = (y', x') is
``q_i . k_j / sqrt(d) + q_i . R_h[y - y'] + q_i . R_w[x - x']``; the position terms use unscaled queries.

Source:
    Segment Anything, arXiv:2304.02643; decomposed positions from MViTv2, arXiv:2112.01526, section 4.1.
"""

import torch
from torch import Tensor
from torch.nn import functional

MAX_BIAS_CPU = 2**23
"""Largest bias, in elements (B * heads * S * S), that is built at once on a CPU; above it heads go in turn.

Measured on one core, float32, CPU time whole / in turn, in ms:

- 64 windows of 8 x 8, 6 heads (1.6 million): 16 / 19
- 8 images of 16 x 16, 6 heads, with gradients (3.1 million): 53 / 72
- one image of 32 x 32, 6 heads (6.3 million): 26 / 25
- 25 windows of 14 x 14, 12 heads (11.5 million): 133 / 107
- one image of 64 x 64, 6 heads (101 million): 777 / 497

One-hot codes appended to the keys, which need no bias, gained at most a tenth on small shapes, and lost on large ones.
"""
MAX_BIAS_ACCELERATOR = 2**26
"""The same elsewhere. Not measured: it bounds the bias to 256 MiB in float32."""


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
    """Attention over all tokens of ``grid``, exact; the bias is built whole or head by head, by :data:`MAX_BIAS_CPU`.

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
    batch, heads, tokens, _ = query.shape
    limit = MAX_BIAS_CPU if query.device.type == "cpu" else MAX_BIAS_ACCELERATOR
    if batch * heads * tokens * tokens <= limit:
        return _attend_biased(query, key, value, rel, grid)
    parts = [
        _attend_biased(query[:, i : i + 1], key[:, i : i + 1], value[:, i : i + 1], rel, grid) for i in range(heads)
    ]
    return torch.cat(parts, dim=1)


def _attend_biased(
    query: Tensor, key: Tensor, value: Tensor, rel: tuple[Tensor, Tensor], grid: tuple[int, int]
) -> Tensor:
    batch, heads, tokens, width = query.shape
    height, columns = grid
    cells = query.reshape(batch * heads, height, columns, width)
    rows = torch.einsum("bhwc,hkc->bhwk", cells, rel[0])
    cols = torch.einsum("bhwc,wkc->bhwk", cells, rel[1])
    bias = (rows[..., :, None] + cols[..., None, :]).reshape(batch, heads, tokens, tokens)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
