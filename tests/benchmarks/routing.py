"""How often the router is right on real sets: ``python -m tests.benchmarks.routing``.

Every set is a domain, known by up to 32 training images through the frozen backbone; nothing is trained. Validation
images are routed among all domains ("right"), and among all but their own, where "unknown" is the right answer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.recipes.continual.router import nearest
from samgraft.recipes.features import SLACK, Vectors, distance, inputs_per_image, moments, pooled
from samgraft.recipes.sampled import spread
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Case, cases
from tests.benchmarks._sets import letterbox, planes, staining
from tests.benchmarks._table import markdown, write_json

DOMAINS = (
    "hippocampus_mr",
    "cardiac_mr",
    "nuclei:dark",
    "nuclei:bright",
    "nerve_us",
    "retina_vessels",
    "sarcoma_ct",
    "sarcoma_mr",
    "buildings_banepa",
)
IMAGES = 32


def split(name: str) -> tuple[list[Case], list[Case]]:
    """Training and scored images; every fifth training image is scored where the val split has none of the kind."""
    base, _, kind = name.partition(":")
    train, scored = cases(base, "train"), cases(base, "val")
    if kind:
        train, scored = ([case for case in some if staining(case) == kind] for some in (train, scored))
    if not scored:
        scored, train = train[::5], [case for index, case in enumerate(train) if index % 5]
    return train, scored


def features(backbone: HFSamBackbone, case: Case, count: int, size: int) -> Vectors:
    """(n, C) of inputs spread over an image."""
    shown = planes(case)
    return pooled(backbone, letterbox(shown[sorted(spread(len(shown), count))], size))


def some(images: Sequence[Case], count: int) -> list[Case]:
    """At most so many, spread."""
    return [images[index] for index in sorted(spread(len(images), count))]


def measure(backbone: HFSamBackbone, train_images: int, scored_images: int, size: int) -> dict[str, Any]:
    """Distances in thresholds of every scored image to every domain."""
    known: dict[str, tuple[Vectors, Vectors, float]] = {}
    scored: dict[str, list[Vectors]] = {}
    for name in DOMAINS:
        train, held = split(name)
        chosen = some(train, train_images)
        known[name] = moments([features(backbone, case, inputs_per_image(len(chosen)), size) for case in chosen])
        scored[name] = [features(backbone, case, 16, size).mean(axis=0) for case in some(held, scored_images)]
        print(f"{name}: {len(chosen)} training images, {len(scored[name])} scored", flush=True)
    found = {
        name: [{other: distance(one, *known[other][:2]) / known[other][2] for other in DOMAINS} for one in images]
        for name, images in scored.items()
    }
    return {"train_images": train_images, "slack": SLACK, "distances": found}


def table(found: dict[str, Any]) -> str:
    """Per domain: how often it is found, called unknown, and known where its own adapter is missing."""
    rows = []
    for name, images in found["distances"].items():
        names = [nearest(one).name for one in images]
        without = [nearest({k: v for k, v in one.items() if k != name}).name for one in images]
        wrong = sorted({str(other) for other in without if other is not None})
        rows.append(
            {
                "domain": name,
                "images": len(images),
                "right": float(np.mean([one == name for one in names])),
                "unknown": float(np.mean([one is None for one in names])),
                "own adapter missing: unknown": float(np.mean([one is None for one in without])),
                "else taken for": ", ".join(wrong) or "-",
            }
        )
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write JSON, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.routing", description=__doc__)
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--size", type=int, default=128, help="side of the network input in pixels")
    parser.add_argument("--train-images", type=int, default=IMAGES)
    parser.add_argument("--scored-images", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/routing.json"))
    options = parser.parse_args(arguments)
    found = measure(open_backbone(options.backbone), options.train_images, options.scored_images, options.size)
    write_json(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
