"""Procedural scenes: a picture together with the exact masks of its objects.

A scene is a stack of regions painted in order; what is painted later hides what lies below. Layouts (where objects are)
and appearance (how they look) are drawn independently, so that shape, contrast, texture and noise combine freely.
Arrays are (3, H, W) and (M, H, W); intensities are in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.recipes.pretrain import shapes
from samgraft.recipes.pretrain.appearance import render
from samgraft.recipes.pretrain.shapes import Mask, Rng


@dataclass(frozen=True, kw_only=True)
class ProceduralSample:
    """One picture with the masks of its objects."""

    image: NDArray[np.float32]
    """(3, H, W) in [0, 1]."""
    masks: NDArray[np.bool_]
    """(M, H, W); visible part of each object, or an object together with what it contains. M >= 1."""
    regions: NDArray[np.int32]
    """(H, W): which painted region is on top; 0 and other low numbers are background."""
    kind: str
    """Name of the layout."""


@dataclass
class Canvas:
    """Regions painted so far."""

    size: int
    regions: NDArray[np.int32]
    kinds: list[int] = field(default_factory=lambda: [0])
    """Appearance class of each region; regions of one class look alike."""
    painted: list[int] = field(default_factory=lambda: [0])
    """Area in pixels of each region when it was painted."""
    targets: list[tuple[int, ...]] = field(default_factory=list)
    """Each target is the union of these regions."""

    def paint(self, mask: Mask, kind: int, target: bool = True) -> int:
        """Put ``mask`` on top as a new region of appearance class ``kind``; returns its number."""
        number = len(self.kinds)
        self.kinds.append(kind)
        self.painted.append(int(mask.sum()))
        self.regions[mask] = number
        if target:
            self.targets.append((number,))
        return number


Layout = Callable[[Rng, Canvas], None]


def make_sample(seed: int, size: int = 128) -> ProceduralSample:
    """Draw one scene; the same seed gives the same scene.

    Args:
        seed: Any non-negative integer. Pretraining counts from 0; evaluation uses seeds above 10**9.
        size: Side in pixels.
    """
    rng = np.random.default_rng(seed)
    names = list(LAYOUTS)
    weights = np.array([LAYOUTS[n][1] for n in names])
    for _ in range(20):
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        canvas = Canvas(size=size, regions=np.zeros((size, size), dtype=np.int32))
        paint_background(rng, canvas)
        LAYOUTS[name][0](rng, canvas)
        masks = _visible_masks(canvas)
        if masks:
            image = render(rng, canvas.regions, np.array(canvas.kinds))
            return ProceduralSample(image=image, masks=np.stack(masks), regions=canvas.regions, kind=name)
    raise RuntimeError(f"no visible object after 20 tries with seed {seed}")


def _visible_masks(canvas: Canvas, min_side: float = 0.04) -> list[Mask]:
    """Masks of the targets that are large enough and at least 60 % visible (nobody can outline a sliver of a disc)."""
    masks = []
    for parts in canvas.targets:
        mask = np.isin(canvas.regions, parts) if len(parts) > 1 else canvas.regions == parts[0]
        area = int(mask.sum())
        whole = max(canvas.painted[part] for part in parts)
        if (min_side * canvas.size) ** 2 <= area <= 0.85 * mask.size and area >= 0.6 * whole:
            masks.append(mask)
    return masks


def paint_background(rng: Rng, canvas: Canvas) -> None:
    """Nothing, a few smooth areas, or a body outline with darkness around it."""
    size, choice = canvas.size, rng.random()
    if choice < 0.35:
        return
    if choice < 0.8:
        fields = [shapes.smooth_noise(rng, size, rng.uniform(1.0, 8.0)) for _ in range(int(rng.integers(2, 5)))]
        areas = np.argmax(fields, axis=0)
        for k in range(1, len(fields)):
            canvas.paint(areas == k, kind=100 + k, target=False)
        return
    body = shapes.blob(
        rng, size, _center(rng, size, 0.4), (rng.uniform(0.4, 0.6) * size, rng.uniform(0.4, 0.6) * size), 0.08
    )
    canvas.paint(body, kind=101, target=False)


def _center(rng: Rng, size: int, margin: float = 0.1) -> tuple[float, float]:
    return (float(rng.uniform(margin, 1 - margin) * size), float(rng.uniform(margin, 1 - margin) * size))


def _radius(rng: Rng, size: int, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))) * size)


def _radii(rng: Rng, size: int, low: float, high: float, stretch: float = 2.2) -> tuple[float, float]:
    r, s = _radius(rng, size, low, high), np.sqrt(rng.uniform(1, stretch))
    return (r * s, r / s)


def organs(rng: Rng, canvas: Canvas) -> None:
    """One to six smooth blobs, some inside others, most of them nearly elliptic."""
    size = canvas.size
    for _ in range(int(rng.integers(1, 7))):
        wobble = float(rng.choice([0.0, 0.03, 0.08, 0.15, 0.3], p=[0.2, 0.3, 0.25, 0.15, 0.1]))
        center, radii = _center(rng, size), _radii(rng, size, 0.05, 0.32)
        outer = canvas.paint(shapes.blob(rng, size, center, radii, wobble), kind=int(rng.integers(1, 4)))
        if rng.random() < 0.25:
            scale = rng.uniform(0.25, 0.7)
            jitter = rng.normal(0, 0.12 * min(radii), 2)
            inner = shapes.blob(
                rng, size, (center[0] + jitter[0], center[1] + jitter[1]), (radii[0] * scale, radii[1] * scale), wobble
            )
            core = canvas.paint(inner & (canvas.regions == outer), kind=int(rng.integers(4, 6)))
            canvas.targets.append((outer, core))
            if rng.random() < 0.6:
                canvas.targets.remove((outer,))
        elif rng.random() < 0.3:
            _inclusions(rng, canvas, outer)


def _inclusions(rng: Rng, canvas: Canvas, outer: int) -> None:
    """Small spots that belong to ``outer`` though they look different: muscles in a chamber, necrosis, nucleoli."""
    rows, cols = np.nonzero(canvas.regions == outer)
    if len(rows) < 60:
        return
    spots: list[int] = []
    for _ in range(int(rng.integers(1, 5))):
        k, r = int(rng.integers(len(rows))), 0.5 * np.sqrt(len(rows)) * rng.uniform(0.1, 0.45)
        mask = shapes.blob(rng, canvas.size, (float(rows[k]), float(cols[k])), (r, r * rng.uniform(0.6, 1.4)), 0.1)
        spots.append(canvas.paint(mask & np.isin(canvas.regions, [outer, *spots]), kind=4, target=False))
    canvas.targets[-1] = (outer, *spots)


def shells(rng: Rng, canvas: Canvas) -> None:
    """Walls around a cavity: the cavity, the wall, and both together are objects."""
    size = canvas.size
    for _ in range(int(rng.integers(1, 4))):
        center, radii = _center(rng, size, 0.2), _radii(rng, size, 0.08, 0.3, 1.6)
        whole = shapes.blob(rng, size, center, radii, rng.uniform(0, 0.08))
        wall = shapes.ring(whole, rng.uniform(0.12, 0.5) * min(radii))
        cavity = canvas.paint(whole, kind=1)
        rim = canvas.paint(wall, kind=2, target=rng.random() < 0.5)
        canvas.targets.append((cavity, rim))
        if rng.random() < 0.4:  # a neighbour that shares the wall
            beside = (center[0] + rng.normal(0, radii[0]), center[1] + rng.choice([-1, 1]) * 1.5 * radii[1])
            mask = shapes.blob(rng, size, beside, radii, 0.1)
            canvas.paint(mask & ~whole, kind=1)


def territories(rng: Rng, canvas: Canvas) -> None:
    """Areas of a map: every connected piece where one of several smooth fields is the largest."""
    size = canvas.size
    cells = float(np.exp(rng.uniform(np.log(1.0), np.log(7.0))))
    count = int(rng.integers(2, 6))
    areas = np.argmax([shapes.smooth_noise(rng, size, cells) for _ in range(count)], axis=0)
    for kind in range(1, count):
        pieces, n = ndimage.label(areas == kind)
        for piece in range(1, min(n, 8) + 1):
            canvas.paint(pieces == piece, kind=kind)


def cells(rng: Rng, canvas: Canvas) -> None:
    """Many roundish objects of similar size, apart or packed."""
    size = canvas.size
    radius = _radius(rng, size, 0.03, 0.14)
    count = int(np.clip(rng.uniform(0.15, 0.9) * size**2 / (np.pi * radius**2), 2, 60))
    wobble, stretch, overlap = rng.uniform(0, 0.12), rng.uniform(1.0, 3.0), rng.random() < 0.5
    taken = np.zeros((size, size), dtype=bool)
    for _ in range(count):
        center = _center(rng, size, -0.02)
        r, s = radius * rng.uniform(0.7, 1.3), np.sqrt(rng.uniform(1, stretch))
        mask = shapes.blob(rng, size, center, (r * s, r / s), wobble)
        if not overlap:
            if (mask & taken).sum() > 0.25 * mask.sum():
                continue
            mask &= ~taken
            taken |= ndimage.binary_dilation(mask) if rng.random() < 0.5 else mask
        canvas.paint(mask, kind=int(rng.choice([1, 1, 1, 2])))


def buildings(rng: Rng, canvas: Canvas) -> None:
    """Footprints in rows along one or two street directions, some with two-sided roofs or shadows."""
    size, angle = canvas.size, rng.uniform(0, np.pi)
    side = _radius(rng, size, 0.07, 0.35)
    pitch = side * rng.uniform(1.05, 2.0)
    shadow = rng.normal(0, 0.12 * side, 2) if rng.random() < 0.5 else None
    for row in np.arange(-size, size, pitch):
        for col in np.arange(-size, size, pitch):
            if rng.random() < 0.35:
                continue
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            x, y = turn @ np.array([col, row]) + size / 2 + rng.normal(0, 0.08 * side, 2)
            if not (-side < x < size + side and -side < y < size + side):
                continue
            sides = (side * rng.uniform(0.5, 1.0), side * rng.uniform(0.6, 1.1))
            _house(rng, canvas, (float(y), float(x)), sides, angle + rng.normal(0, 0.03), shadow)


def _house(
    rng: Rng,
    canvas: Canvas,
    center: tuple[float, float],
    sides: tuple[float, float],
    angle: float,
    shadow: NDArray[np.float64] | None,
) -> None:
    mask = shapes.building(rng, canvas.size, center, sides, angle)
    if shadow is not None:
        shifted = np.roll(mask, np.rint(shadow).astype(int), axis=(0, 1)) & (canvas.regions < 1)
        canvas.paint(shifted & ~mask, kind=110, target=False)
    roof = canvas.paint(mask, kind=int(rng.integers(1, 5)))
    if rng.random() < 0.35:
        rows, cols = np.mgrid[: canvas.size, : canvas.size]
        half = mask & ((cols - center[1]) * np.sin(angle) - (rows - center[0]) * np.cos(angle) > 0)
        if half.any():
            other = canvas.paint(half, kind=int(rng.integers(5, 9)), target=False)
            canvas.targets[-1] = (roof, other)


def polygons(rng: Rng, canvas: Canvas) -> None:
    """A few angular shapes."""
    for _ in range(int(rng.integers(1, 7))):
        mask = shapes.ragged_polygon(rng, canvas.size, _center(rng, canvas.size), _radius(rng, canvas.size, 0.06, 0.35))
        canvas.paint(mask, kind=int(rng.integers(1, 5)))


def tubes(rng: Rng, canvas: Canvas) -> None:
    """Curved bands: vessels lengthwise, roads, worms, membranes."""
    width = _radius(rng, canvas.size, 0.02, 0.12)
    for _ in range(int(rng.integers(1, 6))):
        mask = shapes.tube(
            rng,
            canvas.size,
            _center(rng, canvas.size),
            rng.uniform(0.3, 1.2) * canvas.size,
            width * rng.uniform(0.7, 1.3),
        )
        canvas.paint(mask, kind=int(rng.integers(1, 3)))


def trees(rng: Rng, canvas: Canvas) -> None:
    """One branching object, or a fundus; a large disc below it is rarely the object that is meant."""
    width = float(rng.uniform(1.0, 4.5))
    if rng.random() < 0.4:
        _fundus(rng, canvas, min(width, 3.0))
        return
    if rng.random() < 0.4:
        disc = shapes.blob(
            rng, canvas.size, _center(rng, canvas.size, 0.35), _radii(rng, canvas.size, 0.06, 0.5, 1.3), 0.02
        )
        canvas.paint(disc, kind=5, target=rng.random() < 0.3)
    canvas.paint(shapes.tree(rng, canvas.size, width), kind=1)


def _fundus(rng: Rng, canvas: Canvas, width: float) -> None:
    """A disc with vessels all over it: the box around the vessels is nearly the disc's, and the vessels are meant."""
    size = canvas.size
    center, radii = _center(rng, size, 0.45), _radii(rng, size, 0.35, 0.5, 1.2)
    disc = shapes.blob(rng, size, center, radii, 0.02)
    canvas.paint(disc, kind=5, target=False)
    root = (center[0] + rng.normal(0, 0.1 * size), center[1] + rng.normal(0, 0.15 * size))
    if rng.random() < 0.6:
        radius = rng.uniform(0.1, 0.2) * radii[0]
        canvas.paint(shapes.blob(rng, size, root, (radius, radius), 0.02) & disc, kind=6)
    canvas.paint(shapes.tree(rng, size, width, root) & disc, kind=1)


def mixture(rng: Rng, canvas: Canvas) -> None:
    """Two layouts over each other."""
    choices: list[Layout] = [organs, cells, polygons, tubes, territories]
    for index in rng.choice(len(choices), 2, replace=False):
        choices[int(index)](rng, canvas)


LAYOUTS: dict[str, tuple[Layout, float]] = {
    "organs": (organs, 0.27),
    "shells": (shells, 0.1),
    "territories": (territories, 0.12),
    "cells": (cells, 0.14),
    "buildings": (buildings, 0.1),
    "polygons": (polygons, 0.06),
    "tubes": (tubes, 0.05),
    "trees": (trees, 0.08),
    "mixture": (mixture, 0.08),
}
"""Layout name -> (function, relative frequency)."""
