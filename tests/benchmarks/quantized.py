"""What int8 gains and costs: ``python -m tests.benchmarks.quantized``, with nothing else running.

(i) The encoder of SAM-B's shape in float32 and int8: seconds of a pass, bytes of weights, peak of memory. Every
measurement has a process of its own, and the two take turns. The peak is counted from after loading (and quantising),
so that it says what a running program needs.
(ii) graft-tiny in float32 and int8 on the same box prompts: unseen procedural images, and the val split of real sets.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.quantize import quantize
from samgraft.recipes.engine.focus import segment_boxes
from samgraft.recipes.pretrain.scenes import make_sample
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import box_of, views
from tests.benchmarks._metrics import iou, mean_by_case
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.encoder import sam_base
from tests.benchmarks.zero_shot import PER_IMAGE, REAL, UNSEEN_SEED

WAYS = ("float32", "int8")


def subject(way: str, size: int) -> HFSamBackbone:
    """SAM-B with random weights, quantised or not."""
    backbone = HFSamBackbone(sam_base(size))
    return quantize(backbone) if way == "int8" else backbone


def weight_mb(backbone: HFSamBackbone) -> float:
    """MB of all tensors."""
    return sum(t.numel() * t.element_size() for t in backbone.state_dict().values()) / 2**20


def memory_mb(what: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def settle() -> None:
    """Give freed memory back, and count the peak from here."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@torch.no_grad()
def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one pass, and memory."""
    torch.set_num_threads(task["threads"])
    backbone = subject(task["way"], task["size"])
    image = torch.rand(task["batch"], 3, task["size"], task["size"], generator=torch.Generator().manual_seed(1))
    settle()
    loaded, seconds = memory_mb("VmRSS"), []
    for _ in range(task["passes"] + 1):  # the first one warms up
        start = time.perf_counter()
        backbone.encode(image)
        seconds.append(time.perf_counter() - start)
    peak = memory_mb("VmHWM")
    return {"seconds": min(seconds[1:]), "weights_mb": weight_mb(backbone), "loaded_mb": loaded, "peak_mb": peak}


@torch.no_grad()
def error(task: dict[str, Any]) -> dict[str, Any]:
    """Norm of the difference over the norm, on one procedural image per batch entry."""
    torch.set_num_threads(task["threads"])
    pictures = [make_sample(UNSEEN_SEED + i, task["size"]).image for i in range(task["batch"])]
    image = torch.from_numpy(np.stack(pictures))
    exact, found = (subject(way, task["size"]).encode(image).neck for way in WAYS)
    return {"error": float((found - exact).norm() / exact.norm())}


def speed(size: int, batch: int, threads: int, *, rounds: int, passes: int) -> dict[str, Any]:
    """One row of the first table."""
    shape = {"size": size, "batch": batch, "threads": threads}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            task = json.dumps(shape | {"way": way, "passes": passes})
            found[way].append(isolated("quantized", ["--task", task], threads=threads))
    row: dict[str, Any] = dict(shape)
    for way in WAYS:
        row[f"{way}_s"] = statistics.median(f["seconds"] for f in found[way])
        row |= {f"{way}_{key}": max(f[key] for f in found[way]) for key in ("weights_mb", "loaded_mb", "peak_mb")}
    last = isolated("quantized", ["--task", json.dumps(shape | {"way": "error"})], threads=threads)
    return row | {"faster": row["float32_s"] / row["int8_s"], "error": last["error"]}


Item = tuple[str, NDArray[Any], list[NDArray[np.bool_]]]
"""Case, image (3, H, W), masks of objects."""


def items(name: str, images: int, size: int) -> Iterator[Item]:
    """Images with objects of a real set, or of the generator."""
    if name == "procedural":
        for seed in range(UNSEEN_SEED, UNSEEN_SEED + images):
            sample = make_sample(seed, size)
            chosen = np.random.default_rng(seed).permutation(len(sample.masks))[:PER_IMAGE]
            yield str(seed), sample.image, list(sample.masks[chosen])
        return
    for number, view in enumerate(views(name)):
        if number >= images:
            return
        yield view.case, np.ascontiguousarray(view.image.transpose(2, 0, 1)), view.masks


def accuracy(name: str, backbones: dict[str, HFSamBackbone], *, images: int, size: int) -> dict[str, Any]:
    """One row of the second table: mean IoU over cases for the same boxes, and how far the two are apart."""
    scores: dict[str, list[tuple[str, float]]] = {way: [] for way in backbones}
    between: list[float] = []
    pictures = 0
    for case, image, truths in items(name, images, size):
        if not truths:
            continue
        pictures += 1
        boxes = torch.tensor([box_of(truth) for truth in truths], dtype=torch.float32)
        found = {
            way: [m.full() for m in segment_boxes(backbone, torch.from_numpy(image), boxes, size=size)]
            for way, backbone in backbones.items()
        }
        for way, masks in found.items():
            scores[way] += [(case, iou(mask, truth)) for mask, truth in zip(masks, truths, strict=True)]
        between += [iou(a, b) for a, b in zip(*(found[way] for way in WAYS), strict=True)]
    row: dict[str, Any] = {"set": name, "pictures": pictures, "objects": len(between)}
    row |= {way: mean_by_case(values) for way, values in scores.items()}
    return row | {
        "cost": row["float32"] - row["int8"],
        "iou_between": float(np.mean(between)) if between else float("nan"),
        "worst_between": min(between, default=float("nan")),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quantized", description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[512, 1024], help="sides in pixels; none: no timing")
    parser.add_argument("--batches", nargs="*", type=int, default=[1], help="images per call")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2, help="processes per way; the median counts")
    parser.add_argument("--passes", type=int, default=2, help="timed passes per process; the fastest counts")
    parser.add_argument("--backbone", default="graft-tiny", help="of the accuracy table: name, folder or weight file")
    parser.add_argument("--images", type=int, default=40, help="most images per set; 0: no accuracy table")
    sets = ("procedural", *REAL)
    parser.add_argument("--sets", nargs="*", default=list(sets), choices=sets, metavar="SET", help=", ".join(sets))
    parser.add_argument("--network-size", type=int, default=128, help="side of the network input in pixels")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/quantized.json"))
    options = options_or_work(parser, argv, lambda task: (error if task["way"] == "error" else measure)(task))
    if options is None:
        return
    result: dict[str, Any] = {"backbone": options.backbone, "speed": [], "accuracy": []}
    for shape in ((s, b, t) for s in options.sizes for b in options.batches for t in options.threads):
        result["speed"].append(speed(*shape, rounds=options.rounds, passes=options.passes))
        print(markdown(result["speed"][-1:]), flush=True)
        write_json(options.json, result)
    if options.images:
        backbones = {"float32": open_backbone(options.backbone), "int8": quantize(open_backbone(options.backbone))}
        for name in options.sets:
            result["accuracy"].append(accuracy(name, backbones, images=options.images, size=options.network_size))
            print(markdown(result["accuracy"][-1:]), flush=True)
            write_json(options.json, result)
    print(markdown(result["speed"]), markdown(result["accuracy"]), sep="\n")


if __name__ == "__main__":
    main()
