"""Everything in a picture, without prompts and without an adapter: a grid of points, and the answers worth keeping.

A mask is kept if the decoder believes in it (predicted IoU), if it hardly changes with the threshold (stability), and
if no better mask has nearly the same box (NMS). What is left is an instance map; where masks overlap the better one is
on top.

Source:
    Segment Anything, arXiv:2304.02643, section B (filters); ``monai.data.box_utils.non_max_suppression``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.grid import grid_points
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError
from samgraft.recipes.data.fit import windows as tiling
from samgraft.recipes.engine.candidates import Found, best_masks
from samgraft.recipes.engine.focus import network_size
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch, pipeline
from samgraft.recipes.engine.planes import Plane, Rows, fill_window, look_at
from samgraft.recipes.engine.prompted import paint
from samgraft.recipes.engine.views import ObjectMask
from samgraft.recipes.engine.windows import Window, from_network, scale_points, to_network, whole_window

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """How much is asked, and what is kept."""

    points_per_side: int = 16
    """Points along each side of a window."""
    tile: int | None = None
    """Side of a window in pixels of the input; None takes twice the network size, or the whole if that is little
    more.
    """
    overlap: float = 0.25
    """Overlap of windows as a share of their side."""
    min_iou: float = 0.7
    """Least predicted IoU, 0 to 1."""
    min_stability: float = 0.8
    """Least IoU of the mask at logit +1 with the mask at logit -1, 0 to 1."""
    max_share: float = 0.6
    """Largest share of a window that a mask may cover; more is background."""
    nms: float = 0.5
    """Boxes with a larger IoU than this are the same object."""
    min_area: int = 12
    """Smallest mask, network pixels."""
    chunk: int | None = None
    """Points decoded together; None takes as many as the backbone's cache likes."""


def segment_everything(
    scene: Scene,
    backbone: Backbone,
    *,
    config: EverythingConfig | None = None,
    size: int | None = None,
    bands: Sequence[int] | None = None,
    batch: int | None = None,
    depth: int = DEPTH,
    track: Callable[[Sequence[Window], str], Iterator[Window]] | None = None,
) -> Segmentation:
    """Instance map of a picture or raster.

    Args:
        scene: Picture or raster.
        backbone: Any backbone.
        config: Thresholds.
        size: Network size; None takes the native one.
        bands: Channels shown as red, green, blue.
        batch: Windows encoded together; None chooses by their size.
        depth: Batches that may wait between reading, encoding and decoding; 0 does one after the other.
        track: Wraps the loop over windows, to show progress.

    Raises:
        ConfigError: the scene is a volume; slices would be unrelated.
    """
    if scene.kind == "volume":
        raise ConfigError(
            f"{scene.path.name} is a volume: without an adapter it needs a prompt on a slice "
            "(UserPrompts(boxes=..., slice=...)); or give adapter=..."
        )
    config = config or EverythingConfig()
    chosen = network_size(backbone, size)
    plane = Plane(scene, look_at(scene, bands))
    places = _windows(plane.shape, chosen, config)
    source = _batches(plane, places, config, chosen, encode_batch(backbone, chosen, batch))
    stages = (_encode(backbone), _decode(backbone, config, chosen))
    found: list[ObjectMask] = []
    with closing(pipeline(source, *stages, depth=depth)) as batches:
        answers = (answer for each in batches for answer in each.content)
        for window in track(places, "windows") if track else places:
            answer = next(answers)
            if answer is not None:
                found += _enlarge(answer, window, plane.shape)
    kept = _suppress(found, config.nms)
    labels, records = paint(kept, plane)
    return Segmentation(
        labels=labels,
        grid=scene.grid,
        kind="instance",
        classes={1: "object"},
        instances=records,
        meta={"mode": "everything", "backbone": backbone.spec.name},
    )


def _windows(shape: tuple[int, int], size: int, config: EverythingConfig) -> list[Window]:
    tile = config.tile or 2 * size
    if max(shape) <= 1.5 * tile and config.tile is None:
        return [whole_window(shape)]
    side = min(tile, max(shape))
    return [Window(top=rows.start, left=cols.start, side=side) for rows, cols in tiling(shape, side, config.overlap)]


@dataclass(eq=False)
class _Batch:
    """Windows that are encoded together, with what is asked in each."""

    points: list[Tensor]
    """(n, 2) network pixels per window; none where nothing is valid, and then it is not computed."""
    content: Any
    """Squares (3, S, S) of the windows with points, then their features, then per window what was found or None."""


def _batches(
    plane: Plane, places: Sequence[Window], config: EverythingConfig, size: int, batch: int
) -> Iterator[_Batch]:
    """Windows in order, ``batch`` with points at a time."""
    rows, waiting = Rows(plane), _Batch([], [])
    for window in places:
        pixels, valid = rows.read(*window.clipped(plane.shape))
        points = _grid(window, valid, plane.shape, config, size)
        waiting.points.append(points)
        if len(points):
            waiting.content.append(to_network(fill_window(pixels, window, plane.shape), size))
        if len(waiting.content) == batch or len(waiting.points) == 4 * batch:
            yield waiting
            waiting = _Batch([], [])
    if waiting.points:
        yield waiting


def _grid(
    window: Window, valid: NDArray[np.bool_], shape: tuple[int, int], config: EverythingConfig, size: int
) -> Tensor:
    """(n, 2) points of the grid on valid pixels, in network pixels."""
    rows, cols = window.clipped(shape)
    points = grid_points((rows.stop - rows.start, cols.stop - cols.start), config.points_per_side)
    pixel = points.round().long()
    points = points[torch.from_numpy(valid)[pixel[:, 1], pixel[:, 0]]].double()
    points = points + torch.tensor([cols.start, rows.start], dtype=torch.float64)
    return scale_points(points[None], [window], size)[0].float()


def _encode(backbone: Backbone) -> Callable[[_Batch], _Batch]:
    """Stage: squares to features."""
    device = next(backbone.parameters()).device

    def stage(batch: _Batch) -> _Batch:
        if batch.content:
            with torch.no_grad():
                batch.content = backbone.encode(torch.stack(batch.content).to(device)).neck
        return batch

    return stage


def _decode(backbone: Backbone, config: EverythingConfig, size: int) -> Callable[[_Batch], _Batch]:
    """Stage: features to the best masks of every window, at low resolution."""

    def test(logits: Tensor, iou: Tensor) -> Tensor:
        return _worth(logits, iou, config, size)

    def ask(neck: Tensor, points: Tensor) -> Found:
        prompts, features = _clicks(points).to(neck.device), Features(neck=neck[None])
        return best_masks(backbone, features, prompts, test=test, nms=config.nms, chunk=config.chunk)

    def stage(batch: _Batch) -> _Batch:
        necks = iter(batch.content)
        batch.content = [ask(next(necks), points) if len(points) else None for points in batch.points]
        return batch

    return stage


def _clicks(points: Tensor) -> Prompts:
    count = len(points)
    labels = torch.ones(count, 1, dtype=torch.int64)
    return Prompts(image_index=torch.zeros(count, dtype=torch.int64), points=points[:, None], labels=labels)


def _worth(logits: Tensor, iou: Tensor, config: EverythingConfig, size: int) -> Tensor:
    """Which of (m, s, s) masks are believed, stable, and neither tiny nor nearly everything: (m,) bool."""
    area = (logits > 0).sum((1, 2))
    unit = (size / logits.shape[-1]) ** 2
    stability = (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2)).clamp_min(1)
    keep = (iou >= config.min_iou) & (stability >= config.min_stability)
    return keep & (area * unit >= config.min_area) & (area <= config.max_share * logits[0].numel()) & (area > 0)


def _enlarge(found: Found, window: Window, shape: tuple[int, int]) -> Iterator[ObjectMask]:
    """Survivors on the pixels of the picture, each on a window of its own; what is empty there vanishes."""
    rows, cols = window.inner(shape)
    for logits, iou in zip(found.logits, found.iou.tolist(), strict=True):
        native = from_network(logits[None], window.side)[0, rows, cols]
        mask = ObjectMask(window=window, logits=native, iou=min(1.0, max(0.0, iou)), shape=shape)
        box = mask.box()
        if box is not None:
            yield _tight(mask, box)


def _tight(mask: ObjectMask, box: Box) -> ObjectMask:
    """The same mask on the smallest square that holds it: all objects of a raster are kept until the end."""
    left, top, right, bottom = (int(v) for v in box)
    window = Window(top=top, left=left, side=max(right - left, bottom - top) + 1)
    rows, cols = window.clipped(mask.shape)
    above, before = mask.place[0].start, mask.place[1].start
    stop = (min(rows.stop, mask.place[0].stop), min(cols.stop, mask.place[1].stop))
    part = mask.logits[rows.start - above : stop[0] - above, cols.start - before : stop[1] - before]
    logits = torch.full((rows.stop - rows.start, cols.stop - cols.start), -1.0)
    logits[: part.shape[0], : part.shape[1]] = part
    return ObjectMask(window=window, logits=logits, iou=mask.iou, shape=mask.shape)


def _suppress(found: Sequence[ObjectMask], threshold: float) -> list[ObjectMask]:
    """NMS over all windows together; masks that are empty on the picture vanish."""
    boxed = [(mask, box) for mask in found if (box := mask.box()) is not None]
    if not boxed:
        return []
    boxes = torch.tensor([[x0, y0, x1 + 1, y1 + 1] for _, (x0, y0, x1, y1) in boxed])
    keep = non_max_suppression(boxes, torch.tensor([mask.iou for mask, _ in boxed]), threshold)
    return [boxed[i][0] for i in keep.tolist()]
