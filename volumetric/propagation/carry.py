"""What the mask of one slice becomes on the next: a prior, and prompts made of it.

Source:
    Box, mask logits (log-odds of 0.999), points or several of them: micro-sam, prompt_based_segmentation.py
    (``segment_from_mask``).
Deviations:
    Distances are in mm, and the box grows with the distance between slices. Points are taken deepest first, each
    outside the disc that the one before fills, where micro-sam takes peaks of the distance map at a fixed distance.
"""

import numpy as np
from scipy import ndimage

from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.slices import Box, Float, Mask, SlicePrompt, box_of

Plane = tuple[float, float]
"""Spacing along rows and columns, mm."""


def soft_prior(previous: Mask, reach: float, plane: Plane) -> Float:
    """(H, W) in [0, 1]: where the object may be one slice on, if its edge moves by at most ``reach`` mm.

    1 deeper than ``reach`` inside the previous mask, 0 farther than that outside, 0.5 on its edge, linear between.

    Args:
        previous: (H, W), not empty.
        reach: mm.
        plane: Spacing along rows and columns, mm.
    """
    half = 0.5 * min(plane)
    inside = ndimage.distance_transform_edt(np.pad(previous, 1), sampling=plane)[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~previous, sampling=plane)
    signed = np.where(previous, inside - half, half - outside)
    return np.asarray(np.clip(0.5 + 0.5 * signed / reach, 0.0, 1.0), dtype=np.float32)


def within_reach(mask: Mask, previous: Mask, reach: float, plane: Plane) -> Mask:
    """The part of ``mask`` at most ``reach`` mm away from ``previous``, pixel centre to pixel centre."""
    near = ndimage.distance_transform_edt(~previous, sampling=plane) <= reach + 1e-6
    return np.asarray(mask & near)


def deep_points(mask: Mask, count: int, plane: Plane) -> list[tuple[float, float, int]]:
    """Up to ``count`` points (x, y, 1) of a mask, deepest first, each outside the disc that one before fills.

    Args:
        mask: (H, W).
        count: At most so many.
        plane: Spacing along rows and columns, mm.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=plane)[1:-1, 1:-1]
    rows, cols = np.indices(mask.shape)
    found: list[tuple[float, float, int]] = []
    while len(found) < count and depth.max(initial=0.0) > 0:
        row, col = (int(v) for v in np.unravel_index(int(depth.argmax()), depth.shape))
        found.append((float(col), float(row), 1))
        away = np.hypot((rows - row) * plane[0], (cols - col) * plane[1])
        depth = np.where(away <= depth[row, col], 0.0, depth)
    return found


def grown_box(box: Box, margin: float, plane: Plane, shape: tuple[int, int]) -> Box:
    """A box larger by ``margin`` mm on each side, cut at the edges of a slice of ``shape`` (H, W)."""
    down, across = margin / plane[0], margin / plane[1]
    return (
        max(0.0, box[0] - across),
        max(0.0, box[1] - down),
        min(shape[1] - 1.0, box[2] + across),
        min(shape[0] - 1.0, box[3] + down),
    )


def carried_prompt(
    prior: Mask,
    config: PropagationConfig,
    reach: float,
    plane: Plane,
    clicks: tuple[tuple[float, float, int], ...] = (),
) -> SlicePrompt:
    """Prompts for a slice, made of where the object is expected.

    Args:
        prior: (H, W) expected mask, not empty.
        config: What is carried.
        reach: How far an edge may move, mm.
        plane: Spacing along rows and columns, mm.
        clicks: Points that someone gave on this slice; they go in as they are.
    """
    box = box_of(prior)
    shape = (prior.shape[0], prior.shape[1])
    points = deep_points(prior, config.points, plane) if "points" in config.carry else []
    boxed = (
        None if box is None or "box" not in config.carry else grown_box(box, config.box_margin * reach, plane, shape)
    )
    return SlicePrompt(
        box=boxed,
        points=(*points, *clicks),
        mask=prior if "mask" in config.carry else None,
    )
