"""Clicks in a volume for an adapter whose own head takes them (``mla_3d`` trained with clicks).

The volume is walked over as without clicks; every slab of slices, and every window of it, is told the clicks that lie
in it, and those without one answer as they do automatically. Nothing is carried from slice to slice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from samgraft.adapters.graft import Grafted
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError, PromptError
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.data.slabs import Place, Slabs
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.prompting import ObjectPrompts, UserPrompts, coarsest_axis
from samgraft.recipes.volume_prompts import Point, VolumePrompts
from samgraft.volumetric.heads.clicks import VolumeClicks
from samgraft.volumetric.heads.mla_3d import Mla3dHead


def click_head(grafted: Grafted | None) -> Mla3dHead | None:
    """The head of an adapter, if it takes clicks."""
    head = None if grafted is None else grafted.decoder
    return head if isinstance(head, Mla3dHead) and head.clicks is not None else None


def clicks_for(
    grafted: Grafted | None, prompts: UserPrompts | ObjectPrompts | VolumePrompts, scene: Scene
) -> tuple[Point, ...]:
    """Clicks (x, y, slice, label) that the adapter's head answers by itself; empty where it cannot.

    That is so for points of one object in a volume, without a box, a line or a mask.

    Raises:
        PromptError: a point lies outside, or there is none with label 1.
    """
    if click_head(grafted) is None or scene.kind != "volume" or isinstance(prompts, ObjectPrompts):
        return ()
    if isinstance(prompts, UserPrompts):
        if prompts.boxes:
            return ()
        prompts.as_objects().check(scene.grid)
        index = prompts.plane_index(scene.grid)
        return tuple((x, y, index, label) for x, y, label in prompts.points)
    one = prompts.objects[0]
    if len(prompts) > 1 or one.slices or one.box is not None:
        return ()
    prompts.check(scene.grid)
    return one.points


def require_slabs(recorded: Recorded, scene: Scene, axis: int | None) -> None:
    """Refuse clicks that the adapter cannot take as they are meant.

    Raises:
        ConfigError: the adapter sees single slices.
        PromptError: the prompts count slices along another axis than the adapter does.
    """
    if recorded.recipe.slab is None:
        raise ConfigError(
            "clicks need an adapter that was trained on slabs of slices; train with data.slab, or leave the points out"
        )
    own = coarsest_axis(scene.grid) if recorded.recipe.slice_axis is None else recorded.recipe.slice_axis
    asked = coarsest_axis(scene.grid) if axis is None else axis
    if asked != own:
        raise PromptError(
            f"points lie on slices of axis {'DHW'[asked]}, and the adapter cuts along {'DHW'[own]}; give axis {own}"
        )


def slab_clicks(
    points: Sequence[Point], cut: Slabs, places: Sequence[Place], size: int
) -> Iterator[VolumeClicks | None]:
    """The clicks of every input that ``slab_squares`` gives, in its order; None where none lies in it.

    Args:
        points: (x, y, slice, label) in pixels of the volume.
        cut: Slabs of the volume.
        places: Windows of every slice.
        size: Side of the network input.
    """
    for start in cut.starts:
        within = [point for point in points if 0 <= point[2] - start < cut.slab]
        for rows, cols in places:
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            found = [one for one in within if _inside(one[1], rows) and _inside(one[0], cols)]
            yield _clicks(found, fit, (start, rows.start, cols.start)) if found else None


def _clicks(points: Sequence[Point], fit: Fit, corner: tuple[int, int, int]) -> VolumeClicks:
    """Clicks of one volume in pixels of the network input and slices of the slab."""
    scale, (top, left) = fit.size / fit.side, fit.corner
    first, row, col = corner
    placed = [
        ((x - col + left + 0.5) * scale - 0.5, (y - row + top + 0.5) * scale - 0.5, index - first)
        for x, y, index, _ in points
    ]
    labels = torch.tensor([[label for *_, label in points]], dtype=torch.int64)
    return VolumeClicks(points=torch.tensor([placed], dtype=torch.float32), labels=labels)


def _inside(value: float, part: slice) -> bool:
    """Whether a coordinate lies on the pixels of a part, edges included."""
    return bool(part.start - 0.5 <= value <= part.stop - 0.5)


def clicked(result: Segmentation, prompts: UserPrompts | ObjectPrompts | VolumePrompts, count: int) -> Segmentation:
    """The result, which says that it was told clicks, and whether those came from a label."""
    meta = {**result.meta, "mode": "clicked", "clicks": str(count)}
    return replace(result, meta=meta, from_ground_truth=prompts.from_ground_truth)
