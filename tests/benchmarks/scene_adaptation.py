"""What test-time methods do to an adapter on images of another kind: ``python -m tests.benchmarks.scene_adaptation``.

An adapter is trained on one domain and meets scenes of another, each by itself: fitted without labels, scored, reset.
Overlap (Dice, for nuclei IoU of the foreground) is averaged over scenes; "kept" is how often the guard kept the result,
"worse" how often the scene lost more than a point, "without guard" the overlap if every result were kept.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.extending import extended
from samgraft.adapters.graft import Grafted
from samgraft.adapters.grafts import NeckAffineConfig
from samgraft.recipes.features import FeatureMoments, domain_features
from samgraft.recipes.representations import BorderMaps, ClassMaps, Maps
from samgraft.recipes.sampled import spread
from samgraft.recipes.test_time import entropy
from samgraft.recipes.test_time.answers import Verdict
from samgraft.recipes.test_time.methods import EntropyConfig, SceneMethod, StatisticsConfig
from samgraft.recipes.test_time.statistics import align_statistics
from tests.benchmarks._arms import graft_arm
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Case
from tests.benchmarks._sets import evaluate
from tests.benchmarks._table import markdown, read_json, write_json
from tests.benchmarks.merging import Domain, domain, inputs, network, train

METHODS: dict[str, SceneMethod] = {
    "entropy, neck": EntropyConfig(),
    "entropy, neck, lr 3e-3": EntropyConfig(lr=3e-3),
    "entropy, neck, not balanced": EntropyConfig(balanced=False),
    "entropy, norms, lr 1e-3": EntropyConfig(moved="norms", lr=1e-3),
    "entropy, adapter, lr 1e-3": EntropyConfig(moved="adapter", lr=1e-3),
    "statistics": StatisticsConfig(),
    "statistics, no prior": StatisticsConfig(prior=0),
}
Change = Callable[[np.ndarray[Any, np.dtype[np.float32]]], np.ndarray[Any, np.dtype[np.float32]]]


def darker(image: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Another camera: gamma, less contrast, a colour cast, noise; (H, W, 3) in [0, 1]."""
    noise = np.random.default_rng(0).normal(0, 0.03, image.shape)
    cast = np.array([0.9, 1.0, 1.15], dtype=np.float32)
    return np.clip(0.15 + 0.6 * image**1.6 * cast + noise, 0, 1).astype(np.float32)


SHIFTS: dict[str, tuple[str, str, Change | None]] = {
    "nuclei dark to bright": ("nuclei:dark", "nuclei:bright", None),
    "nuclei bright to dark": ("nuclei:bright", "nuclei:dark", None),
    "retina, another camera": ("retina_vessels", "retina_vessels", darker),
    "cardiac, other intensities": ("cardiac_mr", "cardiac_mr", darker),
    "retina, no shift": ("retina_vessels", "retina_vessels", None),
}


def overlap(grafted: Grafted, one: Domain, case: Case) -> float:
    """Overlap with the labels of one scene."""
    found = evaluate(graft_arm(grafted, full=False, batch=4).forward, one.spec, [case], three=False)
    return float(found["iou" if one.spec.instances else "dice"])


def fitted(grafted: Grafted, one: Domain, case: Case, method: SceneMethod, moments: FeatureMoments) -> Verdict:
    """Fit in place."""
    maps: Maps = BorderMaps() if one.spec.instances else ClassMaps(classes=one.spec.classes - 1)
    images = inputs(one, case, method.inputs)
    if isinstance(method, EntropyConfig):
        return entropy.lower_entropy(grafted, maps, images, method)
    assert isinstance(method, StatisticsConfig)  # noqa: S101
    return align_statistics(grafted, maps, images, moments, method)


def run(shift: str, seed: int, budget: float, limit: int, backbone: str) -> list[dict[str, Any]]:
    """All rows of one shift."""
    source_name, target_name, change = SHIFTS[shift]
    base, source, target = open_backbone(backbone), domain(source_name, None), domain(target_name, None)
    scenes = [target.scored[index] for index in sorted(spread(len(target.scored), limit))]
    scenes = [replace(case, image=change(case.image)) for case in scenes] if change else scenes
    grafted = network(base, source.spec, seed)
    train(grafted, [source], budget, seed)
    chosen = [source.train[index] for index in sorted(spread(len(source.train), 32))]
    moments = domain_features(grafted, [inputs(source, case) for case in chosen])
    before = [overlap(grafted, target, case) for case in scenes]
    common = {"shift": shift, "seed": seed, "budget": budget, "scenes": len(scenes)}
    rows: list[dict[str, Any]] = [common | {"method": "as trained", "overlap": float(np.mean(before))}]
    print(rows[-1], flush=True)
    for name, method in METHODS.items():
        kept, guarded, free = [], [], []
        for case, old in zip(scenes, before, strict=True):
            added = entropy.added(method) if isinstance(method, EntropyConfig) else {entropy.EXTRA: NeckAffineConfig()}
            with extended(grafted, added):
                verdict = fitted(grafted, target, case, method, moments)
                new = overlap(grafted, target, case)
            kept.append(verdict.kept)
            free.append(new)
            guarded.append(new if verdict.kept else old)
        worse = float(np.mean([new < old - 0.01 for new, old in zip(guarded, before, strict=True)]))
        figures = {"overlap": float(np.mean(guarded)), "kept": float(np.mean(kept)), "worse": worse}
        rows.append(common | {"method": name, **figures, "without guard": float(np.mean(free))})
        print(rows[-1], flush=True)
    grafted.detach()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, write JSON, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scene_adaptation", description=__doc__)
    parser.add_argument("--shifts", nargs="*", default=list(SHIFTS), choices=list(SHIFTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=60, help="process seconds of training per adapter")
    parser.add_argument("--limit", type=int, default=12, help="most scenes per shift")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/scene_adaptation.json"))
    options = parser.parse_args(arguments)
    content = read_json(options.json)
    rows: list[dict[str, Any]] = content.setdefault("rows", [])
    for shift in options.shifts:
        for seed in options.seeds:
            rows += run(shift, seed, options.budget, options.limit, options.backbone)
            write_json(options.json, content)
    columns = ("shift", "seed", "scenes", "method", "overlap", "kept", "worse", "without guard")
    print(markdown(rows, columns))


if __name__ == "__main__":
    main()
