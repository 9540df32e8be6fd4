"""Prompts without labels: the teacher's own objects, and first prompts for them.

Clicks where the student is wrong come from :mod:`samgraft.adapters.prompts.clicks`.

Coordinates are (x, y) pixels of a square view of some side; 0 is the first pixel's centre, a box holds its first and
last pixel. A mask cell is a pixel of the decoder's logits.

Source:
    Prompts in the loop, EdgeSAM, arXiv:2312.06660, section 3: a box or a point starts, and further points are drawn
    where student and teacher disagree. There objects come from the data set's masks, here from the frozen teacher.
"""

from dataclasses import dataclass, replace

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import boxes_of

LEAST_CELLS = 6
"""Smallest object in mask cells."""
LARGEST_SHARE = 0.6
"""Largest object as a share of the view; more is background."""
SAME_OBJECT = 0.7
"""Boxes with a larger IoU belong to the same object."""
INNER_POINTS = 8
"""Points kept inside each object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """What the teacher finds in one view, the most certain first. Whole mask cells, so that fp16 keeps them."""

    boxes: Tensor
    """(m, 4) first and last column and row of each mask: x0, y0, x1, y1."""
    points: Tensor
    """(m, INNER_POINTS, 2) cells inside each mask, (x, y)."""
    cells: int
    """Mask cells per side of the view."""

    def __len__(self) -> int:
        """Number of objects, at least 1."""
        return len(self.boxes)

    def pixel_boxes(self, side: int) -> Tensor:
        """(m, 4) boxes in pixels of a view of ``side``: the outer edges of cells become outer edges of pixels."""
        unit = side / self.cells
        low, high = self.boxes[:, :2] * unit, (self.boxes[:, 2:] + 1) * unit - 1
        return torch.cat([low, torch.maximum(high, low)], dim=1)

    def pixel_points(self, side: int) -> Tensor:
        """(m, INNER_POINTS, 2) centres of cells in pixels of a view of ``side``."""
        return (self.points + 0.5) * (side / self.cells) - 0.5


def choose_objects(logits: Tensor, iou: Tensor, most: int, generator: torch.Generator) -> Objects:
    """Pick objects among candidate masks of one view by predicted IoU; near duplicates go.

    Args:
        logits: (n, s, s) mask logits.
        iou: (n,) predicted IoU.
        most: Objects kept at most.
        generator: Draws the inner points, on the CPU.

    Returns:
        At least one object: where no mask is usable, the middle of the view stands for one.
    """
    side = logits.shape[-1]
    masks = logits.cpu() > 0
    area = masks.flatten(1).sum(1)
    usable = (area >= LEAST_CELLS) & (area <= LARGEST_SHARE * side * side)
    masks, score = masks[usable], iou.cpu().float()[usable]
    if not len(masks):
        middle = torch.tensor([[side // 4, side // 4, side - 1 - side // 4, side - 1 - side // 4]]).float()
        return Objects(boxes=middle, points=torch.full((1, INNER_POINTS, 2), float(side // 2)), cells=side)
    boxes = boxes_of(masks)
    edges = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)
    keep = torch.as_tensor(non_max_suppression(edges, score, SAME_OBJECT))[:most]
    chance = masks[keep].float() * (1 + torch.rand((len(keep), side, side), generator=generator))
    picked = chance.flatten(1).topk(min(INNER_POINTS, LEAST_CELLS), dim=1).indices
    picked = picked[:, torch.arange(INNER_POINTS) % picked.shape[1]]
    points = torch.stack([picked % side, picked // side], dim=-1).float()
    return Objects(boxes=boxes[keep], points=points, cells=side)


def first_prompts(
    objects: list[Objects], *, side: int, count: int, by_box: bool, generator: torch.Generator
) -> Prompts:
    """``count`` objects of every view, drawn with replacement where there are fewer; a box or one inner point each.

    Args:
        objects: Of each of B views.
        side: Side of the views in pixels.
        count: Prompts per view.
        by_box: Boxes, else points.
        generator: On the CPU.

    Returns:
        B * count prompts, view by view.
    """
    boxes, points = [], []
    for own in objects:
        order = torch.randperm(len(own), generator=generator)
        rows = order[torch.arange(count) % len(own)]
        column = torch.randint(INNER_POINTS, (count,), generator=generator)
        boxes.append(own.pixel_boxes(side)[rows])
        points.append(own.pixel_points(side)[rows, column])
    index = torch.arange(len(objects)).repeat_interleave(count)
    if by_box:
        return Prompts(image_index=index, boxes=torch.cat(boxes))
    labels = torch.ones(len(index), 1, dtype=torch.int64)
    return Prompts(image_index=index, points=torch.cat(points)[:, None], labels=labels)


def box_prompts(objects: list[Objects], *, side: int, most: int) -> Prompts:
    """The boxes of the first ``most`` objects of every view, as they are."""
    kept = [own.pixel_boxes(side)[:most] for own in objects]
    index = torch.cat([torch.full((len(boxes),), i, dtype=torch.int64) for i, boxes in enumerate(kept)])
    return Prompts(image_index=index, boxes=torch.cat(kept))


def scale_prompts(prompts: Prompts, factor: float) -> Prompts:
    """The same places in a view that is ``factor`` times larger: centres of points, outer edges of boxes."""
    if factor == 1.0:
        return prompts
    points, boxes = prompts.points, prompts.boxes
    if boxes is not None:
        low, high = boxes[:, :2] * factor, (boxes[:, 2:] + 1) * factor - 1
        boxes = torch.cat([low, torch.maximum(high, low)], dim=1)
    return replace(prompts, points=None if points is None else (points + 0.5) * factor - 0.5, boxes=boxes)
