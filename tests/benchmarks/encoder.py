"""How fast the frozen encoder runs: ``python -m tests.benchmarks.encoder``, with nothing else running.

SAM-B's shape with random weights (relative positions not zero), against ``transformers.SamModel`` (sdpa) and against
the floor: the time of nothing but the matrix products of these shapes, each with a plain ``torch.mm`` or ``bmm``. Every
measurement has a process of its own, and all take turns, so that the machine's mood meets each of them. "kept": in a
process that keeps what it frees (``samgraft.recipes.heap.keep_memory``), as ``samgraft segment`` does.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig, SamModel

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.recipes.heap import keep_memory
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json

KEPT = ", kept"
WAYS = ("transformers", "samgraft", "floor", "transformers, kept", "samgraft, kept", "floor, kept")
WIDTH, HEADS, BLOCKS, GLOBAL, WINDOW, PATCH = 768, 12, 12, 4, 14, 16


def sam_base(size: int) -> SamModel:
    """SAM-B for ``size`` pixels with reproducible weights of a usual scale.

    transformers starts this encoder at a standard deviation of 1e-10. Then its output says nothing about equality, and
    gradients are so small (1e-38) that the processor takes them one by one: a backward pass lasts ten times as long.
    """
    torch.manual_seed(0)
    vision: dict[str, float] = {
        "image_size": size,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": BLOCKS,
    }
    vision["initializer_range"] = 0.02
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": size})).eval()
    for name, parameter in model.vision_encoder.named_parameters():
        if "rel_pos" in name or name.endswith("pos_embed"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def floor(size: int, batch: int) -> Callable[[], None]:
    """Do every matrix product of the encoder once, on operands that are there already."""
    tokens, depth = (size // PATCH) ** 2 * batch, WIDTH // HEADS
    rows = torch.randn(tokens, 4 * WIDTH)
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    weights = [torch.randn(shape) for shape in shapes]
    outputs = [torch.empty(tokens, shape[1]) for shape in shapes]
    inputs = [rows[:, : shape[0]].contiguous() for shape in shapes]
    side = size // PATCH
    windows = (-(-side // WINDOW)) ** 2 * batch
    local = torch.randn(windows * HEADS, WINDOW**2, depth)
    whole = torch.randn(1, side**2, depth)  # one head at a time: all logits of a block would need a gigabyte

    def products(x: torch.Tensor) -> None:
        torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)

    def run() -> None:
        for block in range(BLOCKS):
            for x, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(x, weight, out=out)
            if block < GLOBAL:
                for _ in range(HEADS * batch):
                    products(whole)
            else:
                products(local)

    return run


def subject(way: str, size: int, batch: int) -> Callable[[], Any]:
    """What is timed."""
    way = way.removesuffix(KEPT)
    if way == "floor":
        return floor(size, batch)
    image = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    model = sam_base(size)
    backbone = HFSamBackbone(model)
    if way == "transformers":
        normalised = backbone._normalise(image)  # which our encoder does itself
        return lambda: model.vision_encoder(normalised).last_hidden_state
    return lambda: backbone.encode(image).neck


@torch.no_grad()
def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one pass, and the memory that it takes on top of what was loaded."""
    torch.set_num_threads(task["threads"])
    if task["way"].endswith(KEPT):
        keep_memory()
    call = subject(task["way"], task["size"], task["batch"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(task["passes"] + 1):  # the first one warms up
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds[1:]), "peak_mb": peak, "extra_mb": peak - before}


@torch.no_grad()
def error(task: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of the two encoders over the largest value."""
    torch.set_num_threads(task["threads"])
    theirs, ours = (subject(way, task["size"], task["batch"])() for way in WAYS[:2])
    return {"error": float((ours - theirs).abs().max() / theirs.abs().max())}


def alone(task: dict[str, Any]) -> dict[str, Any]:
    """Do ``task`` in a process of its own."""
    return isolated("encoder", ["--task", json.dumps(task)], threads=task["threads"])


def compare(size: int, batch: int, threads: int, *, rounds: int, passes: int) -> dict[str, Any]:
    """One row of the table."""
    shape = {"size": size, "batch": batch, "threads": threads}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(alone(shape | {"way": way, "passes": passes}))
    seconds = {way: statistics.median(f["seconds"] for f in found[way]) for way in WAYS}
    extra = {way: max(f["extra_mb"] for f in found[way]) for way in WAYS}
    peak = {way: max(f["peak_mb"] for f in found[way]) for way in WAYS}
    return shape | {
        "transformers_s": seconds["transformers"],
        "samgraft_s": seconds["samgraft"],
        "floor_s": seconds["floor"],
        "faster": seconds["transformers"] / seconds["samgraft"],
        "over_floor": seconds["samgraft"] / seconds["floor"],
        **{f"{way}_kept_s": seconds[way + KEPT] for way in WAYS[:3]},
        "kept_faster": seconds["transformers"] / seconds["samgraft" + KEPT],
        "both_kept_faster": seconds["transformers" + KEPT] / seconds["samgraft" + KEPT],
        "kept_over_floor": seconds["samgraft" + KEPT] / seconds["floor" + KEPT],
        "transformers_mb": peak["transformers"],
        "samgraft_mb": peak["samgraft"],
        "samgraft_kept_mb": peak["samgraft" + KEPT],
        "memory_share": peak["samgraft"] / peak["transformers"],
        "extra_share": extra["samgraft"] / extra["transformers"],
        "error": alone(shape | {"way": "error", "passes": 0})["error"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.encoder", description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[512, 1024], help="sides of the image in pixels")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 2], help="images per call")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2, help="processes per way; the median counts")
    parser.add_argument("--passes", type=int, default=2, help="timed passes per process; the fastest counts")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/encoder.json"))
    options = options_or_work(parser, argv, lambda task: (error if task["way"] == "error" else measure)(task))
    if options is None:
        return
    rows = []
    for size in options.sizes:
        for batch in options.batches:
            for threads in options.threads:
                rows.append(compare(size, batch, threads, rounds=options.rounds, passes=options.passes))
                print(markdown(rows[-1:]), flush=True)
                write_json(options.json, {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
