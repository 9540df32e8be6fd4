"""Distance maps as a source of prompts: every object that the maps show is asked of the frozen mask decoder.

The watershed's objects give a point each (the pixel of the object's seed that is nearest to a centre and deepest), and
if wanted their box; the decoder answers with a mask per object, and of masks that are nearly the same one stays.

    maps (B, 3, H, W) -> seeds, watershed -> points, boxes -> backbone.decode -> mask NMS -> FoundObjects

Source:
    micro-sam (computational-cell-analytics/micro-sam), automatic prompt generation; described in
    ``samgraft.adapters.decoders.distances``, with what differs.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.distance_maps import objects_from_distances, seeds
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.object_masks import best_of_each_image
from samgraft.adapters.prompts.objects import FoundObjects

if TYPE_CHECKING:
    from samgraft.adapters.decoders.distances import DistancesConfig


def object_prompts(maps: Tensor, config: "DistancesConfig") -> Prompts:
    """One prompt per object of the maps, with the agreement of the watershed's object as ``scores``.

    Args:
        maps: (B, 3, H, W) in [0, 1], at the size of the network input.
        config: Thresholds, and whether boxes are given.
    """
    index: list[int] = []
    points: list[NDArray[np.float64]] = []
    boxes: list[NDArray[np.float64]] = []
    scores: list[NDArray[np.float32]] = []
    for number, one in enumerate(maps.detach().float().cpu().numpy()):
        labels, agreed = objects_from_distances(one, min_area=config.smallest, **config.thresholds())
        index += [number] * len(agreed)
        points.append(_centres(one, labels, config))
        boxes.append(_boxes(labels, config.box_margin or 0.0))
        scores.append(agreed)
    device = maps.device
    points_of_all = torch.from_numpy(np.concatenate(points)).float().to(device)
    return Prompts(
        image_index=torch.tensor(index, dtype=torch.int64, device=device),
        points=points_of_all[:, None],
        labels=torch.ones(len(index), 1, dtype=torch.int64, device=device),
        boxes=None if config.box_margin is None else torch.from_numpy(np.concatenate(boxes)).float().to(device),
        scores=torch.from_numpy(np.concatenate(scores)).to(device),
    )


def _centres(maps: NDArray[np.float32], labels: NDArray[np.int32], config: "DistancesConfig") -> NDArray[np.float64]:
    """(n, 2) points (x, y) of the objects 1..n: where the sum of both distances is least, within the seed."""
    count = int(labels.max(initial=0))
    if count == 0:
        return np.zeros((0, 2))
    started = seeds(maps, **config.thresholds()) > 0
    where = ndimage.minimum_position(np.where(started, 0.0, 2.0) + maps[1] + maps[2], labels, np.arange(1, count + 1))
    return np.asarray(where, dtype=np.float64)[:, ::-1]


def _boxes(labels: NDArray[np.int32], margin: float) -> NDArray[np.float64]:
    """(n, 4) boxes x0, y0, x1, y1 of the objects 1..n, wider by ``margin`` times their sides, within the picture."""
    height, width = labels.shape
    found = np.zeros((int(labels.max(initial=0)), 4))
    for row, place in enumerate(ndimage.find_objects(labels)):
        rows, cols = place
        wide, high = margin * (cols.stop - cols.start), margin * (rows.stop - rows.start)
        found[row] = cols.start - wide, rows.start - high, cols.stop - 1 + wide, rows.stop - 1 + high
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    return np.clip(found, 0, limit)


def objects_from_points(
    backbone: Backbone, features: Features, maps: Tensor, config: "DistancesConfig"
) -> FoundObjects:
    """Masks of the frozen decoder for every object that the maps show.

    Args:
        backbone: Decodes.
        features: Of the same images.
        maps: (B, 3, H, W) in [0, 1], at the size of the network input.
        config: Thresholds, boxes, NMS.

    Returns:
        Objects with a mask that is not empty; their scores are predicted IoU (clipped to [0, 1]) times agreement.
    """
    prompts = object_prompts(maps, config)
    if prompts.scores is None or len(prompts) == 0:
        patch = backbone.spec.patch_size
        shape = (0, *(4 * side // patch for side in maps.shape[-2:]))
        none = prompts.image_index
        return FoundObjects(image_index=none, logits=maps.new_zeros(shape), scores=maps.new_zeros(0), classes=none)
    logits, iou = (part[:, 0] for part in backbone.decode(features, prompts))
    found = FoundObjects(
        image_index=prompts.image_index,
        logits=logits,
        scores=iou.float().clamp(0, 1) * prompts.scores.to(iou.device, torch.float32),
        classes=torch.zeros_like(prompts.image_index),
    )
    found = found.select((logits > 0).flatten(1).any(dim=1))
    return found.select(best_of_each_image(found, config.nms))
