"""What graft-tiny does without training on real images: ``python -m tests.benchmarks.zero_shot``.

(i) Unseen procedural images: box prompts, and one central point with the best of three masks.
(ii) The val split of real sets, with boxes from the ground truth (and so marked), beside three simple baselines given
the same box. IoU per object on the grid of the file, averaged per case, then over cases.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.prompts.base import Prompts
from tests.benchmarks._baselines import BASELINES, Box, grow
from tests.benchmarks._data import View, box_of, views
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


def inner_point(mask: Mask) -> tuple[int, int]:
    """(x, y) of the pixel deepest inside the mask."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(col), int(row)


@torch.no_grad()
def procedural(backbone: Backbone, count: int, size: int) -> dict[str, Any]:
    """Mean IoU over all objects of ``count`` unseen images, for a tight box and for one point (best of three masks)."""
    from samgraft.recipes.pretrain.scenes import make_sample

    by_box, by_point = [], []
    for seed in range(UNSEEN_SEED, UNSEEN_SEED + count):
        sample = make_sample(seed, size)
        features = backbone.encode(torch.from_numpy(sample.image)[None])
        owner = torch.zeros(len(sample.masks), dtype=torch.long)
        boxes = torch.tensor([box_of(m) for m in sample.masks], dtype=torch.float32)
        points = torch.tensor([[inner_point(m)] for m in sample.masks], dtype=torch.float32)
        single, _ = backbone.decode(features, Prompts(image_index=owner, boxes=boxes, from_ground_truth=True))
        labels = torch.ones(len(owner), 1, dtype=torch.long)
        prompts = Prompts(image_index=owner, points=points, labels=labels, from_ground_truth=True)
        three, _ = backbone.decode(features, prompts, multimask=True)
        for truth, one, several in zip(sample.masks, _at(single, size), _at(three, size), strict=True):
            by_box.append(iou(one[0], truth))
            by_point.append(max(iou(m, truth) for m in several))
    return {"images": count, "size": size, "n": len(by_box), "box": _mean(by_box), "point_best_of_3": _mean(by_point)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _at(logits: torch.Tensor, size: int) -> NDArray[np.bool_]:
    scaled = functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    return np.asarray(scaled.numpy() > 0)


@torch.no_grad()
def fill_box(backbone: Backbone, image: NDArray[np.float32], box: Box, *, size: int, context: float) -> Mask:
    """Segment what a box encloses, looking at a crop around it.

    Args:
        backbone: Promptable backbone.
        image: (H, W, 3) in [0, 1].
        box: (x0, y0, x1, y1), first and last pixel inside.
        size: Side in pixels of the network input.
        context: What is added to each side of the box, as a fraction of its longer side.

    Returns:
        (H, W) mask, within the crop.
    """
    x0, y0, x1, y1 = grow(box, image.shape[:2], context)
    crop = torch.from_numpy(np.ascontiguousarray(image[y0 : y1 + 1, x0 : x1 + 1])).permute(2, 0, 1)[None]
    height, width = crop.shape[2:]
    scale = size / max(height, width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    scaled = functional.interpolate(crop, inner, mode="bilinear", antialias=True, align_corners=False)
    scaled = functional.pad(scaled, (0, size - inner[1], 0, size - inner[0]))
    local = torch.tensor([[box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0]], dtype=torch.float32)
    factor = torch.tensor([inner[1] / width, inner[0] / height]).repeat(2)
    prompts = Prompts(
        image_index=torch.zeros(1, dtype=torch.long), boxes=(local + 0.5) * factor - 0.5, from_ground_truth=True
    )
    logits, _ = backbone.decode(backbone.encode(scaled), prompts)
    fine = functional.interpolate(logits[:, :1], (size, size), mode="bilinear", align_corners=False)[
        ..., : inner[0], : inner[1]
    ]
    found = functional.interpolate(fine, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = found.numpy()
    return mask


def real(backbone: Backbone, name: str, *, limit: int | None, size: int, context: float) -> dict[str, Any]:
    """One row of the table: every method on the objects of one set."""
    start, values, objects = time.process_time(), dict[str, list[tuple[str, float]]](), 0
    seen: list[View] = []
    for view in views(name):
        if limit is not None and len(seen) >= limit:
            break
        seen.append(view)
        gray = np.ascontiguousarray(view.image.mean(axis=2))
        for truth in view.masks:
            box, objects = box_of(truth), objects + 1
            masks = {key: method(gray, box) for key, method in BASELINES.items()}
            masks["graft-tiny"] = fill_box(backbone, view.image, box, size=size, context=context)
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
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.zero_shot", description=__doc__)
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or weight file")
    parser.add_argument("--sets", nargs="*", default=list(REAL), choices=REAL, metavar="SET", help=", ".join(REAL))
    parser.add_argument("--limit", type=int, help="most pictures per set")
    parser.add_argument("--images", type=int, default=200, help="procedural images; 0 for none")
    parser.add_argument("--size", type=int, default=128, help="side of the network input in pixels")
    parser.add_argument(
        "--context", type=float, default=0.5, help="added to each side of a box, as a share of its longer side"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    from samgraft.adapters.backbones.hub import load_backbone

    backbone = load_backbone(options.backbone)
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
