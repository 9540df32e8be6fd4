"""Align the input: a scene is moved towards the images that an adapter was trained on, before the network sees it.

The header of an adapter remembers its training images as statistics (``extra["source"]``). At use the same is measured
on the scene, once: on slices, blocks or the picture, spread evenly, without missing pixels. What is fitted from the two
(``domains.shift.alignment``) belongs to the scene's :class:`Look` from then on, so that a pixel has one value in every
window, tile and process.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.atomic import full_suffix
from samgraft.domains.opening import IMAGE_SUFFIXES, open_scene
from samgraft.domains.remote_sensing.geo_scene import spread
from samgraft.domains.remote_sensing.georeference import ground_step
from samgraft.domains.scene import Array, Scene
from samgraft.domains.shift.alignment import (
    ALIGNMENTS,
    AUTO,
    NONE,
    Alignment,
    as_gray,
    choose_alignment,
    fit_alignment,
)
from samgraft.domains.shift.statistics import ImageStatistics, image_statistics
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.look import Look
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.tones import GRAY, PLAIN, FittedTone, ends_of, tone_of

SOURCE = "source"
"""Key of ``BundleMeta.extra`` for the statistics of the training images."""
SLICES = 24
"""Slices of a volume that are measured."""
BLOCKS, MOST_BLOCKS = 64, 4096
"""Blocks of a raster that are measured; more, up to the second, where those hold no valid pixel."""
SMALL = 2**20
"""Pixels up to which a raster is measured as a whole."""
BLOCK = 512
"""Side of a block in pixels, for adapters without windows, and of pictures that are too large to be looked at whole."""
DENSE = 0.5
"""Share of a full block that has to have data, for the block to stand for the raster."""
WHOLE = 2**24
"""Pixels up to which a picture is measured as a whole."""

Measured = Iterator[tuple[NDArray[np.float32], tuple[float, float] | None]]
"""Images (3, h, w) in [0, 1], NaN where missing, and their pixel sizes."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An alignment for one scene, and why."""

    alignment: Alignment | None
    """None: the scene is left as it is."""
    words: str
    """Name, reason and effect, for the provenance of the result."""


def check_name(name: str) -> None:
    """Refuse a word that is no alignment.

    Raises:
        NoMatchError: as ``Registry.get``; the message names the closest.
    """
    if name not in (AUTO, NONE):
        ALIGNMENTS.get(name)


def recorded_source(meta: BundleMeta) -> ImageStatistics:
    """What an adapter's header remembers of its training images.

    Raises:
        ConfigError: nothing, since the adapter was written by an earlier version.
        CheckpointError: the statistics cannot be read.
    """
    found = meta.extra.get(SOURCE)
    if not isinstance(found, Mapping):
        raise ConfigError(
            "the adapter's header says nothing about its training images, so there is nothing to align with; train it "
            "again with this samgraft, or name the folder of its training images: --align-source FOLDER "
            "(align_source=...)"
        )
    return ImageStatistics.from_json(found)


def fit_scene(
    name: str, scene: Scene, look: Look, source: ImageStatistics, *, axis: int | None = None, window: int | None = None
) -> Fitted:
    """Fit an alignment to a scene.

    Args:
        name: One of ``ALIGNMENTS``, "auto" or "none".
        scene: What will be segmented; a sample of it is read.
        look: Channels and scale, without an alignment.
        source: Of the adapter.
        axis: Volumes: the array axis that is cut.
        window: Side of the adapter's windows in pixels; rasters are measured in such blocks.

    Raises:
        NoMatchError: an unknown name.
        ConfigError: "fourier" on a raster, which is read by windows.
        InputError: "macenko" where one side is not stained; a damaged file.
    """
    check_name(name)
    if name == NONE:
        return Fitted(alignment=None, words=NONE)
    if name == "fourier" and scene.kind == "raster":
        raise ConfigError(
            f"{scene.path.name} is a raster, which is read window by window; 'fourier' changes whole pictures; use "
            "histogram, reinhard, moments or auto"
        )
    target = scene_statistics(scene, look, axis=axis, window=window)
    if target is None:
        return Fitted(alignment=None, words=f"{NONE} (no valid pixel was found)")
    if scene.kind == "volume" and len(look.channels) == 1:
        target, source = as_gray(target), as_gray(source)
    reason = ""
    if name == AUTO:
        name, why = choose_alignment(target, source)
        reason = f" ({AUTO}: {why})"
    if name == NONE:
        return Fitted(alignment=None, words=f"{NONE}{reason}")
    alignment = fit_alignment(name, target, source)
    return Fitted(alignment=alignment, words=f"{name}{reason}: {alignment.describe()}")


def in_tone(name: str, scene: Scene, look: Look, *, axis: int | None = None, window: int | None = None) -> Look:
    """A look in a tone, fitted to a scene; "plain" is the look as it is.

    Args:
        name: One of ``samgraft.recipes.tones.TONES``.
        scene: What will be seen; a sample of it is read if the tone stretches its values.
        look: Channels and scale.
        axis: Volumes: the array axis that is cut; None is the coarsest.
        window: Rasters are measured in blocks of this side.

    Raises:
        ConfigError: an unknown name.
    """
    tone = tone_of(name)
    if name == PLAIN:
        return look
    if axis is None and scene.kind == "volume":
        axis = coarsest_axis(scene.grid)
    fitted = FittedTone(name=name)
    if tone.stretch:
        gray = replace(look, tone=FittedTone(name=GRAY)) if tone.gray else look
        known = scene_statistics(scene, gray, axis=axis, window=window)
        if known is not None:
            low, high = ends_of(known.histogram.sum(axis=0))
            fitted = FittedTone(name=name, low=low, high=high)
    return replace(look, tone=fitted)


def scene_statistics(
    scene: Scene, look: Look, *, axis: int | None = None, window: int | None = None
) -> ImageStatistics | None:
    """Statistics of one scene as a network sees it; the same on every call.

    Args:
        scene: Volumes: 24 slices; rasters: 64 blocks, or more until one has data; pictures: all of it.
        look: Channels and scale.
        axis: Volumes: the array axis that is cut.
        window: Side of blocks.

    Returns:
        None where no pixel is valid.
    """
    return _statistics(scene_images(scene, look, axis, window), tissue=scene.kind != "raster")


def folder_statistics(
    path: Path, look_of: Callable[[Scene], Look], axis_of: Callable[[Scene], int | None], *, window: int | None = None
) -> ImageStatistics:
    """Statistics of a set of files, for an adapter whose header does not remember its training images.

    Args:
        path: A folder of images (one level), or one file.
        look_of: Channels and scale for one of them.
        axis_of: Volumes: the array axis that is cut.
        window: Side of blocks of rasters.

    Raises:
        InputError: nothing there, or no valid pixel.
    """
    files = image_files(path)

    def measured() -> Measured:
        for file in files:
            scene = open_scene(file)
            yield from scene_images(scene, look_of(scene), axis_of(scene), window)

    found = _statistics(measured(), tissue=open_scene(files[0]).kind != "raster")
    if found is None:
        raise InputError(f"{path}: no valid pixel in {len(files)} images; name a folder of training images")
    return found


def plane_spacing(scene: Scene, axis: int | None) -> tuple[float, float] | None:
    """Size of a pixel (rows, columns) in mm, or metres for rasters; None where the file does not say it."""
    if scene.kind == "raster":
        return ground_step(scene.grid)
    if scene.kind == "volume" and scene.grid.world in ("LPS", "RAS"):
        rows, cols = (size for number, size in enumerate(scene.grid.spacing) if number != axis)
        return float(rows), float(cols)
    return None


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` indices into ``count`` things: the middles of equal parts."""
    taken = min(count, most)
    return [((2 * i + 1) * count) // (2 * taken) for i in range(taken)]


def scene_images(scene: Scene, look: Look, axis: int | None, window: int | None) -> Measured:
    """What is measured of a scene: slices, blocks, or the whole picture, as a network sees them.

    Args:
        scene: Any scene.
        look: Channels and scale.
        axis: Volumes: the array axis that is cut.
        window: Side of blocks of rasters.
    """
    spacing = plane_spacing(scene, axis)
    if scene.kind == "volume":
        images = _slices(scene, look, 0 if axis is None else axis)
    elif scene.grid.shape[0] * scene.grid.shape[1] <= (SMALL if scene.kind == "raster" else WHOLE):
        images = iter([_block(scene, look, (slice(None), slice(None)))])
    else:
        images = _blocks(scene, look, BLOCK if window is None else window)
    return ((image, spacing) for image in images)


def seen_pixels(look: Look, raw: Array, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, h, w) in [0, 1] of raw values (c, h, w), NaN where not ``valid`` (h, w)."""
    seen = np.array(look.apply(raw), dtype=np.float32)
    seen[:, ~valid] = np.nan
    return seen


def _slices(scene: Scene, look: Look, axis: int) -> Iterator[NDArray[np.float32]]:
    """Evenly spaced slices; read one by one where that is cheap."""
    chosen = evenly(scene.grid.shape[axis], SLICES)
    if axis == 0 and scene.cheap_slabs:
        rest = (slice(None), slice(None))
        for index in chosen:
            raw, valid = scene.read_valid((slice(index, index + 1), *rest), look.channels)
            yield seen_pixels(look, raw[:, 0], valid[0])
        return
    raw, valid = scene.read_valid(channels=look.channels)
    for index in chosen:
        yield seen_pixels(look, np.take(raw, index, axis + 1), np.asarray(np.take(valid, index, axis)))


def _blocks(scene: Scene, look: Look, side: int) -> Iterator[NDArray[np.float32]]:
    """Evenly spaced blocks with data; more of them where there is none.

    Every block counts the same afterwards, so one with little data is left out where others have more.
    """
    count = BLOCKS
    while True:
        places, every = spread(scene.grid.shape, (side, side), count)
        dense, sparse = False, list[tuple[slice, slice]]()
        for place in places:
            image = _block(scene, look, place)
            share = np.isfinite(image[0]).sum() / side**2
            if share >= DENSE:
                dense = True
                yield image
            elif share > 0:
                sparse.append(place)
        if not dense:
            yield from (_block(scene, look, place) for place in sparse)
        if dense or sparse or len(places) >= every or count >= MOST_BLOCKS:
            return
        count *= 4


def _block(scene: Scene, look: Look, place: tuple[slice, slice]) -> NDArray[np.float32]:
    """One block; black in all channels counts as missing on rasters, which often do not mark it, as in training."""
    image = seen_pixels(look, *scene.read_valid(place, look.channels))
    if scene.kind == "raster":
        image[:, (image < 0.5 / 255).all(axis=0)] = np.nan
    return image


def _statistics(parts: Measured, *, tissue: bool) -> ImageStatistics | None:
    """Statistics of images, or None where there is none with a valid pixel; rasters are never stained ``tissue``."""
    known = ((image, spacing) for image, spacing in parts if np.isfinite(image).any())
    first = next(known, None)
    if first is None:
        return None
    images, spacings = tee(chain([first], known))  # read in step, so one image is held
    pixels, sizes = (image for image, _ in images), (spacing for _, spacing in spacings)
    return image_statistics(pixels, sizes, stained=None if tissue else False)


def image_files(path: Path) -> list[Path]:
    """Images of a folder (not of those in it), in order of name, or the file itself.

    Raises:
        InputError: nothing there.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; name a folder of images, or one image")
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.is_file() and full_suffix(p) in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{path} holds no image; expected files that end in {' '.join(IMAGE_SUFFIXES)}")
    return found
