"""Everything in a picture, without prompts and without an adapter: a grid of points, and the answers worth keeping.

A mask is kept if the decoder believes in it (predicted IoU), if it hardly changes with the threshold (stability), and
if no better mask has nearly the same box (NMS). What is left is an instance map; where masks overlap the better one is
on top.

Source:
    Segment Anything, arXiv:2304.02643, section B (filters); ``monai.data.box_utils.non_max_suppression``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.grid import grid_points
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError
from samgraft.recipes.data.fit import windows as tiling
from samgraft.recipes.engine.focus import ObjectMask, network_size
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.engine.prompted import paint
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
    chunk: int = 64
    """Points decoded together."""


def segment_everything(
    scene: Scene,
    backbone: Backbone,
    *,
    config: EverythingConfig | None = None,
    size: int | None = None,
    bands: Sequence[int] | None = None,
    track: Callable[[Sequence[Window], str], Iterator[Window]] | None = None,
) -> Segmentation:
    """Instance map of a picture or raster.

    Args:
        scene: Picture or raster.
        backbone: Any backbone.
        config: Thresholds.
        size: Network size; None takes the native one.
        bands: Channels shown as red, green, blue.
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
    found: list[ObjectMask] = []
    places = _windows(plane.shape, chosen, config)
    for window in track(places, "windows") if track else places:
        found += _in_window(backbone, plane, window, config, chosen)
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


@torch.no_grad()
def _in_window(
    backbone: Backbone, plane: Plane, window: Window, config: EverythingConfig, size: int
) -> list[ObjectMask]:
    """Masks of one window that pass the filters."""
    rows, cols = window.clipped(plane.shape)
    valid = plane.valid(rows, cols)
    if not valid.any():
        return []
    device = next(backbone.parameters()).device
    features = backbone.encode(to_network(plane.crop(window), size)[None].to(device))
    points = grid_points((rows.stop - rows.start, cols.stop - cols.start), config.points_per_side)
    pixel = points.round().long()
    points = points[torch.from_numpy(valid)[pixel[:, 1], pixel[:, 0]]].double()
    points = points + torch.tensor([cols.start, rows.start], dtype=torch.float64)
    points = scale_points(points[None], [window], size)[0].float()
    masks, scores, boxes = [], [], []
    for part in points.split(config.chunk):
        logits, iou = backbone.decode(features, _clicks(part).to(device), multimask=True)
        good, score = _filter(logits.flatten(0, 1).float().cpu(), iou.flatten().float().cpu(), config, size)
        masks.append(good)
        scores.append(score)
        boxes.append(_boxes(good))
    logits, iou = torch.cat(masks), torch.cat(scores)
    if not len(logits):
        return []
    keep = non_max_suppression(torch.cat(boxes), iou, config.nms)
    inner_rows, inner_cols = window.inner(plane.shape)
    return [
        ObjectMask(
            window=window,
            logits=from_network(logits[i : i + 1], window.side)[0, inner_rows, inner_cols].contiguous(),
            iou=min(1.0, max(0.0, float(iou[i]))),
            shape=plane.shape,
        )
        for i in keep.tolist()
    ]


def _clicks(points: Tensor) -> Prompts:
    count = len(points)
    labels = torch.ones(count, 1, dtype=torch.int64)
    return Prompts(image_index=torch.zeros(count, dtype=torch.int64), points=points[:, None], labels=labels)


def _filter(logits: Tensor, iou: Tensor, config: EverythingConfig, size: int) -> tuple[Tensor, Tensor]:
    """Keep (m, s, s) masks that are believed, stable, and neither tiny nor nearly everything."""
    area = (logits > 0).sum((1, 2))
    unit = (size / logits.shape[-1]) ** 2
    stability = (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2)).clamp_min(1)
    keep = (iou >= config.min_iou) & (stability >= config.min_stability)
    keep &= (area * unit >= config.min_area) & (area <= config.max_share * logits[0].numel())
    return logits[keep], iou[keep]


def _boxes(logits: Tensor) -> Tensor:
    """(m, 4) outer edges x0, y0, x1, y1 of masks, in mask pixels."""
    boxes = torch.zeros(len(logits), 4)
    for row, mask in enumerate(logits > 0):
        y, x = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        boxes[row] = torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1]).float()
    return boxes


def _suppress(found: Sequence[ObjectMask], threshold: float) -> list[ObjectMask]:
    """NMS over all windows together; masks that are empty on the picture vanish."""
    boxed = [(mask, box) for mask in found if (box := mask.box()) is not None]
    if not boxed:
        return []
    boxes = torch.tensor([[x0, y0, x1 + 1, y1 + 1] for _, (x0, y0, x1, y1) in boxed])
    keep = non_max_suppression(boxes, torch.tensor([mask.iou for mask, _ in boxed]), threshold)
    return [boxed[i][0] for i in keep.tolist()]
