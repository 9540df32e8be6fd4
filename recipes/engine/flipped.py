"""An adapter on a volume and its mirror images: mean, rules of shape, uncertainty, and what should be looked at."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.graft import Grafted
from samgraft.domains.scene import Scene, label_dtype
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.engine.pipeline import encode_batch
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.slices import pictures
from samgraft.recipes.engine.steps import steps
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.trusting import MIRRORS, predict_flipped
from samgraft.volumetric.shape_rules import ShapeRules, apply_to_labels
from samgraft.volumetric.trust import Calibration, Signals

MIRROR_AXES = dict(zip(("none", "cols", "rows", "both"), MIRRORS, strict=True))
"""Name of a flip -> axes of (..., H, W) that are turned round."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlippedResult:
    """A class map with what is known about its quality."""

    segmentation: Segmentation
    signals: Mapping[int, Signals]
    """Class -> signals, before rules of shape."""
    uncertainty: NDArray[np.float32]
    """(D, H, W) on the Grid, bits in [0, 1]."""
    axis: int
    """Array axis that was cut into slices."""


def segment_flipped(
    scene: Scene,
    grafted: Grafted,
    recorded: Recorded,
    *,
    flips: tuple[str, ...] = tuple(MIRROR_AXES),
    rules: ShapeRules | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    batch: int | None = None,
) -> FlippedResult:
    """Class map of a volume, from it and its mirror images.

    Args:
        scene: A volume; it is held in memory as 8-bit slices.
        grafted: The adapter on its backbone.
        recorded: What the adapter's header says.
        flips: "none", "rows", "cols", "both".
        rules: What is done to each class afterwards.
        calibrations: Class name -> calibration; classes below its level are named in ``meta["look at"]``.
        batch: Network inputs per call; None chooses by their size.

    Raises:
        ConfigError: not a volume, or an adapter for objects.
        InputError: the scene has not the channels that the adapter was trained on, or is damaged.
    """
    if scene.kind != "volume" or recorded.kind == "instance":
        raise ConfigError(
            f"{scene.path.name} is a {scene.kind} and the adapter's task {recorded.kind}; flips, rules of shape and "
            "uncertainty are for class maps of volumes"
        )
    grafted.eval()
    axis = coarsest_axis(scene.grid) if recorded.recipe.slice_axis is None else recorded.recipe.slice_axis
    case, known = _case(scene, recorded, axis)
    network = steps(grafted, recorded.maps)

    def logits(squares: Tensor) -> Tensor:
        found = network.decode(network.encode(squares))
        if not isinstance(found, Tensor):
            raise ConfigError(f"the adapter gives {type(found).__name__} instead of class maps")
        return found

    found = predict_flipped(
        logits,
        case,
        classes=len(recorded.classes),
        mirrors=[MIRROR_AXES[name] for name in flips],
        size=recorded.size,
        window=recorded.window,
        overlap=recorded.overlap,
        batch_size=encode_batch(grafted.backbone, recorded.size, batch),
        slab=recorded.recipe.slab,
        slab_overlap=recorded.recipe.slab_overlap,
    )
    names = dict(enumerate(recorded.classes.values(), start=1))
    labels = np.where(known, found.labels, 0)
    rows, cols = (v for i, v in enumerate(scene.grid.spacing) if i != axis)
    spacing = (scene.grid.spacing[axis], rows, cols)
    if rules:
        labels = apply_to_labels(labels, spacing, dict.fromkeys(names, rules))
    values = np.array([0, *recorded.classes], dtype=label_dtype(max(recorded.classes)))
    result = Segmentation(
        labels=np.ascontiguousarray(case.on_grid(values[labels])),
        grid=scene.grid,
        kind="semantic",
        classes=dict(recorded.classes),
        meta=recorded.describe() | {"flips": "+".join(flips)},
    )
    looked = _look_at(names, found.signals, calibrations or {})
    if looked is not None:
        result = replace(result, meta={**result.meta, "look at": looked})
    entropy = np.ascontiguousarray(case.on_grid(np.where(known, found.uncertainty, 0)).astype(np.float32))
    return FlippedResult(segmentation=result, signals=found.signals, uncertainty=entropy, axis=axis)


def _case(scene: Scene, recorded: Recorded, axis: int) -> tuple[CaseArrays, NDArray[np.bool_]]:
    """The volume as slices, without labels, and where it has data (n, h, w)."""
    known: deque[NDArray[np.bool_]] = deque()
    neighbours = recorded.recipe.neighbours
    shown = list(pictures(scene, recorded.look(scene), axis, neighbours=False, known=known))
    image = np.stack(shown)
    image = image[:, :1] if (image == image[:, :1]).all() else image
    labels = np.zeros((len(image), *image.shape[2:]), dtype=np.int8)
    case = CaseArrays(id=scene.path.name, image=image, labels=labels, grid=scene.grid, axis=axis, neighbours=neighbours)
    return case, np.stack(list(known))


def _look_at(
    names: Mapping[int, str], signals: Mapping[int, Signals], calibrations: Mapping[str, Calibration]
) -> str | None:
    """Classes that should be looked at; None without any calibration."""
    if not calibrations:
        return None
    flagged = []
    for value, name in names.items():
        one = calibrations.get(name)
        if one is not None and one.flag(signals[value]):
            flagged.append(f"{name} (probability of being good {one.probability(signals[value]):.2f})")
    return "; ".join(flagged) or "nothing"
