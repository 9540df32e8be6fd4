"""One run of the benchmark of prompters: build a row, train it, use it, and say how good and how costly it is."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.graft import Grafted
from tests.benchmarks._arms import count
from tests.benchmarks._data import Case
from tests.benchmarks._graft_rows import KEY, short_hash, state_of
from tests.benchmarks._object_arms import Method, build
from tests.benchmarks._object_rows import Row, rows
from tests.benchmarks._object_sets import (
    SETS,
    ObjectSet,
    Result,
    choose_threshold,
    crops,
    folds,
    score,
)
from tests.benchmarks._steps import Extra
from tests.benchmarks._train import descend

THRESHOLD_CASES = 5
"""Training pictures on which the score is chosen from which objects count."""
ADDRESS = ("set", "cases", "seed", "method")
"""Fields of a task that say where its label maps are kept."""
RECIPE = 1
"""Raise it when the code of the benchmark changes what a run does: earlier results are then run again."""


def hashes(row: Row, chosen: ObjectSet, factor: float | None) -> dict[str, str]:
    """ "config" of the row, and "recipe" of everything else but the budget."""
    recipe = [asdict(chosen), asdict(row.optimiser(chosen, factor)), THRESHOLD_CASES, RECIPE]
    return {"config": short_hash(row.describe(chosen)), "recipe": short_hash(recipe)}


def one(backbone: HFSamBackbone, task: dict[str, Any], row: Row | None = None) -> dict[str, Any]:
    """Train and score a row once, or once per fold.

    Args:
        backbone: Without grafts, and so again afterwards.
        task: The fields of ``KEY``, "factor" of the learning rate or None, and "keep", a folder for what was found.
        row: What "method" stands for; None looks it up.
    """
    chosen, before = SETS[task["set"]], state_of(backbone)
    row = rows(backbone)[task["method"]] if row is None else row
    costs: list[dict[str, Any]] = []
    results, scored, thresholds = list[Result](), list[Case](), list[float]()
    for train, held in folds(chosen, task["cases"], task["seed"], tune=task["tune"]):
        method = build(row, chosen, backbone, task["seed"], train)
        cost = fit(method, row, chosen, train, task)
        method.module.eval()
        least = 0.0
        if chosen.kind != "masks" and not method.certain:
            shown = train[:THRESHOLD_CASES]
            least = choose_threshold(chosen, [method.find(case) for case in shown], shown)
        found, took = use(method, held)
        if isinstance(method.module, Grafted):
            method.module.detach()
        costs.append(cost | took | {"train_cases": len(train), "threshold": least})
        results, scored, thresholds = results + found, scored + held, thresholds + [least] * len(held)
    if task.get("keep"):
        keep(kept_folder(Path(task["keep"]), **{name: task[name] for name in ADDRESS}), results, scored, thresholds)
    known = {key: task[key] for key in KEY} | {"factor": task["factor"]}
    figures = score(chosen, results, scored, thresholds)
    metric = {"metric": chosen.metric, "lr": row.optimiser(chosen, task["factor"]).lr}
    return known | figures | metric | together(costs) | {"backbone_unchanged": state_of(backbone) == before}


def kept_folder(root: Path, *, set: str, cases: int | None, seed: int, method: str) -> Path:
    """Where the label maps of a run lie."""
    return root / f"{set}-{cases or 'all'}-{seed}" / method


def keep(folder: Path, results: Sequence[Result], cases: Sequence[Case], thresholds: Sequence[float]) -> None:
    """Write the label map of every scored picture, without the objects that do not count."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (result, least) in enumerate(zip(results, thresholds, strict=True)):
        counted = np.where(np.append(False, result.scores >= least)[result.labels], result.labels, 0)
        np.savez_compressed(folder / f"{number:03d}.npz", name=cases[number].name, labels=counted)


def fit(method: Method, row: Row, chosen: ObjectSet, train: Sequence[Case], task: dict[str, Any]) -> dict[str, Any]:
    """Train for ``task["budget"]`` seconds of this process, which has one thread; what it took."""
    trained = method.trained
    if method.objective is None:
        return {"steps": 0, "seconds": 0.0, "trainable": count(trained), "busy": 1.0}
    options, extra = row.optimiser(chosen, task["factor"]), Extra()
    method.module.train()
    wall, process = time.perf_counter(), time.process_time()
    found = descend(
        method.objective,
        trained,
        crops(chosen, train, torch.Generator().manual_seed(task["seed"])),
        options,
        start=process,
        deadline=process + task["budget"],
    )
    waited, seconds = time.perf_counter() - wall, time.process_time() - process
    return {
        "steps": found["steps"],
        "loss": found["loss"],
        "seconds": seconds,
        "busy": seconds / waited,
        "training_mb": extra.mb(),
        "trainable": count(trained),
        "without_gradient": count([p for p in trained if p.grad is None]),
    }


def use(method: Method, cases: Sequence[Case]) -> tuple[list[Result], dict[str, float]]:
    """Objects of whole pictures, the process seconds of a picture and the memory on top of what is there."""
    extra, start = Extra(), time.process_time()
    with torch.no_grad():
        found = [method.find(case) for case in cases]
    return found, {"seconds_per_image": (time.process_time() - start) / max(1, len(cases)), "use_mb": extra.mb()}


def together(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Costs of all folds: steps and seconds added up, the worst of memory, the mean of the rest."""

    def values(key: str) -> list[Any]:
        return [cost[key] for cost in costs if key in cost]

    found: dict[str, Any] = {key: sum(values(key)) for key in ("steps", "seconds")}
    found |= {key: max(values(key), default=None) for key in ("training_mb", "use_mb", "trainable", "without_gradient")}
    found |= {key: values(key)[-1] for key in ("loss", "train_cases", "threshold") if values(key)}
    found["busy"] = min(values("busy"))
    found["seconds_per_image"] = sum(values("seconds_per_image")) / len(costs)
    return found | {"seconds_per_step": found["seconds"] / found["steps"] if found["steps"] else None}
