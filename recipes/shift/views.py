"""A few views of every image of a set, spread evenly, as the network sees them; files are never read whole for it.

Of a volume slices, of a raster or a large picture windows, of any other picture all of it. Channels and scale are those
of ``samgraft segment``: the adapter's where there is one, else those of the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.medical.intensity import fit_intensity
from samgraft.domains.scene import Scene
from samgraft.errors import CheckpointError, InputError, SamgraftError
from samgraft.recipes.alignment import evenly, plane_spacing
from samgraft.recipes.engine.planes import plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.ground import at_trained_gsd
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import Look, fixed_look, look_at
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.shift.sets import ImageSet, Member

WINDOW = 256
"""Side in pixels of windows where no adapter says another."""
WHOLE = 2048
"""A picture with no longer side is seen whole where no adapter says otherwise."""
PLACES = 9
"""Places in the plane that windows of slices take in turn, where the adapter works by windows."""
TRIES = 4
"""A raster is searched for windows with data in so many times as many places as are wanted."""
MOSTLY = 0.5
"""Share of valid pixels from which a window is taken before others."""
EMPTY = 0.05
"""Share of pixels that are 0 in all bands from which a raster without a nodata value is taken to miss them."""

Pair = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What the network is shown."""

    image: NDArray[np.float32]
    """(3, h, w) in [0, 1]; NaN where the file has no data."""
    spacing: Pair | None
    """Pixel size (row, column) in mm or metres."""
    file_spacing: Pair | None
    """The same in the file, before it was resampled for the adapter."""
    group: str
    """Patient, site or scene."""
    name: str
    """Which part of which file."""
    raster: bool = False
    """Whether sizes are metres on the ground; else millimetres."""


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """How images become views."""

    recorded: Recorded | None = None
    """What the adapter's header says."""
    modality: str | None = None
    """"CT" or "MR" where the data set says so."""
    notes: list[str] = field(default_factory=list)
    """What was done otherwise than asked; each remark once."""

    def remark(self, text: str) -> None:
        """Keep a remark."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def window(self) -> int | None:
        """Side of windows that the adapter asks for."""
        return None if self.recorded is None else self.recorded.window

    def look(self, scene: Scene) -> Look:
        """Channels and scale."""
        if self.recorded is not None:
            try:
                return self.recorded.look(scene)
            except InputError as error:
                self.remark(f"shown by its own scale, since that of the adapter does not fit: {error}")
        look = look_at(scene)
        if self.modality is None or scene.kind != "volume":
            return look
        scale = fit_intensity(scene, self.modality)
        return fixed_look(look, lower=scale.lower, upper=scale.upper)


def recorded_input(meta: BundleMeta) -> Recorded | None:
    """What an adapter's header says about images; None where it says nothing."""
    try:
        recipe = InputRecipe.from_meta(meta)
    except CheckpointError:
        return None
    return Recorded(recipe=recipe, classes=meta.classes, modality=meta.modality, intensity=meta.intensity)


def set_views(images: ImageSet, viewer: Viewer, limit: int) -> Iterator[View]:
    """Views of a set, about ``limit`` in all; the same ones on every call.

    Every image gives equally many (one at least); of more images than ``limit``, evenly spaced ones are taken. A file
    that cannot be read is left out with a remark.

    Args:
        images: What :func:`samgraft.recipes.shift.sets.find_set` gives.
        viewer: How images are seen; takes remarks.
        limit: About how many.

    Raises:
        InputError: no file can be read, or none has data.
    """
    chosen = [images.members[i] for i in evenly(len(images.members), limit)]
    each = max(1, -(-limit // len(chosen)))
    given, problem = 0, ""
    for member in chosen:
        try:
            for view in _of_member(member, viewer, each):
                given += 1
                yield view
        except (SamgraftError, OSError) as error:
            problem = f"{member.name} was left out: {error}"
            viewer.remark(problem)
    if not given:
        raise InputError(f"{images.path}: none of {len(chosen)} images could be seen; {problem or 'none has data'}")


def _of_member(member: Member, viewer: Viewer, count: int) -> Iterator[View]:
    scene = member.open()
    recipe = None if viewer.recorded is None else viewer.recorded.recipe
    seen = scene if recipe is None else at_trained_gsd(scene, recipe.gsd)
    look = viewer.look(seen)
    if seen.kind == "volume":
        yield from _slices(seen, look, member, count, recipe)
    else:
        yield from _windows(seen, look, member, viewer, count, plane_spacing(scene, None))


def _slices(scene: Scene, look: Look, member: Member, count: int, recipe: InputRecipe | None) -> Iterator[View]:
    """Slices with data, evenly spread; of an adapter that works by windows, one window of each."""
    cut = coarsest_axis(scene.grid) if recipe is None or recipe.slice_axis is None else recipe.slice_axis
    length, shape = scene.grid.shape[cut], plane_shape(scene.grid.shape, cut)
    spacing = plane_spacing(scene, cut)
    places = spread_windows(shape, None if recipe is None else recipe.window, PLACES)
    reach = 1 if recipe is not None and recipe.neighbours and len(look.channels) == 1 else 0
    for number, index in enumerate(evenly(length, count)):
        rows, cols = places[number % len(places)]
        first, last = max(index - reach, 0), min(index + reach, length - 1)
        window: list[slice] = [rows, cols]
        window.insert(cut, slice(first, last + 1))
        raw, valid = (np.moveaxis(a, cut - 3, 0) for a in scene.read_valid(tuple(window), look.channels))
        around = [min(max(index + step, first), last) - first for step in (-reach, 0, reach)] if reach else [0]
        image = _seen(look, raw[around], valid[index - first])
        if image is not None:
            yield View(
                image=image, spacing=spacing, file_spacing=spacing, group=member.group, name=f"{member.name}, {index}"
            )


def _windows(
    scene: Scene, look: Look, member: Member, viewer: Viewer, count: int, file_spacing: Pair | None
) -> Iterator[View]:
    """Windows with data, evenly spread; one that is the whole picture if it is small."""
    shape = plane_shape(scene.grid.shape, None)
    side = viewer.window or (WINDOW if scene.kind == "raster" or max(shape) > WHOLE else None)
    places = spread_windows(shape, side, 1 if side is None else count * TRIES if scene.kind == "raster" else count)
    unmarked = scene.kind == "raster" and _has_no_nodata(scene, places)
    given = 0
    sparse: list[View] = []
    for rows, cols in _interleaved(places, count):
        if given == count:
            return
        raw, valid = scene.read_valid((rows, cols), look.channels)
        if unmarked:
            valid = valid & (raw != 0).any(axis=0)
            viewer.remark("pixels that are 0 in every band are taken for missing: the rasters have no nodata value")
        image = _seen(look, raw[None], valid)
        if image is None:
            continue
        name = member.name if side is None else f"{member.name}, row {rows.start}, column {cols.start}"
        view = View(
            image=image,
            spacing=plane_spacing(scene, None),
            file_spacing=file_spacing,
            group=member.group,
            name=name,
            raster=scene.kind == "raster",
        )
        if valid.mean() >= MOSTLY:
            given += 1
            yield view
        elif len(sparse) < count:
            sparse.append(view)
    yield from sparse[: count - given]


def spread_windows(shape: tuple[int, int], side: int | None, count: int) -> list[tuple[slice, slice]]:
    """About ``count`` square windows spread evenly over (height, width), in rows; all of it without ``side``."""
    if side is None:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    cells = [-(-length // side) for length in shape]
    down = min(cells[0], max(1, round(float(np.sqrt(count * cells[0] / cells[1])))))
    across = min(cells[1], max(1, -(-count // down)))
    tops, lefts = (_spaced(n, length - side) for n, length in ((down, shape[0]), (across, shape[1])))
    return [
        (slice(top, min(top + side, shape[0])), slice(left, min(left + side, shape[1])))
        for top in tops
        for left in lefts
    ]


def _spaced(count: int, last: int) -> list[int]:
    """``count`` starts from 0 to ``last``; one is in the middle."""
    if count == 1:
        return [max(0, last) // 2]
    return [round(i * last / (count - 1)) for i in range(count)]


def _interleaved(places: list[tuple[slice, slice]], count: int) -> list[tuple[slice, slice]]:
    """The same windows, those that would be taken if all had data first, then those between them."""
    first = evenly(len(places), count)
    rest = [i for i in range(len(places)) if i not in set(first)]
    return [places[i] for i in [*first, *rest]]


def _has_no_nodata(scene: Scene, places: list[tuple[slice, slice]]) -> bool:
    """Whether a raster marks no pixel as missing, and more than one in twenty of those looked at is 0 in all bands."""
    zeros = total = 0
    for place in places[:: max(1, len(places) // 8)]:
        raw, valid = scene.read_valid(place)
        if not valid.all():
            return False
        zeros, total = zeros + int((raw == 0).all(axis=0).sum()), total + valid.size
    return zeros > EMPTY * total


def _seen(look: Look, slices: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """(3, h, w) in [0, 1], NaN where not valid; None without a valid pixel.

    Args:
        look: Channels and scale.
        slices: (1, c, h, w), or the slice before, this and the next (3, 1, h, w), which become the channels.
        valid: (h, w).
    """
    if not valid.any():
        return None
    seen = look.apply(slices[0]) if len(slices) == 1 else np.concatenate([look.apply(one)[:1] for one in slices])
    image = np.array(seen, dtype=np.float32)
    image[:, ~valid] = np.nan
    return image
