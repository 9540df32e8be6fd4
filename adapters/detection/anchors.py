"""Anchors: the boxes from which a proposal network starts, in edges (see ``boxes``), centred on every cell of a map.

A cell (i, j) of a level with a stride of s pixels covers rows s i to s (i + 1), so its anchors are centred on
(s (j + 0.5), s (i + 0.5)). Sides grow with the stride, so a backbone with patches of 8 pixels starts at smaller objects
than one with 16. On the coarsest level the largest anchor reaches the shorter side of the image.

Source:
    Faster R-CNN, arXiv:1506.01497, section 3.1.1; one octave per level: FPN, arXiv:1612.03144, section 4.1.
Deviations:
    Centres of cells, not their corners, are the centres of anchors (the detectors of RSPrompter's code take corners).
    The largest anchor follows the image: a fixed list has none for an object that fills it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class AnchorGrid:
    """Anchors of any pyramid.

    Args:
        strides: Pixels per cell of each level, fine to coarse.
        scales: Sides of a square anchor in strides.
        ratios: Heights divided by widths, at the same area.
    """

    def __init__(self, strides: Sequence[float], scales: Sequence[float], ratios: Sequence[float]) -> None:
        """Remember the numbers."""
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)
        self.per_cell = len(self.scales) * len(self.ratios)

    def __call__(self, grids: Sequence[tuple[int, int]], size: tuple[int, int], *, like: Tensor) -> list[Tensor]:
        """Anchors of every level (h w A, 4): rows, then columns, then scales, then ratios.

        Args:
            grids: (h, w) of every level.
            size: (H, W) of the network input in pixels.
            like: Gives the device and, float32 or wider, the type.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        last = len(self.strides) - 1
        found = []
        for level, ((height, width), stride) in enumerate(zip(grids, self.strides, strict=True)):
            y = (torch.arange(height, device=like.device, dtype=dtype) + 0.5) * stride
            x = (torch.arange(width, device=like.device, dtype=dtype) + 0.5) * stride
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            centre = torch.stack([columns, rows], dim=-1)[:, :, None]  # (h, w, 1, 2)
            half = torch.tensor(self._sides(stride, size if level == last else None)).to(y) / 2  # (A, 2)
            found.append(torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4))
        return found

    def _sides(self, stride: float, size: tuple[int, int] | None) -> list[tuple[float, float]]:
        """Width and height of each anchor of a cell; ``size`` only for the coarsest level."""
        sides = [stride * scale for scale in self.scales]
        if size is not None:
            largest = max(range(len(sides)), key=sides.__getitem__)
            sides[largest] = max(sides[largest], min(size))
        return [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for side in sides for ratio in self.ratios]
