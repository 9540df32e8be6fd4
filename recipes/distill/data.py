"""Tiles from a folder of images: squares of network size, kept as bytes, and which files only judge.

Takes every file below a folder that ``samgraft.open`` reads (pictures, rasters, volumes, DICOM series); labels are not
looked for. Values become [0, 1] as everywhere (``samgraft.recipes.look``).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samgraft.domains.atomic import full_suffix
from samgraft.domains.medical.dicom import is_dicom
from samgraft.domains.medical.itk import SUFFIXES as ITK_SUFFIXES
from samgraft.domains.opening import RASTER_SUFFIXES, open_scene
from samgraft.domains.picture.picture import SUFFIXES as PICTURE_SUFFIXES
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError, SamgraftError
from samgraft.recipes.data.fit import windows
from samgraft.recipes.data.module import BalancedSampler
from samgraft.recipes.distill.config import DistillConfig
from samgraft.recipes.engine.planes import Plane, look_at, plane_shape
from samgraft.recipes.engine.windows import SMALLEST, Window, to_network, whole_window
from samgraft.recipes.prompting import coarsest_axis

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
IMAGE_SUFFIXES = frozenset((*NIFTI_SUFFIXES, *ITK_SUFFIXES, *RASTER_SUFFIXES, *PICTURE_SUFFIXES))
CROP_SIDES = (0.25, 0.7)
"""Smallest and largest side of a random crop, as shares of the view that it is cut from."""
_log = logging.getLogger(__name__)


def find_images(folder: Path) -> list[Path]:
    """Files below ``folder`` with a suffix that is known, sorted; a folder of DICOM files stands for its series.

    Raises:
        InputError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name a folder of images")
    found: set[Path] = set()
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        suffix = full_suffix(path)
        if suffix in DICOM_SUFFIXES or (not suffix and is_dicom(path)):
            found.add(path.parent)
        elif suffix in IMAGE_SUFFIXES:
            found.add(path)
    if not found:
        kinds = " ".join(sorted(IMAGE_SUFFIXES | set(DICOM_SUFFIXES)))
        raise InputError(f"{folder} holds no image; expected files with one of {kinds}")
    return sorted(found)


def split_files(files: Sequence[Path], config: DistillConfig) -> tuple[list[Path], list[Path]]:
    """Training and held-out files, drawn by ``config.seed``; groups of ``config.group_pattern`` stay together.

    Raises:
        InputError: fewer than two groups, so that nothing could judge.
        ConfigError: a pattern that cannot be used, or a file that it does not match.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(files):
        groups.setdefault(_group(path, config.group_pattern), []).append(path)
    if len(groups) < 2:
        raise InputError(
            f"{config.images} holds {len(files)} image files in {len(groups)} group; training and held-out images need "
            "one each; add files, or cut a large one into several"
        )
    names = sorted(groups)
    order = np.random.default_rng([config.seed, 1]).permutation(len(names))
    kept = {names[i] for i in order[: min(len(names) - 1, max(1, round(config.held_out * len(names))))]}
    train = [path for name in names if name not in kept for path in groups[name]]
    return train, [path for name in names if name in kept for path in groups[name]]


def _group(path: Path, pattern: str | None) -> str:
    if pattern is None:
        return str(path)
    try:
        match = re.search(pattern, str(path))
        if match is None:
            raise ConfigError(f"group_pattern {pattern!r} matches nothing in {path}; change it, or leave it out")
        return match.group(1)
    except (re.error, IndexError) as error:
        raise ConfigError(f"group_pattern {pattern!r}: {error}; give a regular expression with one group") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Squares of one side."""

    images: Tensor
    """(n, 3, S, S) uint8."""
    files: tuple[str, ...]
    """File of each tile, relative to the folder."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read, with the reason."""

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.images)

    def some(self, most: int) -> "Tiles":
        """At most ``most`` tiles, evenly spaced."""
        rows = spread(len(self), most)
        return Tiles(images=self.images[rows], files=tuple(self.files[i] for i in rows), skipped=self.skipped)


def read_tiles(files: Sequence[Path], size: int, config: DistillConfig, *, crops: int) -> Tiles:
    """Read and scale files one after the other; one that cannot be read is skipped with a warning, NaN becomes 0.

    Args:
        files: Images.
        size: Side of the tiles in pixels.
        config: Windows, slices per file, seed.
        crops: Random crops per view.

    Raises:
        InputError: not one of them can be read, or all are blank.
    """
    images: list[Tensor] = []
    names: list[str] = []
    skipped: list[str] = []
    root = Path(config.images)
    for number, path in enumerate(files):
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        rng = np.random.default_rng([config.seed, 2, number])
        try:
            own = list(_views(open_scene(path, nan="fill"), size, config, crops, rng))
        except SamgraftError as error:
            skipped.append(f"{name}: {error}")
            _log.warning("distill: %s is left out: %s", name, error)
            continue
        images += own
        names += [name] * len(own)
    if not images:
        reason = skipped[0] if skipped else "every tile is blank"
        raise InputError(f"no tile could be made from {len(files)} files in {config.images}: {reason}")
    return Tiles(images=torch.stack(images), files=tuple(names), skipped=tuple(skipped))


def _views(scene: Scene, size: int, config: DistillConfig, crops: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """(3, S, S) uint8 of the slices, windows and crops of a scene that are not blank."""
    look = look_at(scene)
    axis = coarsest_axis(scene.grid) if scene.grid.ndim == 3 else None
    shape = plane_shape(scene.grid.shape, axis)
    squares = _squares(shape, size, config)
    count = 1 if axis is None else scene.grid.shape[axis]
    places = [(index, square) for index in range(count) for square in squares]
    flat = Plane(scene, look) if axis is None else None
    for pick in spread(len(places), config.per_file):
        index, square = places[pick]
        plane = flat or Plane(scene, look, axis=axis, index=index)
        for window in [square, *(_crop(square, shape, rng) for _ in range(crops))]:
            tile = to_network(plane.crop(window), size)
            if float(tile.max() - tile.min()) > 1 / 255:
                yield (tile * 255).round().clamp(0, 255).to(torch.uint8)


def _squares(shape: tuple[int, int], size: int, config: DistillConfig) -> list[Window]:
    """The whole, or windows over it."""
    if config.window is None and max(shape) <= 3 * size:
        return [whole_window(shape)]
    side = min(config.window or 2 * size, max(shape))
    return [Window(top=rows.start, left=cols.start, side=side) for rows, cols in windows(shape, side, config.overlap)]


def _crop(square: Window, shape: tuple[int, int], rng: np.random.Generator) -> Window:
    """A smaller square inside ``square`` and, where it fits, inside the picture."""
    share = float(np.exp(rng.uniform(*np.log(CROP_SIDES))))
    side = max(min(SMALLEST, square.side), round(share * square.side))
    corner = []
    for start, length in ((square.top, shape[0]), (square.left, shape[1])):
        low, high = max(start, 0), min(start + square.side, length) - side
        corner.append(int(rng.integers(low, high + 1)) if high > low else low)
    return Window(top=corner[0], left=corner[1], side=side)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices 0 .. count - 1, evenly spaced."""
    if count <= most:
        return list(range(count))
    return [int((i + 0.5) * count / most) for i in range(most)]


class DistillData(lightning.LightningDataModule):
    """Training tiles in a new order every epoch, and held-out tiles; an epoch is the stretch between two validations.

    Args:
        train: Tiles to learn from.
        held_out: Tiles that judge.
        batch_size: Tiles per step.
        steps: Steps per epoch.
        seed: With the epoch's number, decides the order.
    """

    def __init__(self, train: Tiles, held_out: Tiles, *, batch_size: int, steps: int, seed: int) -> None:
        """Everything is in memory already."""
        super().__init__()
        self.train, self.held_out = train, held_out
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches (B, 3, S, S) uint8."""
        draws = self.steps * self.batch_size
        sampler = BalancedSampler([True] * len(self.train), share=1.0, length=draws, seed=self.seed)
        return DataLoader(_Images(self.train.images), batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The held-out tiles in order."""
        return DataLoader(_Images(self.held_out.images), batch_size=self.batch_size)


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
