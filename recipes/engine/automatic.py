"""An adapter on a new scene, without prompts: everything that decides the result is read from the adapter's header.

Volumes go slice by slice, pictures and rasters whole or in overlapping windows whose logits are blended. Reading,
encoding and decoding have a thread each (``pipeline``); the caller's thread blends. A raster is finished strip by
strip, so memory follows the width of the raster and the window, not its area.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.adapters.graft import Grafted
from samgraft.domains.scene import Array, Scene, label_dtype
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError
from samgraft.recipes.choosing import choose_objects
from samgraft.recipes.data.cases import to_bytes
from samgraft.recipes.data.fit import Fit, blend_weight, windows
from samgraft.recipes.data.slabs import Slabs, slab_maps, slab_squares
from samgraft.recipes.engine.clicked import slab_clicks
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch, pipeline
from samgraft.recipes.engine.planes import Plane, Rows, plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.scales import at_every_scale
from samgraft.recipes.engine.slices import pictures
from samgraft.recipes.engine.steps import Steps, steps
from samgraft.recipes.ground import at_trained_gsd, on_source
from samgraft.recipes.inference import probabilities, squares
from samgraft.recipes.joining import Joining
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.representations import Maps, ObjectMaps, WindowObjects
from samgraft.recipes.representations.classes import class_probabilities
from samgraft.recipes.volume_memory import require_memory
from samgraft.recipes.volume_prompts import Point

T = TypeVar("T")
Track = Callable[[Sequence[Any], str], Iterator[Any]]
"""Wraps a loop to show its progress."""
Part = tuple[slice, slice]
Read = Callable[[slice, slice], tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""Rows and columns -> (3, h, w) in [0, 1], and (h, w) where there is data."""
IN_MEMORY = 2**30
"""Maps of a raster up to this many bytes stay in memory, larger ones in a temporary file (instances only)."""


@dataclass(frozen=True, eq=False)
class Strip:
    """Finished rows of a plane, over its whole width."""

    rows: slice
    maps: Tensor
    """(K, rows, W), such as class probabilities."""
    valid: NDArray[np.bool_]
    """(rows, W): where the scene has data."""


def segment_automatic(
    scene: Scene,
    grafted: Grafted,
    recorded: Recorded,
    *,
    batch: int | None = None,
    depth: int = DEPTH,
    track: Track | None = None,
    clicks: Sequence[Point] = (),
) -> Segmentation:
    """Class map or instance map of a scene.

    Args:
        scene: Where to look; read slice by slice or window by window.
        grafted: The adapter on its backbone.
        recorded: What the adapter's header says.
        batch: Network inputs per call; None chooses by their size.
        depth: Batches that may wait between reading, encoding and decoding; 0 does one after the other.
        track: Wraps the loop over slices or windows.
        clicks: In a volume, for a head that takes them: (x, y, slice, label), see ``clicked.py``.

    Raises:
        ConfigError: an adapter for objects on a volume.
        InputError: the scene has not the channels that the adapter was trained on, or is damaged.
    """
    if scene.kind == "volume" and recorded.kind == "instance":
        raise ConfigError(f"{scene.path.name} is a volume; this adapter separates objects in pictures and rasters only")
    grafted.eval()
    chosen = encode_batch(grafted.backbone, recorded.size, batch)
    if scene.kind == "volume":
        return _volume(scene, grafted, recorded, batch=chosen, depth=depth, track=track, clicks=clicks)
    view = at_trained_gsd(scene, recorded.recipe.gsd)
    plane = Plane(view, recorded.look(view))
    result = _plane(plane, grafted, recorded, batch=max(1, chosen // recorded.views), depth=depth, track=track)
    seen = plane.look.describe(scene) if scene.kind == "raster" else {}
    result = replace(result, meta={**result.meta, **seen})
    return result if view is scene else on_source(result, view)


def _plane(
    plane: Plane, grafted: Grafted, recorded: Recorded, *, batch: int, depth: int, track: Track | None
) -> Segmentation:
    """A picture or a raster."""
    scene, representation = plane.scene, recorded.representation
    if isinstance(representation, WindowObjects):
        network = steps(grafted, representation)
        objects = _by_window(network, plane, recorded, batch=batch, depth=depth, track=track)
        return _instances(scene, recorded, *objects)
    network = steps(grafted, recorded.maps, views=recorded.views)

    def walk(said: Recorded) -> Generator[Strip, None, None]:
        return strips(network, plane, said, batch=batch, depth=depth, track=track)

    if isinstance(representation, ObjectMaps):
        return _instances(scene, recorded, *_at_scales(plane, recorded, representation, walk))
    with closing(walk(recorded)) as found:
        labels = np.zeros(plane.shape, dtype=label_dtype(max(recorded.classes)))
        for strip in found:
            labels[strip.rows] = strip.maps.argmax(dim=0).numpy()
            labels[strip.rows][~strip.valid] = 0
    return _semantic(scene, labels, recorded)


def _volume(
    scene: Scene,
    grafted: Grafted,
    recorded: Recorded,
    *,
    batch: int,
    depth: int,
    track: Track | None,
    clicks: Sequence[Point] = (),
) -> Segmentation:
    """Slice by slice along the recorded axis, or slab by slab with logits blended where they overlap."""
    axis = coarsest_axis(scene.grid) if recorded.recipe.slice_axis is None else recorded.recipe.slice_axis
    require_memory(scene, axis, classes=max(recorded.classes))
    labels = np.zeros(scene.grid.shape, dtype=label_dtype(max(recorded.classes)))
    stack = np.moveaxis(labels, axis, 0)  # a view: writing into it writes into labels
    shape = plane_shape(scene.grid.shape, axis)
    places = windows(shape, recorded.window, recorded.overlap)
    known: deque[NDArray[np.bool_]] = deque()  # the reading thread puts in a slice before its answer comes out
    shown = pictures(scene, recorded.look(scene), axis, neighbours=recorded.recipe.neighbours, known=known)
    size, slab = recorded.size, recorded.recipe.slab
    cut = Slabs(count=len(stack), slab=slab or 1, overlap=recorded.recipe.slab_overlap)
    told = slab_clicks(clicks, cut, places, size) if clicks else None
    network = steps(grafted, recorded.maps, told)
    if slab is None:
        source = squares(shown, places, size=size, batch=batch)
    else:
        source = slab_squares(shown, cut, places, size=size)
    with closing(pipeline(source, network.encode, network.decode, depth=depth)) as logits:
        if slab is None:
            found = probabilities(logits, shape, places, size=size)
        else:
            found = slab_maps(logits, shape, cut, places, size=size, maps=class_probabilities)
        for index in track(range(len(stack)), "slices") if track else range(len(stack)):
            stack[index] = next(found).argmax(dim=0).numpy()
            stack[index][~known.popleft()] = 0
    return _semantic(scene, labels, recorded)


def strips(
    network: Steps,
    plane: Plane,
    recorded: Recorded,
    *,
    batch: int,
    depth: int = DEPTH,
    track: Track | None = None,
) -> Generator[Strip, None, None]:
    """Yield finished rows from top to bottom, each once.

    Logits of overlapping windows are blended; windows without valid pixels are not computed.
    """
    rows = Blend(recorded.maps, plane.shape)
    with closing(_walk(network, plane, recorded, batch=batch, depth=depth, track=track)) as answers:
        for place, valid, logits in answers:
            if place[0].start > rows.top:  # rows above the next windows are finished
                yield rows.finish(place[0].start)
            rows.add(place, valid, logits, recorded.size)
        yield rows.finish(plane.shape[0])


def _walk(
    network: Steps, plane: Plane, recorded: Recorded, *, batch: int, depth: int, track: Track | None
) -> Generator[tuple[Part, NDArray[np.bool_], Any], None, None]:
    """Every window in order: its place, where it is valid, and what the network gave (None where nothing is valid)."""
    places = windows(plane.shape, recorded.window, recorded.overlap)
    stages = [on_squares(network.encode), on_squares(network.decode)]
    with closing(pipeline(chunks(Rows(plane).read, places, recorded.size, batch), *stages, depth=depth)) as walked:
        answers = (answer for chunk in walked for answer in chunk.answers())
        for _ in track(range(len(places)), "windows") if track else range(len(places)):
            yield next(answers)


def _by_window(
    network: Steps, plane: Plane, recorded: Recorded, *, batch: int, depth: int, track: Track | None
) -> tuple[Array, NDArray[np.float32]]:
    """Objects that are found in each window and joined: labels (H, W) and scores (n,)."""
    joining, known = Joining(plane.shape, recorded.size), np.zeros(plane.shape, dtype=np.bool_)
    with closing(_walk(network, plane, recorded, batch=batch, depth=depth, track=track)) as answers:
        for place, valid, found in answers:
            known[place] = valid
            if found is not None:
                joining.add(place, found)
    return joining.finish(min_area=least_area(recorded, plane.shape), valid=known)


@dataclass(eq=False)
class Chunk:
    """Windows that are computed together, and what is known of them."""

    parts: list[Part]
    valid: list[NDArray[np.bool_]]
    """(h, w) each."""
    useful: list[bool]
    """Which windows have valid pixels, and therefore a row in ``content``."""
    content: Any
    """Squares, then features, then what the network gave per window (see ``Steps``); None if no window is useful."""

    def answers(self) -> Iterator[tuple[Part, NDArray[np.bool_], Any]]:
        """Per window its place, where it is valid, and its logits (K, s, s) or objects; None where nothing is valid."""
        given = iter(() if self.content is None else self.content)
        for part, valid, useful in zip(self.parts, self.valid, self.useful, strict=True):
            yield part, valid, next(given) if useful else None


def chunks(read: Read, places: Sequence[Part], size: int, batch: int) -> Iterator[Chunk]:
    """Windows in order, ``batch`` useful ones at a time, as network inputs through the 8 bits that training saw.

    Args:
        read: Gives pixels; called for every place once, in order.
        places: Windows.
        size: Side of the network input.
        batch: Network inputs per chunk.
    """
    chunk, images = Chunk([], [], [], None), list[Tensor]()
    for place in places:
        pixels, valid = read(*place)
        chunk.parts.append(place)
        chunk.valid.append(valid)
        chunk.useful.append(bool(valid.any()))
        if chunk.useful[-1]:
            image = torch.from_numpy(to_bytes(pixels)).float() / 255
            images.append(Fit(source=(image.shape[1], image.shape[2]), size=size).image(image))
        if len(images) == batch or len(chunk.parts) == 4 * batch:  # a desert must not gather its windows for ever
            chunk.content = torch.stack(images) if images else None
            yield chunk
            chunk, images = Chunk([], [], [], None), []
    if chunk.parts:
        chunk.content = torch.stack(images) if images else None
        yield chunk


def on_squares(step: Callable[[Any], Any]) -> Callable[[Chunk], Chunk]:
    """A step of the network as a stage of the pipeline."""

    def stage(chunk: Chunk) -> Chunk:
        if chunk.content is not None:
            chunk.content = step(chunk.content)
        return chunk

    return stage


class Blend:
    """Rows in the making: sums of weighted logits over the width of the plane."""

    def __init__(self, representation: Maps, shape: tuple[int, int]) -> None:
        channels = representation.channels
        self.channels, self.maps, self.shape, self.top = channels, representation.maps, shape, 0
        self._total, self._mass = torch.zeros(channels, 0, shape[1]), torch.zeros(0, shape[1])
        self._valid = np.zeros((0, shape[1]), dtype=np.bool_)

    def add(self, place: Part, valid: NDArray[np.bool_], logits: Tensor | None, size: int) -> None:
        """Blend in the logits (K, s, s) of one window; without logits it counts as zeros."""
        rows, cols = place
        fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
        self._grow(rows.stop - self.top)
        here = slice(rows.start - self.top, rows.stop - self.top)
        weight = blend_weight(*fit.source)
        if logits is not None:
            self._total[:, here, cols] += fit.back(logits[None])[0] * weight
        self._mass[here, cols] += weight
        self._valid[here, cols] = valid

    def finish(self, stop: int) -> Strip:
        """Rows up to ``stop``, which are then let go of."""
        rows = stop - self.top
        found = self.maps(self._total[:, :rows] / self._mass[:rows])
        strip = Strip(slice(self.top, stop), found, self._valid[:rows])
        self._total, self._mass = self._total[:, rows:].clone(), self._mass[rows:].clone()
        self._valid, self.top = self._valid[rows:].copy(), stop
        return strip

    def _grow(self, rows: int) -> None:
        """Zeros below, so that there are at least ``rows``."""
        missing = rows - len(self._mass)
        if missing > 0:
            self._total = torch.cat([self._total, torch.zeros(self.channels, missing, self.shape[1])], dim=1)
            self._mass = torch.cat([self._mass, torch.zeros(missing, self.shape[1])])
            self._valid = np.concatenate([self._valid, np.zeros((missing, self.shape[1]), dtype=np.bool_)])


def _at_scales(
    plane: Plane,
    recorded: Recorded,
    representation: ObjectMaps,
    walk: Callable[[Recorded], Generator[Strip, None, None]],
) -> tuple[Array, NDArray[np.float32]]:
    """Objects of the maps at every scale, each from where it is best: labels (H, W) and scores (n,)."""
    found, least = [], least_area(recorded, plane.shape)
    for said in at_every_scale(recorded, plane.shape):
        with closing(walk(said)) as maps:
            found.append(_from_maps(plane, representation, maps, least))
    return found[0] if len(found) == 1 else choose_objects(found, min_area=least)


def _from_maps(
    plane: Plane, representation: ObjectMaps, found: Iterator[Strip], least: int
) -> tuple[Array, NDArray[np.float32]]:
    """Objects of complete maps with at least ``least`` pixels: labels (H, W) and scores (n,)."""
    shape = (representation.channels, *plane.shape)
    nothing = torch.tensor(representation.nothing)[:, None, None]
    with tempfile.TemporaryDirectory(prefix="samgraft-") as folder:
        large = 4 * int(np.prod(shape)) > IN_MEMORY
        maps: NDArray[np.float32] = (
            np.memmap(f"{folder}/maps", dtype=np.float32, mode="w+", shape=shape)
            if large
            else np.zeros(shape, dtype=np.float32)
        )
        for strip in found:
            maps[:, strip.rows] = strip.maps.where(torch.from_numpy(strip.valid), nothing).numpy()
        labels, scores = representation.objects(maps, min_area=least)
        del maps
    return labels, scores


def least_area(recorded: Recorded, shape: tuple[int, int]) -> int:
    """Least pixels of an object on a plane of ``shape``."""
    return max(1, round(recorded.recipe.min_area * recorded.scale(shape) ** 2))


def _instances(scene: Scene, recorded: Recorded, labels: Array, scores: NDArray[np.float32]) -> Segmentation:
    """Objects 1..n of ``labels`` as a result."""
    records = tuple(
        InstanceRecord(id=i + 1, class_id=1, score=min(1.0, max(0.0, float(score))), box=_box(place))
        for i, (place, score) in enumerate(zip(ndimage.find_objects(labels), scores, strict=True))
    )
    return Segmentation(
        labels=labels.astype(label_dtype(len(records))),
        grid=scene.grid,
        kind="instance",
        classes={1: recorded.classes.get(1, "object")},
        instances=records,
        meta=recorded.describe(),
    )


def _box(place: Part) -> tuple[float, float, float, float]:
    rows, cols = place
    return float(cols.start), float(rows.start), float(cols.stop - 1), float(rows.stop - 1)


def _semantic(scene: Scene, labels: Array, recorded: Recorded) -> Segmentation:
    return Segmentation(
        labels=labels, grid=scene.grid, kind="semantic", classes=dict(recorded.classes), meta=recorded.describe()
    )
