"""Windows of a token map: where they lie, cutting and joining, and the order of tokens by window and head.

Windows start at the top left; those at the bottom and right may reach beyond the map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.sites import WindowInfo


@dataclass(frozen=True)
class Span:
    """Windows along one axis that lie within the map alike."""

    start: int
    """First token."""
    length: int
    """Tokens of the map."""
    inside: int
    """Tokens of the map per window."""
    count: int
    """Windows."""
    size: int
    """Side of a window."""

    @property
    def place(self) -> slice:
        """Their tokens, padded ones included."""
        return slice(self.start, self.start + self.count * self.size)


def spans(length: int, size: int, *, apart: bool = False) -> Iterator[Span]:
    """Whole windows along an axis of ``length`` tokens, then the one that reaches beyond its end.

    With ``apart``, each whole window for itself.
    """
    whole, rest = divmod(length, size)
    if whole and apart:
        yield from (Span(start, size, size, 1, size) for start in range(0, whole * size, size))
    elif whole:
        yield Span(0, whole * size, size, whole, size)
    if rest:
        yield Span(whole * size, rest, rest, 1, size)


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


def by_head(x: Tensor, heads: int, size: tuple[int, int], *, of: int = 3) -> Tensor:
    """Tokens by window and head, in one piece: one copy here, or slower products for every head.

    Args:
        x: (B, H, W, of * heads * d), in whole windows of ``size``.
        heads: Heads n.
        size: (h, w) of a window.
        of: Vectors per token that stand side by side (query, key, value).

    Returns:
        (of, B * windows, n, h * w, d).
    """
    height, width = size
    cells = x.unflatten(3, (of, heads, -1)).unflatten(2, (-1, width)).unflatten(1, (-1, height))
    split = cells.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (of, B, rows, columns, heads, h, w, d)
    found: Tensor = split.reshape(of, -1, heads, height * width, x.shape[-1] // (of * heads)).contiguous()
    return found


def from_heads(x: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Undo :func:`by_head` for one vector per token: (B * windows, n, h * w, d) to (B, H, W, n * d) of ``grid``."""
    (height, width), (rows, columns) = size, (grid[0] // size[0], grid[1] // size[1])
    cells = x.unflatten(2, (height, width)).unflatten(0, (-1, rows, columns))  # (B, rows, columns, heads, h, w, d)
    joined: Tensor = cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, *grid, x.shape[1] * x.shape[3])
    return joined
