"""Classes per pixel: those of the data set, or background, interior and border, which objects are made of."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.recipes.config import Kind, TaskConfig
from samgraft.recipes.instances import border_target, instances_from_probabilities
from samgraft.recipes.losses import IGNORE, SegmentationLoss, as_multiclass
from samgraft.recipes.representations.base import Maps, ObjectMaps, Reduce


def with_background(output: SemanticOutput) -> Tensor:
    """Class logits (B, 1 + classes, s, s), background first; channels that are no classes stay as they are.

    A head that answers per class through a sigmoid gets a background channel of zeros, so that the largest channel is
    the class with the most certain "yes", or background if all say "no".
    """
    if output.activation == "softmax" or output.channels:
        return output.logits
    return torch.cat([torch.zeros_like(output.logits[:, :1]), output.logits], dim=1)


def class_probabilities(logits: Tensor) -> Tensor:
    """(K, h, w) summing to 1 at every pixel; one channel of logits counts as the second of two."""
    return as_multiclass(logits[None])[0].softmax(dim=0)


class _Classes(Maps):
    """What all class maps have in common."""

    @property
    def nothing(self) -> tuple[float, ...]:
        """Certain background."""
        return (1.0,) + (0.0,) * (self.channels - 1)

    def logits(self, output: SemanticOutput) -> Tensor:
        """Class logits with background."""
        return with_background(output)

    def maps(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return class_probabilities(logits)

    def loss(self, task: TaskConfig, *, reduce: Reduce | None = None) -> SegmentationLoss:
        """Dice + cross-entropy."""
        return SegmentationLoss(
            dice_weight=task.dice_weight, ce_weight=task.ce_weight, class_weights=task.class_weights, reduce=reduce
        )


@dataclass(frozen=True, kw_only=True)
class ClassMaps(_Classes):
    """A class per pixel."""

    kind: ClassVar[Kind] = "semantic"
    classes: int
    """Foreground classes."""

    @classmethod
    def for_head(cls, head: MethodConfig | None, *, classes: int, border: int) -> "ClassMaps":
        """The classes of the data set."""
        del head, border
        return cls(classes=classes)

    @property
    def channels(self) -> int:
        """Background and classes."""
        return 1 + self.classes

    def target(self, labels: Tensor) -> Tensor:
        """The labels."""
        return labels.long()


@dataclass(frozen=True, kw_only=True)
class BorderMaps(_Classes, ObjectMaps):
    """Background, interior and border; interiors grow back over borders (``samgraft.recipes.instances``)."""

    border: int = 1
    """Width of the border class in network pixels; matters in training only."""

    @classmethod
    def for_head(cls, head: MethodConfig | None, *, classes: int, border: int) -> "BorderMaps":
        """All objects are of one class."""
        del head, classes
        return cls(border=border)

    @property
    def channels(self) -> int:
        """Three."""
        return 3

    def target(self, labels: Tensor) -> Tensor:
        """(B, S, S) int64 classes."""
        maps = [torch.from_numpy(border_target(one, border=self.border)).long() for one in labels.cpu().numpy()]
        return torch.stack(maps).to(labels.device).where(labels != IGNORE, IGNORE)

    def objects(self, maps: NDArray[np.floating], *, min_area: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Interiors as seeds, grown over the foreground."""
        return instances_from_probabilities(maps, min_area=min_area)
