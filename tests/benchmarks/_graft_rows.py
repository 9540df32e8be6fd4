"""What the benchmark of grafts compares, and how one row of it is trained: methods, learning rates, hashes."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.bundle import save_bundle
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GRAFTS, BottleneckConfig, DecoderLoraConfig, LoraConfig
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.errors import CheckpointError
from tests.benchmarks._arms import GRAFT, Arm, count, decoder_config, graft_arm
from tests.benchmarks._backbone import open_backbone, tensor_hash
from tests.benchmarks._data import Case
from tests.benchmarks._graft_start import begin_with, decoder_start
from tests.benchmarks._sets import SPECS, SetSpec, evaluate, split, tensors
from tests.benchmarks._train import Optimiser, loop

BASELINE = "decoder only"
ALL_LINEAR = ("qkv", "proj", "lin1", "lin2")
MORE: dict[str, tuple[GraftConfig, ...]] = {
    BASELINE: (),
    "lora, all linear": (LoraConfig(targets=ALL_LINEAR),),
    "lora, last 4": (LoraConfig(blocks="last:4"),),
    "bottleneck, last 2": (BottleneckConfig(ratio=0.125, blocks="last:2"),),
    "lora + decoder_lora": (LoraConfig(), DecoderLoraConfig()),
}
"""Rows beside the registry's; the bottleneck is that of the first-slice benchmark."""
SIZE = {"nuclei": 64, "cardiac_mr": 64, "retina_vessels": 64, "buildings_banepa": 128}
"""Network input in pixels, and of windows their native side; half of the first-slice benchmark, so that a run
of half a minute has a few hundred steps."""
BATCH = {"cardiac_mr": 4, "buildings_banepa": 2}
"""Smaller than in the first-slice benchmark, whose budget is four times as long: steps are what is short here."""
CONTINUED = 0.25
"""Factor on the rate where the decoder has trained before: from the full rate on, 16 s only bring it back to where it
was (retina_vessels, held out: 0.737 instead of 0.745), and what a graft adds is not seen."""
METRIC = {"nuclei": "ap50", "cardiac_mr": "dice_patient", "retina_vessels": "dice", "buildings_banepa": "iou"}
"""What methods are compared by. cardiac_mr by patient: the Dice of a slice without the organ is 1 or 0 by one pixel."""
KEY = ("set", "cases", "seed", "method", "budget", "weights", "config", "recipe", "tune")
"""What makes two runs the same: "config" is the hash of the grafts, "recipe" that of everything else."""
HASH = 12
"""Digits of a hash."""


def rows(factor: float | None = None) -> dict[str, tuple[GraftConfig, ...]]:
    """Row -> grafts: the additional rows, then every method for pictures of the registry as it is by default.

    ``factor`` is taken instead of each method's own ``lr_factor``.
    """
    pictures = [name for name in GRAFTS.names() if not GRAFTS.get(name).volumetric]
    found = MORE | {name: (GRAFTS.get(name)(),) for name in pictures}
    if factor is None:
        return found
    return {name: tuple(replace(config, lr_factor=factor) for config in configs) for name, configs in found.items()}


def short_hash(value: Any) -> str:
    """Start of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:HASH]


def config_hash(configs: Sequence[GraftConfig]) -> str:
    """Of the dictionaries of the grafts."""
    return short_hash([config.to_dict() for config in configs])


def spec_of(name: str) -> SetSpec:
    """How this benchmark trains and scores a set."""
    spec = SPECS[name]
    size = SIZE.get(name, spec.size)
    return replace(spec, size=size, window=None if spec.window is None else size)


def optimiser(spec: SetSpec, *, start: float = 0) -> Optimiser:
    """Rate and batch of a set, the same for all rows; methods carry a factor on the rate of their own parts.

    ``start`` is for how many seconds the decoder has trained before.
    """
    return Optimiser(lr=GRAFT.lr * (CONTINUED if start else 1), batch=BATCH.get(spec.name, spec.batch))


def recipe_hash(spec: SetSpec, options: Optimiser, start: float = 0) -> str:
    """Of the set's settings, the decoder's and the optimiser's, and of the seconds that the decoder trained before."""
    return short_hash([asdict(spec), decoder_config(spec).to_dict(), asdict(options), start])


def state_of(backbone: HFSamBackbone) -> str:
    """Hash of all tensors of a backbone without grafts, and of the names in its module tree."""
    names = "/".join(name for name, _ in backbone.named_modules())
    return short_hash([tensor_hash(chain(backbone.parameters(), backbone.buffers())), names])


def bundle_mb(grafted: Grafted) -> float | None:
    """Size of the adapter file, MB; None if its tensors are not finite."""
    with TemporaryDirectory() as folder:
        try:
            return save_bundle(Path(folder) / "a.graft", grafted).stat().st_size / 1e6
        except CheckpointError:
            return None


def train(
    arm: Arm, grafted: Grafted, spec: SetSpec, pictures: tuple[Tensor, Tensor], task: dict[str, Any]
) -> dict[str, Any]:
    """Train for ``task["budget"]`` seconds, the first step included; what it took.

    The clock is the time of this process, which has one thread: wall time on a machine with nothing else to do.
    """
    arm.module.train()
    wall, process = time.perf_counter(), time.process_time()
    fitted = loop(
        arm.forward,
        arm.trained,
        spec,
        pictures,
        arm.options,
        start=process,
        deadline=process + task["budget"],
        seed=task["seed"],
        penalty=grafted.penalty,
        factors=grafted.rate_factors(),
    )
    waited, seconds = time.perf_counter() - wall, time.process_time() - process
    idle = count([p for p in arm.trained if p.grad is None])
    return fitted | {
        "seconds": seconds,
        "busy": seconds / waited,
        "seconds_per_step": seconds / max(1, int(fitted["steps"])),
        "without_gradient": idle,
    }


def one(
    backbone: HFSamBackbone,
    task: dict[str, Any],
    pictures: tuple[Tensor, Tensor],
    scored: list[Case],
    start_from: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Attach one row's grafts, train, score once, detach.

    Args:
        backbone: Without grafts, and so again afterwards.
        task: The fields of ``KEY``, "factor" of the learning rate or None, and "start" in seconds.
        pictures: Training images and targets.
        scored: Cases for the score.
        start_from: State of the decoder to begin with; None begins with a new one.
    """
    spec, configs = spec_of(task["set"]), rows(task["factor"])[task["method"]]
    before = state_of(backbone)
    torch.manual_seed(task["seed"])
    grafted = attach(backbone, configs, decoder=decoder_config(spec))
    begin_with(grafted, start_from)
    arm = graft_arm(grafted, full=False, batch=spec.batch)
    arm.options = optimiser(spec, start=task["start"])
    took = train(arm, grafted, spec, pictures, task)
    arm.module.eval()
    start = time.perf_counter()
    scores = evaluate(arm.forward, spec, scored, three=False)
    sizes = {"trainable": count(arm.trained), "adapter_mb": bundle_mb(grafted), "total": arm.total}
    scoring = {"scoring_seconds": time.perf_counter() - start, "metric": METRIC.get(spec.name, spec.headline[0])}
    grafted.detach()
    said = {key: task[key] for key in (*KEY, "start", "factor")}
    return said | {
        "lr": arm.options.lr,
        **scores,
        **sizes,
        **took,
        **scoring,
        "backbone_unchanged": state_of(backbone) == before,
    }


def many(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All rows of one (set, cases, seed), one after the other; data are read once.

    A run that fails gives {"failed": ..., the fields of ``KEY``}; after that, or if a graft left something behind, the
    backbone is loaded anew.
    """
    first = group["tasks"][0]
    spec = spec_of(first["set"])
    chosen, scored = split(spec.name, first["cases"], first["seed"], tune=first["tune"])
    pictures = tensors(spec, chosen)
    backbone = open_backbone(group["backbone"])
    start_from = decoder_start(backbone, spec, pictures, first, optimiser(spec), Path(group["folder"]))
    for task in group["tasks"]:
        try:
            row = one(backbone, task, pictures, scored, start_from)
        except Exception as error:  # any method may be broken, and the others are to be measured all the same
            row = {key: task[key] for key in KEY} | {"failed": f"{type(error).__name__}: {error}"}
        if not row.get("backbone_unchanged"):
            backbone = open_backbone(group["backbone"])
        yield row | {"train_cases": len(chosen)}
