"""Thousands of box prompts on one image: ``python -m tests.benchmarks.prompts``, with nothing else running.

SAM-B's decoder on an embedding of 64 x 64 tokens, against ``transformers.SamModel`` called in a loop of 64 boxes. Masks
are thresholded and counted as they come, as a caller with thousands of them would do. Each way has its own process, and
they take turns; prompts per second, and the memory that comes on top of the model. "kept": in a process that keeps what
it frees (``samgraft.recipes.heap.keep_memory``), as ``samgraft segment`` does.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.recipes.heap import keep_memory
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.encoder import sam_base

KEPT = ", kept"
WAYS = ("transformers", "samgraft", "transformers, kept", "samgraft, kept")
LOOP = 64


def boxes(number: int) -> Tensor:
    """(n, 4) boxes within 1024 pixels."""
    corners = torch.rand(number, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([700.0, 300.0])
    return torch.cat([corners[:, 0], corners[:, 0] + 24 + corners[:, 1]], dim=1)


@torch.no_grad()
def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Prompts per second and memory of one way."""
    torch.set_num_threads(task["threads"])
    if task["way"].endswith(KEPT):
        keep_memory()
    model = sam_base(1024)
    neck = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))
    given, backbone = boxes(task["prompts"]), HFSamBackbone(model)

    def transformers(some: Tensor) -> int:
        found = 0
        for part in some.split(LOOP):
            out = model(image_embeddings=neck, input_boxes=part[None], multimask_output=False)
            found += int((out.pred_masks > 0).sum())
        return found

    def samgraft(some: Tensor) -> int:
        prompts = Prompts(image_index=torch.zeros(len(some), dtype=torch.long), boxes=some)
        parts = backbone.decode_parts(Features(neck=neck), prompts)
        return sum(int((logits > 0).sum()) for _, logits, _ in parts)

    call = transformers if task["way"].startswith("transformers") else samgraft
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    call(given[:LOOP])
    half = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    pixels = call(given)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"per_s": len(given) / seconds, "extra_mb": peak - before, "growth_mb": peak - half, "pixels": pixels}


def alone(task: dict[str, Any]) -> dict[str, Any]:
    """Do ``task`` in a process of its own."""
    return isolated("prompts", ["--task", json.dumps(task)], threads=task["threads"])


def compare(threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table; the slow way gets fewer prompts, its rate does not depend on their number."""
    few = min(options.prompts, options.reference)
    counts = {way: few if way.startswith("transformers") else options.prompts for way in WAYS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            found[way].append(alone({"way": way, "threads": threads, "prompts": counts[way]}))
    rate = {way: statistics.median(f["per_s"] for f in found[way]) for way in WAYS}
    return {
        "threads": threads,
        "prompts": options.prompts,
        "transformers_per_s": rate["transformers"],
        "samgraft_per_s": rate["samgraft"],
        "faster": rate["samgraft"] / rate["transformers"],
        "transformers_kept_per_s": rate["transformers, kept"],
        "samgraft_kept_per_s": rate["samgraft, kept"],
        "kept_faster": rate["samgraft, kept"] / rate["transformers"],
        "transformers_mb": max(f["extra_mb"] for f in found["transformers"]),
        "samgraft_mb": max(f["extra_mb"] for f in found["samgraft"]),
        "samgraft_growth_mb": max(f["growth_mb"] for f in found["samgraft"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prompts", description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--reference", type=int, default=256, help="most prompts for the slow way")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/prompts.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows = [compare(threads, options) for threads in options.threads]
    write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
