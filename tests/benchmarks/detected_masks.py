"""What limits objects found by a detector, its boxes or their masks: ``python -m tests.benchmarks.detected_masks``.

RSPrompter-anchor is trained on all images for ``--budget`` process seconds, as in ``tests.benchmarks.prompters``. Then,
in random windows of validation pictures, as they are:

    true boxes    IoU of the frozen decoder's masks of the true boxes, and of the same with the learned tokens: what
                  tokens add where detection is perfect. These prompts come from the ground truth
    own boxes     AP50 of the detector's boxes as boxes, of the decoder's masks of them (SAM-det), and of the masks with
                  tokens (RSPrompter), for the same detections in the same order
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.detection import edges_of, inclusive_of
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import objects_from_labels
from samgraft.adapters.prompts.rsprompter_anchor import RSPrompterAnchor
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.representations.objects import MIN_PIXELS
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._object_arms import build
from tests.benchmarks._object_metrics import Overlaps, box_iou, coco_average_precision
from tests.benchmarks._object_rows import rows
from tests.benchmarks._object_sets import SETS, ObjectSet, crops, folds
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks._train import descend

METHOD = "rsprompter_anchor"
SEEN = ("nuclei", "buildings_banepa")
TOLD, FOUND = ("box", "box + tokens"), ("boxes", "masks of boxes", "masks of boxes + tokens")


@dataclass(kw_only=True)
class Seen:
    """What was measured so far."""

    told: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TOLD})
    """IoU of every true object."""
    found: dict[str, list[Overlaps]] = field(default_factory=lambda: {name: [] for name in FOUND})
    """Every window."""

    def line(self) -> dict[str, Any]:
        """Means."""
        told = {f"true boxes, {name}": float(np.mean(values)) for name, values in self.told.items()}
        found = {name: float(coco_average_precision(images, (0.5,))[0]) for name, images in self.found.items()}
        return {"objects": len(self.told[TOLD[0]])} | told | {f"own {name}": value for name, value in found.items()}


def measure(grafted: Grafted, image: Tensor, label: Tensor, seen: Seen) -> None:
    """Add windows (B, 3, S, S) with instance maps (B, S, S) to ``seen``."""
    head, backbone = cast(RSPrompterAnchor, grafted.prompter), grafted.backbone
    features, objects = grafted.encode(image), objects_from_labels(label, min_area=MIN_PIXELS)
    levels, size = head.detector.levels(features), (image.shape[2], image.shape[3])

    def masks(index: Tensor, edges: Tensor, *, tokens: bool) -> Tensor:
        sparse = head.tokens(levels, edges, index) if tokens else None
        prompts = Prompts(image_index=index, boxes=inclusive_of(edges), sparse=sparse)
        logits = backbone.decode(features, prompts)[0][:, :1]
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0] > 0

    if len(objects):
        for name, tokens in zip(TOLD, (False, True), strict=True):
            given = masks(objects.image_index, edges_of(objects.boxes), tokens=tokens)
            seen.told[name] += iou(given, objects.masks).diagonal().tolist()
    found = head.detector.detect(levels, size)
    places = (found.image_index, found.edges)
    both = [masks(*places, tokens=tokens) for tokens in (False, True)] if len(found.edges) else []
    for number in range(len(image)):
        own, true = found.image_index == number, objects.image_index == number
        scores, empty = found.scores[own].double().numpy(), np.zeros((int(own.sum()), int(true.sum())))
        boxes = box_iou(inclusive_of(found.edges[own]).double().numpy(), objects.boxes[true].double().numpy())
        shared = [iou(one[own], objects.masks[true]).double().numpy() for one in both] or [empty, empty]
        for name, overlap in zip(FOUND, (boxes, *shared), strict=True):
            seen.found[name].append(Overlaps(scores=scores, iou=overlap))


def iou(first: Tensor, second: Tensor) -> Tensor:
    """(n, m) IoU of masks (n, H, W) and (m, H, W) bool."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(dim=1)[:, None] + b.sum(dim=1)[None] - both).clamp_min(1)


def one(backbone: HFSamBackbone, chosen: ObjectSet, budget: float, windows: int) -> dict[str, Any]:
    """Train on a set and measure."""
    row = rows(cast(Backbone, backbone))[METHOD]
    train, held = folds(chosen, None, 0, tune=False)[0]
    method, start = build(row, chosen, backbone, 0, train), time.process_time()
    drawn = crops(chosen, train, torch.Generator().manual_seed(0))
    assert method.objective is not None
    fitted = descend(
        method.objective, method.trained, drawn, row.optimiser(chosen), start=start, deadline=start + budget
    )
    grafted, seen = cast(Grafted, method.module.eval()), Seen()
    plain = replace(chosen, spec=replace(chosen.spec, augment=AugmentConfig(enabled=False)))
    with torch.no_grad():
        for image, label in islice(crops(plain, held, torch.Generator().manual_seed(1)), windows // chosen.batch):
            measure(grafted, image, label, seen)
    grafted.detach()
    return {"set": chosen.spec.name, "seconds": budget, "steps": fitted["steps"]} | seen.line()


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detected_masks", description=__doc__)
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or weight file")
    parser.add_argument("--sets", nargs="*", default=list(SEEN), choices=SEEN)
    parser.add_argument("--budget", type=float, default=240, help="process seconds of training")
    parser.add_argument("--windows", type=int, default=120, help="validation windows")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/detected_masks.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = []
    for name in options.sets:
        lines.append(one(open_backbone(options.backbone), SETS[name], options.budget, options.windows))
        print(markdown(lines[-1:]), flush=True)
        write_json(options.json, {"results": lines})
    print(markdown(lines))


if __name__ == "__main__":
    main()
