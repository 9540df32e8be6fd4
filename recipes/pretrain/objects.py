"""Procedural pictures in which every object has a number: to train heads that tell objects apart, without real images.

A quarter of the pictures has fibres, vessels or areas behind the objects, which are no objects themselves; a few have
no object at all.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from samgraft.errors import ConfigError
from samgraft.recipes.pretrain import scenes
from samgraft.recipes.pretrain.appearance import render
from samgraft.recipes.pretrain.scenes import Canvas, Layout
from samgraft.recipes.pretrain.shapes import Rng

OBJECTS: dict[str, tuple[Layout, float]] = {
    "cells": (scenes.cells, 0.6),
    "buildings": (scenes.buildings, 0.25),
    "polygons": (scenes.polygons, 0.15),
}
"""Layouts whose every region is one object, with their share of the pictures."""
CLUTTER: tuple[Layout, ...] = (scenes.tubes, scenes.trees, scenes.territories)
"""What may lie behind."""
CLUTTERED, EMPTY = 0.25, 0.03
"""Shares of pictures with something behind the objects, and without objects."""
CLUTTER_KIND = 120
"""Appearance class from which on things behind are drawn, so that they never look like the objects."""
SMALLEST = 12
"""Visible parts with fewer pixels are background."""
VAL_FROM = 10**9
"""First seed of validation pictures, as for the backbone's."""


def make_objects(seed: int, size: int = 128) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Draw one scene; the same seed gives the same scene.

    Args:
        seed: Any non-negative integer.
        size: Side in pixels.

    Returns:
        Image (3, size, size) in [0, 1] and objects (size, size) int32: 1..n, 0 is background.
    """
    rng = np.random.default_rng([seed, 1])  # other scenes than the backbone saw under this seed
    canvas = Canvas(size=size, regions=np.zeros((size, size), dtype=np.int32))
    scenes.paint_background(rng, canvas)
    if rng.random() < CLUTTERED:
        _clutter(rng, canvas)
    behind = len(canvas.targets)
    if rng.random() >= EMPTY:
        names = list(OBJECTS)
        shares = np.array([OBJECTS[name][1] for name in names])
        OBJECTS[names[int(rng.choice(len(names), p=shares / shares.sum()))]][0](rng, canvas)
    image = render(rng, canvas.regions, np.array(canvas.kinds))
    return image, _numbered(canvas.regions, canvas.targets[behind:])


def _clutter(rng: Rng, canvas: Canvas) -> None:
    """Paint something that is no object, in appearance classes of its own."""
    first = len(canvas.kinds)
    CLUTTER[int(rng.integers(len(CLUTTER)))](rng, canvas)
    canvas.kinds[first:] = [CLUTTER_KIND + kind % 10 for kind in canvas.kinds[first:]]


def _numbered(regions: NDArray[np.int32], targets: list[tuple[int, ...]]) -> NDArray[np.int32]:
    """Objects 1..n of what is visible of them; of one that is cut in two, the largest piece."""
    table = np.zeros(int(regions.max()) + 1, dtype=np.int32)
    for number, parts in enumerate(targets, start=1):
        table[[part for part in parts if part < len(table)]] = number
    painted = table[regions]
    found, kept = np.zeros_like(painted), 0
    for index, place in enumerate(ndimage.find_objects(painted), start=1):
        if place is None:
            continue
        pieces, number = ndimage.label(painted[place] == index)
        areas = np.bincount(pieces.ravel(), minlength=number + 1)[1:]
        if areas.max() >= SMALLEST:
            kept += 1
            found[place][pieces == int(areas.argmax()) + 1] = kept
    return found


def write_objects(folder: Path, *, train: int, val: int, size: int = 128, workers: int = 1) -> Path:
    """Write a data set in the layout image_mask: ``images/``, ``instances/`` and ``splits.json``.

    Pictures that are there already are not drawn again, so a run that was stopped goes on where it was.

    Args:
        folder: Made if it is not there.
        train: Pictures to train on, of seeds from 0.
        val: Pictures to validate on, of seeds from ``VAL_FROM``.
        size: Side in pixels.
        workers: Processes.

    Raises:
        ConfigError: fewer than one picture of a kind, or pictures too small for objects.
    """
    if min(train, val) < 1 or size < 32:
        raise ConfigError(
            f"{train} training and {val} validation pictures of {size} pixels; expected one or more of 32 or more"
        )
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = {"train": [f"{seed:06d}" for seed in range(train)], "val": [f"val_{seed:06d}" for seed in range(val)]}
    seeds = dict(zip((*names["train"], *names["val"]), (*range(train), *range(VAL_FROM, VAL_FROM + val)), strict=True))
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(partial(_write, folder, size), seeds, seeds.values(), chunksize=64):
            pass
    (folder / "splits.json").write_text(json.dumps(names))
    return folder


def _write(folder: Path, size: int, name: str, seed: int) -> None:
    """One picture and its objects; the image last, so that one which is there is complete."""
    target = folder / "images" / f"{name}.png"
    if target.is_file():
        return
    image, objects = make_objects(seed, size)
    Image.fromarray(objects.astype(np.uint16)).save(folder / "instances" / f"{name}.png")
    temporary = target.with_suffix(".part")
    Image.fromarray((image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)).save(temporary, format="png")
    temporary.replace(target)
