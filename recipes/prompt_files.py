"""Prompts that come from a file: one object per detection, per label of an earlier mask, or per measured diameter.

Detections give boxes that end where their objects end. A diameter (RECIST) gives a square box around its middle, as
wide as the diameter is long, and points on the line; an earlier mask goes in as its box and as logits of -6.9 or 6.9.

Source:
    Diameter: MedSAM2, bowang-lab/MedSAM2:medsam2_infer_CT_lesion_npz_recist.py. Earlier mask: micro-sam,
    prompt_based_segmentation.py (box and log-odds of 0.999).
Deviations:
    MedSAM2 reads the ends of the diameter from a drawn line, the first and the last of its pixels in reading order,
    which are not its ends where a line drawn flat has several pixels in a row; it cuts middle and radius to whole
    pixels, gives a box or points, and draws points at random. Here the ends are given as numbers, nothing is rounded,
    lengths are in mm where pixels are not square, and box and evenly spaced points go in together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import find_objects

from samgraft.domains.atomic import full_suffix
from samgraft.domains.detections.base import Detection, clip_box
from samgraft.domains.detections.reading import SUFFIXES, read_detections
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Array, Scene
from samgraft.errors import PromptError
from samgraft.recipes.prompting import MaskPrompt, ObjectPrompt, ObjectPrompts, coarsest_axis

LINE_POINTS = 5
"""Points on a diameter, its ends included."""
NAMED = 5
"""What was left out is named up to this number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FilePrompts:
    """What a file asks for in one scene."""

    prompts: ObjectPrompts
    left_out: tuple[str, ...] = ()
    """What was left out, each with its name in the file and the reason."""

    def remark(self) -> str:
        """One line about what was left out; empty if nothing was."""
        return summary(self.left_out)


def prompts_from_file(
    path: str | PathLike[str],
    scene: Scene,
    *,
    axis: int | None = None,
    slice: int | None = None,
    class_field: str | None = None,
    score_field: str | None = None,
    min_score: float = 0.0,
    outside: Literal["skip", "refuse"] = "skip",
    from_ground_truth: bool = False,
) -> FilePrompts:
    """Read a file of detections, or an earlier mask, as prompts for ``scene``.

    Args:
        path: COCO ``.json``, ``.csv``, ``.geojson``, ``.gpkg``, ``.shp``; anything else is opened as a label map on the
            grid of the scene, in which every value above 0 is one object.
        scene: What will be segmented. Its file name chooses the image in a file about many.
        axis: Volumes: array axis that is cut; None takes the coarsest spacing.
        slice: Volumes: the slice, where the file does not say; None takes the middle one, or of a mask per object the
            one that shows most of it.
        class_field: Vector files: field with the class.
        score_field: Vector files: field with the confidence.
        min_score: Detections with a lower score are left out.
        outside: What happens to objects outside the scene.
        from_ground_truth: True when the file holds labels; the result says so.

    Raises:
        InputError: the file is missing, damaged or about other images.
        GeometryError: the file has a CRS and the scene has none, or the other way round; a mask on another grid.
        PromptError: nothing is left, or something lies outside with ``outside="refuse"``.
    """
    path = Path(path)
    if full_suffix(path) not in SUFFIXES:
        objects = tuple(_from_mask(path, scene, axis, slice))
        left_out: tuple[str, ...] = ()
    else:
        shape, spacing = plane_facts(scene, axis)
        options = {"class_field": class_field, "score_field": score_field}
        read = read_detections(path, scene.grid, shape, image=scene.path.name, **options)
        read = read.within(shape, min_score=min_score)
        objects = tuple(object_prompt(one, shape, spacing, slice) for one in read.found)
        left_out = read.left_out
    beyond = [name for name in left_out if name.endswith("outside the image")]
    if beyond and outside == "refuse":
        raise PromptError(f"{path}: {summary(beyond)}; take them out, or let them be skipped")
    if not objects:
        raise PromptError(f"{path} asks for nothing in {scene.path.name}; {summary(left_out) or 'it holds no object'}")
    prompts = ObjectPrompts(objects=objects, axis=axis, from_ground_truth=from_ground_truth)
    return FilePrompts(prompts=prompts, left_out=left_out)


def line_prompts(
    lines: Sequence[tuple[float, float, float, float]],
    scene: Scene,
    *,
    axis: int | None = None,
    slice: int | None = None,
) -> ObjectPrompts:
    """One object per measured diameter (x0, y0, x1, y1) on a slice of a scene; see :func:`recist`.

    Raises:
        PromptError: a diameter without length, or outside.
    """
    shape, spacing = plane_facts(scene, axis)
    found = [Detection(line=line, source=f"line {number}") for number, line in enumerate(lines, start=1)]
    return ObjectPrompts(objects=tuple(object_prompt(one, shape, spacing, slice) for one in found), axis=axis)


def plane_facts(scene: Scene, axis: int | None) -> tuple[tuple[int, int], tuple[float, float]]:
    """(H, W) of the planes of a scene, and the spacing along rows and columns."""
    cut = None if scene.grid.ndim == 2 else coarsest_axis(scene.grid) if axis is None else axis
    kept = [i for i in range(scene.grid.ndim) if i != cut]
    (height, width), (down, across) = ([facts[i] for i in kept] for facts in (scene.grid.shape, scene.grid.spacing))
    return (int(height), int(width)), (float(down), float(across))


def object_prompt(
    one: Detection, shape: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0), slice: int | None = None
) -> ObjectPrompt:
    """One detection as a prompt; ``slice`` is where it lies if it does not say."""
    index = slice if one.slice is None else one.slice
    if one.line is None:
        return ObjectPrompt(box=one.box, points=one.points, class_name=one.class_name, slice=index, source=one.source)
    box, points = recist(one.line, shape, spacing)
    return ObjectPrompt(box=box, points=points, tight=False, class_name=one.class_name, slice=index, source=one.source)


def recist(
    line: tuple[float, float, float, float],
    shape: tuple[int, int],
    spacing: tuple[float, float] = (1.0, 1.0),
    *,
    points: int = LINE_POINTS,
) -> tuple[tuple[float, float, float, float], tuple[tuple[float, float, int], ...]]:
    """Box and points of a measured diameter.

    Args:
        line: x0, y0, x1, y1: its two ends in pixels.
        shape: (H, W) of the slice; the box is cut at its edges.
        spacing: Length of a pixel along rows and columns (down, across), so that the box is square in mm.
        points: Evenly spaced on the line, its ends included; all of them on the object.

    Returns:
        The box whose sides are as long as the diameter, around its middle; the points.

    Raises:
        PromptError: the ends are the same, or the box lies outside.
    """
    x0, y0, x1, y1 = line
    down, across = spacing
    length = math.hypot((x1 - x0) * across, (y1 - y0) * down)
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    half = length / 2 / across, length / 2 / down
    box = clip_box((middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]), shape)
    if length == 0 or box is None:
        raise PromptError(f"diameter from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}): give two different ends in the slice")
    parts = [step / max(1, points - 1) for step in range(points)]
    return box, tuple((x0 + (x1 - x0) * part, y0 + (y1 - y0) * part, 1) for part in parts)


def _from_mask(path: Path, scene: Scene, axis: int | None, slice: int | None) -> Iterator[ObjectPrompt]:
    """One prompt per value of a label map."""
    mask = open_scene(path)
    unplaced = mask.kind == "picture" and scene.kind != "volume" and mask.grid.shape == scene.grid.shape
    if not unplaced:
        scene.grid.require_equal(mask.grid, f"mask {path.name}")
    labels = mask.read_labels()
    if scene.grid.ndim == 3:
        labels = np.moveaxis(labels, coarsest_axis(scene.grid) if axis is None else axis, 0)
        if slice is not None and not 0 <= slice < len(labels):
            raise PromptError(f"slice {slice} lies outside the volume: there are slices 0..{len(labels) - 1}")
    else:
        labels = labels[None]
    for value, place in enumerate(find_objects(labels.astype(np.int32)), start=1):
        if place is None:
            continue
        depth, rows, cols = place
        inside = labels[place] == value
        index = depth.start + int(inside.sum(axis=(1, 2)).argmax()) if slice is None else slice
        if not depth.start <= index < depth.stop or not inside[index - depth.start].any():
            continue
        part = mask_prompt(inside[index - depth.start], top=rows.start, left=cols.start)
        where = index if scene.grid.ndim == 3 else None
        yield ObjectPrompt(mask=part, tight=False, slice=where, source=f"label {value}")


def mask_prompt(inside: Array, *, top: int = 0, left: int = 0) -> MaskPrompt:
    """An earlier mask (h, w) bool, not empty, whose first pixel lies at ``top`` and ``left``; cut to its box."""
    rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    part = inside[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return MaskPrompt(top=top + int(rows[0]), left=left + int(cols[0]), inside=np.ascontiguousarray(part))


def summary(left_out: tuple[str, ...] | list[str]) -> str:
    """One line about what was left out; empty if nothing was."""
    if not left_out:
        return ""
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return f"{len(left_out)} left out: {'; '.join(left_out[:NAMED])}{more}"
