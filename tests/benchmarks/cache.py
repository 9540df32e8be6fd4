"""What keeping a frozen encoder's features saves: ``python -m tests.benchmarks.cache``, with nothing else running.

One epoch of training AutoSAM's prompt generator or class tokens, on graft-tiny at 128 px and on SAM-B's shape (random
weights) at 1024 px: without the store, with an empty one, and with a full one. The same pictures, batches and initial
weights every time, so that the losses can be compared too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.recipes.cache.features import CachedEncoder
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.losses import SegmentationLoss
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.encoder import sam_base

SHAPES = {"graft-tiny": (128, 64, 8), "sam-b": (1024, 3, 1)}
"""Backbone -> side of the picture in pixels, pictures per epoch, pictures per step."""
METHODS = ("autosam", "class_tokens")


def network(backbone: HFSamBackbone, method: str) -> Grafted:
    """Two classes; weights drawn from one seed."""
    torch.manual_seed(0)
    if method == "autosam":
        return attach(backbone, prompter=AutoSamConfig(num_classes=2))
    return attach(backbone, decoder=ClassTokensConfig(num_classes=2))


def pictures(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Smooth noise (N, 3, S, S) in [0, 1], and where it is bright or dark, (N, S, S)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    image = functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    mean = image.mean(1)
    return image, (mean > 0.55).long() + 2 * (mean < 0.45).long()


def epoch(grafted: Grafted, encoder: CachedEncoder | None, size: int, count: int, batch: int) -> dict[str, Any]:
    """Train through all pictures once."""
    image, target = pictures(size, count)
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-3)
    loss_of, losses = SegmentationLoss(), []
    grafted.train()
    start = time.perf_counter()
    for first in range(0, count, batch):
        some, goal = image[first : first + batch], target[first : first + batch]
        features = None if encoder is None else encoder(some)
        output = grafted.predict(some, features=features)
        logits = output.logits
        if output.activation == "sigmoid":  # background scores 0
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
        loss = loss_of(functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False), goal)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"seconds": time.perf_counter() - start, "losses": losses}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Three epochs, each from the same initial weights."""
    torch.set_num_threads(task["threads"])
    size, count, batch = SHAPES[task["backbone"]]
    backbone = load_backbone() if task["backbone"] == "graft-tiny" else HFSamBackbone(sam_base(size))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder))
        for way in ("without", "cold", "warm"):
            grafted = network(backbone, task["method"])
            encoder = None if way == "without" else CachedEncoder(grafted, store)
            found[way] = epoch(grafted, encoder, size, count, batch)
            grafted.detach()
        stored = store.info().size
    changes = [abs(a - b) for a, b in zip(found["without"]["losses"], found["warm"]["losses"], strict=True)]
    return {
        "without_s": found["without"]["seconds"],
        "cold_s": found["cold"]["seconds"],
        "warm_s": found["warm"]["seconds"],
        "faster": found["without"]["seconds"] / found["warm"]["seconds"],
        "mb_per_picture": stored / count / 1e6,
        "largest_loss_change": max(changes),
        "warm_equals_cold": found["warm"]["losses"] == found["cold"]["losses"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cache", description=__doc__)
    parser.add_argument("--backbones", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/cache.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows = []
    for backbone in options.backbones:
        for method in options.methods:
            task = {"backbone": backbone, "method": method, "threads": options.threads}
            rows.append(task | isolated("cache", ["--task", json.dumps(task)], threads=options.threads))
            print(markdown(rows[-1:]), flush=True)
    write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
