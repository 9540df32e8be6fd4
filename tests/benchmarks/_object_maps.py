"""What a network's channels mean where objects are made of maps: classes, border targets, or distances.

``samgraft.recipes.representations`` says it where the package has it; the two here serve until then, and UNets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.data.fit import blend_weight
from samgraft.recipes.instances import border_target, instances_from_probabilities
from samgraft.recipes.losses import IGNORE, SegmentationLoss
from tests.benchmarks._data import Case
from tests.benchmarks._object_sets import ObjectSet, Place, Result, fit_of, picture, places, result_of

Logits = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> (B, K, s, s)."""
REPRESENTATIONS = "samgraft.recipes.representations"


@dataclass(frozen=True, kw_only=True, eq=False)
class Meaning:
    """How maps are learned and read."""

    target: Callable[[Tensor], Tensor]
    """Labels (B, S, S) with ``IGNORE`` -> what the loss compares with."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Logits (B, K, S, S) and target -> scalar."""
    read: Callable[[Tensor], Result]
    """Blended logits (K, H, W) of a picture -> its objects."""


def meaning(chosen: ObjectSet, head: MethodConfig | None) -> Meaning:
    """Of a set and a head; None for a head with class maps, such as a UNet.

    On "classes" it is the class; on the others what the head's configuration asks for, else border targets.
    """
    if chosen.kind == "classes":
        return Meaning(target=lambda labels: labels, loss=SegmentationLoss(), read=_as_one)
    return distances(chosen, head) if has_distances(head) else borders(chosen)


def has_distances(head: MethodConfig | None) -> bool:
    """Whether a head's maps are no classes."""
    return head is not None and head.method == "distances"


def borders(chosen: ObjectSet) -> Meaning:
    """Background, interior and border of objects, with the class weights of the set."""

    def target(labels: Tensor) -> Tensor:
        found = [torch.from_numpy(border_target(one, border=chosen.spec.border)).long() for one in labels.numpy()]
        return torch.stack(found).where(labels != IGNORE, IGNORE)

    def read(logits: Tensor) -> Result:
        return result_of(*instances_from_probabilities(logits.softmax(0).numpy(), min_area=chosen.spec.min_area))

    return Meaning(target=target, loss=SegmentationLoss(class_weights=chosen.spec.class_weights), read=read)


def distances(chosen: ObjectSet, head: MethodConfig | None) -> Meaning:
    """Foreground and the two distances, as ``samgraft.recipes.representations`` has them."""
    if head is None or not _knows_distances():
        raise ModuleNotFoundError(f"distances need {REPRESENTATIONS}, which this version of samgraft lacks")
    maps = import_module(REPRESENTATIONS).represent("instance", head, classes=1, border=chosen.spec.border)

    def read(logits: Tensor) -> Result:
        return result_of(*maps.objects(maps.maps(logits).numpy(), min_area=chosen.spec.min_area))

    return Meaning(target=maps.target, loss=maps.loss(TaskConfig(kind="instance")), read=read)


def _knows_distances() -> bool:
    return find_spec(REPRESENTATIONS) is not None


def _as_one(logits: Tensor) -> Result:
    """The pixels of the class as one object that is certain."""
    labels: NDArray[np.int64] = logits.argmax(0).clamp_max(1).numpy()
    return result_of(labels, [1.0])


def class_logits(output: SemanticOutput) -> Tensor:
    """(B, K, s, s), background first: zeros for a head that answers through a sigmoid, and distances as they are."""
    if output.activation == "softmax" or getattr(output, "channels", ()):
        return output.logits
    return torch.cat([torch.zeros_like(output.logits[:, :1]), output.logits], dim=1)


def enlarged(logits: Tensor, side: int) -> Tensor:
    """(B, K, s, s) at the size of the network input."""
    if logits.shape[-1] == side:
        return logits
    return functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


@torch.no_grad()
def blended(forward: Logits, chosen: ObjectSet, case: Case, *, batch: int = 8) -> Tensor:
    """Logits (K, H, W) of a picture from its windows, blended where these overlap."""
    shape = (case.label.shape[0], case.label.shape[1])
    total, mass = torch.zeros(()), torch.zeros(shape)
    for some, images in window_batches(chosen, case, batch=batch):
        for place, logits in zip(some, forward(images), strict=True):
            part = fit_of(place, chosen.spec.size).back(logits[None])[0]
            weight = blend_weight(part.shape[1], part.shape[2])
            total = total if total.ndim else torch.zeros(len(part), *shape)
            total[:, place[0], place[1]] += part * weight
            mass[place] += weight
    return total / mass


def window_batches(chosen: ObjectSet, case: Case, *, batch: int = 8) -> list[tuple[list[Place], Tensor]]:
    """Windows of a picture in use, a few at a time, and what the network sees of them (b, 3, S, S)."""
    image, found = picture(case), places(chosen, (case.label.shape[0], case.label.shape[1]))
    parts = [found[i : i + batch] for i in range(0, len(found), batch)]
    fits = [[fit_of(place, chosen.spec.size).image(image[:, place[0], place[1]]) for place in part] for part in parts]
    return [(part, torch.stack(images)) for part, images in zip(parts, fits, strict=True)]
