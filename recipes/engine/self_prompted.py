"""What an adapter finds in a volume, shown to the frozen mask decoder and carried through the slices.

An adapter of few cases says roughly where a structure is; it loses parts of it on some slices and finds others far
away. A frozen decoder draws one connected object well where it is told of it on some slices (``propagated``). So the
largest piece of each class becomes loose boxes on a few of its slices. No label is looked at.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.graft import Grafted
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.engine.asking import answering
from samgraft.recipes.engine.flipped import FlippedResult
from samgraft.recipes.engine.propagated import VolumeOptions, segment_volume
from samgraft.recipes.prompting import ObjectPrompt
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts
from samgraft.volumetric.propagation.slices import box_of
from samgraft.volumetric.shape_rules import ShapeRules

SLICES = 3
"""Slices of a piece that are shown."""
_LARGEST = ShapeRules(largest=True, connectivity=6)


def prompts_of_classes(
    labels: NDArray[np.integer], classes: Mapping[int, str], *, axis: int, slices: int = SLICES
) -> VolumePrompts | None:
    """The largest piece of every class as loose boxes on some of its slices.

    Args:
        labels: (D, H, W) class of every voxel.
        classes: Label value -> name.
        axis: Array axis that is cut into slices.
        slices: How many of a piece's slices are shown, at equal shares of them: of three those after a quarter, a half
            and three quarters.

    Returns:
        One object per class that occurs, in the order of ``classes``; None if none does.
    """
    stack = np.moveaxis(labels, axis, 0)
    found = []
    for value, name in classes.items():
        piece = _LARGEST.apply(stack == value, (1.0, 1.0, 1.0))
        if piece.any():
            found.append(VolumePrompt(slices=_boxes(piece, slices, name), class_name=name, source=f"class {name!r}"))
    return VolumePrompts(objects=tuple(found), axis=axis) if found else None


def _boxes(piece: NDArray[np.bool_], count: int, name: str) -> tuple[ObjectPrompt, ...]:
    """Boxes around a connected piece (D, H, W) on some of its slices."""
    filled = np.flatnonzero(piece.any(axis=(1, 2)))
    places = np.linspace(filled[0], filled[-1], count + 2)[1:-1]
    found = []
    for index in dict.fromkeys(int(place) for place in np.round(places)):
        found.append(ObjectPrompt(box=box_of(piece[index]), tight=False, slice=index, class_name=name))
    return tuple(found)


def carried(
    scene: Scene, result: FlippedResult, grafted: Grafted, options: VolumeOptions, **asking: Any
) -> Segmentation:
    """A class map with every class drawn anew by the decoder, from what the adapter found of it, if that is asked for.

    Args:
        scene: The volume.
        result: The adapter's class map.
        grafted: The adapter; it answers if it can (``asking.answering``), else the backbone as it was before.
        options: Of the propagation; ``shown`` slices of every class, or the class map as it is.
        asking: As for ``segment_volume``.

    Returns:
        The same classes on the same grid. A class that the decoder does not find again stays as it was.
    """
    found = result.segmentation
    prompts = None
    if options.shown:
        prompts = prompts_of_classes(found.labels, found.classes, axis=result.axis, slices=options.shown)
    if prompts is None:
        return found
    values = [value for value in found.classes if (found.labels == value).any()]
    with answering(grafted) as network:
        drawn = segment_volume(scene, network, prompts, options=options, **asking)
    labels = np.array([0, *values], dtype=found.labels.dtype)[drawn.segmentation.labels]
    lost = [value for value, one in zip(values, drawn.objects, strict=True) if not one.mask.any()]
    kept = np.isin(found.labels, lost) & (labels == 0)
    labels[kept] = found.labels[kept]
    facts = {"carried from": f"{options.shown} slices", "carry": drawn.segmentation.meta["carry"]}
    if lost:
        facts["not carried"] = ", ".join(found.classes[value] for value in lost)
    return replace(found, labels=labels, meta={**found.meta, **facts})
