"""Which files are the target, and their tiles as the adapter sees them. Labels are neither looked for nor opened.

Takes files, folders, or a data set's configuration; gives squares of the adapter's input size as bytes, made of the
files as ``samgraft segment`` makes them (``samgraft.recipes.engine``).
"""

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.index import Case, make_splits
from samgraft.domains.datasets.raster_vector import split_by_number
from samgraft.domains.scene import Scene
from samgraft.errors import InputError, SamgraftError
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.fit import Fit, windows
from samgraft.recipes.data.slabs import Slabs, slab_squares
from samgraft.recipes.engine.automatic import chunks
from samgraft.recipes.engine.planes import Plane, Rows, plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.slices import pictures
from samgraft.recipes.ground import at_trained_gsd
from samgraft.recipes.inference import squares
from samgraft.recipes.predicting import find_inputs
from samgraft.recipes.prompting import coarsest_axis

_IMAGE_FOLDERS = ("imagesTr", "images", "rasters", "oam")
"""Where the known layouts have their images; a folder with one of these is taken for a data set."""
_CHANNEL_FOLDERS = ("imagesTr", "imagesTs")
"""nnU-Net: a file per channel, numbered; elsewhere numbers are names."""
_CHANNEL = re.compile(r"(?P<case>.+)_\d{4}$")
_log = logging.getLogger(__name__)
BLANK = 1 / 255
"""Tiles whose values differ by no more than this show nothing."""


def target_images(images: Sequence[Path] | DataConfig) -> tuple[Case, ...]:
    """The target's images, without labels.

    Args:
        images: Files, folders of images, or folders of data sets (of which only the image folder is listed); or the
            configuration of a data set, of which the training side of ``splits.json`` (or ``split_pattern``) is taken,
            and everything if there is no split; ``cases`` and ``seed`` draw from that.

    Raises:
        InputError: a path that does not exist, or no image.
        ConfigError: two images of one name.
    """
    if isinstance(images, DataConfig):
        return _configured(images)
    folders = [_image_folder(Path(path)) for path in images]
    found = _cases(find_inputs(folders))
    if not found:
        raise InputError("no target image was named; give files or folders of images")
    return found


def _configured(config: DataConfig) -> tuple[Case, ...]:
    root = Path(config.path)
    folder = root / config.images if config.images else _image_folder(root)
    cases = _cases(find_inputs([folder]))
    if config.split_pattern is not None and config.split_last_train is not None:
        _, splits = make_splits(root, cases, split_by_number(config.split_pattern, config.split_last_train))
    else:
        _, splits = make_splits(root, cases)
    if splits:
        wanted = set(splits[min(config.fold, len(splits) - 1)].train)
        cases = tuple(case for case in cases if case.id in wanted)
    if config.cases is not None and config.cases < len(cases):
        picked = np.random.default_rng(config.seed).permutation(len(cases))[: config.cases]
        cases = tuple(cases[i] for i in sorted(picked))
    return cases


def _image_folder(path: Path) -> Path:
    """The folder of images in a data set; any other path as it is."""
    return next((path / name for name in _IMAGE_FOLDERS if (path / name).is_dir()), path)


def _cases(files: Sequence[Path]) -> tuple[Case, ...]:
    """One case per image; files of nnU-Net's channels 0000, 0001, ... belong together."""
    grouped: dict[str, list[Path]] = {}
    for path in files:
        stem = path.name if path.is_dir() else path.name[: len(path.name) - len(full_suffix(path))]
        match = _CHANNEL.match(stem) if path.parent.name in _CHANNEL_FOLDERS else None
        grouped.setdefault(match["case"] if match else stem, []).append(path)
    return tuple(Case(id=name, image=tuple(sorted(own))) for name, own in sorted(grouped.items()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Network inputs of the target."""

    images: Tensor
    """(n, 3, S, S) uint8, or slabs (n, 3, D, S, S)."""
    known: Tensor
    """(n, S, S) bool: inside the picture, and with data."""
    names: tuple[str, ...]
    """Where each comes from."""

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.images)

    def rows(self, index: Sequence[int]) -> "Tiles":
        """Some of them."""
        chosen = list(index)
        names = tuple(self.names[i] for i in chosen)
        return Tiles(images=self.images[chosen], known=self.known[chosen], names=names)

    def batch(self, index: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (B, 3, [D,] S, S) float in [0, 1] and known pixels (B, [D,] S, S) bool, on ``device``."""
        image, known = self.images[list(index)].to(device).float() / 255, self.known[list(index)].to(device)
        if image.ndim == 5:
            known = known[:, None].expand(-1, image.shape[2], -1, -1)
        return image, known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tile:
    image: Tensor
    known: Tensor
    name: str


def read_tiles(cases: Sequence[Case], recorded: Recorded, *, most: int, seed: int) -> Tiles:
    """Tiles of all images, evenly shared between them; tiles that show nothing are left out.

    Args:
        cases: Target images.
        recorded: What the adapter's header says of its inputs.
        most: Largest number; each image gives its share, drawn by ``seed``. An image that cannot be read is left out
            with a warning.
        seed: Of that draw.

    Raises:
        InputError: not one image can be read and has the adapter's channels, or all tiles are blank.
    """
    found: list[_Tile] = []
    reason = "they hold nothing but blank tiles"
    for number, case in enumerate(cases):
        share = -(-(most - len(found)) // (len(cases) - number))
        if share < 1:
            break
        rng = np.random.default_rng([seed, number])
        try:
            found += _tiles(case.load_image(), recorded, share, rng, case.id)
        except SamgraftError as error:
            reason = f"{case.id}: {error}"
            _log.warning("adapt: %s is left out: %s", case.id, error)
    if not found:
        raise InputError(f"no tile could be made of {len(cases)} target images: {reason}")
    return Tiles(
        images=torch.stack([tile.image for tile in found]),
        known=torch.stack([tile.known for tile in found]),
        names=tuple(tile.name for tile in found),
    )


def _tiles(scene: Scene, recorded: Recorded, most: int, rng: np.random.Generator, name: str) -> list[_Tile]:
    """At most ``most`` tiles of a scene that show something."""
    if scene.kind == "volume":
        return _volume_tiles(scene, recorded, most, rng, name)
    view = at_trained_gsd(scene, recorded.recipe.gsd)
    plane = Plane(view, recorded.look(view))
    places = windows(plane.shape, recorded.window, recorded.overlap)
    chosen = sorted(rng.permutation(len(places))[: 2 * most])  # some of them may be blank
    found: list[_Tile] = []
    for chunk in chunks(Rows(plane).read, [places[i] for i in chosen], recorded.size, 1):
        for part, valid, image in chunk.answers():
            if image is None or _blank(image):
                continue
            fit = Fit(source=(valid.shape[0], valid.shape[1]), size=recorded.size)
            known = fit.labels(torch.from_numpy(valid.astype(np.uint8)), outside=0).bool()
            where = name if len(places) == 1 else f"{name}, row {part[0].start}, column {part[1].start}"
            found.append(_Tile(image=_bytes(image), known=known, name=where))
    return _drawn(found, most, rng)


def _volume_tiles(scene: Scene, recorded: Recorded, most: int, rng: np.random.Generator, name: str) -> list[_Tile]:
    axis = coarsest_axis(scene.grid) if recorded.recipe.slice_axis is None else recorded.recipe.slice_axis
    shape, count = plane_shape(scene.grid.shape, axis), scene.grid.shape[axis]
    places = windows(shape, recorded.window, recorded.overlap)
    shown = pictures(scene, recorded.look(scene), axis, neighbours=recorded.recipe.neighbours, known=deque())
    slab = recorded.recipe.slab
    inputs: Iterator[Tensor]
    if slab is None:
        starts = list(range(count))
        inputs = squares(shown, places, size=recorded.size, batch=1)
    else:
        cut = Slabs(count=count, slab=slab, overlap=recorded.recipe.slab_overlap)
        starts = cut.starts
        inputs = slab_squares(shown, cut, places, size=recorded.size)
    chosen = set(rng.permutation(len(starts) * len(places))[: 2 * most].tolist())
    found: list[_Tile] = []
    for number, image in enumerate(inputs):
        if number not in chosen or _blank(image):
            continue
        rows, cols = places[number % len(places)]
        source = (rows.stop - rows.start, cols.stop - cols.start)
        known = Fit(source=source, size=recorded.size).labels(torch.ones(source, dtype=torch.uint8), outside=0).bool()
        where = f"{name}, slice {max(0, starts[number // len(places)])}"
        found.append(_Tile(image=_bytes(image[0]), known=known, name=where))
    return _drawn(found, most, rng)


def _drawn(found: list[_Tile], most: int, rng: np.random.Generator) -> list[_Tile]:
    return [found[i] for i in sorted(rng.permutation(len(found))[:most])]


def _blank(image: Tensor) -> bool:
    return float(image.max() - image.min()) <= BLANK


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
