"""Where "everything" looks and asks: the whole or its tiles, layers of crops, grids of points, masks cut by an edge.

Layer i cuts the picture into 2^i x 2^i crops that overlap, so that small objects are seen larger.

Source:
    Segment Anything, arXiv:2304.02643, section B ("Cropping"); segment-anything
    ``segment_anything/utils/amg.py`` for the rounding of crops and the margin of 20 pixels.
Deviations:
    The overlap ratio is a float on the command line too. Crops that lie outside a very narrow picture are left out.
    Points lie at the centres of the cells of a grid; those of the original half a pixel further right and down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samgraft.adapters.prompts.grid import grid_points
from samgraft.recipes.engine.runs import Box

EDGE = 20
"""Pixels: a mask that ends this close to the edge of a crop, but not of the picture, is taken to be cut off."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of the picture that is looked at on its own."""

    top: int
    left: int
    height: int
    width: int
    layer: int = 0
    """0: the whole, or a tile of a large picture."""
    tile: bool = False
    """One of several rectangles of layer 0."""

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def box(self) -> Box:
        """(x, y, width, height)."""
        return self.left, self.top, self.width, self.height

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width


def crop_layers(shape: tuple[int, int], layers: int, overlap: float) -> list[Crop]:
    """Crops of layers 1 to ``layers`` of a picture (H, W), left to right by columns.

    Args:
        shape: (H, W).
        layers: 0 for none.
        overlap: Overlap in the first layer as a share of the short side; half of it in the next, and so on.
    """
    found = []
    for layer in range(1, layers + 1):
        parts = 2**layer
        common = int(overlap * min(shape) * (2 / parts))
        tall, wide = (math.ceil((common * (parts - 1) + length) / parts) for length in shape)
        for column in range(parts):
            for row in range(parts):
                top, left = row * (tall - common), column * (wide - common)
                height, width = min(tall, shape[0] - top), min(wide, shape[1] - left)
                if height > 0 and width > 0:
                    found.append(Crop(top=top, left=left, height=height, width=width, layer=layer))
    return found


def crop_points(
    crop: Crop, side: int | None, factor: int, grids: Sequence[Sequence[tuple[float, float]]] | None
) -> Tensor:
    """(n, 2) points (x, y) in pixels of the crop, 0 being its first pixel's centre.

    Args:
        crop: Its layer chooses the grid.
        side: Points along each side in layer 0.
        factor: Layer i has ``side / factor^i`` (rounded down, at least 1) along each side.
        grids: Instead of that: per layer points (x, y) as shares of width and height.
    """
    if grids is not None:
        shares = torch.tensor(grids[crop.layer], dtype=torch.float64).reshape(-1, 2)
        extent = torch.tensor([crop.width, crop.height], dtype=torch.float64)
        return (shares * extent - 0.5).clamp_min(0).minimum(extent - 1).float()
    return grid_points((crop.height, crop.width), max(1, int((side or 1) / factor**crop.layer)))


def is_cut(box: Box, crop: Crop, shape: tuple[int, int], margin: int) -> bool:
    """Whether a mask ends within ``margin`` pixels of an edge of its crop that is not within it of the picture's.

    ``box`` (x0, y0, x1, y1) names first and last pixel; edges of crop and picture are outer ones, as in the original.
    """
    crop_edges = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    edges = zip(box, crop_edges, (0, 0, shape[1], shape[0]), strict=True)
    return any(abs(v - own) <= margin < abs(v - outer) for v, own, outer in edges)
