"""What the channels of a network mean: what they learn from labels, and what becomes of them on a picture.

A :class:`Representation` belongs to a kind of task and a kind of head. Training, validation, the engine and planning
ask it, and know no names of heads. There are two ways to read a picture: :class:`Maps`, whose logits are blended where
windows overlap and are read when they are complete, and :class:`WindowObjects`, found in every window and then joined.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.recipes.config import Kind, TaskConfig
from samgraft.recipes.losses import at_least_float

Reduce = Callable[[Tensor], Tensor]
"""Adds a vector of sums over processes."""


class Representation(ABC):
    """What is learned, and how the loss of a batch is computed."""

    kind: ClassVar[Kind]
    """Of the task."""

    @classmethod
    @abstractmethod
    def for_head(cls, head: MethodConfig | None, *, classes: int, border: int) -> "Representation":
        """With what ``head`` says; arguments as of :func:`samgraft.recipes.representations.represent`."""

    @abstractmethod
    def loss(self, task: TaskConfig, *, reduce: Reduce | None = None) -> nn.Module:
        """What :meth:`learn` computes the loss with.

        Args:
            task: Weights of its terms.
            reduce: As for :class:`samgraft.recipes.losses.SegmentationLoss`.
        """

    @abstractmethod
    def learn(
        self, loss: nn.Module, grafted: Grafted, features: Features | None, image: Tensor, label: Tensor
    ) -> Tensor:
        """Scalar loss of a batch.

        Args:
            loss: From :meth:`loss`.
            grafted: The network.
            features: Of ``image``; None to compute them.
            image: (B, 3, S, S) in [0, 1].
            label: (B, S, S) classes or instance numbers, with ``IGNORE``.
        """


class Maps(Representation):
    """Maps of the whole picture: logits of windows are blended, and read when they are complete."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """K, maps of the network."""

    @property
    @abstractmethod
    def nothing(self) -> tuple[float, ...]:
        """K values of the maps where a picture has no data."""

    @abstractmethod
    def logits(self, output: SemanticOutput) -> Tensor:
        """(B, K, s, s): what is learned and blended, of a head's output."""

    @abstractmethod
    def maps(self, logits: Tensor) -> Tensor:
        """(K, h, w) in [0, 1] of blended logits (K, h, w)."""

    @abstractmethod
    def target(self, labels: Tensor) -> Tensor:
        """What the loss compares with, of labels (B, S, S) with ``IGNORE``; on the device of ``labels``."""

    def blank(self, labels: Tensor) -> Tensor:
        """A target of the right shape and type for ``labels``, which may have no values (meta device)."""
        return torch.zeros_like(labels, dtype=torch.long)

    def learn(
        self, loss: nn.Module, grafted: Grafted, features: Features | None, image: Tensor, label: Tensor
    ) -> Tensor:
        """The loss at the size of the input, and what else the head learns; see :meth:`Representation.learn`."""
        target = self.target(label.cpu()).to(image.device)
        output, further = grafted.learn(image, target, features=features)
        logits = at_least_float(self.logits(output))
        logits = functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        total: Tensor = loss(logits, target)
        return total if further is None else total + further


class ObjectMaps(Maps):
    """Maps that objects are made of."""

    kind: ClassVar[Kind] = "instance"

    @abstractmethod
    def objects(self, maps: NDArray[np.floating], *, min_area: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Objects of complete maps.

        Args:
            maps: (K, H, W) in [0, 1].
            min_area: Objects with fewer pixels are dropped.

        Returns:
            labels (H, W) 1..n, 0 where there is none; scores (n,) in [0, 1].
        """


class WindowObjects(Representation):
    """Objects are found window by window and then joined (``samgraft.recipes.joining``)."""

    kind: ClassVar[Kind] = "instance"

    @abstractmethod
    def find(self, grafted: Grafted, features: Features, image: Tensor) -> FoundObjects:
        """The objects of B windows.

        Args:
            grafted: The network.
            features: Of the windows.
            image: (B, 3, S, S) in [0, 1].
        """
