"""Maps that objects are made of, for any network: what they learn, how windows are blended, how a picture is read.

What the channels mean is said by ``samgraft.recipes.representations``, for UNets too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.config import MethodConfig
from samgraft.recipes.choosing import choose_objects
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.data.fit import blend_weight
from samgraft.recipes.representations import BorderMaps, ClassMaps, DistanceMaps, Maps, ObjectMaps
from tests.benchmarks._data import Case, picture
from tests.benchmarks._object_sets import ObjectSet, Place, Result, fit_of, places, result_of

Logits = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> (B, K, s, s)."""


def maps_of(chosen: ObjectSet, head: MethodConfig | None) -> Maps:
    """What the channels mean on a set: its class, or what a head's configuration asks for; else border targets."""
    if chosen.kind == "classes":
        return ClassMaps(classes=1)
    if head is not None and head.method == "distances":
        return DistanceMaps.for_head(head, classes=1, border=chosen.spec.border)
    return BorderMaps(border=chosen.spec.border)


def loss_of(maps: Maps, chosen: ObjectSet) -> nn.Module:
    """The package's loss; the set weighs classes where there are such."""
    weights = chosen.spec.class_weights if isinstance(maps, BorderMaps) else None
    return maps.loss(TaskConfig(kind=maps.kind, class_weights=weights))


def difference(maps: Maps, loss: nn.Module, logits: Tensor, label: Tensor) -> Tensor:
    """Loss of logits (B, K, s, s) against labels (B, S, S), at the size of the labels."""
    if logits.shape[-1] != label.shape[-1]:
        logits = functional.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
    found: Tensor = loss(logits, maps.target(label))
    return found


def read(maps: Maps, chosen: ObjectSet, logits: Tensor) -> Result:
    """Objects of a picture from its logits (K, H, W); the pixels of a class are one object that is certain."""
    if isinstance(maps, ObjectMaps):
        return result_of(*maps.objects(maps.maps(logits).numpy(), min_area=chosen.spec.min_area))
    return result_of(maps.maps(logits).argmax(0).clamp_max(1).numpy(), [1.0])


def whole(forward: Logits, maps: Maps, chosen: ObjectSet, scales: Sequence[float], case: Case) -> Result:
    """Objects of a picture, each from the scale at which it is found best."""
    found = [read(maps, chosen, blended(forward, at_scale(chosen, scale), case)) for scale in scales]
    if len(found) == 1:
        return found[0]
    return result_of(*choose_objects([(one.labels, one.scores) for one in found], min_area=chosen.spec.min_area))


def at_scale(chosen: ObjectSet, scale: float) -> ObjectSet:
    """The set with windows that show its pictures ``scale`` times as large.

    Raises:
        ValueError: it has no windows.
    """
    if scale == 1:
        return chosen
    if chosen.spec.window is None:
        raise ValueError(f"{chosen.spec.name} is looked at as a whole; scales need windows")
    return replace(chosen, spec=replace(chosen.spec, window=round(chosen.spec.window / scale)))


@torch.no_grad()
def blended(forward: Logits, chosen: ObjectSet, case: Case) -> Tensor:
    """Logits (K, H, W) of a picture from its windows, blended where these overlap."""
    shape = (case.label.shape[0], case.label.shape[1])
    total, mass = torch.zeros(()), torch.zeros(shape)
    for some, images in window_batches(chosen, case):
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
