"""Masks of everything mode on target tiles, and pseudo labels snapped to them.

The frozen backbone knows where things end, and the teacher knows what they are: a region takes the class that most of
it has in the teacher's answer, where enough of it agrees. Pixels that the teacher was not sure of become labels too, so
a tile teaches more. For separate objects, an object takes the outline of the region that it nearly fills.

Source:
    Everything mode as a multiplier of training samples: SAM-DA, arXiv:2307.01024; vision4robotics/SAM-DA. There every
    mask's box becomes a target of a tracker.
Deviations:
    No box becomes a target of its own: a region without an agreed class teaches nothing.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.domains.atomic import atomic_path
from samgraft.recipes.engine.everything import automatic_masks
from samgraft.recipes.everything import EverythingConfig
from samgraft.recipes.instances import border_target
from samgraft.recipes.losses import IGNORE

SAVE_EVERY = 25
"""Tiles between writes."""


def find_regions(
    backbone: Backbone,
    images: Tensor,
    *,
    points: int,
    file: Path,
    device: torch.device,
    go_on: Callable[[], bool] = lambda: True,
    tell: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """Everything mode on every tile; what ``file`` holds already is not computed again.

    Args:
        backbone: Frozen, without grafts.
        images: (n, 3, S, S) uint8.
        points: Points per side.
        file: ``.npz`` where regions are kept, so that a stopped run goes on.
        device: Where the backbone runs.
        go_on: Asked before each tile; tiles after a "no" have no regions.
        tell: Takes lines about the progress.

    Returns:
        (n, S, S) int32: 0 where there is no region, else its number within the tile; the smaller of two is on top.
    """
    config = EverythingConfig(points_per_side=points, tile=0)
    found = _kept(file, images, points)
    size = images.shape[-1]
    for number in range(len(found), len(images)):
        if not go_on():
            tell(f"everything mode: time for {number} of {len(images)} tiles")
            break
        image = images[number].to(device).float() / 255
        masks = automatic_masks(backbone, image, config=config, size=size, depth=0)
        found.append(torch.from_numpy(masks.labels().astype(np.int32)))
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == len(images):
            _keep(file, found, points)
            tell(f"everything mode: {number + 1} of {len(images)} tiles")
    none = torch.zeros(images.shape[-2:], dtype=torch.int32)
    return torch.stack([*found, *[none] * (len(images) - len(found))])


def _kept(file: Path, images: Tensor, points: int) -> list[Tensor]:
    if not file.is_file():
        return []
    with np.load(file, allow_pickle=False) as data:
        if int(data["points"]) != points or data["regions"].shape[1:] != tuple(images.shape[-2:]):
            return []
        return list(torch.from_numpy(data["regions"]))[: len(images)]


def _keep(file: Path, found: list[Tensor], points: int) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, regions=torch.stack(found).numpy(), points=np.int64(points))


def snap_classes(pseudo: Tensor, answered: Tensor, regions: Tensor, *, agreement: float) -> Tensor:
    """Give each region the class of its majority.

    Args:
        pseudo: (N, S, S) pseudo labels with ``IGNORE``.
        answered: (N, S, S) the teacher's class of every pixel.
        regions: (N, S, S), 0 for none.
        agreement: Least share of a region that has the majority's class.

    Returns:
        Pseudo labels; pixels outside of agreed regions stay as they are.
    """
    snapped = pseudo.clone()
    for image in range(len(pseudo)):
        winner = _winners(answered[image], regions[image], agreement)
        snapped[image] = winner.where(winner != IGNORE, pseudo[image])
    return snapped


def snap_borders(pseudo: Tensor, answered: Tensor, regions: Tensor, *, agreement: float, border: int) -> Tensor:
    """The same for classes background, interior and border: a region of foreground becomes an object with a rim."""
    snapped = pseudo.clone()
    for image in range(len(pseudo)):
        winner = _winners((answered[image] > 0).long(), regions[image], agreement)
        objects = torch.where(winner == 1, regions[image].long(), 0)
        target = torch.from_numpy(border_target(objects.cpu().numpy(), border=border)).to(pseudo)
        snapped[image] = target.where(winner != IGNORE, pseudo[image])
    return snapped


def _winners(answered: Tensor, regions: Tensor, agreement: float) -> Tensor:
    """(S, S) the majority's class of each pixel's region; ``IGNORE`` where it is too small or there is no region."""
    own, classes = regions.long(), int(answered.max()) + 1
    count = int(own.max()) + 1
    votes = torch.bincount((own * classes + answered).flatten(), minlength=count * classes).view(count, classes)
    most, winner = votes.max(dim=1)
    winner = winner.where(most >= agreement * votes.sum(dim=1), torch.full_like(winner, IGNORE))
    winner[0] = IGNORE
    return winner[own]


def snap_objects(pseudo: Tensor, regions: Tensor, *, agreement: float) -> Tensor:
    """Give each object of the pseudo labels the outline of the region that it nearly is (IoU at least ``agreement``).

    Pixels that the object had outside of the region become ``IGNORE``; those that it gains were not another object's.
    """
    snapped = pseudo.clone()
    for image in range(len(pseudo)):
        own = regions[image].long()
        for value in pseudo[image][pseudo[image] > 0].unique().tolist():
            mask = pseudo[image] == value
            inside = own[mask & (own > 0)]
            if not len(inside):
                continue
            region = own == int(inside.mode().values)
            iou = float((mask & region).sum()) / float((mask | region).sum())
            if iou >= agreement:
                snapped[image][mask & ~region] = IGNORE
                snapped[image][region & (pseudo[image] <= 0)] = value
    return snapped
