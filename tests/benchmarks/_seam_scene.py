"""The scene of the seam benchmark, oracles that see it tile by tile, and how a result is judged.

At 4096 x 4096 the scene has 901 objects: 3 roads across all of it, 8 discs of 150 to 330 px radius, 400 buildings that
touch in blocks, 490 discs of 4 to 30 px radius. No two overlap. Other sizes have the same density; in small ones the
large discs are smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.plan import Part, Tile, shape_of, shared, within

Labels = NDArray[np.int32]
_PAD = 2


@dataclass(frozen=True, eq=False)
class Scene:
    """What is there."""

    labels: Labels
    """(H, W): 0 nothing, 1 to n the objects in raster scan order of their first pixels."""
    boxes: list[Part]
    """Of every object, in order of its label."""

    def window(self, part: Part) -> Part:
        """``part`` with two more pixels on every side, inside the scene."""
        rows, cols = (
            slice(max(0, p.start - _PAD), min(n, p.stop + _PAD)) for p, n in zip(part, self.labels.shape, strict=True)
        )
        return rows, cols


def scene(side: int = 4096, seed: int = 0) -> Scene:
    """Make the scene."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((side, side), dtype=np.int32)
    share = (side / 4096) ** 2
    count = 0
    for number in range(3):
        x = np.arange(side)
        middle = side * (0.18 + 0.3 * number) + 0.06 * x + 25 * np.sin(x / 260 + number)
        half = 5 + 1.5 * number
        count += 1
        labels[np.abs(np.arange(side)[:, None] - middle) <= half] = count
    for _ in range(max(1, round(8 * share))):
        count += 1
        _put(labels, generator, (min(150, side // 16), min(330, side // 10)), count)
    blocks = max(1, round(40 * share))
    for _ in range(blocks):
        count = _block(labels, generator, count)
    for _ in range(max(1, round(490 * share))):
        count += 1
        _put(labels, generator, (4, 30), count)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.zeros(count + 1, dtype=np.int32)
    rank[np.argsort(first[1:]) + 1] = np.arange(1, count + 1)  # fails if an object was hidden: fewer than drawn
    labels = rank[inverse].reshape(labels.shape)
    return Scene(labels, [box for box in ndimage.find_objects(labels) if box is not None])


def _put(labels: Labels, generator: np.random.Generator, radii: tuple[int, int], label: int) -> None:
    """A disc where there is room, at least two pixels from anything else."""
    side = len(labels)
    for _ in range(10_000):
        radius = int(generator.integers(radii[0], radii[1] + 1))
        reach = radius + 3
        row, col = generator.integers(reach, side - reach, 2)
        part = slice(row - reach, row + reach + 1), slice(col - reach, col + reach + 1)
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        distance = np.hypot(y, x)
        if not labels[part][distance < radius + 3].any():
            labels[part][distance <= radius] = label
            return
    raise RuntimeError("no room for another disc; take a larger scene")


def _block(labels: Labels, generator: np.random.Generator, count: int) -> int:
    """Two rows of five buildings that touch."""
    side = len(labels)
    heights, widths = generator.integers(20, 41, 2), generator.integers(18, 45, (2, 5))
    tall, wide = int(heights.sum()), int(widths.sum(axis=1).max())
    for _ in range(10_000):
        top, left = generator.integers(3, [side - tall - 3, side - wide - 3])
        if labels[top - 3 : top + tall + 3, left - 3 : left + wide + 3].any():
            continue
        for row in range(2):
            x = left
            for width in widths[row]:
                count += 1
                labels[top : top + heights[row], x : x + width] = count
                x += width
            top += heights[row]
        return count
    raise RuntimeError("no room for another block; take a larger scene")


def oracle(of: Scene, tile: Tile) -> TileObjects:
    """The true objects, cut at the window, in as many parts as it shows."""
    cut = of.labels[tile.window]
    present = np.flatnonzero(np.bincount(cut.ravel(), minlength=len(of.boxes) + 1))
    present = present[present > 0]
    table = np.zeros(len(of.boxes) + 1, dtype=np.int32)
    table[present] = np.arange(1, len(present) + 1)
    labels, count = table[cut], len(present)
    for label in present.tolist():
        common = shared(of.boxes[label - 1], tile.window)
        if common is not None and common != of.boxes[label - 1]:
            count = _split(labels[within(common, tile.window)], int(table[label]), count)
    return TileObjects(labels, np.ones(count, np.int32), np.ones(count, np.float32))


def _split(labels: Labels, label: int, count: int) -> int:
    """Give the second and later parts of a label labels of their own; how many there are then."""
    parts, found = ndimage.label(labels == label)
    for part in range(2, found + 1):
        count += 1
        labels[parts == part] = count
    return count


def jittered(of: Scene, tile: Tile, *, seed: int = 0, drop: float = 0.05) -> TileObjects:
    """As the oracle, but in every tile anew each object is drawn a pixel smaller, as it is, or a pixel larger.

    Args:
        of: The scene.
        tile: Which part of it.
        seed: Of the disturbance; with the tile's number.
        drop: Share of the objects that are missed.
    """
    generator = np.random.default_rng((seed, tile.number))
    present = np.unique(of.labels[tile.window])
    labels, count = np.zeros(shape_of(tile.window), dtype=np.int32), 0
    for label in generator.permutation(present[present > 0]).tolist():
        change, missed = int(generator.integers(-1, 2)), generator.random() < drop
        part = shared(of.window(of.boxes[label - 1]), of.window(tile.window))
        if missed or part is None:
            continue
        mask = of.labels[part] == label
        if change:
            mask = ndimage.binary_dilation(mask) if change > 0 else ndimage.binary_erosion(mask, border_value=1)
        seen = shared(part, tile.window)
        if seen is not None and mask[within(seen, part)].any():
            count += 1
            labels[within(seen, tile.window)][mask[within(seen, part)]] = count
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        if box is not None:
            count = _split(labels[box], label, count)
    return TileObjects(labels, np.ones(count, np.int32), np.ones(count, np.float32))


def judge(truth: Labels, result: Labels) -> dict[str, int]:
    """How true objects fared; both maps number their objects in raster scan order of the first pixels, or in any.

    Returns:
        ``out``: objects in the result. Of the true ones: ``exact``: one object of the result has an IoU of 0.999 or
        more with it; ``split``: two or more objects of the result lie mostly in it; ``fused``: the object that covers
        most of it also covers most of another; ``dropped``: nothing lies mostly in it nor covers most of it.
    """
    n = int(truth.max()) + 1
    if np.array_equal(truth, result):
        return {"out": n - 1, "exact": n - 1, "split": 0, "fused": 0, "dropped": 0}
    joint, both = np.unique(result.astype(np.int64) * n + truth, return_counts=True)
    p, t = np.divmod(joint, n)
    areas_p = np.bincount(p, weights=both)
    areas_t = np.bincount(t, weights=both, minlength=n)
    inside = (p > 0) & (t > 0)
    p, t, both = p[inside], t[inside], both[inside]
    exact = both / (areas_p[p] + areas_t[t] - both) >= 0.999
    lies = np.bincount(t[both > 0.5 * areas_p[p]], minlength=n)
    covers = both > 0.5 * areas_t[t]
    covered = np.bincount(p[covers], minlength=len(areas_p))
    fused = np.zeros(n, dtype=bool)
    fused[t[covers & (covered[p] > 1)]] = True
    reached = lies > 0
    reached[t[covers]] = True
    return {
        "out": int((areas_p[1:] > 0).sum()),
        "exact": int(exact.sum()),
        "split": int((lies[1:] > 1).sum()),
        "fused": int(fused[1:].sum()),
        "dropped": int((~reached[1:]).sum()),
    }


def judge_boxes(truth: Sequence[Part], result: NDArray[np.int64]) -> dict[str, int | None]:
    """As :func:`judge`, for a result that has boxes only.

    A box belongs to the smallest true object's box in which more than half of its area lies. This leaves an object's
    fragments with it, and small objects within the box of a large one with themselves.

    Args:
        truth: The true objects' boxes.
        result: (n, 4) top, left, bottom, right, the last two exclusive.

    Returns:
        ``out``: boxes in the result. Of the true ones: ``exact``: one box belongs to it and has an IoU of 0.999 or more
        with it; ``split``: two or more belong to it; ``dropped``: none does. ``fused`` is None: which of the objects
        under it a box stands for cannot be told.
    """
    true = np.array([[r.start, c.start, r.stop, c.stop] for r, c in truth], dtype=np.int64)
    areas_t, areas_p = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (true, result))
    low = np.maximum(result[:, None, :2], true[None, :, :2])
    high = np.minimum(result[:, None, 2:], true[None, :, 2:])
    both = np.prod(np.maximum(0, high - low), axis=2)
    inside = both > 0.5 * areas_p[:, None]
    owner = np.where(inside, areas_t, np.iinfo(np.int64).max).argmin(axis=1)
    owned = np.bincount(owner[inside.any(axis=1)], minlength=len(true))
    equal = (both / (areas_p[:, None] + areas_t - both) >= 0.999).any(axis=0)
    return {
        "out": len(result),
        "exact": int((equal & (owned == 1)).sum()),
        "split": int((owned > 1).sum()),
        "fused": None,
        "dropped": int((owned == 0).sum()),
    }


def in_parts(result: Labels) -> int:
    """Objects of a result whose pixels do not all touch, by edge or corner."""
    structure = np.ones((3, 3), dtype=bool)
    found = 0
    for label, box in enumerate(ndimage.find_objects(result), start=1):
        if box is not None:
            found += ndimage.label(result[box] == label, structure)[1] > 1
    return found
