"""Several scales for one picture: where its objects differ in size more than those that the adapter learned from.

The scale of a window is changed by its side: at scale 2 a window shows half as much, twice as large. Which objects of
which scale stay is ``samgraft.recipes.choosing``.
"""

from collections.abc import Sequence
from dataclasses import replace

from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.representations import ObjectMaps, WindowObjects

SMALLEST, LARGEST = 0.1, 10.0
"""Limits of a scale."""


def with_scales(said: Recorded, scene: Scene, scales: Sequence[float]) -> Recorded:
    """The header with scales for one scene.

    Args:
        said: What the header says.
        scene: What will be segmented.
        scales: Multiples of the size at which the adapter saw its training images; (1,) changes nothing.

    Raises:
        ConfigError: no scale, or one out of range or given twice; a volume; an adapter that does not make objects of
            maps, or looks at whole pictures.
    """
    chosen = tuple(float(scale) for scale in scales)
    if chosen == (1.0,):
        return said
    if not chosen or len(set(chosen)) < len(chosen) or not all(SMALLEST <= scale <= LARGEST for scale in chosen):
        raise ConfigError(
            f"scales are {chosen}; expected different numbers from {SMALLEST} to {LARGEST:g}, such as 1.4, 1 and 0.7"
        )
    if scene.kind == "volume":
        raise ConfigError(f"scales are for pictures and rasters, and {scene.path.name} is a volume; leave them out")
    if isinstance(said.representation, WindowObjects) or not isinstance(said.representation, ObjectMaps):
        raise ConfigError(
            "scales choose among objects that are made of maps, and this adapter gives none (decoder: distances does, "
            "and task.kind: instance with a class head); leave scales out"
        )
    if said.window is None:
        raise ConfigError(
            "scales change the side of an adapter's windows, and this one looks at whole pictures; train it with "
            "data.window, or leave scales out"
        )
    return replace(said, scales=chosen, about={**said.about, "scales": " ".join(f"{scale:g}" for scale in chosen)})


def at_every_scale(said: Recorded, shape: tuple[int, int]) -> list[Recorded]:
    """One header per scale for a plane (H, W); of scales that show the same, such as all of it, one stays."""
    if said.scales == (1.0,) or said.window is None:
        return [said]
    sides = dict.fromkeys(min(max(1, round(said.window / scale)), max(shape)) for scale in said.scales)
    return [replace(said, scales=(1.0,), recipe=replace(said.recipe, window=side)) for side in sides]
