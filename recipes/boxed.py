"""How well the frozen backbone draws objects that it is told of by their boxes.

Of the true objects of training images this says what boxes are worth for a structure: nuclei and tumours are drawn
well, a tree of vessels is not. An adapter's header remembers it (``training.box_iou``). What the adapter finds on other
images should be drawn about as well: what is drawn much worse, or much better, is something else.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.bundle import read_meta, replace_meta
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import boxes_of

KEY = "box_iou"
"""Of ``BundleMeta.training``."""
INPUTS = 24
"""Network inputs of training images that are looked at."""
FEWEST = 5
"""Fewer objects say nothing."""
MOST_OBJECTS = 8
"""Objects per image that are asked of the frozen backbone, the largest first."""
LEAST_PIXELS = 12
"""Smaller objects are not asked about."""
BATCH = 8


def largest_objects(labels: Tensor, *, apart: bool) -> tuple[Tensor, Tensor]:
    """The largest objects of each image: image_index (M,) and masks (M, S, S) bool.

    Args:
        labels: (N, S, S) objects, or classes whose connected parts are the objects; negative where unknown.
        apart: Which of the two.
    """
    index, masks = [], []
    for image, one in enumerate(labels):
        parts = one.clamp_min(0) if apart else components(one)
        areas = torch.bincount(parts.flatten())
        areas[0] = 0
        for value in areas.argsort(descending=True)[:MOST_OBJECTS].tolist():
            if int(areas[value]) >= LEAST_PIXELS:
                index.append(image)
                masks.append(parts == value)
    if not index:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, *labels.shape[1:], dtype=torch.bool)
    return torch.tensor(index), torch.stack(masks)


def components(classes: Tensor) -> Tensor:
    """(S, S) connected parts 1, 2, ... of each class."""
    parts = torch.zeros_like(classes)
    for value in classes[classes > 0].unique().tolist():
        own = torch.from_numpy(ndimage.label((classes == value).numpy())[0]).long()
        parts = torch.where(own > 0, own + parts.max(), parts)
    return parts


@torch.no_grad()
def ask_boxes(
    backbone: Backbone, features: Iterable[Features], labels: Tensor, *, apart: bool, device: torch.device
) -> tuple[dict[str, float], int]:
    """Objects asked of the frozen backbone by their boxes: "box_iou" and "predicted_iou", and how many were asked.

    Both are means over the objects, weighted by the root of their area; 0 without an object.

    Args:
        backbone: Without grafts.
        features: Of the images, some at a time.
        labels: (N, S, S) int64 on the CPU, as for :func:`largest_objects`.
        apart: As there.
        device: Where the backbone runs.
    """
    total, first, asked = torch.zeros(3), 0, 0
    for own in features:
        count = len(own.neck)
        index, masks = largest_objects(labels[first : first + count], apart=apart)
        first += count
        if not len(index):
            continue
        asked += len(index)
        prompts = Prompts(image_index=index, boxes=boxes_of(masks)).to(device)
        logits, believed = backbone.decode(Features(neck=own.neck.to(device)), prompts)
        large = functional.interpolate(
            logits.float().cpu(), size=masks.shape[-2:], mode="bilinear", align_corners=False
        )
        found = large[:, 0] > 0
        ious = (found & masks).flatten(1).sum(1) / (found | masks).flatten(1).sum(1).clamp_min(1)
        weight = masks.flatten(1).sum(1).float().sqrt()
        total += torch.stack(
            [(ious * weight).sum(), (believed[:, 0].float().cpu().clamp(0, 1) * weight).sum(), weight.sum()]
        )
    mass = max(float(total[2]), 1e-6)
    return {"box_iou": float(total[0]) / mass, "predicted_iou": float(total[1]) / mass}, asked


def remember_boxes(adapter: Path, grafted: Grafted, images: Tensor, labels: Tensor, *, apart: bool) -> None:
    """Write how well true objects of training images are drawn into the header of an adapter; the end of a fit.

    Args:
        adapter: The file; it stays as it is where there are too few objects.
        grafted: The adapter's parts on the backbone; taken out and put back.
        images: (N, 3, S, S) uint8 network inputs.
        labels: (N, S, S) classes or objects, negative where unknown.
        apart: Whether labels number objects.
    """
    device = next(grafted.backbone.parameters()).device
    inside, backbone = grafted.attached, grafted.detach()
    try:
        with torch.no_grad():
            features = (backbone.encode(part.to(device).float() / 255) for part in images.split(BATCH))
            figures, asked = ask_boxes(backbone, features, labels.long().cpu(), apart=apart, device=device)
    finally:
        if inside:
            grafted.install()
    if asked >= FEWEST:
        meta = read_meta(adapter)
        replace_meta(adapter, replace(meta, training={**meta.training, KEY: round(figures[KEY], 4)}))
