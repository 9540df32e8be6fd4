"""A decoder that answers what the test tells it to, and remembers what it was asked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.prompts.base import Prompts


class Scripted:
    """Stands in for a backbone: call k answers with the k-th entry, (logits (n, K, h, w), iou (n, K))."""

    def __init__(self, *answers: tuple[Tensor, Tensor]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Prompts, bool]] = []

    def decode(self, features: Any, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        del features
        self.asked.append((prompts, multimask))
        return self.answers[len(self.asked) - 1]


def rectangle(shape: tuple[int, int], *boxes: Sequence[int]) -> Tensor:
    """(H, W) bool: True inside the boxes (x0, y0, x1, y1), first and last pixel inside."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def as_logits(*masks: Tensor) -> Tensor:
    """(n, h, w): +5 inside, -5 outside."""
    return torch.stack([mask.float() * 10 - 5 for mask in masks])
