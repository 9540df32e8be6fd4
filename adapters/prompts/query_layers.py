"""Transformer layers of a small DETR: pre-norm, positions added to queries and keys of every attention.

Source:
    DETR, arXiv:2005.12872, appendix A.3, with the norm in front of each part; attention within a mask: Mask2Former,
    arXiv:2112.01527, section 3.2.1.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.prompts.mask_losses import at_least_float


class PreNormLayer(nn.Module):
    """Attention of one or more kinds, then a two-layer perceptron; each part has a norm in front.

    Args:
        dim: Width; a multiple of ``heads``.
        heads: Attention heads.
        ffn: Hidden width of the perceptron.
        dropout: On what each part adds.
    """

    KINDS: ClassVar[tuple[str, ...]]
    """Names of the attentions, in their order."""

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float = 0.0) -> None:
        """Create the parts."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(len(self.KINDS) + 1))
        for kind in self.KINDS:
            self.add_module(kind, nn.MultiheadAttention(dim, heads, batch_first=True))
        self.ffn = mlp((dim, ffn, dim))
        self.dropout = nn.Dropout(dropout)

    def grown(self, x: Tensor) -> Tensor:
        """``x`` (B, S, dim) with what the perceptron adds."""
        added: Tensor = self.dropout(self.ffn(self.norms[-1](x)))
        return x + added


class EncoderLayer(PreNormLayer):
    """Self-attention, then a two-layer perceptron."""

    KINDS = ("attention",)
    attention: nn.MultiheadAttention

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """Tokens (B, S, dim) -> (B, S, dim); ``place`` (S, dim) or (B, S, dim)."""
        y = self.norms[0](x)
        return self.grown(x + self.dropout(_attend(self.attention, y + place, y + place, y)))


class DecoderLayer(PreNormLayer):
    """Attention of queries to image tokens, attention among queries, then a two-layer perceptron.

    The image comes first, as in Mask2Former, so that queries have something to tell each other.
    """

    KINDS = ("look", "talk")
    look: nn.MultiheadAttention
    talk: nn.MultiheadAttention

    def forward(
        self, x: Tensor, x_place: Tensor, image: Tensor, image_place: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Queries (B, Q, dim) -> (B, Q, dim).

        Args:
            x: Queries.
            x_place: (B, Q, dim), or what broadcasts to it.
            image: (B, S, dim), normalised.
            image_place: (S, dim).
            hidden: (B, Q, S) bool, True where a query does not look; not everywhere for any query.
        """
        y = self.norms[0](x)
        x = x + self.dropout(_attend(self.look, y + x_place, image + image_place, image, hidden))
        y = self.norms[1](x)
        return self.grown(x + self.dropout(_attend(self.talk, y + x_place, y + x_place, y)))


class LearnedQueries(nn.Module):
    """Learned queries: what they begin as, and a code of their place, whose first two numbers give a point.

    Args:
        queries: Their number Q.
        dim: Their width.
    """

    def __init__(self, queries: int, dim: int) -> None:
        """Draw them."""
        super().__init__()
        self.content = nn.Parameter(torch.randn(queries, dim))
        self.place = nn.Parameter(torch.randn(queries, dim))

    def points(self, grid: tuple[int, int]) -> Tensor:
        """(Q, 2): (x, y) in tokens of a map (h, w)."""
        return self.place[:, :2].sigmoid() * self.place.new_tensor([grid[1], grid[0]])


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from ``widths[0]`` to ``widths[-1]`` with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def outside(logits: Tensor) -> Tensor:
    """(B, Q, S) bool: cells outside a query's mask, from logits (B, Q, h, w); False for a query with an empty mask."""
    hidden = logits.flatten(2) < 0
    return hidden & ~hidden.all(dim=-1, keepdim=True)


def upscaler(dim: int, out: int) -> nn.Sequential:
    """(B, dim, h, w) -> (B, out, 4h, 4w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
        nn.GroupNorm(1, dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, out, 2, stride=2),
    )


def pooled(pixels: Tensor) -> Tensor:
    """(B, m, 4h, 4w) -> (B, m, h, w), means; a product with them is the mean of the product."""
    return functional.avg_pool2d(pixels, 4)


def with_places(pixels: Tensor) -> Tensor:
    """(B, m, 4h, 4w) with four more channels: x^2 + y^2, x, y and 1 of cell centres, in tokens (4 cells)."""
    height, width = pixels.shape[-2:]
    wide = at_least_float(pixels)
    x = ((torch.arange(width, device=pixels.device, dtype=wide.dtype) + 0.5) / 4).expand(height, width)
    y = ((torch.arange(height, device=pixels.device, dtype=wide.dtype) + 0.5) / 4)[:, None].expand(height, width)
    places = torch.stack([x.square() + y.square(), x, y, torch.ones_like(x)])
    return torch.cat([wide, places.expand(len(pixels), -1, -1, -1)], dim=1)


def mask_products(weights: Tensor, pixels: Tensor) -> Tensor:
    """Mask logits (B, Q, h, w) of weights (B, Q, m + 4) on pixels from :func:`with_places`.

    Not in half precision, which cannot tell neighbouring places apart.
    """
    with torch.autocast(device_type=pixels.device.type, enabled=False):
        logits: Tensor = (weights @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return logits


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zeros in it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _attend(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None
) -> Tensor:
    if hidden is not None:
        hidden = hidden.repeat_interleave(layer.num_heads, dim=0)  # (B * heads, Q, S), image-major
    found: Tensor = layer(query, key, value, attn_mask=hidden, need_weights=False)[0]
    return found


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, K) of x (B, S, dim): (B, K, dim)."""
    return torch.gather(x, 1, rows[..., None].expand(-1, -1, x.shape[-1]))
