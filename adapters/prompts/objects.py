"""Finding separate objects without a person: what a method learns from, what it gives, and the interface between.

A method is an :class:`ObjectHead`. One that works by writing prompts for the frozen mask decoder is an
:class:`ObjectPrompter`; it only has to write them, and to say its losses. Coordinates are (x, y) pixels of the network
input; a box names its first and last pixel, as in :class:`~samgraft.adapters.prompts.base.Prompts`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samgraft.adapters.config import MethodConfig
from samgraft.adapters.prompts.base import PromptGenerator, Prompts
from samgraft.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """The true objects of B images, for training only."""

    image_index: Tensor
    """(N,) int64, ascending: which image each object belongs to."""
    boxes: Tensor
    """(N, 4) float, tight x0, y0, x1, y1."""
    masks: Tensor
    """(N, H, W) bool, at the size of the network input."""
    classes: Tensor
    """(N,) int64, from 0."""
    known: Tensor
    """(B, H, W) bool: False where nothing is known (padding, ignored pixels), so that no loss counts there."""

    def __len__(self) -> int:
        """N, the number of objects."""
        return len(self.image_index)

    def of(self, image: int) -> Tensor:
        """(n,) int64: the rows of one image."""
        return (self.image_index == image).nonzero().flatten()


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundObjects:
    """Objects found in B images."""

    image_index: Tensor
    """(N,) int64."""
    logits: Tensor
    """(N, h', w') mask logits over the whole network input, at any resolution; above 0 is inside."""
    scores: Tensor
    """(N,) in [0, 1]."""
    classes: Tensor
    """(N,) int64, from 0."""
    from_ground_truth: bool = False
    """As in ``Prompts``."""

    def __len__(self) -> int:
        """N, the number of objects."""
        return len(self.image_index)

    def select(self, rows: Tensor) -> "FoundObjects":
        """The objects named by ``rows`` (indices or a boolean mask)."""
        return FoundObjects(
            image_index=self.image_index[rows],
            logits=self.logits[rows],
            scores=self.scores[rows],
            classes=self.classes[rows],
            from_ground_truth=self.from_ground_truth,
        )


class ObjectHead(ABC):
    """A trainable method that gives separate objects."""

    object_classes: int = 1
    """Kinds of objects."""

    @abstractmethod
    def losses(self, backbone: "Backbone", features: "Features", image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Named scalar losses, to be added up; finite and attached to the graph also for images without an object.

        Args:
            backbone: The frozen backbone; its decoder may be asked.
            features: Of B images, with the head's taps.
            image: (B, 3, H, W) in [0, 1].
            objects: The true objects of these images.
        """

    @abstractmethod
    def find(
        self, backbone: "Backbone", features: "Features", image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """The objects of B images, from the images alone.

        Args:
            backbone: The frozen backbone.
            features: Of B images, with the head's taps.
            image: (B, 3, H, W) in [0, 1].
            context: As for :class:`~samgraft.adapters.prompts.base.PromptGenerator`.
        """


class ObjectPrompter(PromptGenerator, ObjectHead):
    """Writes one prompt per object, with ``scores`` and (for several classes) ``class_logits``."""

    score_by_iou: bool = False
    """Multiply scores by the IoU that the mask decoder predicts, cut to [0, 1]."""

    def find(
        self, backbone: "Backbone", features: "Features", image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """One mask of the backbone's decoder per prompt.

        Raises:
            ConfigError: the prompts have no scores.
        """
        prompts: Prompts = self(features, image, context)
        if prompts.scores is None:
            raise ConfigError(f"{type(self).__name__} wrote prompts without scores; objects need them to be ranked")
        logits, iou = (part[:, 0] for part in backbone.decode(features, prompts))
        scores = prompts.scores
        if self.score_by_iou:
            scores = scores * iou.clamp(0, 1).to(scores.dtype)
        classes = torch.zeros_like(prompts.image_index)
        if prompts.class_logits is not None:
            classes = prompts.class_logits[:, : self.object_classes].argmax(dim=1)
        return FoundObjects(
            image_index=prompts.image_index,
            logits=logits,
            scores=scores,
            classes=classes,
            from_ground_truth=prompts.from_ground_truth,
        )


def finds_objects(config: MethodConfig | type[MethodConfig] | None) -> bool:
    """Whether a configuration builds an :class:`ObjectHead`; these have a field ``object_classes``."""
    return config is not None and any(field.name == "object_classes" for field in fields(config))


def objects_from_labels(labels: Tensor, *, ignore: int = -1, min_area: int = 1) -> Objects:
    """Objects of instance maps, all of class 0.

    Args:
        labels: (B, H, W) integer: 0 background, ``ignore`` unknown, every other value one object of its image.
        ignore: Value of unknown pixels.
        min_area: Objects with fewer pixels (cut off by an augmentation) are left out, and their pixels unknown.

    Raises:
        ShapeError: not (B, H, W).
    """
    if labels.ndim != 3:
        raise ShapeError(f"instance labels have shape {tuple(labels.shape)}; expected (B, H, W)")
    index: list[int] = []
    masks: list[Tensor] = []
    known = labels != ignore
    for number, label in enumerate(labels):
        values, counts = label[(label != 0) & (label != ignore)].unique(return_counts=True)
        for value in values[counts < min_area].tolist():
            known[number] &= label != value
        kept = values[counts >= min_area]
        masks.append(label == kept[:, None, None])
        index += [number] * len(kept)
    all_masks = torch.cat(masks)
    image_index = torch.tensor(index, dtype=torch.int64, device=labels.device)
    return Objects(
        image_index=image_index,
        boxes=boxes_of(all_masks),
        masks=all_masks,
        classes=torch.zeros_like(image_index),
        known=known,
    )


def boxes_of(masks: Tensor) -> Tensor:
    """(N, 4) float boxes x0, y0, x1, y1 (first and last pixel) of masks (N, H, W) bool; zeros for an empty mask."""
    edges = []
    for line in (masks.any(dim=1), masks.any(dim=2)):  # columns, then rows
        low = line.int().argmax(dim=1)
        high = line.shape[1] - 1 - line.flip(1).int().argmax(dim=1)
        edges.append((low, torch.where(line.any(dim=1), high, low)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1).float()
