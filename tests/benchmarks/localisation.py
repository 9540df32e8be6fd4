"""3D boxes without a prompt: ``python -m tests.benchmarks.localisation``.

hippocampus_mr, every volume padded with zeros and shifted at random, so that neither the place in the array nor the
middle of it says anything. The position network is trained on the images of the training split (no label), five of
which are annotated; the boxes of the validation cases are found without their labels. Figures: mean distance of the six
walls in mm, and IoU of the boxes; both ways to find landmarks each alone, and the one that served the
annotated volumes better ("chosen", "wall_mm"). Baselines:

    middle of the array    the mean box of the annotated volumes, at its mean place in their arrays
    middle of the content  the same, relative to the box of what is not zero; crops are centred on the hippocampus, so
                           that this is good with zeros around them, and says nothing with ``--fill edge``
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.volumetric.localisation import (
    Located,
    Locator,
    LocatorConfig,
    PositionConfig,
    PositionTraining,
    Support,
    save_locator,
    train_positions,
)
from samgraft.volumetric.localisation.landmarks import landmarks_of
from samgraft.volumetric.localisation.locator import STARTS
from tests.benchmarks._data import Split, iterate
from tests.benchmarks._table import markdown, write_json

NAMES = {1: "anterior", 2: "posterior", 3: "whole"}
Walls = dict[int, NDArray[np.float64]]


def padded_cases(
    split: Split, limit: int | None, room: int, seed: int, fill: str = "zeros"
) -> list[tuple[str, Tensor, Walls]]:
    """Name, image (D, H, W) with ``room`` voxels shared at random between both ends of each axis, walls.

    ``fill`` is "zeros", or "edge" for the nearest voxel, so that the box of the content cannot be seen either.
    """
    random = np.random.default_rng(seed)
    found: list[tuple[str, Tensor, Walls]] = []
    for case in iterate("hippocampus_mr", split):
        if limit is not None and len(found) == limit:
            break
        before = random.integers(0, room + 1, 3)
        pads = [(int(b), room - int(b)) for b in before]
        label = np.pad(case.label, pads)
        image = np.pad(case.image, pads) if fill == "zeros" else np.pad(case.image, pads, mode="edge")
        masks = {1: label == 1, 2: label == 2, 3: label > 0}
        walls = {value: landmarks_of(mask, (1.0, 1.0, 1.0)) for value, mask in masks.items() if mask.any()}
        found.append((case.name, torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), walls))
    return found


def box_iou(found: Located, walls: NDArray[np.float64]) -> float:
    """IoU of two boxes of whole voxels of 1 mm."""
    low, high = np.diagonal(walls[::2]), np.diagonal(walls[1::2])
    common = np.clip(np.minimum(found.high, high) - np.maximum(found.low, low) + 1, 0, None).prod()
    sizes = (found.high - found.low + 1).prod() + (high - low + 1).prod()
    return float(common / (sizes - common))


def by_content(image: Tensor) -> NDArray[np.float64]:
    """(3,) the middle of the box of what is not zero."""
    places = np.argwhere(image.numpy() > 0)
    return np.asarray((places.min(axis=0) + places.max(axis=0)) / 2, dtype=np.float64)


def baselines(supports: Sequence[Support], image: Tensor, value: int) -> dict[str, Located]:
    """Boxes that look at nothing but the array's middle, or the content's."""
    ends = [
        (s.walls[value], np.array(s.image.shape) / 2 - 0.5, by_content(s.image)) for s in supports if value in s.walls
    ]
    found = {}
    for name, at, here in (
        ("middle of the array", 1, np.array(image.shape) / 2 - 0.5),
        ("middle of the content", 2, by_content(image)),
    ):
        low = np.mean([np.diagonal(e[0][::2]) - e[at] for e in ends], axis=0) + here
        high = np.mean([np.diagonal(e[0][1::2]) - e[at] for e in ends], axis=0) + here
        found[name] = Located(low=low, high=high, landmarks=np.zeros((6, 3)), spread=0.0)
    return found


def score(
    locator: Locator, supports: Sequence[Support], cases: Sequence[tuple[str, Tensor, Walls]]
) -> list[dict[str, Any]]:
    """One row per case and structure."""
    locators = {start: locator.by(start) for start in STARTS}
    rows = []
    for name, image, walls in cases:
        ways = {start: locators[start].locate(image) for start in STARTS}
        located = {value: ways[locator.start_of(value)][value] for value in walls}
        for value, true in walls.items():
            found = located[value]
            row: dict[str, Any] = {"case": name, "structure": NAMES[value], "wall_mm": found.wall_distance(true)}
            row |= {"box_iou": box_iou(found, true), "spread_mm": found.spread}
            row |= {start: ways[start][value].wall_distance(true) for start in STARTS}
            row |= {k: v.wall_distance(true) for k, v in baselines(supports, image, value).items()}
            rows.append(row)
    return rows


def measure(options: argparse.Namespace, fill: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train, look at the annotated volumes, locate: a line per structure, and all that was found."""
    train = padded_cases("train", options.limit, options.room, options.seed, fill)
    picked = set(np.random.default_rng(options.seed).permutation(len(train))[: options.supports].tolist())
    supports = [Support(image=image, walls=walls) for i, (_, image, walls) in enumerate(train) if i in picked]
    training = PositionTraining(
        steps=options.steps, minutes=options.minutes, crop=options.crop, batch=options.batch, seed=options.seed
    )
    network, figures = train_positions(
        [image for _, image, _ in train],
        PositionConfig(spacing=options.spacing, width=options.width),
        training,
        report=lambda step, means: print(step, {k: round(v, 2) for k, v in means.items()}, flush=True),
    )
    config = LocatorConfig(refine=options.refine, size_prior=options.size_prior)
    locator = Locator.of(network, supports, NAMES, config)
    if options.save:
        save_locator(options.save.with_suffix(f".{fill}.locate"), locator)
    held = [one for i, one in enumerate(train) if i not in picked]
    other = (options.limit, options.room, options.seed + 1, fill)
    rows = score(locator, supports, held if options.split == "train" else padded_cases("val", *other))
    summary = []
    for value, name in NAMES.items():
        own = [row for row in rows if row["structure"] == name]
        line: dict[str, Any] = {"padding": fill, "structure": name, "n": len(own), "chosen": locator.start_of(value)}
        line |= {f"annotated: {start}": error for start, error in sorted(locator.errors[value].items())}
        keys = [k for k, v in own[0].items() if isinstance(v, float)]
        summary.append(line | {k: float(np.mean([row[k] for row in own])) for k in keys})
    return summary, {"training": figures, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.localisation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--supports", type=int, default=5)
    parser.add_argument("--room", type=int, default=24, help="voxels of padding along each axis")
    parser.add_argument(
        "--fill", nargs="+", default=["zeros", "edge"], choices=("zeros", "edge"), help="what the padding holds"
    )
    parser.add_argument("--limit", type=int, help="most cases of each split")
    parser.add_argument("--split", default="val", choices=("train", "val"), help="train: cases that are not annotated")
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=PositionConfig().width)
    parser.add_argument("--crop", type=int, default=PositionTraining().crop)
    parser.add_argument("--batch", type=int, default=PositionTraining().batch)
    parser.add_argument("--refine", type=float, default=LocatorConfig().refine)
    parser.add_argument("--size-prior", type=float, default=LocatorConfig().size_prior)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write the locators beside this name")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    summary, details = [], {}
    for fill in options.fill:
        lines, details[fill] = measure(options, fill)
        summary += lines
    print(markdown(summary))
    if options.json:
        facts = {"split": options.split, "supports": options.supports, "room": options.room}
        write_json(options.json, facts | {"results": summary, "details": details})


if __name__ == "__main__":
    main()
