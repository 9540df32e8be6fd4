"""What everything mode finds in real images: ``python -m tests.benchmarks.everything_quality``.

AP50 (masks, every recall step) on the val split of nuclei and buildings_banepa with graft-tiny: untrained, with doubles
told by boxes and by masks, and with SAM-cls, whose classifier is trained for ``--minutes`` on proposals that are
computed once per training window. Nothing is looked at in val but for the score.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.objects import objects_from_labels
from samgraft.adapters.prompts.sam_cls import Proposals, SamClsConfig, SamClsHead
from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.crops import Crop
from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.engine.runs import RunMask, runs_of
from samgraft.recipes.engine.suppress import keep_best
from samgraft.recipes.engine.windows import from_network
from samgraft.recipes.instances import InstanceMatch, average_precision
from tests.benchmarks._data import Case, picture
from tests.benchmarks._sets import split, training_cases
from tests.benchmarks._table import markdown, write_json

SIDES = {"nuclei": 128, "buildings_banepa": 256}
"""Windows that are looked at on their own, in pixels of the picture."""
SIZES = {"nuclei": 128, "buildings_banepa": 256}
"""Network size of a window."""


def match(case: Case, masks: Sequence[RunMask], scores: Sequence[float], ignore_below: int = 1) -> InstanceMatch:
    """Match masks, which may overlap, to true objects: the best scored first, each object once."""
    truth = np.maximum(case.label, 0)
    numbers, areas = np.unique(truth[truth > 0], return_counts=True)
    column = {int(n): i for i, n in enumerate(numbers[areas >= ignore_below])}
    table = np.zeros((len(masks), len(column)))
    sizes = dict(zip(numbers.tolist(), areas.tolist(), strict=True))
    for row, mask in enumerate(masks):
        inside, counts = np.unique(truth[mask.place][mask.crop()], return_counts=True)
        for number, both in zip(inside.tolist(), counts.tolist(), strict=True):
            if number in column:
                table[row, column[number]] = both / (mask.area + sizes[number] - both)
    best, free = np.zeros(len(masks)), np.ones(len(column), dtype=bool)
    for row in np.argsort(-np.asarray(scores), kind="stable"):
        if free.any():
            chosen = int(np.argmax(np.where(free, table[row], -1)))
            best[row] = table[row, chosen]
            free[chosen] = best[row] < 0.5
    truth_iou = table.max(axis=0) if len(masks) else np.zeros(len(column))
    return InstanceMatch(
        case=case.name,
        scores=np.asarray(scores, dtype=np.float32),
        best_iou=best,
        num_truth=len(column),
        truth_iou=truth_iou,
    )


def plain(
    backbone: HFSamBackbone, name: str, cases: Sequence[Case], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Untrained everything mode: one search per picture, then each way of suppression."""
    config = EverythingConfig(tile=SIDES[name], box_nms_thresh=0.9, crop_nms_thresh=0.9, points_per_side=16)
    ways = [(by, threshold) for threshold in thresholds for by in ("box", "mask")]
    matches: dict[tuple[str, float], list[InstanceMatch]] = {way: [] for way in ways}
    counts, start = dict.fromkeys(ways, 0), time.perf_counter()
    for case in cases:
        found = automatic_masks(backbone, picture(case), config=config, size=SIZES[name], depth=0).found
        masks = [one.runs for one in found]
        for by, threshold in ways:
            kept = keep_best(masks, range(len(masks)), threshold, by=by)  # the best come first
            counts[by, threshold] += len(kept)
            matches[by, threshold].append(match(case, [masks[i] for i in kept], [found[i].iou for i in kept]))
    seconds = time.perf_counter() - start
    return [summary(matches[way], f"everything, {way[0]} {way[1]:g}", name, seconds, counts[way]) for way in ways]


def summary(matches: Sequence[InstanceMatch], method: str, name: str, seconds: float, count: int) -> dict[str, Any]:
    """One row."""
    recall = np.concatenate([m.truth_iou for m in matches])
    return {
        "set": name,
        "method": method,
        "ap50": average_precision(matches),
        "recall50": float((recall >= 0.5).mean()) if len(recall) else float("nan"),
        "found": count,
        "true": sum(m.num_truth for m in matches),
        "s_per_image": seconds / max(1, len(matches)),
    }


def squares(case: Case, side: int, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Windows of ``side`` pixels; smaller at pictures that are smaller."""
    from samgraft.recipes.data.fit import windows

    yield from windows((case.label.shape[0], case.label.shape[1]), side, overlap)


def seen(case: Case, place: tuple[slice, slice], side: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """(1, 3, side, side) and labels (side, side) of a window, edge pixels repeated and unknown beyond the picture."""
    part, label = picture(case)[:, place[0], place[1]], case.label[place].astype(np.int64)
    pads = [(0, side - n) for n in label.shape]
    image = np.pad(part.numpy(), [(0, 0), *pads], mode="edge")
    return torch.from_numpy(image)[None], np.pad(label, pads, constant_values=-1)


def train(backbone: HFSamBackbone, name: str, cases: Sequence[Case], minutes: float, most: int) -> SamClsHead:
    """Train the classifier on proposals of at most ``most`` windows."""
    torch.manual_seed(0)
    head = SamClsConfig().build(backbone)
    places = [(case, place) for case in cases for place in squares(case, SIDES[name], 0.0)]
    chosen = [places[i] for i in np.random.default_rng(0).permutation(len(places))[:most]]
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for case, place in chosen:
        image, label = seen(case, place, SIDES[name])
        proposals = head.propose(backbone, backbone.encode(image), image)
        target, counts = head.targets(proposals, objects_from_labels(torch.from_numpy(label)[None], min_area=10))
        kept.append((proposals.features[counts], target[counts]))
    features, target = torch.cat([f for f, _ in kept]), torch.cat([t for _, t in kept])
    print(f"{name}: {len(target)} proposals of {len(chosen)} windows, {int((target > 0).sum())} objects", flush=True)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    end, step = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end and step < 3000:
        rows = torch.randint(len(target), (512,))
        loss = head.loss_of(features[rows], target[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    print(f"{name}: {step} steps, loss {float(loss):.3f}", flush=True)
    return head.eval()


def classified(backbone: HFSamBackbone, name: str, cases: Sequence[Case], head: SamClsHead) -> dict[str, Any]:
    """SAM-cls over overlapping windows."""
    matches, start, count, side = [], time.perf_counter(), 0, SIDES[name]
    for case in cases:
        found: list[Candidate] = []
        shape = (case.label.shape[0], case.label.shape[1])
        for place in squares(case, side, 0.25):
            image, _ = seen(case, place, side)
            objects = head.find_in(_own(head, backbone, image))
            crop = Crop(
                top=place[0].start,
                left=place[1].start,
                height=place[0].stop - place[0].start,
                width=place[1].stop - place[1].start,
            )
            for logits, score in zip(objects.logits, objects.scores.tolist(), strict=True):
                mask = (from_network(logits[None], side)[0] > 0).numpy()[: crop.height, : crop.width]
                runs = runs_of(mask, top=crop.top, left=crop.left, shape=shape)
                found.append(Candidate(runs=runs, iou=score, stability=1.0, point=(0, 0), crop=crop))
        order = sorted(range(len(found)), key=lambda i: -found[i].iou)
        kept = [found[i] for i in keep_best([one.runs for one in found], order, 0.4)]
        count += len(kept)
        matches.append(match(case, [one.runs for one in kept], [one.iou for one in kept]))
    return summary(matches, "sam_cls", name, time.perf_counter() - start, count)


def _own(head: SamClsHead, backbone: HFSamBackbone, image: torch.Tensor) -> Proposals:
    with torch.no_grad():
        return head.propose(backbone, backbone.encode(image), image)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.everything_quality", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--fraction", default="all", help="training cases: a number or all")
    parser.add_argument("--windows", type=int, default=400, help="most training windows")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--most", type=int, default=None, help="most val cases, for a quick look")
    parser.add_argument(
        "--thresholds", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="of the untrained suppression"
    )
    parser.add_argument("--tune", action="store_true", help="score every fifth training case instead of val")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/everything_quality.json"))
    options = parser.parse_args(argv)
    backbone, rows = load_backbone("graft-tiny"), []
    for name in options.sets:
        training, scored = split(name, training_cases(options.fraction), 0, tune=options.tune)
        scored = scored[:: max(1, len(scored) // options.most)] if options.most else scored
        rows += plain(backbone, name, scored, options.thresholds)
        if options.minutes > 0:
            head = train(backbone, name, training, options.minutes, options.windows)
            rows.append(classified(backbone, name, scored, head))
        write_json(options.json, {"results": rows})
        print(markdown(rows), flush=True)


if __name__ == "__main__":
    main()
