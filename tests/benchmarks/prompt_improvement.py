"""What one click is worth, and what training-free improvement adds: ``python -m tests.benchmarks.prompt_improvement``.

Every object of the val splits gets one click on its deepest point. The click comes from the ground truth, so all
figures do. The engine looks at the whole picture and then closely, in every way the same but for what is done to its
answers:

    arg-max              the baseline: of three masks the one with the largest predicted IoU
    + KIND               one more point inside that mask (SAMAug), the second answer always taken
    + KIND, kept         the same, where its predicted IoU is not lower
    self-correction N    mask and its box handed back, at most N rounds
    best of three        the ceiling of choosing: the candidate most like the truth

IoU per object on the grid of the file, averaged per case, then over cases.
"""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from samgraft.adapters.prompts.clicks import deepest_point
from samgraft.adapters.prompts.improve import KINDS, Improvement
from samgraft.recipes.engine.focus import segment_points
from tests.benchmarks._arguments import scored
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import View, picture, views
from tests.benchmarks._metrics import iou, mean_by_case
from tests.benchmarks._table import markdown, write_json

SETS = ("nuclei", "cardiac_mr", "nerve_us", "buildings_banepa")
BASELINE = "arg-max"
CEILING = "best of three"


def ways() -> dict[str, Improvement]:
    """Name -> what is done; nothing for the baseline."""
    found = {BASELINE: Improvement()}
    for kind in KINDS:
        found[f"+ {kind}"] = Improvement(augment=kind, keep_better=False)
        found[f"+ {kind}, kept"] = Improvement(augment=kind)
    found |= {f"self-correction {rounds}": Improvement(refine=rounds) for rounds in (1, 3)}
    return found | {"+ distance, kept, self-correction 3": Improvement(augment="distance", refine=3)}


def measure(view: View, backbone: Any, size: int) -> dict[str, list[float]]:
    """IoU of every object of one picture, way by way, and the predicted IoU of what was chosen."""
    image = picture(view)
    clicks = torch.tensor([[deepest_point(mask)] for mask in view.masks], dtype=torch.float64)
    found: dict[str, list[float]] = {}
    for name, better in ways().items():
        answers = segment_points(backbone, image, clicks, size=size, better=better or None)
        found[name] = [iou(masks[0].full(), truth) for masks, truth in zip(answers, view.masks, strict=True)]
        if name == BASELINE:
            pairs = list(zip(answers, view.masks, strict=True))
            found[CEILING] = [max(iou(mask.full(), truth) for mask in masks) for masks, truth in pairs]
    return found


def one_set(name: str, backbone: Any, *, size: int, limit: int | None) -> dict[str, Any]:
    """A row of the table."""
    values: dict[str, list[tuple[str, float]]] = {}
    began, seen, objects = time.process_time(), 0, 0
    for view in islice(views(name), limit):
        seen += 1
        if not view.masks:
            continue
        objects += len(view.masks)
        for way, ious in measure(view, backbone, size).items():
            values.setdefault(way, []).extend((view.case, value) for value in ious)
    scores = {way: mean_by_case(found) for way, found in values.items()}
    row: dict[str, Any] = {"set": name, "pictures": seen, "objects": objects}
    return row | scores | {"prompt": "one click from ground truth", "seconds": round(time.process_time() - began, 1)}


def turned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per way, one column per set; behind the baseline's line, what each way adds to it."""
    lines = []
    for way in [*ways(), CEILING]:
        line: dict[str, Any] = {"way": way}
        for row in rows:
            line[row["set"]] = row[way]
            line[f"{row['set']} +"] = f"{row[way] - row[BASELINE]:+.3f}"
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = scored("prompt_improvement", __doc__, SETS)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/prompt_improvement.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = open_backbone(options.backbone)
    result: dict[str, Any] = {
        "backbone": options.backbone,
        "weights": backbone.weights_hash(),
        "size": options.size,
        "from_ground_truth": True,
        "prompt": "one click on the deepest point of the true mask",
    }
    rows = []
    for name in options.sets:
        rows.append(one_set(name, backbone, size=options.size, limit=options.limit))
        best = max(ways(), key=lambda way: rows[-1][way])
        print(f"{name}: {rows[-1][BASELINE]:.3f}, best {rows[-1][best]:.3f} ({best})", flush=True)
        write_json(options.json, result | {"rows": rows})
    print("All prompts come from the ground truth (from_ground_truth).")
    print(markdown(turned(rows)))


if __name__ == "__main__":
    main()
