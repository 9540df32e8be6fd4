"""Everything mode against the original's algorithm: ``python -m tests.benchmarks.everything``, with nothing else on.

One picture of 1024 pixels (four made-up villages), the same points, thresholds and weights, each way in a process of
its own; ways take turns. "original" is the published algorithm written out plainly: batches of 64 points through the
unchanged mask decoder, all masks enlarged to the picture, filtered there, boxes, run lengths, suppression by boxes.
"original, shared" is the same on this project's decoder, so that the two kinds of gain can be told apart. Time and
memory are given for the search alone and with the encoder; memory is what comes on top of the loaded model.

    --backbone graft-tiny   embedded, at 1024 pixels: 16,384 tokens, more than it was trained with
    --backbone sam_base     SAM-B's shape, random weights: it computes, and its answers are replaced by discs near each
                            point, since random weights give every point the same mask; thresholds of the original

graft-tiny does not believe in its masks of such a picture, so its thresholds are set where a share of the masks passes
each (``--passing``), on 64 other points; ``--thresholds`` names them instead.

Every run is written as it ends and found again, with its masks in a folder beside the file, so a benchmark that was
stopped goes on where it was; remove the file to measure again. ``--side 256 --points 8`` is a quick look.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.decoding import decode_masks, image_code
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.engine.runs import RunMask, from_coco
from samgraft.recipes.phantoms import make_village
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._table import is_there, markdown, write_json
from tests.benchmarks.encoder import sam_base
from tests.benchmarks.grafts import Results, Task

WAYS = ("original", "original, shared", "samgraft")
KEY = ("backbone", "way", "round", "points", "side", "threads", "passing", "thresholds")
"""What a run was measured with; one that agrees in all of it is not done again."""
FIGURES = ("search_s", "total_s", "search_mb", "total_mb", "masks")
BATCH = 64
OFFSET, NMS = 1.0, 0.7


def picture(side: int) -> Tensor:
    """(3, side, side) in [0, 1]; at most 1024 pixels."""
    tiles = [torch.from_numpy(make_village(seed).image).float() / 255 for seed in range(4)]
    return torch.cat([torch.cat(tiles[:2], 2), torch.cat(tiles[2:], 2)], 1)[:, :side, :side].contiguous()


def backbone_of(name: str, side: int) -> HFSamBackbone:
    """The embedded backbone, or SAM-B's shape."""
    return Discs(sam_base(side), name=name) if name == "sam_base" else load_backbone(name)


class Discs(HFSamBackbone):
    """Decodes, and answers with discs: the object nearest to the point, larger and smaller."""

    def decode_parts(self, features: Features, prompts: Prompts, **options: Any) -> Iterator[tuple[Tensor, ...]]:
        """As the backbone's, with other masks."""
        for rows, logits, _ in super().decode_parts(features, prompts, **options):
            yield rows, *discs(prompts.select(rows), logits.shape[-1], self.spec.patch_size / 4)


def discs(prompts: Prompts, side: int, stride: float) -> tuple[Tensor, Tensor]:
    """Masks (n, 3, side, side) and predicted IoU (n, 3) of objects every 45 pixels, each with a size and an edge.

    ``stride`` is how many pixels a side of a cell has.
    """
    places = prompts.points[:, 0] if prompts.points is not None else torch.zeros(0, 2)
    number = (places / 45).round()
    x, y = ((number * 45 + 0.5) / stride - 0.5).T
    own = (number @ torch.tensor([0.6180, 0.4142])) % 1
    line = torch.arange(side, dtype=torch.float32)
    far = ((line - x[:, None])[:, None, :] ** 2 + (line - y[:, None])[:, :, None] ** 2).sqrt_()
    radii = (2 + 14 * own[:, None] ** 2) * torch.tensor([0.7, 1.0, 2.5])
    slope = (0.5 + 4 * ((own[:, None] * 7.3 + places[:, :1] / 400) % 1))[:, :, None, None]
    iou = 0.75 + 0.25 * ((own[:, None] * 3.7 + places[:, 1:] / 300 + torch.tensor([0.1, 0.6, 0.3])) % 1)
    return (radii[:, :, None, None] - far[:, None]) * slope, iou


def shares(side: int) -> list[tuple[float, float]]:
    """Points (x, y) as shares of width and height, row by row."""
    line = (np.arange(side) + 0.5) / side
    return [(float(x), float(y)) for y in line for x in line]


def prompts_of(points: Tensor) -> Prompts:
    """One positive click each."""
    count = len(points)
    labels = torch.ones(count, 1, dtype=torch.int64)
    return Prompts(image_index=torch.zeros(count, dtype=torch.int64), points=points[:, None], labels=labels)


class Memory:
    """The largest resident memory since :meth:`start`, in MB above what it was then."""

    def start(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")
        self.base = self._read("VmRSS")

    def peak(self) -> float:
        """MB."""
        return self._read("VmHWM") - self.base

    @staticmethod
    def _read(name: str) -> float:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else float("nan")


def original(backbone: HFSamBackbone, neck: Tensor, task: dict[str, Any]) -> list[RunMask]:
    """The published algorithm on one picture without crops."""
    side = task["side"]
    points = torch.tensor(shares(task["points"])) * side - 0.5
    code = image_code(backbone.sam.shared_image_embedding.positional_embedding, (neck.shape[2], neck.shape[3]))
    found: list[tuple[RunMask, list[float], float]] = []
    for some in points.split(BATCH):
        prompts = prompts_of(some)
        if task["way"] == "original":
            decoder, embedded = backbone.sam.mask_decoder, backbone.embed(prompts, (side, side))
            logits, iou = decode_masks(
                decoder, Features(neck=neck), embedded, code, prompts.image_index, multimask=True
            )
            if isinstance(backbone, Discs):
                logits, iou = discs(prompts, logits.shape[-1], backbone.spec.patch_size / 4)
        else:
            logits, iou = backbone.decode(Features(neck=neck), prompts, multimask=True)
        masks = functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False).flatten(0, 1)
        scores = iou.flatten()
        keep = scores > task["pred_iou"]
        masks, scores = masks[keep], scores[keep]
        inner = (masks > OFFSET).sum((1, 2), dtype=torch.int32)
        keep = inner / (masks > -OFFSET).sum((1, 2), dtype=torch.int32) >= task["stability"]
        masks, scores = masks[keep] > 0, scores[keep]
        found += [(*_compressed(mask), float(score)) for mask, score in zip(masks, scores, strict=True) if mask.any()]
    if not found:
        return []
    boxes, ranks = torch.tensor([box for _, box, _ in found]), torch.tensor([score for *_, score in found])
    return [found[i][0] for i in non_max_suppression(boxes, ranks, NMS).tolist()]


def _compressed(mask: Tensor) -> tuple[RunMask, list[float]]:
    """Run lengths over the whole picture, column by column, and the box (first and last pixel)."""
    flat = mask.T.flatten().numpy()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    counts = [0, *lengths] if flat[0] else lengths
    rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = [float(v) for v in (cols.min(), rows.min(), cols.max(), rows.max())]
    return from_coco({"size": list(mask.shape), "counts": counts}), box


def searched(backbone: HFSamBackbone, image: Tensor, neck: Tensor, task: dict[str, Any]) -> list[RunMask]:
    """This project's way."""
    config = EverythingConfig(
        points_per_side=None,
        point_grids=[shares(task["points"])],
        pred_iou_thresh=task["pred_iou"],
        stability_score_thresh=task["stability"],
        stability_score_offset=OFFSET,
        box_nms_thresh=NMS,
        nms=task["nms"],
        tile=0,
        max_share=1.0,
        min_network_area=0,
    )
    masks = automatic_masks(backbone, image, config=config, size=task["side"], features=Features(neck=neck), depth=0)
    return [one.runs for one in masks.found]


@torch.no_grad()
def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds, memory and masks of one way."""
    torch.set_num_threads(task["threads"])
    backbone, image, memory = backbone_of(task["backbone"], task["side"]), picture(task["side"]), Memory()
    if task["way"] == "calibrate":
        return _thresholds(backbone, image, task)
    memory.start()
    start = time.perf_counter()
    neck = backbone.encode(image[None]).neck
    encoded, encoder_mb = time.perf_counter() - start, memory.peak()
    memory.start()
    start = time.perf_counter()
    found = searched(backbone, image, neck, task) if task["way"] == "samgraft" else original(backbone, neck, task)
    seconds, search_mb = time.perf_counter() - start, memory.peak()
    Path(task["masks_at"]).write_text(json.dumps([mask.coco() for mask in found]))
    return {
        "search_s": seconds,
        "total_s": seconds + encoded,
        "search_mb": search_mb,
        "total_mb": max(encoder_mb, search_mb),
        "masks": len(found),
    }


def _thresholds(backbone: HFSamBackbone, image: Tensor, task: dict[str, Any]) -> dict[str, Any]:
    """Thresholds that let the asked share of masks pass, on a few points; exact ties are unlikely between them."""
    neck = backbone.encode(image[None]).neck
    points = torch.tensor(shares(8)) * task["side"] - 0.5
    logits, iou = backbone.decode(Features(neck=neck), prompts_of(points), multimask=True)
    masks, scores = logits.flatten(0, 1), iou.flatten()
    stability = (masks > OFFSET).sum((1, 2)) / (masks > -OFFSET).sum((1, 2)).clamp_min(1)
    least = float(scores.quantile(1 - task["passing"]))
    return {"pred_iou": least, "stability": float(stability[scores > least].quantile(1 - task["passing"]))}


def agreement(reference: Sequence[RunMask], found: Sequence[RunMask]) -> float:
    """Mean over the reference's masks of the best IoU with one that was found; nan without masks."""
    best = []
    for mask in reference:
        near = [one for one in found if min(one.area, mask.area) > 0.5 * max(one.area, mask.area)]
        best.append(max((mask.iou(one) for one in near), default=0.0))
    return float(np.mean(best)) if best else float("nan")


def alone(task: Task, results: Results) -> Task:
    """Do ``task`` in a process of its own, or find what was measured before."""
    done = [row for row in results.rows("runs") if is_there(task, [row], KEY)]
    if done:
        return done[0]
    results.add("runs", task | isolated("everything", ["--task", json.dumps(task)], threads=task["threads"]), KEY)
    return results.rows("runs")[-1]


def compare(name: str, options: argparse.Namespace, results: Results) -> list[dict[str, Any]]:
    """Rows of one backbone."""
    keys = ("threads", "points", "side", "passing", "thresholds")
    task: Task = {"backbone": name, "nms": "box"} | {key: getattr(options, key) for key in keys}
    given = options.thresholds or ((0.88, 0.95) if name == "sam_base" else None)
    if given:
        task |= {"pred_iou": given[0], "stability": given[1]}
    else:
        found = alone(task | {"way": "calibrate", "round": 0}, results)
        task |= {key: found[key] for key in ("pred_iou", "stability")}
    runs: dict[str, list[Task]] = {way: [] for way in options.ways}
    folder = options.json.parent / f"{options.json.stem}_masks"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.rounds):
        for way in options.ways:
            file = folder / f"{len(results.rows('runs'))}.json"
            runs[way].append(alone(task | {"way": way, "round": number, "masks_at": str(file)}, results))
    files = {way: Path(found[-1]["masks_at"]) for way, found in runs.items()}
    masks = {way: [from_coco(rle) for rle in json.loads(file.read_text())] for way, file in files.items()}
    first = options.ways[0]
    rows: list[dict[str, Any]] = []
    for way in options.ways:
        middle = {key: statistics.median(run[key] for run in runs[way]) for key in FIGURES}
        base = rows[0] if rows else middle
        rows.append(
            {
                "backbone": name,
                "way": way,
                "pred_iou_thresh": task["pred_iou"],
                "stability_thresh": task["stability"],
                **middle,
                "faster": base["search_s"] / middle["search_s"],
                "faster_total": base["total_s"] / middle["total_s"],
                "memory": middle["search_mb"] / max(base["search_mb"], 1e-9),
                "count_difference": len(masks[way]) / max(1, len(masks[first])) - 1,
                "matched_iou": agreement(masks[first], masks[way]),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.everything",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", nargs="+", default=["graft-tiny"], choices=["graft-tiny", "sam_base"])
    parser.add_argument("--points", type=int, default=32, help="points along each side")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels; a multiple of 16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--passing", type=float, default=0.3, help="share of masks that each threshold lets pass")
    parser.add_argument("--thresholds", type=float, nargs=2, metavar=("PRED_IOU", "STABILITY"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="the first one is compared with")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/everything.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    results = Results(options.json)
    rows = [row for name in options.backbone for row in compare(name, options, results)]
    write_json(options.json, results.content | {"results": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
