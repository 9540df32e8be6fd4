"""JSON files with prompts in 3D: ``samgraft segment case.nii.gz --prompts prompts.json --propagate``.

    {"samgraft": "volume prompts", "axis": 0, "objects": [
      {"class": "tumour", "slice": 14, "box": [30, 22, 61, 50]},
      {"class": "tumour", "slice": 9, "line": [30, 22, 61, 50]},
      {"class": "cyst", "box": [12, 8, 20, 19], "slices": [3, 11]},
      {"class": "node", "points": [[40, 31, 14, 1], [52, 31, 14, 0]]},
      {"class": "organ", "mask": "organ.nii.gz", "label": 2, "slice": 20},
      {"class": "rib", "world": {"from": [-31.5, 12.0, 80.0], "to": [-10.0, 30.0, 95.5]}},
      {"class": "rib", "world": {"points": [[-20.0, 15.0, 90.0, 1]]}}
    ]}

Boxes, lines and points are (x, y) pixels in the plane of a slice; "world" is mm in the world of the volume's grid (RAS
for NIfTI, LPS for DICOM, MHA and NRRD). An object may be annotated on several slices by "annotations": a list of
mappings with "slice" and "box", "line", "points" ([x, y, label]) or "mask".
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.domains.datasets.index import read_json
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import InputError, PromptError
from samgraft.recipes.prompt_files import mask_prompt, plane_facts, recist
from samgraft.recipes.prompting import OBJECT, ObjectPrompt
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts, box_from_world, from_world

KIND = "volume prompts"
OBJECT_KEYS = {
    "class", "slice", "slices", "box", "line", "points", "mask", "label", "world", "annotations", "comment",
}  # fmt: skip
SLICE_KEYS = {"slice", "box", "line", "points", "mask", "label"}


def is_volume_prompts(path: Path | str) -> bool:
    """Whether a file is JSON of this kind."""
    path = Path(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, Mapping) and content.get("samgraft") == KIND


def read_volume_prompts(path: Path | str, scene: Scene) -> VolumePrompts:
    """Read prompts for ``scene``.

    Raises:
        InputError: the file is missing, damaged, or has keys that are not known.
        PromptError: a prompt that says nothing, or lies outside.
        GeometryError: a mask on another grid.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSON file with volume prompts")
    content = read_json(path)
    if not isinstance(content, Mapping) or content.get("samgraft") != KIND:
        raise InputError(f'{path} is no file of volume prompts; expected {{"samgraft": "{KIND}", "objects": [...]}}')
    unknown = sorted(set(content) - {"samgraft", "axis", "objects", "from_ground_truth", "image", "comment"})
    objects = content.get("objects")
    if unknown or not isinstance(objects, list):
        raise InputError(
            f"{path}: unknown keys {unknown}, objects {type(objects).__name__}; expected a list of objects"
        )
    empty = VolumePrompts(objects=(VolumePrompt(points=((0, 0, 0, 1),)),), axis=content.get("axis"))
    axis = empty.cut_axis(scene.grid)
    found = tuple(
        _object(one, f"{path.name}, object {number}", scene, axis, path.parent)
        for number, one in enumerate(objects, start=1)
    )
    prompts = VolumePrompts(objects=found, axis=axis, from_ground_truth=bool(content.get("from_ground_truth", False)))
    prompts.check(scene.grid)
    return prompts


def write_volume_prompts(path: Path | str, objects: Sequence[Mapping[str, Any]], *, axis: int, **facts: Any) -> Path:
    """Write objects as they stand in such a file; ``facts`` are further keys, such as ``image``."""
    from samgraft.domains.atomic import atomic_path

    content = {"samgraft": KIND, "axis": axis, **facts, "objects": list(objects)}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return Path(path)


def _object(one: Any, where: str, scene: Scene, axis: int, folder: Path) -> VolumePrompt:
    """One object of the file."""
    if not isinstance(one, Mapping) or set(one) - OBJECT_KEYS:
        extra = sorted(set(one) - OBJECT_KEYS) if isinstance(one, Mapping) else one
        raise InputError(f"{where}: {extra} is not known; expected some of {', '.join(sorted(OBJECT_KEYS))}")
    name = str(one.get("class", OBJECT))
    shared: dict[str, Any] = {"class_name": name, "source": where}
    world = one.get("world") or {}
    points = tuple(from_world(world.get("points", ()), scene.grid, axis))
    if "from" in world:
        box, extent = box_from_world(world["from"], world["to"], scene.grid, axis)
        return VolumePrompt(box=box, extent=extent, points=points, **shared)
    annotations = list(one.get("annotations", ()))
    if "slices" in one:
        return VolumePrompt(
            box=_numbers(one.get("box"), 4, f"{where}, box") if "box" in one else None,
            extent=_numbers(one["slices"], 2, f"{where}, slices"),
            points=(*points, *_points(one, where)),
            slices=tuple(_slice(part, where, scene, axis, folder, name) for part in annotations),
            **shared,
        )
    if "slice" in one and {"box", "line", "mask"} & set(one):
        annotations.insert(0, {key: one[key] for key in SLICE_KEYS - {"points"} if key in one})
    elif {"box", "line", "mask"} & set(one):
        raise PromptError(f'{where}: a box, line or mask needs "slice", or "slices" with its first and last one')
    return VolumePrompt(
        slices=tuple(_slice(part, where, scene, axis, folder, name) for part in annotations),
        points=(*points, *_points(one, where)),
        **shared,
    )


def _slice(part: Mapping[str, Any], where: str, scene: Scene, axis: int, folder: Path, name: str) -> ObjectPrompt:
    """One annotated slice."""
    unknown = sorted(set(part) - SLICE_KEYS)
    if unknown or "slice" not in part:
        raise InputError(
            f"{where}: annotation with unknown keys {unknown}; expected slice and box, line, points or mask"
        )
    index = int(part["slice"])
    shared: dict[str, Any] = {"slice": index, "class_name": name, "source": where}
    points = tuple(_numbers(point, 3, f"{where}, point") for point in part.get("points", ()))
    if "line" in part:
        line = _numbers(part["line"], 4, f"{where}, line")
        around, on_line = recist(line, *plane_facts(scene, axis))
        return ObjectPrompt(box=around, points=(*on_line, *points), tight=False, **shared)
    if "mask" in part:
        mask = open_scene(folder / str(part["mask"]))
        scene.grid.require_equal(mask.grid, f"{where}: mask {part['mask']}")
        labels = np.moveaxis(mask.read_labels(), axis, 0)
        inside = (labels[index] == int(part["label"])) if "label" in part else labels[index] > 0
        if not inside.any():
            raise PromptError(f"{where}: mask {part['mask']} is empty on slice {index}; name a slice that shows it")
        return ObjectPrompt(mask=mask_prompt(inside), points=points, tight=False, **shared)
    box = _numbers(part["box"], 4, f"{where}, box") if "box" in part else None
    return ObjectPrompt(box=box, points=points, **shared)


def _points(one: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    return tuple(_numbers(point, 4, f"{where}, point") for point in one.get("points", ()))


def _numbers(values: Any, count: int, where: str) -> Any:
    """A tuple of ``count`` numbers."""
    if not isinstance(values, list | tuple) or len(values) != count:
        raise PromptError(f"{where}: {values!r}; expected {count} numbers")
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{where}: {values!r}; expected {count} numbers") from error
