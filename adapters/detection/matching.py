"""Which anchor or proposal answers for which object, and which of them a step learns from.

Source:
    Faster R-CNN, arXiv:1506.01497, sections 3.1.2 and 3.1.3.
Deviations:
    Boxes that lie mostly on unknown pixels are no negatives: what is there was not labelled.
"""

import torch
from torch import Tensor

from samgraft.adapters.detection.boxes import overlaps

NEGATIVE = -1
"""Answers for no object, and learns so."""
IGNORED = -2
"""Between the thresholds, or on unknown pixels: no loss."""


def match_boxes(edges: Tensor, truth: Tensor, *, positive: float, negative: float, every_object: bool) -> Tensor:
    """Row of the object that each box answers for, ``NEGATIVE`` or ``IGNORED``; (N,) int64.

    Args:
        edges: (N, 4).
        truth: (M, 4), objects of the same image.
        positive: Least IoU with its best object of a box that answers for it.
        negative: IoU with every object below which a box is background.
        every_object: Give every object the box that overlaps it most, however little, if it overlaps at all.
    """
    matched = torch.full((len(edges),), NEGATIVE, dtype=torch.int64, device=edges.device)
    if len(truth) == 0 or len(edges) == 0:
        return matched
    best, rows = [], []
    top, at = truth.new_zeros(len(truth)), torch.zeros(len(truth), dtype=torch.int64, device=edges.device)
    start = 0
    for iou in overlaps(edges, truth):
        value, row = iou.max(dim=1)
        best.append(value)
        rows.append(row)
        value, row = iou.max(dim=0)
        better = value > top
        top, at = torch.where(better, value, top), torch.where(better, row + start, at)
        start += len(iou)
    highest, row = torch.cat(best), torch.cat(rows)
    matched[highest >= negative] = IGNORED
    matched = torch.where(highest >= positive, row, matched)
    if every_object:
        touched = (top > 0).nonzero().flatten()
        matched[at[touched]] = touched
    return matched


def ignore_unknown(matched: Tensor, edges: Tensor, known: Tensor) -> Tensor:
    """``matched`` (N,) with ``IGNORED`` for negatives of which less than half lies on known pixels.

    Args:
        matched: From :func:`match_boxes`.
        edges: (N, 4), the boxes.
        known: (H, W) bool.
    """
    if bool(known.all()):
        return matched
    return torch.where((matched == NEGATIVE) & (known_share(edges, known) < 0.5), IGNORED, matched)


def known_share(edges: Tensor, known: Tensor) -> Tensor:
    """(N,) in [0, 1]: share of each box, cut to the image and rounded to pixels, that is known; 0 if nothing is left.

    Args:
        edges: (N, 4).
        known: (H, W) bool.
    """
    height, width = known.shape
    table = torch.zeros(height + 1, width + 1, dtype=torch.int64, device=known.device)
    table[1:, 1:] = known.long().cumsum(0).cumsum(1)
    x0, x1 = (edges[:, column].round().long().clamp(0, width) for column in (0, 2))
    y0, y1 = (edges[:, column].round().long().clamp(0, height) for column in (1, 3))
    inside = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    area = (x1 - x0).clamp_min(0) * (y1 - y0).clamp_min(0)
    return inside.to(edges.dtype) / area.clamp_min(1)


def sample_balanced(
    matched: Tensor, number: int, positive_share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of at most ``number`` boxes: positive ones up to their share, then negative ones; both drawn at random.

    Args:
        matched: From :func:`match_boxes`.
        number: Positive and negative rows together.
        positive_share: Largest share of positive rows, in [0, 1].
        generator: On the CPU; None for torch's own.
    """
    positive, negative = (matched >= 0).nonzero().flatten(), (matched == NEGATIVE).nonzero().flatten()
    positive = draw_rows(positive, int(number * positive_share), generator)
    return positive, draw_rows(negative, number - len(positive), generator)


def draw_rows(rows: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """``rows`` (n,), or ``most`` of them drawn at random, in the order in which they stand."""
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=generator)[:most].sort().values
    return rows[chosen.to(rows.device)]
