"""Foreground, distance to the centre and to the boundary (``samgraft.adapters.decoders.distance_maps``)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.adapters.decoders.distance_maps import CHANNELS, distance_targets, objects_from_distances
from samgraft.adapters.decoders.distance_points import objects_from_points
from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.errors import ShapeError
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.losses import IGNORE, SegmentationLoss, at_least_float
from samgraft.recipes.representations.base import ObjectMaps, Reduce, WindowObjects

_OUTSIDE = 0.1
"""Weight of a background pixel in the loss of distances; an object's pixel has 1."""
_BEND = 0.1
"""Errors of distances count squared below this and linearly above."""


@dataclass(frozen=True, kw_only=True)
class DistanceMaps(ObjectMaps):
    """Three maps, and the thresholds by which objects are read from them."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Options of ``objects_from_distances``."""

    @classmethod
    def for_head(cls, head: MethodConfig | None, *, classes: int, border: int) -> "DistanceMaps":
        """As a ``DistancesConfig`` says: read from the maps, or asked for at their seeds."""
        del classes, border
        if not isinstance(head, DistancesConfig):
            return cls()
        thresholds = head.thresholds()
        return DistancePoints(thresholds=thresholds, config=head) if head.from_points else cls(thresholds=thresholds)

    @property
    def channels(self) -> int:
        """Three."""
        return len(CHANNELS)

    @property
    def nothing(self) -> tuple[float, ...]:
        """No foreground, far from everything."""
        return (0.0, 1.0, 1.0)

    def logits(self, output: SemanticOutput) -> Tensor:
        """As they are."""
        return output.logits

    def maps(self, logits: Tensor) -> Tensor:
        """Through a sigmoid, each channel on its own."""
        return logits.sigmoid()

    def target(self, labels: Tensor) -> Tensor:
        """(B, 3, S, S) float32; the first channel is ``IGNORE`` where nothing is known."""
        maps = [torch.from_numpy(distance_targets(one, ignore=IGNORE)) for one in labels.cpu().numpy()]
        return torch.stack(maps).to(labels.device)

    def blank(self, labels: Tensor) -> Tensor:
        """Zeros of the shape of a target."""
        return labels.new_zeros((len(labels), self.channels, *labels.shape[1:]), dtype=torch.float32)

    def loss(self, task: TaskConfig, *, reduce: Reduce | None = None) -> "DistanceLoss":
        """Dice + cross-entropy on the foreground, and a regression of the distances."""
        return DistanceLoss(
            dice_weight=task.dice_weight,
            ce_weight=task.ce_weight,
            distance_weight=task.distance_weight,
            reduce=reduce,
        )

    def objects(self, maps: NDArray[np.floating], *, min_area: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Seeds and a watershed."""
        return objects_from_distances(maps, min_area=min_area, **self.thresholds)


@dataclass(frozen=True, kw_only=True)
class DistancePoints(DistanceMaps, WindowObjects):
    """The same maps say where to ask the frozen mask decoder, whose masks are the objects."""

    config: DistancesConfig
    """Of the head."""

    def find(self, grafted: Grafted, features: Features, image: Tensor) -> FoundObjects:
        """A mask per seed."""
        output = grafted.predict(image, features=features).resize((image.shape[-2], image.shape[-1]))
        return objects_from_points(grafted.backbone, features, self.maps(at_least_float(output.logits)), self.config)


class DistanceLoss(nn.Module):
    """Weighted sum of Dice and cross-entropy of the foreground, and smooth L1 of both distances.

    Distances are compared after the sigmoid, where something is known: an object's pixel has weight 1, background 0.1,
    which is enough to keep seeds out of it. All terms are ratios of sums over pixels, so that processes can share a
    batch.

    Args:
        dice_weight: Weight of Dice.
        ce_weight: Weight of cross-entropy.
        distance_weight: Weight of the two distances together.
        reduce: As for :class:`samgraft.recipes.losses.SegmentationLoss`.
    """

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        distance_weight: float = 1.0,
        reduce: Reduce | None = None,
    ) -> None:
        """Remember the weights."""
        super().__init__()
        self.foreground = SegmentationLoss(dice_weight=dice_weight, ce_weight=ce_weight, reduce=reduce)
        self.distance_weight, self.reduce = distance_weight, reduce

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: (B, 3, H, W).
            target: (B, 3, H, W) as ``distance_targets`` makes it.

        Raises:
            ShapeError: the shapes differ, or there are not three channels.
        """
        if logits.shape != target.shape or logits.shape[1] != len(CHANNELS):
            raise ShapeError(
                f"logits are {tuple(logits.shape)}, the target {tuple(target.shape)}; expected (B, 3, H, W) twice"
            )
        wide = at_least_float(logits)
        inside = target[:, 0]
        weight = torch.where(inside > 0, 1.0, torch.where(inside == 0, _OUTSIDE, 0.0))
        error = functional.smooth_l1_loss(
            wide[:, 1:].sigmoid(), target[:, 1:].to(wide.dtype), reduction="none", beta=_BEND
        )
        sums = torch.stack([(error * weight[:, None]).sum(), 2 * weight.sum().to(wide.dtype)])
        if self.reduce is not None:
            sums = self.reduce(sums)
        loss: Tensor = self.foreground(wide[:, :1], inside.long())
        return loss + self.distance_weight * sums[0] / sums[1].clamp_min(1e-6)
