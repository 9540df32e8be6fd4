"""A network with an adapter in two steps, encoder and decoder, which may run in different threads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import Grafted
from samgraft.recipes.data.slabs import flat_slabs
from samgraft.recipes.engine.clicked import click_head
from samgraft.recipes.engine.turned import mean_of_views, turned
from samgraft.recipes.representations import Maps, WindowObjects
from samgraft.volumetric.heads.clicks import VolumeClicks


@dataclass(frozen=True)
class Steps:
    """A network in two steps, which may run in different threads."""

    encode: Callable[[Tensor], tuple[Tensor, Features]]
    """(B, 3, S, S) in [0, 1] -> the same on the network's device, and its features; slabs (B, 3, D, S, S) as slices."""
    decode: Callable[[tuple[Tensor, Features]], Any]
    """-> logits (B, K, s, s) of the representation, float on the CPU; or per window the objects found there."""


def steps(
    grafted: Grafted,
    representation: Maps | WindowObjects,
    clicks: Iterator[VolumeClicks | None] | None = None,
    *,
    views: int = 1,
) -> Steps:
    """The network, encoder and decoder apart; logits as in training.

    Args:
        grafted: The adapter on its backbone.
        representation: What it gives.
        clicks: Those of every input, in order.
        views: How many views of a window are averaged, see ``engine.turned``; of maps only.
    """
    head = None if clicks is None else click_head(grafted)
    device = next(grafted.backbone.parameters()).device

    def encode(image: Tensor) -> tuple[Tensor, Features]:
        flat, _, slices = flat_slabs(image, None)
        with torch.no_grad():
            there = turned(flat.to(device), views)
            return there, grafted.encode(there) if slices == 1 else grafted.encode(there, depth=slices)

    def decode(encoded: tuple[Tensor, Features]) -> Any:
        image, features = encoded
        with torch.no_grad():
            if isinstance(representation, WindowObjects):
                found = representation.find(grafted, features, image)
                return [found.select(found.image_index == number) for number in range(len(image))]
            told = None if clicks is None else next(clicks)
            if told is None or head is None:
                output = grafted.predict(image, features=features)
            else:
                output = head.answer(features, image, told.to(device))
        return mean_of_views(representation.logits(output).float().cpu(), views)

    return Steps(encode, decode)
