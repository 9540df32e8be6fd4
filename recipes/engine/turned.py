"""The same windows turned and mirrored, and the mean of what a network says of them.

A mean over views is steadier than each of them, for as many times the work; the network was trained on all of them
where its recipe turns pictures. It is for pictures and rasters: mirror images of volumes are ``engine.flipped``.
"""

from dataclasses import replace

import torch
from torch import Tensor

from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.representations import WindowObjects
from samgraft.recipes.trusting import MIRRORS

VIEWS = (1, 4, 8)
"""How many there may be: as it is; and mirrored left-right, top-bottom and both; and the same four a quarter turned."""


def turned(squares: Tensor, views: int) -> Tensor:
    """All views of squares, (B, C, S, S) -> (views * B, C, S, S), view by view; the first is the squares themselves."""
    return squares if views == 1 else torch.cat([_turn(squares, number) for number in range(views)])


def mean_of_views(maps: Tensor, views: int) -> Tensor:
    """Views turned back and averaged, (views * B, K, s, s) -> (B, K, s, s)."""
    if views == 1:
        return maps
    return torch.stack([_turn_back(part, number) for number, part in enumerate(maps.chunk(views))]).mean(dim=0)


def _turn(squares: Tensor, number: int) -> Tensor:
    """View ``number`` of (..., S, S): mirrored, and from the fifth on a quarter turned as well."""
    mirrored = squares.flip(MIRRORS[number % 4])
    return mirrored.rot90(1, (-2, -1)) if number >= 4 else mirrored


def _turn_back(maps: Tensor, number: int) -> Tensor:
    upright = maps.rot90(-1, (-2, -1)) if number >= 4 else maps
    return upright.flip(MIRRORS[number % 4])


def with_views(said: Recorded, scene: Scene, views: int) -> Recorded:
    """The header with a number of views for one scene.

    Args:
        said: What the header says.
        scene: What will be segmented.
        views: One of :data:`VIEWS`.

    Raises:
        ConfigError: another number; a volume; an adapter that gives objects window by window.
    """
    if views not in VIEWS:
        raise ConfigError(f"views is {views}; expected one of {', '.join(map(str, VIEWS))}")
    if views == 1:
        return said
    if scene.kind == "volume":
        raise ConfigError(
            f"views={views} is for pictures and rasters, and {scene.path.name} is a volume; volume=VolumeOptions(flips="
            "...) (--flips) segments its mirror images"
        )
    if isinstance(said.representation, WindowObjects):
        raise ConfigError(
            f"views={views} averages maps, and this adapter gives objects window by window; leave views out"
        )
    return replace(said, views=views, about={**said.about, "views": str(views)})
