"""What graft-tiny does without training on real images: ``python -m tests.benchmarks.zero_shot``.

(i) Unseen procedural images: box prompts, and one central point with the best of three masks.
(ii) The val split of real sets, with boxes from the ground truth (and so marked), beside three simple baselines given
the same box. IoU per object on the grid of the file, averaged per case, then over cases.
"""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.clicks import deepest_point
from samgraft.recipes.engine.focus import segment_boxes, segment_points
from samgraft.recipes.pretrain.scenes import make_sample
from tests.benchmarks._arguments import scored
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._baselines import BASELINES
from tests.benchmarks._data import View, box_of, picture, views
from tests.benchmarks._metrics import iou, mean_by_case
from tests.benchmarks._table import markdown, write_json

REAL = (
    "hippocampus_mr",
    "cardiac_mr",
    "nuclei",
    "nerve_us",
    "retina_vessels",
    "sarcoma_ct",
    "sarcoma_mr",
    "buildings_banepa",
)
UNSEEN_SEED = 10**9 + 1
"""First seed of the evaluation images; pretraining stays below 10**9."""
Mask = NDArray[np.bool_]


PER_IMAGE = 6
"""Most objects of one procedural image, drawn by its seed; packed cells would drown everything else."""


def procedural(backbone: Backbone, count: int, size: int) -> dict[str, Any]:
    """Mean IoU over objects of ``count`` unseen images, for a tight box and for one point (best of three masks).

    ``box`` and ``point_best_of_3`` are what a user gets (the engine looks at a window around the object); the
    ``one_pass`` columns decode all prompts on a single look at the whole image.
    """
    found: dict[str, list[float]] = {k: [] for k in ("box", "point_best_of_3", "box_one_pass", "point_one_pass")}
    for seed in range(UNSEEN_SEED, UNSEEN_SEED + count):
        sample = make_sample(seed, size)
        chosen = np.random.default_rng(seed).permutation(len(sample.masks))[:PER_IMAGE]
        truths = sample.masks[chosen]
        image = torch.from_numpy(sample.image)
        boxes = torch.tensor([box_of(m) for m in truths], dtype=torch.float32)
        points = torch.tensor([[deepest_point(m)] for m in truths], dtype=torch.float32)
        single, three = _one_pass(backbone, image, boxes, points)
        windows, candidates = segment_boxes(backbone, image, boxes), segment_points(backbone, image, points)
        for k, truth in enumerate(truths):
            found["box"].append(iou(windows[k].full(), truth))
            found["point_best_of_3"].append(max(iou(m.full(), truth) for m in candidates[k]))
            found["box_one_pass"].append(iou(single[k, 0], truth))
            found["point_one_pass"].append(max(iou(m, truth) for m in three[k]))
    return {"images": count, "size": size, "n": len(found["box"])} | {k: _mean(v) for k, v in found.items()}


@torch.no_grad()
def _one_pass(
    backbone: Backbone, image: torch.Tensor, boxes: torch.Tensor, points: torch.Tensor
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (N, 1, S, S) for boxes and (N, 3, S, S) for points from one encoding of ``image`` (3, S, S)."""
    features = backbone.encode(image[None])
    owner, labels = torch.zeros(len(boxes), dtype=torch.long), torch.ones(len(boxes), 1, dtype=torch.long)
    by_box = Prompts(image_index=owner, boxes=boxes, from_ground_truth=True)
    by_point = Prompts(image_index=owner, points=points, labels=labels, from_ground_truth=True)
    single, _ = backbone.decode(features, by_box)
    three, _ = backbone.decode(features, by_point, multimask=True)
    return _at(single, image.shape[-1]), _at(three, image.shape[-1])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _at(logits: torch.Tensor, size: int) -> NDArray[np.bool_]:
    scaled = functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    return np.asarray(scaled.numpy() > 0)


def real(backbone: Backbone, name: str, *, limit: int | None, size: int, context: float | None) -> dict[str, Any]:
    """One row of the table: every method on the objects of one set."""
    start, values, objects = time.process_time(), dict[str, list[tuple[str, float]]](), 0
    seen: list[View] = []
    crop: dict[str, Any] = {} if context is None else {"context": context}
    for view in islice(views(name), limit):
        seen.append(view)
        gray = np.ascontiguousarray(view.image.mean(axis=2))
        if not view.masks:
            continue
        boxes = [box_of(truth) for truth in view.masks]
        own = segment_boxes(backbone, picture(view), torch.tensor(boxes), size=size, **crop)
        for truth, box, found in zip(view.masks, boxes, own, strict=True):
            objects += 1
            masks = {key: method(gray, box) for key, method in BASELINES.items()} | {"graft-tiny": found.full()}
            for key, mask in masks.items():
                values.setdefault(key, []).append((view.case, iou(mask, truth)))
    scores: dict[str, Any] = {key: mean_by_case(values[key]) for key in ("graft-tiny", *BASELINES) if key in values}
    best = max(scores.get(key, float("nan")) for key in BASELINES)
    row = {"set": name, "cases": len({v.case for v in seen}), "objects": objects, **scores}
    seconds = time.process_time() - start
    return row | {
        "margin": scores.get("graft-tiny", float("nan")) - best,
        "seconds": round(seconds, 1),
        "prompt": "box from ground truth",
    }


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """On how many sets graft-tiny beats all baselines, and its worst margin to the best of them."""
    medical = [r for r in rows if r["set"] != "buildings_banepa"]
    return {
        "medical_sets": len(medical),
        "medical_won": sum(r["margin"] > 0 for r in medical),
        "all_sets": len(rows),
        "all_won": sum(r["margin"] > 0 for r in rows),
        "worst_margin": min((r["margin"] for r in rows), default=float("nan")),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = scored("zero_shot", __doc__, REAL)
    parser.add_argument("--images", type=int, default=200, help="procedural images; 0 for none")
    parser.add_argument(
        "--context", type=float, help="side of the crop over the box's longer side; default of the engine"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    backbone = open_backbone(options.backbone)
    result: dict[str, Any] = {
        "backbone": options.backbone,
        "weights": backbone.weights_hash(),
        "context": options.context,
    }
    if options.images:
        result["procedural"] = procedural(backbone, options.images, options.size)
        print(markdown([result["procedural"]]), flush=True)
    rows = []
    for name in options.sets:
        rows.append(real(backbone, name, limit=options.limit, size=options.size, context=options.context))
        print(
            f"{name}: {rows[-1]['graft-tiny']:.3f}, best baseline {rows[-1]['graft-tiny'] - rows[-1]['margin']:.3f}",
            flush=True,
        )
    result |= {"real": rows, "verdict": verdict(rows)}
    print(markdown(rows), markdown([result["verdict"]]), sep="\n")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
