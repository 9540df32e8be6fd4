"""Train on real images, no prompt at test time: ``python -m tests.benchmarks.first_slice``.

Three arms with the same split, budget of process time (data loading included), augmentation, loss and schedule: a
graft on frozen graft-tiny, the same network fully trained, a MONAI UNet from scratch. Every arm is scored once, at the
end of its budget; nothing is selected on the validation cases. Each run has its own process, so that memory is its own,
and its result is appended to the JSON file; runs that are already there are skipped.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.bundle import BundleMeta, load_bundle, save_bundle
from tests.benchmarks._arms import ARMS, Arm, build, count, graft_arm, on_sam_base
from tests.benchmarks._backbone import fingerprint, open_backbone
from tests.benchmarks._process import isolated, report
from tests.benchmarks._sets import FIRST_SLICE, SPECS, SetSpec, evaluate, split, training_cases
from tests.benchmarks._table import is_there, markdown, read_json, write_json
from tests.benchmarks._train import fit

KEY = ("set", "arm", "cases", "budget", "seed", "tune", "weights")
"""What makes two runs the same; "weights" is the start of the backbone's hash, empty for the UNet."""


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One run, in this process.

    Args:
        task: The fields of ``KEY``, "backbone", "folder" for the adapter file, and "lr" to override the arm's.
    """
    start, wall = time.process_time(), time.perf_counter()
    spec = SPECS[task["set"]]
    train, scored = split(spec.name, task["cases"], task["seed"], tune=task["tune"])
    arm = build(task["arm"], spec, task["backbone"], task["seed"])
    before = fingerprint(arm.grafted) if arm.grafted else None
    options = arm.options if task.get("lr") is None else replace(arm.options, lr=task["lr"])
    arm.module.train()
    deadline = start + task["budget"]
    fitted = fit(arm.forward, arm.trained, spec, train, options, deadline=deadline, three=arm.three, seed=task["seed"])
    seconds, waited = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    arm.module.eval()
    masks: list[NDArray[np.int32]] = []
    scores = evaluate(arm.forward, spec, scored, three=arm.three, masks=masks)
    sizes = {
        "parameters": arm.total,
        "trainable": count(arm.trained),
        "trainable_share": count(arm.trained) / arm.total,
    }
    costs = {"seconds": seconds, "wall_seconds": waited, "peak_mb": peak, "lr": options.lr, "batch": options.batch}
    same = None if arm.grafted is None else fingerprint(arm.grafted) == before
    row = {key: task[key] for key in KEY} | {"train_cases": len(train), **scores, **sizes, **fitted, **costs}
    return row | {"backbone_unchanged": same} | _saved(arm, spec, task, masks)


def _saved(arm: Arm, spec: SetSpec, task: dict[str, Any], masks: list[NDArray[np.int32]]) -> dict[str, Any]:
    """Write the adapter of a graft run, and the masks that it gave; path and size of the adapter."""
    if arm.grafted is None or task["arm"] != "graft":
        return {}
    path = Path(task["folder"]) / f"{spec.name}-{task['cases'] or 'all'}-{task['seed']}.graft"
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {k: f"class {k}" for k in range(1, spec.classes)}
    np.savez_compressed(path.with_suffix(".npz"), *masks)
    save_bundle(path, arm.grafted, meta=BundleMeta(classes=classes, input_size=(spec.size, spec.size)))
    return {"adapter": str(path), "adapter_mb": path.stat().st_size / 1e6}


def verify(task: dict[str, Any]) -> dict[str, Any]:
    """Load an adapter file, predict the scored cases again, and count the pixels that differ from the run's masks."""
    spec = SPECS[task["set"]]
    grafted = load_bundle(task["adapter"], open_backbone(task["backbone"]))
    grafted.eval()
    arm = graft_arm(grafted, full=False, batch=1)
    scored = split(spec.name, task["cases"], task["seed"], tune=task["tune"])[1]
    masks: list[NDArray[np.int32]] = []
    evaluate(arm.forward, spec, scored, three=False, masks=masks)
    with np.load(Path(task["adapter"]).with_suffix(".npz")) as kept:
        differing = sum(int((kept[f"arr_{i}"] != mask).sum()) for i, mask in enumerate(masks))
    return {"differing": differing, "pixels": sum(mask.size for mask in masks)}


def trained_and_verified(task: dict[str, Any]) -> dict[str, Any]:
    """Train in one process and load the adapter in another one; the row of the table."""
    row = isolated("first_slice", ["--work", json.dumps(task)], threads=1)
    if "adapter" in row:
        again = isolated("first_slice", ["--verify", json.dumps(task | {"adapter": row["adapter"]})], threads=1)
        row |= {"pixels_differing_in_new_process": again["differing"], "pixels": again["pixels"]}
    return row


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that were asked for, the arms of a comparison side by side."""
    pretrained = {"graft", "full"} & set(options.arms)
    weights = open_backbone(options.backbone).weights_hash()[:12] if pretrained else ""
    return [
        {
            "set": name,
            "arm": arm,
            "cases": training_cases(fraction),
            "budget": options.budget or SPECS[name].budget,
            "seed": seed,
            "tune": options.tune,
            "backbone": options.backbone,
            "folder": str(options.json.parent / "adapters"),
            "lr": options.lr,
            "weights": "" if arm == "unet" else weights,
        }
        for name in options.sets
        for fraction in options.fractions
        for seed in range(options.seeds)
        for arm in options.arms
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing of the plan, writing the file after every run."""
    content = read_json(options.json)
    rows: list[dict[str, Any]] = content.setdefault("results", [])
    missing = [task for task in plan(options) if options.lr is not None or not is_there(task, rows, KEY)]
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(trained_and_verified, task) for task in missing]):
            rows.append(done.result())
            write_json(options.json, content)
            print(markdown([rows[-1]], summary_columns(rows[-1]["set"])), flush=True)
    if "sam_base" not in content and "graft" in options.arms:
        content["sam_base"] = {name: on_sam_base(SPECS[name]) for name in FIRST_SLICE}
        write_json(options.json, content)
    return content


def summary_columns(name: str) -> list[str]:
    """Columns of the printed table of a set."""
    return [
        "set",
        "arm",
        "train_cases",
        "n",
        *SPECS[name].headline,
        "trainable",
        "adapter_mb",
        "steps",
        "seconds",
        "peak_mb",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.first_slice", description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(FIRST_SLICE), choices=list(SPECS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--fractions", nargs="*", default=["all", "5"], help='numbers of training cases, or "all"')
    parser.add_argument("--budget", type=float, help="process seconds per run; default by set")
    parser.add_argument("--seeds", type=int, default=1, help="runs per arm, with seeds 0, 1, ...")
    parser.add_argument("--lr", type=float, help="override the learning rate (for --tune)")
    parser.add_argument("--tune", action="store_true", help="score held-out training cases; val is not read")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each; at most the cores you have")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/first_slice.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--verify", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for mode, text in ((work, options.work), (verify, options.verify)):
        if text:
            report(mode(json.loads(text)))
            return
    content = run(options)
    for name in options.sets:
        rows = [r for r in content["results"] if r["set"] == name and r["tune"] == options.tune]
        print(markdown(rows, summary_columns(name)))
    print(json.dumps(content.get("sam_base", {}), indent=1))


if __name__ == "__main__":
    main()
