"""Shares of the classes among labelled pixels: what an adapter's header says of its training images."""

from collections.abc import Iterable

import torch
from torch import Tensor

LEAST_KNOWN = 0.5
"""Where fewer pixels have a label (scribbles, partial labels) shares would say how labels were drawn."""


def class_shares(labels: Iterable[Tensor], channels: int) -> list[float] | None:
    """Share of each class, background first, over all labelled pixels.

    Args:
        labels: Integer label maps; negative where unknown. Values from ``channels`` on count as the last class.
        channels: Number of classes with background; 2 counts any object as foreground.

    Returns:
        Shares that sum to 1, or None where too few pixels are labelled.
    """
    counts, pixels = torch.zeros(channels, dtype=torch.int64), 0
    for label in labels:
        known = label[label >= 0].long().clamp_max(channels - 1)
        counts += torch.bincount(known.flatten(), minlength=channels)
        pixels += label.numel()
    total = int(counts.sum())
    if total < LEAST_KNOWN * max(1, pixels):
        return None
    return [round(float(count) / total, 7) for count in counts]
