"""What a training step costs: ``python -m tests.benchmarks.memory``, with nothing else running.

SAM-B's shape at 1024 px, one picture per step, class-token decoder: every weight trained; LoRA on all blocks; LoRA on
the last four, where the first eight leave nothing behind for the backward pass; and the same from kept features. Both
of the large ones also with blocks that are computed again in the backward pass. "returned": with
``samgraft.recipes.heap.return_memory``; shares are of the first way and of the first of its own kind.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.recipes.cache.features import CachedEncoder
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.heap import return_memory
from tests.benchmarks._backbone import unfreeze
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._steps import peak_mb, timed, training_step
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.cache import pictures
from tests.benchmarks.encoder import sam_base

RETURNED = ", returned"
WAYS = (
    "full",
    "full, checkpointed",
    "lora all",
    "lora all, checkpointed",
    "lora last 4",
    "lora last 4, kept",
    "full, returned",
    "lora last 4, returned",
)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step after the first, and the largest memory."""
    torch.set_num_threads(task["threads"])
    way, size = task["way"].removesuffix(RETURNED), task["size"]
    if task["way"].endswith(RETURNED) and not return_memory():
        raise RuntimeError("the C library is not glibc; leave the returned ways out")
    backbone = HFSamBackbone(sam_base(size))
    backbone.checkpointing = way.endswith("checkpointed")
    lora = () if way.startswith("full") else (LoraConfig(rank=4, blocks="last:4" if "last 4" in way else "all"),)
    grafted = attach(backbone, lora, decoder=ClassTokensConfig(num_classes=2)).train()
    trained = unfreeze(grafted) if way.startswith("full") else grafted.trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        encoder = CachedEncoder(grafted, FeatureStore(Path(folder))) if way.endswith("kept") else None
        seconds = timed(training_step(grafted, trained, *pictures(size, 1), encoder), task["steps"] + 1)
    return {"seconds": min(seconds[1:]), "peak_mb": peak_mb()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=1, help="timed steps; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/memory.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for way in options.ways:
        task = {"way": way, "size": options.size, "steps": options.steps, "threads": options.threads}
        rows.append(task | isolated("memory", ["--task", json.dumps(task)], threads=options.threads))
        alike = next(row for row in rows if row["way"].endswith(RETURNED) == way.endswith(RETURNED))
        rows[-1]["memory_share"] = rows[-1]["peak_mb"] / rows[0]["peak_mb"]
        rows[-1]["share_of_alike"] = rows[-1]["peak_mb"] / alike["peak_mb"]
        rows[-1]["time_share"] = rows[-1]["seconds"] / rows[0]["seconds"]
        print(markdown(rows[-1:]), flush=True)
        write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
