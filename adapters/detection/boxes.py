"""Boxes of a detector: which coordinates they have, how they are coded as deltas, and which of them to keep.

A box of the project names its first and last pixel (inclusive): an object of one pixel has x0 = x1. Overlap, area and
RoI features need lengths. So everything in ``samgraft.adapters.detection`` holds **edges**: continuous coordinates in
which pixel i reaches from i to i + 1. :func:`edges_of` and :func:`inclusive_of` are the only places where one becomes
the other.

Source:
    Deltas: R-CNN, arXiv:1311.2524, appendix C; their standard deviations and the bound on the size: Fast R-CNN,
    arXiv:1504.08083. Overlap and suppression: ``monai.data.box_utils``.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from monai.data.box_utils import box_iou
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""A side grows at most by exp of this in one step, so that an untrained head cannot overflow."""
PAIRS = 2**21
"""Overlaps that are computed at once."""
BLOCK = 512
"""Boxes that are suppressed together."""


def edges_of(boxes: Tensor) -> Tensor:
    """Edges (N, 4) of inclusive boxes (N, 4): the last pixel's far side is one further."""
    return boxes + boxes.new_tensor((0.0, 0.0, 1.0, 1.0))


def inclusive_of(edges: Tensor) -> Tensor:
    """Inclusive boxes (N, 4), not rounded, of edges (N, 4); sides should be at least one pixel long."""
    return edges - edges.new_tensor((0.0, 0.0, 1.0, 1.0))


def sides_of(edges: Tensor) -> Tensor:
    """Width and height (N, 2)."""
    return edges[..., 2:] - edges[..., :2]


def clip_edges(edges: Tensor, size: tuple[int, int]) -> Tensor:
    """Edges (..., 4) cut to an image of ``size`` (H, W)."""
    limit = edges.new_tensor((size[1], size[0], size[1], size[0]))
    return edges.clamp_min(0).minimum(limit)


def encode_deltas(reference: Tensor, edges: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """What leads from ``reference`` to ``edges``: (N, 4) shifts of the centre in sides, logarithms of side ratios.

    Args:
        reference: (N, 4) edges of anchors or proposals, sides above 0.
        edges: (N, 4) edges of objects, sides above 0.
        stds: Expected spread of each number, which divides it.
    """
    own, wanted = sides_of(reference), sides_of(edges)
    shift = (edges[:, :2] + wanted / 2 - reference[:, :2] - own / 2) / own
    return torch.cat([shift, (wanted / own).log()], dim=1) / own.new_tensor(stds)


def decode_deltas(reference: Tensor, deltas: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Edges (..., 4) that ``deltas`` (..., 4) name, seen from ``reference`` (..., 4); undoes :func:`encode_deltas`."""
    deltas = deltas.to(torch.promote_types(deltas.dtype, reference.dtype))
    deltas = deltas * deltas.new_tensor(stds)
    own = sides_of(reference)
    centre = reference[..., :2] + own / 2 + deltas[..., :2] * own
    half = own * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlaps(edges: Tensor, truth: Tensor) -> Iterator[Tensor]:
    """IoU (n, M) of consecutive parts of ``edges`` (N, 4) with ``truth`` (M, 4): bounded memory for any N."""
    for part in edges.split(max(1, PAIRS // max(1, len(truth)))):
        yield box_iou(part, truth)


def suppress(edges: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int) -> Tensor:
    """Rows to keep, the best first: of boxes in one group that overlap by more than ``threshold``, the best.

    The same rows as those of ``monai.data.box_utils.batched_nms``, which computes overlaps anew for every box that
    stays; here they are computed for blocks of boxes, which takes a tenth of the time for hundreds.

    Args:
        edges: (N, 4).
        scores: (N,); of equal scores the first comes first.
        groups: (N,) int64 (a class, a level); boxes of different groups leave each other alone.
        threshold: Largest IoU of two boxes that both stay.
        most: Largest number of rows.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for rows in order.split(BLOCK):
        if len(kept) >= most:
            break
        rows = rows[~_hidden(edges, groups, rows, kept, threshold).any(dim=1)]
        hidden = _hidden(edges, groups, rows, rows, threshold).cpu().numpy()
        stays = np.ones(len(rows), dtype=np.bool_)
        for row in range(len(rows)):
            if stays[row]:
                stays[row + 1 :] &= ~hidden[row, row + 1 :]
        kept = torch.cat([kept, rows[torch.from_numpy(stays).to(rows.device)]])
    return kept[:most]


def _hidden(edges: Tensor, groups: Tensor, rows: Tensor, others: Tensor, threshold: float) -> Tensor:
    """(n, m) bool: whether a box of ``rows`` is of the same group as one of ``others`` and overlaps it too much."""
    overlap: Tensor = box_iou(edges[rows].float(), edges[others].float())
    return (overlap > threshold) & (groups[rows, None] == groups[others])
