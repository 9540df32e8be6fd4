"""Objects of a head that finds them itself (``samgraft.adapters.prompts.objects.ObjectHead``)."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import MethodConfig
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, objects_from_labels
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.representations.base import Reduce, WindowObjects

MIN_PIXELS = 4
"""Objects of which an augmentation leaves fewer pixels are neither learned nor held against the head."""


@dataclass(frozen=True, kw_only=True)
class HeadObjects(WindowObjects):
    """What the head says; nothing else is known of it."""

    @classmethod
    def for_head(cls, head: MethodConfig | None, *, classes: int, border: int) -> "HeadObjects":
        """The same for all heads."""
        del head, classes, border
        return cls()

    def loss(self, task: TaskConfig, *, reduce: Reduce | None = None) -> nn.Module:
        """Nothing: the head has losses of its own, each of its own images where processes share a batch."""
        del task, reduce
        return nn.Identity()

    def learn(
        self, loss: nn.Module, grafted: Grafted, features: Features | None, image: Tensor, label: Tensor
    ) -> Tensor:
        """The sum of the head's losses."""
        del loss
        features = grafted.encode(image) if features is None else features
        objects = objects_from_labels(label.to(image.device), ignore=IGNORE, min_area=MIN_PIXELS)
        return torch.stack(list(object_head(grafted).losses(grafted.backbone, features, image, objects).values())).sum()

    def find(self, grafted: Grafted, features: Features, image: Tensor) -> FoundObjects:
        """What the head finds."""
        return object_head(grafted).find(grafted.backbone, features, image, {})


def object_head(grafted: Grafted) -> ObjectHead:
    """The decoder or prompter that finds objects."""
    return cast(ObjectHead, grafted.prompter if isinstance(grafted.prompter, ObjectHead) else grafted.decoder)
