"""Objects of a volume from prompts on a few slices: annotate, propagate, combine, and paint on the volume's Grid."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.backbones.base import Promptable
from samgraft.adapters.prompts.improve import Improvement
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError
from samgraft.grid import Grid
from samgraft.recipes.engine.focus import CONTEXTS, network_size
from samgraft.recipes.engine.pipeline import encode_batch
from samgraft.recipes.engine.planes import look_at
from samgraft.recipes.engine.prompted import AskSettings
from samgraft.recipes.engine.volume_slices import FLIPS, SceneSlices, as_slice
from samgraft.recipes.prompting import AXES, ObjectPrompts, UserPrompts
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts, as_volume_prompts
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.propagate import Propagated, annotate, propagate
from samgraft.volumetric.propagation.slices import Bounded, SliceAnswer, SlicePrompt, Slices
from samgraft.volumetric.shape_rules import ShapeRules
from samgraft.volumetric.trust import Calibration, Signals, agreement, uncertainty

Track = Callable[[Sequence[Any], str], Iterator[Any]]
BOX_MODES = ("propagate", "slices")


@dataclass(frozen=True, kw_only=True)
class VolumeOptions:
    """What surrounds the propagation."""

    propagation: PropagationConfig = field(default_factory=PropagationConfig)
    box3d: str = "propagate"
    """What a 3D box does: "propagate" from its middle slice, within it; "slices" asks every slice of it with its
    in-plane part."""
    flips: tuple[str, ...] = ("none",)
    """Segment these mirror images as well and average: "none", "rows", "cols", "both"."""
    return_walks: bool = False
    """Walk back to the annotated slice, for the agreement of directions; costs as much again."""
    rules: ShapeRules = field(default_factory=ShapeRules)
    """What is done to each object's mask."""
    calibration: Calibration | None = None
    """Turns signals into the probability that an object is good; objects below its level are flagged."""
    uncertainty: str | None = None
    """NIfTI file (.nii, .nii.gz) for the map of uncertainty, bits in [0, 1]."""
    shown: int = 0
    """An adapter without prompts: slices of what it finds that are shown to the decoder and carried from there, see
    ``self_prompted``; 0 takes the adapter's own masks."""

    def __post_init__(self) -> None:
        """Check words."""
        object.__setattr__(self, "flips", tuple(self.flips))
        unknown = [name for name in self.flips if name not in FLIPS]
        if unknown or not self.flips:
            raise ConfigError(f"flips are {list(self.flips)}; expected one or more of {', '.join(FLIPS)}")
        if self.shown < 0:
            raise ConfigError(f"shown is {self.shown}; expected a number of slices, or 0 for the adapter's own masks")
        if self.box3d not in BOX_MODES:
            raise ConfigError(f"box3d is {self.box3d!r}; expected one of {', '.join(BOX_MODES)}")
        if self.uncertainty is not None and not str(self.uncertainty).endswith((".nii", ".nii.gz")):
            raise ConfigError(f"uncertainty is {self.uncertainty!r}; expected a name that ends in .nii or .nii.gz")


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeObject:
    """One object of the result."""

    mask: NDArray[np.bool_]
    """(D, H, W), the cut axis first."""
    runs: tuple[Propagated, ...]
    """One per flip."""
    signals: Signals
    good: float | None = None
    """Calibrated probability that the object is good; None without a calibration, or without a signal that it needs
    (directions, where no walk took a step)."""

    def uncertainty(self) -> NDArray[np.float32]:
        """(D, H, W) entropy in bits of the mean over flips, the cut axis first."""
        volumes = []
        for run in self.runs:
            one = np.zeros(run.shape, dtype=np.float32)
            for index, answer in run.answers.items():
                one[index] = answer.probability()
            volumes.append(one)
        return uncertainty(volumes)


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeResult:
    """Objects of a volume, and their label map on its Grid."""

    segmentation: Segmentation
    objects: tuple[VolumeObject, ...]
    axis: int
    """The axis that was cut."""

    def uncertainty(self) -> NDArray[np.float32]:
        """(D, H, W) on the Grid: the largest uncertainty of any object, bits in [0, 1]."""
        highest = np.max([one.uncertainty() for one in self.objects], axis=0)
        return np.ascontiguousarray(np.moveaxis(highest, 0, self.axis))


def segment_volume(
    scene: Scene,
    backbone: Promptable,
    prompts: UserPrompts | ObjectPrompts | VolumePrompts,
    *,
    options: VolumeOptions | None = None,
    size: int | None = None,
    context: float | Sequence[float] = CONTEXTS,
    fit: bool = True,
    batch: int | None = None,
    bands: Sequence[int] | None = None,
    better: Improvement | None = None,
    track: Track | None = None,
) -> VolumeResult:
    """Segment what the prompts name in the whole volume.

    Args:
        scene: A volume.
        backbone: Any backbone, or one with parts attached that answers prompts.
        prompts: On slices (each is propagated) or in 3D.
        options: Propagation, flips, rules of shape, calibration.
        size: Network size; None takes the native one.
        context: Side of the crop over the longest side of a box; several are averaged.
        fit: Boxes on annotated slices are tight: the mask fills its box.
        batch: Crops encoded together; None chooses by their size.
        bands: Channels shown as red, green, blue.
        better: An extra point or self-correction in every look; None for neither.
        track: Wraps the loop over objects.

    Raises:
        PromptError: a prompt outside the volume. Where nothing is found an object stays empty, and ``meta`` says so.
        InputError: the file is damaged.
    """
    chosen = options or VolumeOptions()
    asked = as_volume_prompts(prompts, scene.grid)
    asked.check(scene.grid)
    axis, settings = asked.cut_axis(scene.grid), asking(backbone, size, context, fit, batch, better)
    look = look_at(scene, bands)
    views = [SceneSlices(scene, look, axis, settings, mirror=FLIPS[name]) for name in chosen.flips]
    walked = track(asked.objects, "objects") if track else asked.objects
    objects = tuple(segment_object(views, one, chosen) for one in walked)
    return VolumeResult(segmentation=painted(scene, asked, axis, objects, chosen), objects=objects, axis=axis)


def asking(
    backbone: Promptable,
    size: int | None = None,
    context: float | Sequence[float] = CONTEXTS,
    fit: bool = True,
    batch: int | None = None,
    better: Improvement | None = None,
) -> AskSettings:
    """How slices are asked; arguments as of :func:`segment_volume`."""
    side = network_size(backbone, size)
    return AskSettings(
        backbone=backbone,
        size=side,
        contexts=(context,) if isinstance(context, int | float) else tuple(context),
        batch=encode_batch(backbone, side, batch),
        depth=0,
        fit=fit,
        better=better,
    )


def write_uncertainty(path: str, uncertain: NDArray[np.float32], grid: Grid) -> None:
    """Write a map of uncertainty (D, H, W) as float32 NIfTI on ``grid``.

    Raises:
        GeometryError, OutputError: as ``write_nifti_image``.
    """
    from samgraft.domains.medical.nifti import write_nifti_image

    write_nifti_image(path, uncertain, grid)


def segment_object(views: Sequence[Slices], one: VolumePrompt, options: VolumeOptions) -> VolumeObject:
    """One object: a propagation per view (flip), their mean, rules of shape, signals.

    Args:
        views: The same volume, differently seen.
        one: What is asked.
        options: How.
    """
    return as_object(tuple(_run(view, one, options) for view in views), views[0].spacing, options)


def as_object(
    runs: tuple[Propagated, ...], spacing: tuple[float, float, float], options: VolumeOptions
) -> VolumeObject:
    """The mean of runs over views, rules of shape, signals.

    Args:
        runs: One per view.
        spacing: (D, H, W), mm, the cut axis first.
        options: How.
    """
    mask = runs[0].volume() if len(runs) == 1 else _mean(runs)
    if options.rules:
        mask = options.rules.apply(mask, spacing)
    directions = [run.direction_agreement for run in runs if run.direction_agreement is not None]
    signals = Signals(
        flips=agreement([run.volume() for run in runs]) if len(runs) > 1 else None,
        directions=float(np.mean(directions)) if directions else None,
        predicted_iou=float(np.mean([run.predicted_iou for run in runs])),
    )
    calibration = options.calibration
    known = calibration is not None and set(calibration.signals) <= set(signals.measured())
    good = calibration.probability(signals) if calibration is not None and known else None
    return VolumeObject(mask=mask, runs=runs, signals=signals, good=good)


def _run(slices: Slices, one: VolumePrompt, options: VolumeOptions) -> Propagated:
    """One propagation of one object."""
    view = within_box(slices, one)
    if one.box is not None and one.extent is not None and options.box3d == "slices":
        points = one.points_by_slice()
        return boxed_slices(view, one.box, one.extent, points)
    annotated = annotate(view, said_on_slices(one, view))
    if not any((answer.logits > 0).any() for answer in annotated.values()):
        return Propagated(shape=view.shape, answers={}, annotated=tuple(annotated), stopped=())
    clicks = {index: some for index, some in one.points_by_slice().items() if index not in annotated}
    return propagate(
        view,
        annotated,
        options.propagation,
        within=one.extent,
        clicks=clicks,
        return_walks=options.return_walks,
    )


def within_box(slices: Slices, one: VolumePrompt) -> Slices:
    """The volume, or no more of it than the 3D box of a prompt."""
    return slices if one.box is None else Bounded(inner=slices, box=one.box)


def said_on_slices(one: VolumePrompt, slices: Slices) -> dict[int, SlicePrompt]:
    """Slice -> what is said there that can be asked on its own."""
    plane = (slices.shape[1], slices.shape[2])
    return {index: as_slice(said, plane) for index, said in one.on_slices().items()}


def boxed_slices(
    slices: Slices,
    box: tuple[float, float, float, float],
    extent: tuple[int, int],
    points: Mapping[int, tuple[tuple[float, float, int], ...]] | None = None,
) -> Propagated:
    """Every slice of a 3D box asked with its in-plane part, independently of the others."""
    answers: dict[int, SliceAnswer] = {}
    for index in range(extent[0], extent[1] + 1):
        some = (points or {}).get(index, ())
        answer = slices.ask(index, SlicePrompt(box=box, points=some))
        if (answer.logits > 0).any():
            answers[index] = answer
    return Propagated(shape=slices.shape, answers=answers, annotated=(), stopped=())


def _mean(runs: Sequence[Propagated]) -> NDArray[np.bool_]:
    """(D, H, W): where the mean probability is above a half."""
    result = np.zeros(runs[0].shape, dtype=np.bool_)
    for index in sorted(set().union(*(run.answers for run in runs))):
        total = sum(run.answers[index].probability() for run in runs if index in run.answers)
        result[index] = np.asarray(total) / len(runs) > 0.5
    return result


def painted(
    scene: Scene, asked: VolumePrompts, axis: int, objects: Sequence[VolumeObject], options: VolumeOptions
) -> Segmentation:
    """Label map: object i of the prompts has label i + 1; where two overlap, the larger predicted IoU wins."""
    labels: Array = np.zeros(scene.grid.shape, dtype=label_dtype(len(objects)))
    stack = np.moveaxis(labels, axis, 0)  # a view: writing into it writes into labels
    for number in sorted(range(len(objects)), key=lambda i: objects[i].signals.predicted_iou or 0.0):
        stack[objects[number].mask] = number + 1
    known = np.moveaxis(scene.valid(), axis, 0)
    stack[~known] = 0
    names = {name: label for label, name in enumerate(asked.class_names(), start=1)}
    records = []
    for number, (prompt, one) in enumerate(zip(asked.objects, objects, strict=True)):
        own = stack == number + 1
        if own.any():
            rows, cols = np.flatnonzero(own.any(axis=(0, 2))), np.flatnonzero(own.any(axis=(0, 1)))
            records.append(
                InstanceRecord(
                    id=number + 1,
                    class_id=names[prompt.class_name],
                    score=min(1.0, max(0.0, one.signals.predicted_iou or 0.0)),
                    box=(float(cols[0]), float(rows[0]), float(cols[-1]), float(rows[-1])),
                    properties=_properties(one),
                )
            )
    return Segmentation(
        labels=labels,
        grid=scene.grid,
        kind="instance",
        classes={label: name for name, label in names.items()},
        instances=tuple(records),
        from_ground_truth=asked.from_ground_truth,
        meta=_meta(asked, axis, objects, options),
    )


def _properties(one: VolumeObject) -> dict[str, float]:
    """What was measured about an object."""
    found = {f"signal_{name}": value for name, value in one.signals.measured().items()}
    return found if one.good is None else found | {"good_probability": one.good}


def _meta(asked: VolumePrompts, axis: int, objects: Sequence[VolumeObject], options: VolumeOptions) -> dict[str, str]:
    """How it was made, where walks stopped, and what should be looked at."""
    meta = {"mode": "propagated", "axis": AXES[axis], "carry": "+".join(options.propagation.carry)}
    stops = [
        f"object {number}: {stop.start}->{stop.index} {stop.reason}"
        for number, one in enumerate(objects, start=1)
        for stop in one.runs[0].stopped
    ]
    empty = [str(number) for number, one in enumerate(objects, start=1) if not one.mask.any()]
    if empty:
        meta["objects not found"] = ", ".join(empty)
    if stops:
        meta["stopped"] = "; ".join(stops)
    if options.calibration is not None:
        level = options.calibration.flag_below
        flagged = [
            f"{prompt.class_name} {number} ({_chance(one.good)})"
            for number, (prompt, one) in enumerate(zip(asked.objects, objects, strict=True), start=1)
            if one.good is None or one.good < level
        ]
        meta["look at"] = "; ".join(flagged) or "nothing"
    return meta


def _chance(good: float | None) -> str:
    return "not enough signals" if good is None else f"probability of being good {good:.2f}"
