"""Any part of a low-resolution mask on the pixels of the picture, without enlarging the rest.

The values are those of ``functional.interpolate`` (bilinear, ``align_corners=False``; averaging where it shrinks) on
the whole, up to the last bits of a float.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


class Enlarger:
    """Brings masks of ``size`` x ``size`` cells to ``side`` x ``side`` pixels, part by part.

    Args:
        size: Side of the low-resolution mask.
        side: Side of the square it covers, in pixels of the picture.
    """

    def __init__(self, size: int, side: int) -> None:
        """Compute which cells every pixel is made of."""
        self.size, self.side = size, side
        self.scale = size / side
        self._weights: Tensor | None = None
        if side < size:
            unit = torch.eye(size)[None, None]
            self._weights = functional.interpolate(unit, (side, size), mode="bilinear", antialias=True)[0, 0]
            return
        place = ((torch.arange(side, dtype=torch.float64) + 0.5) * self.scale - 0.5).clamp_min(0)
        self._low = place.floor().long().clamp_max(size - 1)
        self._high = (self._low + 1).clamp_max(size - 1)
        self._share = (place - self._low).float()

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Pixels (start, stop) that cells ``first`` to ``last`` have a part in; never too few."""
        margin = max(1.0, self.scale) + 0.5
        start = math.floor((first + 0.5 - margin) / self.scale)
        stop = math.ceil((last + 0.5 + margin) / self.scale) + 1
        return max(0, start), min(self.side, stop)

    def part(self, logits: Tensor, rows: slice, cols: slice) -> Tensor:
        """(h, w) values of pixels ``rows`` x ``cols`` of a mask (size, size) float on the CPU."""
        if self._weights is not None:
            return self._weights[rows] @ logits @ self._weights[cols].T
        tall = _between(logits, 0, self._low[rows], self._high[rows], self._share[rows, None])
        return _between(tall, 1, self._low[cols], self._high[cols], self._share[cols])


def _between(values: Tensor, dim: int, low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), share)
