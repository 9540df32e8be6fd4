"""Training examples from scenes: a view, the masks to find in it, and simulated prompts for them.

Coordinates are (x, y) pixels with index 0 at the first pixel's centre; a box is (x0, y0, x1, y1), first and last pixel
inside. The same simulation serves pretraining and the zero-shot benchmark.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from samgraft.recipes.pretrain.scenes import make_sample

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One view with P objects to find."""

    image: Tensor
    """(3, S, S) in [0, 1]."""
    masks: Tensor
    """(P, S, S) float, 0 or 1."""
    regions: Tensor
    """(S, S) int64 region numbers, for the border task."""
    boxes: Tensor
    """(P, 4) xyxy."""
    points: Tensor
    """(P, 2) one point inside each object, (x, y)."""


def tight_box(mask: NDArray[np.bool_]) -> Array:
    """Smallest (x0, y0, x1, y1) around ``mask`` (H, W), first and last pixel inside."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([cols[0], rows[0], cols[-1], rows[-1]], dtype=np.float32)


def jitter_box(rng: np.random.Generator, box: Array, size: int) -> Array:
    """Four times out of five the box itself, else each side moved by about 5 % (at most 20 %) of the box's length."""
    if rng.random() < 0.8:
        return box
    length = np.array([box[2] - box[0], box[3] - box[1]] * 2) + 1
    moved = box + np.clip(rng.normal(0, 0.05, 4), -0.2, 0.2) * length
    moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
    return np.asarray(np.clip(moved, 0, size - 1), dtype=np.float32)


def inner_point(rng: np.random.Generator, mask: NDArray[np.bool_]) -> Array:
    """A point of ``mask``, more likely far from its border; (x, y)."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    weight = (distance.ravel() / distance.max()) ** float(rng.choice([0.0, 1.0, 3.0]))
    weight[~mask.ravel()] = 0
    index = int(np.searchsorted(np.cumsum(weight), rng.random() * weight.sum(), side="right"))
    row, col = np.unravel_index(min(index, mask.size - 1), mask.shape)
    return np.array([col, row], dtype=np.float32)


def make_examples(seed: int, *, size: int, prompts: int, views: int) -> list[Example]:
    """Draw one scene and ``views`` views of it, some of them zoomed onto an object."""
    rng = np.random.default_rng([seed, 1])
    sample = make_sample(seed, size)
    image, regions = torch.from_numpy(sample.image), torch.from_numpy(sample.regions).long()
    area = sample.masks.sum((1, 2)).astype(np.float64)
    keep = rng.choice(len(area), min(len(area), 16), replace=False, p=area**0.5 / (area**0.5).sum())
    masks = sample.masks[keep]
    examples = []
    for _ in range(views):
        view = _zoom(rng, masks, size) if rng.random() < 0.6 else torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
        example = _view(rng, image, masks, regions, view, prompts)
        if example is not None:
            examples.append(example)
    return examples


def _zoom(rng: np.random.Generator, masks: NDArray[np.bool_], size: int) -> Tensor:
    """Affine (2, 3) in normalised coordinates of a square window 1.2 to 3 times the longest side of one object."""
    box = tight_box(masks[int(rng.integers(len(masks)))])
    side = max(box[2] - box[0], box[3] - box[1]) + 1
    window = float(np.clip(side * np.exp(rng.uniform(np.log(1.2), np.log(3.0))), 16, 1.4 * size))
    slack = max(0.0, (window - side) / 2)
    center = (box[:2] + box[2:]) / 2 + rng.uniform(-0.7, 0.7, 2) * slack
    scale = window / size
    shift = (center + 0.5) / size * 2 - 1
    return torch.tensor([[scale, 0, shift[0]], [0, scale, shift[1]]], dtype=torch.float32)


def _view(
    rng: np.random.Generator, image: Tensor, masks: NDArray[np.bool_], regions: Tensor, view: Tensor, prompts: int
) -> Example | None:
    size = image.shape[-1]
    stack = torch.cat([image, torch.from_numpy(masks).float()])[None]
    grid = F.affine_grid(view[None], [1, 1, size, size], align_corners=False)
    warped = F.grid_sample(stack, grid, padding_mode="border", align_corners=False)[0]
    labels = F.grid_sample(
        regions[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )[0, 0]
    found = _redraw(rng, warped[3:], size) > 0.5
    area = found.flatten(1).sum(1)
    usable = torch.nonzero((area >= 12) & (area <= 0.9 * size * size)).flatten()
    if len(usable) == 0:
        return None
    weight = area[usable].double().numpy() ** 0.4
    picked = usable[rng.choice(len(usable), prompts, replace=len(usable) < prompts, p=weight / weight.sum())]
    turns, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
    picture, target, labels = (_turn(t, turns, flip) for t in (warped[:3], found[picked], labels))
    hard = target.numpy()
    boxes = np.stack([jitter_box(rng, tight_box(m), size) for m in hard])
    points = np.stack([inner_point(rng, m) for m in hard])
    return Example(picture, target.float(), labels.long(), torch.from_numpy(boxes), torch.from_numpy(points))


def _redraw(rng: np.random.Generator, masks: Tensor, size: int) -> Tensor:
    """One time in four, outlines a little outside or inside the visible edge, as people draw them; the box follows."""
    choice = rng.random()
    if choice > 0.25:
        return masks
    width = 2 * int(rng.integers(1, 1 + max(1, size // 48))) + 1
    if choice < 0.17:
        return F.max_pool2d(masks, width, 1, width // 2)
    thinner = 1 - F.max_pool2d(1 - masks, width, 1, width // 2)
    kept = thinner.flatten(1).sum(1) > 0.5 * masks.flatten(1).sum(1)  # never eat up what is thin
    return torch.where(kept[:, None, None], thinner, masks)


def _turn(tensor: Tensor, turns: int, flip: bool) -> Tensor:
    tensor = torch.rot90(tensor, turns, (-2, -1))
    return (tensor.flip(-1) if flip else tensor).contiguous()


class ProceduralStream(IterableDataset[tuple[Tensor, ...]]):
    """Endless examples; scene ``n`` of worker ``w`` of ``k`` has seed ``first + n * k + w``: a run can be continued."""

    def __init__(self, *, first: int, size: int, prompts: int, views: int = 4) -> None:
        """Remember where to start."""
        self.first, self.size, self.prompts, self.views = first, size, prompts, views

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield (image, masks, regions, boxes, points) of one example after the other, views of a scene far apart."""
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        seed, step = (self.first + info.id, info.num_workers) if info else (self.first, 1)
        pool: list[Example] = []
        shuffle = np.random.default_rng(seed)
        while True:
            while len(pool) < 48:
                pool += make_examples(seed, size=self.size, prompts=self.prompts, views=self.views)
                seed += step
            e = pool.pop(int(shuffle.integers(len(pool))))
            yield e.image, e.masks, e.regions, e.boxes, e.points
