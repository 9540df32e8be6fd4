"""Square windows on a picture, and the exact way from picture pixels to network pixels and back.

Windows lie on whole pixels and may reach beyond the picture, where edge pixels repeat. Boxes are scaled by their outer
edges, points by pixel centres, masks with ``align_corners=False``: nothing moves by half a pixel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 16
"""Least side of a window in pixels; also the least of graft-tiny's training views."""
MARGIN = 1.2
"""A window is at least this many times the longest side of its box, even where the picture ends."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square on whole pixels; may reach beyond the picture."""

    top: int
    left: int
    side: int

    def clipped(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the part inside a picture of ``shape`` (H, W)."""
        rows = slice(max(0, self.top), min(shape[0], self.top + self.side))
        return rows, slice(max(0, self.left), min(shape[1], self.left + self.side))

    def inner(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """The same part, counted from the window's own corner."""
        rows, cols = self.clipped(shape)
        return slice(rows.start - self.top, rows.stop - self.top), slice(cols.start - self.left, cols.stop - self.left)


Crops = Callable[[Window], Tensor]
"""Gives (3, side, side) float in [0, 1] of a window, edge pixels repeated where it leaves the picture."""


def crop_of(image: Tensor) -> Crops:
    """Crops of a picture (3, H, W) held in memory."""

    def cut(window: Window) -> Tensor:
        height, width = image.shape[1:]
        rows = torch.arange(window.top, window.top + window.side).clamp(0, height - 1)
        cols = torch.arange(window.left, window.left + window.side).clamp(0, width - 1)
        return image[:, rows][:, :, cols]

    return cut


def window_around(box: Sequence[float], shape: tuple[int, int], context: float) -> Window:
    """Square of ``context`` times the longest side of ``box``, moved into the picture where it fits.

    Args:
        box: (x0, y0, x1, y1), first and last pixel inside.
        shape: (H, W) of the picture.
        context: Window side over longest box side; at least ``MARGIN``.
    """
    x0, y0, x1, y1 = box
    longest = max(x1 - x0, y1 - y0) + 1
    side = max(longest * max(context, MARGIN), SMALLEST)
    side = math.ceil(min(side, max(longest * MARGIN, SMALLEST, *shape)))
    ends = []
    for low, high, length in ((y0, y1, shape[0]), (x0, x1, shape[1])):
        start = math.floor((low + high + 1 - side) / 2 + 0.5)
        if side <= length:
            start = min(max(start, 0), length - side)
        ends.append(start)
    return Window(top=ends[0], left=ends[1], side=side)


def whole_window(shape: tuple[int, int]) -> Window:
    """Smallest square that covers the picture, centred on it."""
    side = max(shape)
    return Window(top=-((side - shape[0]) // 2), left=-((side - shape[1]) // 2), side=side)


def to_network(crop: Tensor, size: int) -> Tensor:
    """Resample (3, side, side) to (3, size, size): averaging when shrinking, bilinear when enlarging."""
    side = crop.shape[-1]
    if side == size:
        return crop
    return functional.interpolate(
        crop[None], size=(size, size), mode="bilinear", align_corners=False, antialias=side > size
    )[0]


def from_network(logits: Tensor, side: int) -> Tensor:
    """Bring logits (K, s, s) over a window back to its pixels: (K, side, side)."""
    if logits.shape[-1] == side:
        return logits
    shrinks = logits.shape[-1] > side
    return functional.interpolate(
        logits[None], size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks
    )[0]


def scale_boxes(boxes: Tensor, windows: Sequence[Window], size: int) -> Tensor:
    """Boxes (N, 4) of picture pixels to network pixels; the outer edges, not the centres, are scaled."""
    start, factor = _placement(windows, size)
    low, high = boxes[:, :2], boxes[:, 2:] + 1
    scaled = torch.cat([(low - start) * factor, (high - start) * factor - 1], dim=1)
    scaled[:, 2:] = torch.maximum(scaled[:, 2:], scaled[:, :2])
    return scaled.clamp(-0.5, size - 0.5)


def scale_points(points: Tensor, windows: Sequence[Window], size: int) -> Tensor:
    """Points (N, p, 2) of picture pixels to network pixels; pixel centres are scaled."""
    start, factor = _placement(windows, size)
    return (points + 0.5 - start[:, None]) * factor[:, None] - 0.5


def _placement(windows: Sequence[Window], size: int) -> tuple[Tensor, Tensor]:
    """Corner (N, 2) in (x, y) and pixels of network per pixel of picture (N, 1)."""
    start = torch.tensor([[w.left, w.top] for w in windows], dtype=torch.float64).reshape(-1, 2)
    factor = torch.tensor([[size / w.side] for w in windows], dtype=torch.float64).reshape(-1, 1)
    return start, factor
