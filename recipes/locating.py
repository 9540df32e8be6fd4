"""Localisation on files: fit a locator on a data set, and find 3D boxes in a new volume.

Volumes are turned so that D, H, W run towards superior, anterior and right (RAS), whatever the file's axes, resampled
to cubes, and scaled as ``samgraft segment`` scales them. Labels are read of the annotated volumes only; of the volume
that boxes are wanted for, no label is an argument anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.domains.datasets.index import Case
from samgraft.domains.datasets.nnunet import read_nnunet
from samgraft.domains.medical.intensity import Intensity, fit_intensity
from samgraft.domains.medical.orientation import to_frame
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.grid import Grid
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts
from samgraft.volumetric.localisation import (
    Located,
    Locator,
    LocatorConfig,
    PositionConfig,
    PositionNet,
    PositionTraining,
    Support,
    load_locator,
    save_locator,
    train_positions,
)
from samgraft.volumetric.localisation.landmarks import landmarks_of

SUPPORTS = (3, 10)
"""How many annotated volumes are taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """How the array of a Grid is turned: D, H, W towards superior, anterior, right."""

    grid: Grid
    order: tuple[int, int, int]
    """Which array axis becomes D, H, W."""
    flipped: tuple[bool, bool, bool]
    """Whether the new D, H, W run against it."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Mm along the turned axes."""
        d, h, w = (self.grid.spacing[axis] for axis in self.order)
        return d, h, w

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """(D, H, W) of the file as (D, H, W) of the frame; a view."""
        turned = array.transpose(self.order)
        result: NDArray[Any] = np.flip(turned, tuple(axis for axis, back in enumerate(self.flipped) if back))
        return result

    def index_of(self, mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (3,), mm along the turned axes from the first voxel's centre, as fractional indices of the file."""
        index = np.zeros(3)
        for axis, (source, back) in enumerate(zip(self.order, self.flipped, strict=True)):
            value = mm[axis] / self.spacing[axis]
            index[source] = self.grid.shape[source] - 1 - value if back else value
        return index


def canonical(grid: Grid) -> Canonical:
    """The turn for a Grid: each array axis goes to the world axis that it runs along most.

    Raises:
        InputError: not a volume in a patient frame.
    """
    if grid.ndim != 3 or grid.world not in ("RAS", "LPS"):
        raise InputError(
            f"localisation needs a volume whose patient axes are known; got a {grid.ndim}D grid in {grid.world[:30]!r}"
        )
    columns = to_frame(grid, "RAS").affine[:3, :3]
    directions = columns / np.linalg.norm(columns, axis=0)
    free, order, flipped = {0, 1, 2}, [], []
    for world in (2, 1, 0):
        axis = max(free, key=lambda i: abs(directions[world, i]))
        free.remove(axis)
        order.append(axis)
        flipped.append(bool(directions[world, axis] < 0))
    return Canonical(grid=grid, order=(order[0], order[1], order[2]), flipped=(flipped[0], flipped[1], flipped[2]))


def resampled(array: NDArray[np.floating], spacing: Sequence[float], to: float) -> Tensor:
    """(D, H, W) at ``spacing`` mm as a tensor at cubes of ``to`` mm, first voxel centres on each other, linear.

    Axes that become coarser are blurred first (Gaussian), so that nothing is left out.
    """
    values = np.asarray(array, dtype=np.float32)
    blur = [max(0.0, 0.5 * (to / step - 1)) for step in spacing]
    if any(blur):
        values = ndimage.gaussian_filter(values, blur, mode="nearest")
    for axis, step in enumerate(spacing):
        count = max(8, int(np.floor((values.shape[axis] - 1) * step / to + 1e-6)) + 1)
        place = np.minimum(np.arange(count) * to / step, values.shape[axis] - 1)
        low = np.minimum(np.floor(place).astype(int), max(values.shape[axis] - 2, 0))
        high = np.minimum(low + 1, values.shape[axis] - 1)
        shape = [1, 1, 1]
        shape[axis] = count
        share = (place - low).astype(np.float32).reshape(shape)
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return torch.from_numpy(np.ascontiguousarray(values))


def as_input(scene: Scene, spacing: float, scale: Intensity | None = None) -> tuple[Tensor, Canonical]:
    """The first channel of a volume as the position network takes it, and how it was turned."""
    turn = canonical(scene.grid)
    fitted = scale or fit_intensity(scene)
    image = fitted.apply(scene.read(channels=(0,))[0])
    return resampled(turn.turn(image), turn.spacing, spacing), turn


def box_in_file(
    found: Located, turn: Canonical, axis: int
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """In-plane box (x0, y0, x1, y1) and first and last slice along ``axis`` of a located structure, whole voxels."""
    ends = np.stack([turn.index_of(found.low), turn.index_of(found.high)])
    first, last = np.floor(ends.min(axis=0) + 0.5), np.floor(ends.max(axis=0) + 0.5)
    limit = np.array(turn.grid.shape) - 1
    first, last = np.clip(first, 0, limit), np.clip(last, 0, limit)
    rows, cols = (i for i in range(3) if i != axis)
    box = (float(first[cols]), float(first[rows]), float(last[cols]), float(last[rows]))
    return box, (int(first[axis]), int(last[axis]))


@dataclass(frozen=True, kw_only=True, eq=False)
class LocateResult:
    """Boxes of one volume."""

    prompts: VolumePrompts
    """One 3D box per structure, ready for ``samgraft.segment(prompts=...)``."""
    found: Mapping[str, Located]
    """Name of the structure -> landmarks and spread, mm."""


def locate(
    scene: Scene | str | PathLike[str],
    locator: Locator | str | PathLike[str],
    *,
    axis: int | None = None,
    intensity: Intensity | None = None,
) -> LocateResult:
    """3D boxes of the structures that a locator knows.

    Args:
        scene: A volume, or a path.
        locator: What :func:`fit_locator` gave, or its file.
        axis: Array axis that is cut into slices; None takes the coarsest spacing.
        intensity: Scale to [0, 1]; None takes that of the locator's file, else fits one.

    Raises:
        InputError: not a volume in a patient frame.
        CheckpointError: a damaged locator.
    """
    opened = scene if isinstance(scene, Scene) else open_scene(scene)
    if not isinstance(locator, Locator):
        locator, meta = load_locator(locator)
        if intensity is None and isinstance(meta.get("intensity"), dict):
            intensity = Intensity.from_dict(meta["intensity"])
    image, turn = as_input(opened, locator.network.config.spacing, intensity)
    cut = coarsest_axis(opened.grid) if axis is None else axis
    located, objects = locator.locate(image), []
    for value, name in locator.classes.items():
        box, extent = box_in_file(located[value], turn, cut)
        objects.append(VolumePrompt(box=box, extent=extent, class_name=name, source=f"locator, {name}"))
    return LocateResult(
        prompts=VolumePrompts(objects=tuple(objects), axis=cut),
        found={name: located[value] for value, name in locator.classes.items()},
    )


@dataclass(frozen=True, kw_only=True)
class FitLocator:
    """How a locator is made of a data set in nnU-Net layout."""

    supports: int = 5
    """Annotated volumes, 3 to 10, drawn by ``seed`` from the training cases."""
    cases: tuple[str, ...] = ()
    """Names of the annotated volumes instead."""
    network: PositionConfig = field(default_factory=PositionConfig)
    training: PositionTraining = field(default_factory=PositionTraining)
    locator: LocatorConfig = field(default_factory=LocatorConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check numbers."""
        count = len(self.cases) or self.supports
        if not SUPPORTS[0] <= count <= SUPPORTS[1]:
            raise ConfigError(f"{count} annotated volumes; expected {SUPPORTS[0]} to {SUPPORTS[1]}")


def fit_locator(
    data: str | PathLike[str],
    config: FitLocator | None = None,
    *,
    output: str | PathLike[str] | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Locator, dict[str, Any]]:
    """Train the network on the images of all training cases, then look at a few labels.

    With ``LocatorConfig(start="templates")`` nothing is trained: a few seconds instead of minutes.

    Args:
        data: Folder in nnU-Net layout.
        config: How.
        output: File to write (``*.locate``).
        report: Called now and then during training with the step and running means.

    Returns:
        The locator and ``meta`` of its file: cases, training figures, what finds each structure, and the mean wall
        distance in mm when each annotated volume is located by the others.

    Raises:
        InputError: no data set there, or fewer cases than asked.
    """
    chosen = config or FitLocator()
    index = read_nnunet(Path(data))
    split = index.splits[0].train if index.splits else tuple(case.id for case in index)
    cases = {case.id: case for case in index if case.id in split}
    labelled = [name for name, case in cases.items() if case.label is not None]
    names = _supports(labelled, chosen)
    volumes, supports, scale, spacing = {}, [], None, chosen.network.spacing
    for name, case in cases.items():
        scene = case.load_image()
        if scene.modality == "CT" and scale is None:
            scale = fit_intensity(scene)
        volumes[name], turn = as_input(scene, spacing, scale)
        if name in names:
            supports.append(_support(case, volumes[name], turn, index.classes))
    if chosen.locator.start == "templates":
        network, figures = PositionNet(chosen.network).eval().requires_grad_(False), {"steps": 0.0}
    else:
        network, figures = train_positions(list(volumes.values()), chosen.network, chosen.training, report=report)
    locator = Locator.of(network, supports, index.classes, chosen.locator)
    meta: dict[str, Any] = {
        "axes": "SAR",
        "cases": sorted(cases),
        "supports": sorted(names),
        "training": {k: v for k, v in figures.items() if v == v},
        "intensity": None if scale is None else scale.to_dict(),
        "found_by": {name: locator.start_of(value) for value, name in locator.classes.items()},
        "wall_mm_leave_one_out": {
            locator.classes[value]: errors[locator.start_of(value)] for value, errors in locator.errors.items()
        },
    }
    if output is not None:
        save_locator(output, locator, meta=meta)
    return locator, meta


def _supports(labelled: Sequence[str], config: FitLocator) -> set[str]:
    """Names of the annotated volumes."""
    if config.cases:
        missing = sorted(set(config.cases) - set(labelled))
        if missing:
            raise InputError(f"cases {missing} have no label among the training cases; choose others")
        return set(config.cases)
    if len(labelled) < config.supports:
        raise InputError(f"{config.supports} annotated volumes asked; there are {len(labelled)}; lower supports")
    ordered = sorted(labelled)
    return {ordered[i] for i in np.random.default_rng(config.seed).permutation(len(ordered))[: config.supports]}


def _support(case: Case, image: Tensor, turn: Canonical, classes: Mapping[int, str]) -> Support:
    """An annotated volume with the landmarks of its classes."""
    labels = turn.turn(case.load_label())
    walls = {v: landmarks_of(labels == v, turn.spacing) for v in classes if (labels == v).any()}
    return Support(image=image, walls=walls)
