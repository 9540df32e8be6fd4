"""Procedural outlines: boolean masks of blobs, polygons, rings, tubes and branching lines on a small canvas.

Everything is drawn from a seeded generator on the CPU with numpy and scipy; arrays are (row, col), angles in radians,
lengths in pixels. No real image is involved.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
Rng = np.random.Generator


def smooth_noise(rng: Rng, size: int, cells: float) -> Field:
    """Smooth random field (size, size), zero mean and unit variance, with about ``cells`` features along a side."""
    n = max(2, int(np.ceil(cells)) + 3)
    coarse = rng.standard_normal((n, n)).astype(np.float32)
    zoomed = ndimage.zoom(
        coarse, (size + 2 * (size / cells)) / n, order=1 if cells > size / 4 else 3, grid_mode=True, mode="nearest"
    )
    start = int(rng.integers(0, max(1, zoomed.shape[0] - size + 1)))
    field = zoomed[start : start + size, start : start + size]
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), dtype=np.float32)


def blob(rng: Rng, size: int, center: tuple[float, float], radii: tuple[float, float], wobble: float) -> Mask:
    """Closed smooth outline r(t) = 1 + a few harmonics, stretched to ``radii`` (rows, cols) and turned at random."""
    angle = rng.uniform(0, np.pi)
    reach = int(np.ceil(max(radii) * (1 + 2.5 * wobble))) + 2
    window, rows, cols = _local_grid(size, center, reach)
    out = np.zeros((size, size), dtype=bool)
    if rows.size == 0 or cols.size == 0:
        return out
    dy, dx = rows[:, None] - center[0], cols[None, :] - center[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / radii[1]
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / radii[0]
    radius = np.hypot(u, v)
    limit = np.ones_like(radius)
    if wobble > 0:
        theta = np.arctan2(v, u)
        for k in range(2, 7):
            limit += wobble * rng.normal() / (k - 0.5) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.15:  # super-ellipse: boxier or more pointed than an ellipse
        p = rng.uniform(1.4, 4.0)
        radius = (np.abs(u) ** p + np.abs(v) ** p) ** (1 / p)
    out[window] = radius <= limit
    return out


def ring(outer: Mask, thickness: float) -> Mask:
    """The part of ``outer`` within ``thickness`` pixels of its outline."""
    return np.asarray(outer & (ndimage.distance_transform_edt(outer) <= thickness))


def polygon(size: int, corners: NDArray[np.float64]) -> Mask:
    """Filled polygon; ``corners`` is (n, 2) as (x, y) pixel centres."""
    image = Image.new("1", (size, size))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(image, dtype=bool)


def building(rng: Rng, size: int, center: tuple[float, float], sides: tuple[float, float], angle: float) -> Mask:
    """Rectangle, L, T or U footprint around ``center`` (row, col), ``sides`` (height, width), turned by ``angle``."""
    h, w = sides[0] / 2, sides[1] / 2
    a, b = rng.uniform(-0.3, 0.5) * w, rng.uniform(-0.3, 0.5) * h
    kind = rng.random()
    if kind < 0.6:
        xy = [(-w, -h), (w, -h), (w, h), (-w, h)]
    elif kind < 0.85:
        xy = [(-w, -h), (w, -h), (w, b), (a, b), (a, h), (-w, h)]
    else:
        xy = [(-w, -h), (w, -h), (w, h), (w * 0.4, h), (w * 0.4, b), (-w * 0.4, b), (-w * 0.4, h), (-w, h)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return polygon(size, np.array(xy) @ turn.T + np.array([center[1], center[0]]))


def ragged_polygon(rng: Rng, size: int, center: tuple[float, float], radius: float) -> Mask:
    """Star-shaped polygon with 3 to 9 corners around ``center`` (row, col)."""
    n = int(rng.integers(3, 10))
    theta = np.sort(rng.uniform(0, 2 * np.pi, n))
    r = radius * rng.uniform(0.5, 1.2, n)
    return polygon(size, np.stack([center[1] + r * np.cos(theta), center[0] + r * np.sin(theta)], axis=1))


def tube(rng: Rng, size: int, start: tuple[float, float], length: float, width: float) -> Mask:
    """Smooth curved band of constant or slowly changing width; ``start`` is (row, col)."""
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    _walk(rng, draw, start, rng.uniform(0, 2 * np.pi), length, width, taper=rng.uniform(0.6, 1.0), bend=0.12)
    return np.asarray(image, dtype=bool)


def tree(rng: Rng, size: int, width: float, root: tuple[float, float] | None = None) -> Mask:
    """Branching thin lines, like vessels or cracks, from one to three roots, or all around ``root`` (row, col)."""
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    if root is not None:
        count, start = int(rng.integers(4, 9)), rng.uniform(0, 2 * np.pi)
        for k in range(count):
            heading = start + 2 * np.pi * k / count + rng.normal(0, 0.3)
            _branch(rng, draw, root, heading, rng.uniform(0.3, 0.7) * size, width, depth=3)
        return np.asarray(image, dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        root = (rng.uniform(0.1, 0.9) * size, rng.uniform(0.1, 0.9) * size)
        for _ in range(int(rng.integers(2, 5))):
            _branch(rng, draw, root, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9) * size, width, depth=3)
    return np.asarray(image, dtype=bool)


def _branch(
    rng: Rng,
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    heading: float,
    length: float,
    width: float,
    depth: int,
) -> None:
    path = _walk(rng, draw, start, heading, length, width, taper=0.6, bend=0.1)
    if depth == 0 or len(path) < 6:
        return
    for _ in range(int(rng.integers(1, 4))):
        row, col, direction = path[int(rng.integers(len(path) // 4, len(path)))]
        turn = rng.choice([-1, 1]) * rng.uniform(0.35, 1.1)
        _branch(
            rng, draw, (row, col), direction + turn, length * rng.uniform(0.3, 0.7), max(1.0, width * 0.7), depth - 1
        )


def _walk(
    rng: Rng,
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    heading: float,
    length: float,
    width: float,
    taper: float,
    bend: float,
) -> list[tuple[float, float, float]]:
    row, col = start
    step, turn, path = 2.0, 0.0, []
    count = max(2, int(length / step))
    for i in range(count):
        turn = 0.85 * turn + bend * rng.normal()
        heading += turn * 0.5
        nrow, ncol = row + step * np.sin(heading), col + step * np.cos(heading)
        w = width * (1 - (1 - taper) * i / count)
        if w <= 1.5:
            draw.line([(col, row), (ncol, nrow)], fill=1, width=1)
        else:
            draw.line([(col, row), (ncol, nrow)], fill=1, width=int(round(w)))
            draw.ellipse([ncol - w / 2, nrow - w / 2, ncol + w / 2, nrow + w / 2], fill=1)
        row, col = float(nrow), float(ncol)
        path.append((row, col, float(heading)))
    return path


def _local_grid(
    size: int, center: tuple[float, float], reach: int
) -> tuple[tuple[slice, slice], NDArray[np.float32], NDArray[np.float32]]:
    r0, r1 = max(0, int(center[0]) - reach), min(size, int(center[0]) + reach + 1)
    c0, c1 = max(0, int(center[1]) - reach), min(size, int(center[1]) + reach + 1)
    r1, c1 = max(r0, r1), max(c0, c1)
    return (slice(r0, r1), slice(c0, c1)), np.arange(r0, r1, dtype=np.float32), np.arange(c0, c1, dtype=np.float32)
