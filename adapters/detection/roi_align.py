"""RoIAlign: the features of a box, read from the pyramid level that fits its size.

A box is cut into out x out bins; each bin is the mean of ``samples`` squared points at the centres of equal parts of
it, read with linear interpolation between cell centres. Boxes are in edges (see ``boxes``): edge e lies at cell
coordinate e / stride - 0.5, which is RoIAlign with ``aligned=True``. Beyond the centres of the outermost cells the map
goes on as it is at the border.

Source:
    Mask R-CNN, arXiv:1703.06870, section 3; the half cell: Detectron2's ``aligned``. Levels: FPN, arXiv:1612.03144,
    equation 1.
Deviations:
    ``samples`` is a fixed number; the detectors of RSPrompter's code take one point per cell that a bin covers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.detection.boxes import sides_of
from samgraft.errors import ShapeError

CELLS = 14
"""Boxes with a side (root of the area) of twice as many cells of a level are read from the next one: 56 pixels at a
stride of 4, as published."""
OUTSIDE = -10.0
"""Logit of a pasted mask beyond its box."""


def roi_align(
    levels: Sequence[Tensor],
    edges: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    out: int,
    samples: int = 2,
    cells: int = CELLS,
) -> Tensor:
    """Features (N, C, out, out) of N boxes; gradients reach the maps, not the boxes.

    Args:
        levels: Maps (B, C, h, w), fine to coarse.
        edges: (N, 4) in pixels.
        image_index: (N,) int64, which of the B images each box belongs to.
        strides: Pixels per cell of each level.
        out: Bins per side.
        samples: Points per bin and side.
        cells: See :data:`CELLS`.

    Raises:
        ShapeError: not one stride per level, or not one image per box.
    """
    if len(levels) != len(strides) or len(edges) != len(image_index):
        raise ShapeError(
            f"{len(levels)} levels with {len(strides)} strides, {len(edges)} boxes with {len(image_index)} image "
            "numbers; give one stride per level and one image per box"
        )
    dtype = torch.promote_types(levels[0].dtype, torch.float32)  # half precision cannot place a point
    cell_rows = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels]).to(dtype)
    sizes = [(level.shape[2], level.shape[3]) for level in levels]
    first = [0]
    for size in sizes:
        first.append(first[-1] + len(levels[0]) * size[0] * size[1])
    chosen = level_of(edges, strides, cells)
    height, width, start = (
        torch.tensor(column, device=edges.device)[chosen] for column in (*zip(*sizes, strict=True), first[:-1])
    )
    scaled = edges.to(dtype) / torch.tensor(strides, device=edges.device, dtype=dtype)[chosen, None]
    column, column_weight = _lines(scaled[:, 0::2], width, out, samples)
    row, row_weight = _lines(scaled[:, 1::2], height, out, samples)
    row = row * width[:, None, None] + (start + image_index * height * width)[:, None, None]
    index = row[:, :, None, :, None] + column[:, None, :, None, :]  # (N, out, out, 2 samples, 2 samples)
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    bins = functional.embedding_bag(
        index.flatten(3).flatten(0, 2), cell_rows, per_sample_weights=weight.flatten(3).flatten(0, 2), mode="sum"
    )
    found: Tensor = bins.unflatten(0, (-1, out, out)).permute(0, 3, 1, 2)
    return found.to(levels[0].dtype)


def level_of(edges: Tensor, strides: Sequence[float], cells: int = CELLS) -> Tensor:
    """(N,) int64: level that each box is read from; one further for every doubling of its side."""
    side = sides_of(edges).clamp_min(0).prod(dim=1).sqrt()
    levels = (side / (cells * strides[0]) + 1e-6).log2().floor()
    return levels.clamp(0, len(strides) - 1).long()


def _lines(ends: Tensor, cells: Tensor, out: int, samples: int) -> tuple[Tensor, Tensor]:
    """Which cells of one axis each bin reads, and how much of each: two tensors (N, out, 2 samples).

    Args:
        ends: (N, 2): first and last edge of each box, in cells.
        cells: (N,) int64: cells of its level.
        out: Bins.
        samples: Points per bin.
    """
    steps = (torch.arange(out * samples, device=ends.device, dtype=ends.dtype) + 0.5) / (out * samples)
    place = ends[:, :1] + steps * (ends[:, 1:] - ends[:, :1]) - 0.5  # of cell centres: 0, 1, ...
    place = place.clamp_min(0).minimum((cells - 1)[:, None].to(place.dtype))
    low = place.floor()
    share = place - low
    high = torch.minimum(low.long() + 1, (cells - 1)[:, None])
    index = torch.stack([low.long(), high], dim=-1)  # (N, out samples, 2)
    weight = torch.stack([1 - share, share], dim=-1) / samples
    return index.reshape(len(ends), out, 2 * samples), weight.reshape(len(ends), out, 2 * samples)


def paste(logits: Tensor, edges: Tensor, size: tuple[int, int], stride: float) -> Tensor:
    """Mask logits (N, h', w') over the whole image, of masks (N, m, m) that fill their boxes; else :data:`OUTSIDE`.

    Args:
        logits: One mask per box.
        edges: (N, 4) in pixels.
        size: (h', w') of the result.
        stride: Pixels per cell of the result.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    edges = edges.to(dtype)
    lines = []
    for axis, cells in ((0, size[1]), (1, size[0])):
        centres = (torch.arange(cells, device=logits.device, dtype=dtype) + 0.5) * stride
        low, high = edges[:, axis, None], edges[:, axis + 2, None]
        lines.append(2 * (centres - low) / (high - low).clamp_min(1e-3) - 1)  # (N, cells), -1 to 1 inside the box
    x, y = lines
    if len(edges) == 0:
        return logits.new_zeros(0, *size)
    shape = (len(edges), *size)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    inside = (grid.abs() <= 1).all(dim=-1)
    found = functional.grid_sample(
        logits[:, None].to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0]
    return torch.where(inside, found, found.new_tensor(OUTSIDE)).to(logits.dtype)


def mask_targets(masks: Tensor, rows: Tensor, edges: Tensor, out: int) -> Tensor:
    """True masks (N, H, W) bool as seen in boxes: (n, out, out) in [0, 1], the share of each bin that is inside.

    Args:
        masks: All objects.
        rows: (n,) which object each box shows.
        edges: (n, 4).
        out: Bins per side.
    """
    samples = max(2, math.ceil(max(masks.shape[-2:]) / out / 8))
    return roi_align([masks[:, None].float()], edges, rows, (1.0,), out=out, samples=samples)[:, 0]
