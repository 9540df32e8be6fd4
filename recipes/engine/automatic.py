"""An adapter on a new scene, without prompts: everything that decides the result is read from the adapter's header.

Volumes go slice by slice, pictures and rasters whole or in overlapping windows whose logits are blended. A raster is
read ahead in a thread and finished strip by strip, so memory follows the width of the raster and the window, not its
area.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
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
from samgraft.recipes.data.cases import CaseArrays, to_bytes
from samgraft.recipes.data.fit import Fit, blend_weight, windows
from samgraft.recipes.engine.planes import Plane, plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.inference import slice_probabilities
from samgraft.recipes.instances import instances_from_probabilities
from samgraft.recipes.prompting import coarsest_axis

T = TypeVar("T")
Track = Callable[[Sequence[Any], str], Iterator[Any]]
"""Wraps a loop to show its progress."""
Part = tuple[slice, slice]
IN_MEMORY = 2**30
"""Probabilities of a raster up to this many bytes stay in memory, larger ones in a temporary file (instances only)."""


def segment_automatic(
    scene: Scene, grafted: Grafted, recorded: Recorded, *, batch: int = 16, track: Track | None = None
) -> Segmentation:
    """Class map or instance map of a scene.

    Args:
        scene: Where to look; read slice by slice or window by window.
        grafted: The adapter on its backbone.
        recorded: What the adapter's header says.
        batch: Network inputs per call.
        track: Wraps the loop over slices or windows.

    Raises:
        ConfigError: an adapter for objects on a volume.
        InputError: the scene has not the channels that the adapter was trained on, or is damaged.
    """
    if scene.kind == "volume":
        return _volume(scene, grafted, recorded, batch, track)
    plane = Plane(scene, recorded.look(scene))
    grafted.eval()
    rows = strips(class_logits(grafted), plane, recorded, batch=batch, track=track)
    if recorded.kind == "instance":
        return _instances(scene, plane, recorded, rows)
    labels = np.zeros(plane.shape, dtype=label_dtype(max(recorded.classes)))
    for span, probabilities in rows:
        labels[span] = probabilities.argmax(dim=0).numpy()
        labels[span][~plane.valid(span, slice(0, plane.shape[1]))] = 0
    return _semantic(scene, labels, recorded)


def class_logits(grafted: Grafted) -> Callable[[Tensor], Tensor]:
    """The network from (B, 3, S, S) in [0, 1] to logits (B, 1 + classes, s, s).

    Heads that answer through a sigmoid get a background channel of zeros, as in training.
    """
    device = next(grafted.backbone.parameters()).device

    def network(image: Tensor) -> Tensor:
        with torch.no_grad():
            output = grafted.predict(image.to(device))
        logits = output.logits.float().cpu()
        return logits if output.activation == "softmax" else torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)

    return network


def _volume(scene: Scene, grafted: Grafted, recorded: Recorded, batch: int, track: Track | None) -> Segmentation:
    """Slice by slice along the recorded axis."""
    if recorded.kind == "instance":
        raise ConfigError(f"{scene.path.name} is a volume; this adapter separates objects in pictures and rasters only")
    axis = coarsest_axis(scene.grid) if recorded.recipe.slice_axis is None else recorded.recipe.slice_axis
    case = volume_case(scene, recorded, axis)
    grafted.eval()
    labels = np.zeros(scene.grid.shape, dtype=label_dtype(max(recorded.classes)))
    stack = np.moveaxis(labels, axis, 0)  # a view: writing into it writes into labels
    found = slice_probabilities(
        class_logits(grafted),
        case,
        size=recorded.size,
        window=recorded.window,
        overlap=recorded.overlap,
        batch_size=batch,
    )
    for index in track(range(case.num_slices), "slices") if track else range(case.num_slices):
        number, probabilities = next(found)
        if number != index:
            raise RuntimeError(f"slice {number} came where {index} was due")
        stack[index] = probabilities.argmax(dim=0).numpy()
    labels[~scene.valid()] = 0
    return _semantic(scene, labels, recorded)


def volume_case(scene: Scene, recorded: Recorded, axis: int) -> CaseArrays:
    """A volume as the stack of 8-bit slices that training saw; labels are all 0."""
    look = recorded.look(scene)
    raw = np.moveaxis(scene.read(channels=look.channels), axis + 1, 0)  # (n, c, h, w)
    height, width = plane_shape(scene.grid.shape, axis)
    image = np.empty((len(raw), len(look.channels), height, width), dtype=np.uint8)
    for index, part in enumerate(raw):
        image[index] = to_bytes(look.apply(part)[: len(look.channels)])
    labels = np.broadcast_to(np.int8(0), (len(raw), height, width))
    return CaseArrays(
        id=scene.path.name,
        image=image,
        labels=labels,
        grid=scene.grid,
        axis=axis,
        neighbours=recorded.recipe.neighbours,
    )


def strips(
    network: Callable[[Tensor], Tensor], plane: Plane, recorded: Recorded, *, batch: int, track: Track | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, class probabilities (K, rows, W)) from top to bottom, each row once.

    Logits of overlapping windows are blended; windows without valid pixels are not computed.
    """
    places = windows(plane.shape, recorded.window, recorded.overlap)
    chunks = [
        (top, list(group[i : i + batch]))
        for top, group in ((t, list(g)) for t, g in groupby(places, key=lambda place: place[0].start))
        for i in range(0, len(group), batch)
    ]
    total, mass, top = torch.zeros(0), torch.zeros(0), 0
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(_squares, plane, chunks[0][1], recorded.size)
        for number in track(range(len(chunks)), "windows") if track else range(len(chunks)):
            start, parts = chunks[number]
            squares, useful = ahead.result()
            if number + 1 < len(chunks):
                ahead = reader.submit(_squares, plane, chunks[number + 1][1], recorded.size)
            logits = _compute(network, squares, useful, recorded.channels_out)
            if start > top:  # rows above the next windows are finished
                yield _finished(total, mass, top, start)
            if number == 0 or start > top:
                height = parts[0][0].stop - parts[0][0].start
                total, mass = (
                    _shift(total, start - top, (logits.shape[1], height, plane.shape[1])),
                    _shift(mass, start - top, (height, plane.shape[1])),
                )
                top = start
            for one, (rows, cols) in zip(logits, parts, strict=True):
                fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=recorded.size)
                weight = blend_weight(*fit.source)
                total[:, :, cols] += fit.back(one[None])[0] * weight
                mass[:, cols] += weight
    yield _finished(total, mass, top, plane.shape[0])


def _squares(plane: Plane, parts: Sequence[Part], size: int) -> tuple[Tensor, list[bool]]:
    """Network inputs (B, 3, S, S) of windows, through the 8 bits that training saw; and which have valid pixels."""
    squares, useful = [], []
    for rows, cols in parts:
        pixels = torch.from_numpy(to_bytes(plane.read(rows, cols))).float() / 255
        squares.append(Fit(source=(pixels.shape[1], pixels.shape[2]), size=size).image(pixels))
        useful.append(bool(plane.valid(rows, cols).any()))
    return torch.stack(squares), useful


def _compute(network: Callable[[Tensor], Tensor], squares: Tensor, useful: list[bool], channels: int) -> Tensor:
    """Logits of every window; zeros where nothing is valid."""
    if not any(useful):
        return torch.zeros(len(squares), channels, squares.shape[-1] // 2, squares.shape[-1] // 2)
    chosen = torch.tensor(useful)
    some = network(squares[chosen])
    logits = torch.zeros(len(squares), *some.shape[1:])
    logits[chosen] = some
    return logits


def _finished(total: Tensor, mass: Tensor, top: int, stop: int) -> tuple[slice, Tensor]:
    rows = stop - top
    return slice(top, stop), (total[:, :rows] / mass[:rows]).softmax(dim=0)


def _shift(old: Tensor, rows: int, shape: tuple[int, ...]) -> Tensor:
    """Drop the first ``rows`` of the row axis (the second last) and fill up with zeros to ``shape``."""
    new = torch.zeros(shape)
    if old.numel():
        kept = old[..., rows:, :]
        new[..., : kept.shape[-2], :] = kept
    return new


def _instances(scene: Scene, plane: Plane, recorded: Recorded, rows: Iterator[tuple[slice, Tensor]]) -> Segmentation:
    """Objects from interior and border probabilities."""
    shape = (3, *plane.shape)
    with tempfile.TemporaryDirectory(prefix="samgraft-") as folder:
        large = 4 * int(np.prod(shape)) > IN_MEMORY
        probabilities: NDArray[np.float32] = (
            np.memmap(f"{folder}/probabilities", dtype=np.float32, mode="w+", shape=shape)
            if large
            else np.zeros(shape, dtype=np.float32)
        )
        for span, part in rows:
            probabilities[:, span] = part.numpy()
            missing = ~plane.valid(span, slice(0, plane.shape[1]))
            probabilities[0, span][missing] = 1.0
            probabilities[1:, span][:, missing] = 0.0
        area = max(1, round(recorded.recipe.min_area * recorded.scale(plane.shape) ** 2))
        labels, scores = instances_from_probabilities(probabilities, min_area=area)
        del probabilities
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
