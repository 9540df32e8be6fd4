"""Segment a file like a few labelled ones: reference images with masks in, a Segmentation on the target's grid out.

    result = segment_like("new.png", [Example(image="seen.png", mask="seen_mask.png")], method="persam_f")

Values of a mask above 0 are kinds of objects. Every picture, raster or slice is looked at as a whole, at the size of
the network. ``samgraft.segment(..., references=References(...))`` and ``samgraft segment --reference`` come here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice, config_from_dict
from samgraft.adapters.prompts import PROMPTERS, References, make_references, masks_from_labels
from samgraft.adapters.prompts.objects import FoundObjects, ObjectPrompter
from samgraft.adapters.prompts.persam_f import PersamFPrompter
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Array, Scene, as_labels, label_dtype
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError, InputError, ShapeError
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.engine.focus import network_size
from samgraft.recipes.engine.planes import Plane, plane_shape
from samgraft.recipes.engine.prompted import on_grid
from samgraft.recipes.look import look_at
from samgraft.recipes.prompting import coarsest_axis

METHODS = ("persam", "persam_f", "matcher", "in_context", "reference_region")
"""Prompt generators that need references and no training."""
SIZE_FACTOR = 2
"""The network input is this many times the backbone's native side: objects are looked for in the whole picture."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled file."""

    image: str | PathLike[str]
    """Picture, raster or volume."""
    mask: str | PathLike[str]
    """Labels on the same pixels: 0 background, other whole numbers kinds of objects."""
    slice: int | None = None
    """Volumes: which slice; None takes the one with most labelled pixels."""
    axis: int | None = None
    """Volumes: array axis that is cut; None takes the coarsest spacing."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What ``samgraft.segment(references=...)`` takes."""

    files: tuple[Example, ...]
    """At least one; none of them the file to segment."""
    method: str = "persam_f"
    """One of :data:`METHODS`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method's configuration."""
    slice: int | None = None
    """Target volumes: which slice; None takes the middle one."""
    axis: int | None = None
    """Target volumes: array axis that is cut; None takes the coarsest spacing."""

    def __post_init__(self) -> None:
        """Check the method and that there is something."""
        check_choice("references", "method", self.method, METHODS)
        if not self.files:
            raise ConfigError("references hold no file; give at least one image with its mask")


def segment_like(
    target: Scene | str | PathLike[str],
    examples: Examples | Sequence[Example],
    *,
    backbone: Backbone,
    size: int | None = None,
    bands: Sequence[int] | None = None,
) -> Segmentation:
    """Find in ``target`` what the examples show.

    Args:
        target: A scene, or a path.
        examples: Labelled files, and how to use them; a plain list takes PerSAM-F.
        backbone: Any backbone.
        size: Side of the network input in pixels; None takes twice the native one.
        bands: Channels shown as red, green, blue.

    Returns:
        A semantic map on the target's grid: the labels are those of the masks (1 if they have only one), and 0 on
        what the target does not know. For a volume one slice is filled.

    Raises:
        InputError: a file is missing or damaged, or a mask does not fit its image.
        ConfigError: unknown method or option.
        PromptError: no reference shows anything.
        ShapeError: a size that is no multiple of the patch, or a slice that is not there.
    """
    given = examples if isinstance(examples, Examples) else Examples(files=tuple(examples))
    chosen = network_size(backbone, SIZE_FACTOR * backbone.spec.native_size if size is None else size)
    scene = target if isinstance(target, Scene) else open_scene(target)
    references, values = load_references(given.files, size=chosen, bands=bands)
    plane, axis, index = _plane(scene, given.axis, given.slice, bands)
    prompter = _prompter(given, backbone, len(values), anywhere=scene.kind == "raster")
    device = next(backbone.parameters()).device
    fit = Fit(source=plane.shape, size=chosen)
    image, inside = _square(plane, fit)
    with torch.no_grad():
        references = references.encode(backbone, prompter.taps)
        if isinstance(prompter, PersamFPrompter):
            prompter.fit(backbone, references)
        features = backbone.encode(image[None].to(device), prompter.taps)
        context = {"references": references, "valid": inside[None].to(device)}
        found = prompter.find(backbone, features, image[None].to(device), context)
    labels = _painted(found, fit, values) * plane.valid()
    names = {value: "object" if len(values) == 1 else f"class {value}" for value in values}
    meta = {
        "mode": "references",
        "method": given.method,
        "backbone": backbone.spec.name,
        "references": str(len(given.files)),
    }
    if axis is not None:
        meta["slice"] = f"{'DHW'[axis]}={index}"
    return Segmentation(
        labels=on_grid(labels, scene.grid.shape, axis, index),
        grid=scene.grid,
        kind="semantic",
        classes=names,
        meta=meta,
    )


def load_references(
    files: Sequence[Example], *, size: int, bands: Sequence[int] | None = None
) -> tuple[References, tuple[int, ...]]:
    """Read labelled files as squares of the network's size.

    Args:
        files: At least one.
        size: Side of the network input in pixels.
        bands: Channels shown as red, green, blue.

    Returns:
        References without features, and the label that each of their objects stands for: the values of the masks, or
        1 where they have only one.

    Raises:
        InputError: a file is missing or damaged, a mask does not fit its image, or none has a value above 0.
        ShapeError: a slice that is not there.
    """
    images, masks, valid = [], [], []
    loaded = [_example(one, bands) for one in files]
    values = sorted({int(v) for _, labels in loaded for v in np.unique(labels) if v})
    if not values:
        raise InputError(
            f"no mask of {', '.join(str(one.mask) for one in files)} has a value above 0; nothing is shown"
        )
    for plane, labels in loaded:
        fit = Fit(source=plane.shape, size=size)
        image, inside = _square(plane, fit)
        numbers = torch.from_numpy(np.searchsorted([0, *values], labels).astype(np.int64))
        shares = masks_from_labels(numbers[None], len(values))[0].float()
        images.append(image)
        masks.append(fit.image(shares).clamp(0, 1) * inside)
        valid.append(inside)
    references = make_references(torch.stack(images), torch.stack(masks), valid=torch.stack(valid))
    return references, (1,) if len(values) == 1 else tuple(values)


def _example(one: Example, bands: Sequence[int] | None) -> tuple[Plane, Array]:
    """A plane of an example and the labels on it."""
    scene, labels = open_scene(one.image), _labels(open_scene(one.mask))
    if labels.shape != scene.grid.shape:
        raise InputError(
            f"mask {one.mask} is {labels.shape}; its image {one.image} is {scene.grid.shape}; give a mask on the same "
            "pixels"
        )
    number = one.slice
    if scene.grid.ndim == 3 and number is None:
        axis = coarsest_axis(scene.grid) if one.axis is None else one.axis
        number = int((labels > 0).sum(axis=tuple(i for i in range(3) if i != axis)).argmax())
    plane, axis_, index = _plane(scene, one.axis, number, bands)
    return plane, labels if axis_ is None else np.take(labels, index, axis=axis_)


def _labels(scene: Scene) -> Array:
    """Whole numbers; a picture with three equal channels counts as one."""
    if scene.channels == 1:
        return scene.read_labels()
    pixels = scene.read()
    if scene.channels in (3, 4) and (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all():
        return as_labels(pixels[0], str(scene.path))
    raise InputError(f"mask {scene.path} has {scene.channels} different channels; a mask has one")


def _plane(
    scene: Scene, axis: int | None, index: int | None, bands: Sequence[int] | None
) -> tuple[Plane, int | None, int]:
    """What is looked at: a picture, a raster, or one slice."""
    if scene.grid.ndim == 2:
        if axis is not None or index is not None:
            raise ShapeError(f"a slice ({index}) was named, but {scene.path.name} is no volume; leave it out")
        plane = Plane(scene, look_at(scene, bands))
        if plane.lazy:
            raise InputError(
                f"{scene.path.name} is too large to be looked at as a whole ({scene.nbytes / 2**20:.0f} MiB); cut out "
                "a part, or train an adapter, which walks it window by window"
            )
        return plane, None, 0
    chosen = coarsest_axis(scene.grid) if axis is None else axis
    if chosen not in (0, 1, 2):
        raise ShapeError(f"axis {axis} of a volume; expected 0, 1 or 2 (D, H, W)")
    count = scene.grid.shape[chosen]
    number = count // 2 if index is None else index
    if not 0 <= number < count:
        raise ShapeError(f"slice {number} of {scene.path.name} is not there; axis {'DHW'[chosen]} has 0..{count - 1}")
    return Plane(scene, look_at(scene, bands), axis=chosen, index=number), chosen, number


def _square(plane: Plane, fit: Fit) -> tuple[Tensor, Tensor]:
    """Network input (3, S, S) and where it shows data (S, S) bool."""
    known = torch.from_numpy(plane.valid().astype(np.int64))
    return fit.image(plane.whole()), fit.labels(known, outside=0) > 0


def _prompter(given: Examples, backbone: Backbone, kinds: int, *, anywhere: bool) -> ObjectPrompter:
    """The method; in a raster, where objects can be anywhere, their place in the picture does not count."""
    options = {"method": given.method, **({"position": 0.0} if anywhere else {}), **given.options}
    if given.method == "persam_f":
        options["objects"] = kinds
    built = config_from_dict(PROMPTERS, options).build(backbone).to(next(backbone.parameters()).device)
    if not isinstance(built, ObjectPrompter):
        raise ConfigError(f"method {given.method!r} finds no objects; choose from {', '.join(METHODS)}")
    built.eval()
    return built


def _painted(found: FoundObjects, fit: Fit, values: Sequence[int]) -> NDArray[Any]:
    """(h, w) labels: of objects that overlap the one with the larger logit."""
    height, width = plane_shape(fit.source, None)
    best = np.zeros((height, width), dtype=np.float32)
    labels = np.zeros((height, width), dtype=label_dtype(max(values)))
    for logits, kind in zip(found.logits, found.classes.tolist(), strict=True):
        native = fit.back(logits[None, None].float().cpu())[0, 0].numpy()
        better = native > best
        labels[better], best[better] = values[kind], native[better]
    return labels
