"""A few labelled images instead of clicks: ``python -m tests.benchmarks.one_shot``, and with ``--taps`` which features.

References are images of the train split, evenly spaced by rank; what is scored are images of the val split that show
the object. Dice on the grid of the file, averaged per case, then over cases. One-shot methods run once per reference
and give the mean over references, with the lowest and highest. "centre point" is told where the object is by its label
(``from_ground_truth``) and stands beside the others for comparison only: "one look" decodes on the same picture as the
others, "engine" is what ``samgraft segment --point`` does, which looks again closely.

``--taps`` scores neighbours' labels, and how often the most similar place lies on the object, for the neck and every
block, on train images only.

Every row is written as it comes and found again, so a benchmark that was stopped goes on where it was. ``--sets
cardiac_mr --images 2 --runs 1 --shots 1 --size 64`` is a quick look.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.prompts import (
    PROMPTERS,
    InContextConfig,
    PersamConfig,
    PersamFConfig,
    Prompts,
    References,
    make_references,
)
from samgraft.adapters.prompts.clicks import deepest_point
from samgraft.adapters.prompts.matching import ReferenceConfig
from samgraft.adapters.prompts.objects import FoundObjects, ObjectPrompter
from samgraft.adapters.prompts.refining import decode_best
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.engine.focus import segment_points
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Split, evenly, iterate, largest_component, picture
from tests.benchmarks._metrics import dice, mean_by_case
from tests.benchmarks._table import is_there, markdown
from tests.benchmarks.grafts import Results, Task

SETS = ("cardiac_mr", "nerve_us:1", "nerve_us:2")
"""Set, and the class where it has several (its largest component, as in the other benchmarks)."""
SMALLEST = 20
"""Objects with fewer pixels are left out."""
SHOTS = (1, 5, 20)
"""Labelled images, for methods that become better with more."""
KEY = ("set", "method", "references", "config", "weights", "size", "images", "runs")
"""What a row was measured with; one that agrees in all of it is not measured again."""
COLUMNS = ("set", "method", "references", "from_ground_truth", "dice", "lowest", "highest", "draws", "seconds")
TAP_COLUMNS = ("set", "tap", "position", "appearance", "centre", "hits", "dice")
Answer = Callable[["Item"], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """A picture with one object, as the network sees it, and its features."""

    case: str
    picture: Tensor
    """(3, h, w) in [0, 1], as in the file."""
    truth: NDArray[np.bool_]
    """(h, w)."""
    image: Tensor
    """(3, S, S)."""
    mask: Tensor
    """(S, S): share of each pixel that is the object."""
    valid: Tensor
    """(S, S) bool: no padding."""
    features: Features

    @property
    def fit(self) -> Fit:
        """From file to network and back."""
        return Fit(source=(self.truth.shape[0], self.truth.shape[1]), size=self.image.shape[-1])

    def native(self, logits: Tensor) -> NDArray[np.bool_]:
        """(h, w): logits (h', w') over the network input, above 0 on the grid of the file."""
        return np.asarray(self.fit.back(logits[None, None].float())[0, 0].numpy() > 0)


def items(backbone: Backbone, name: str, split: Split, *, size: int, most: int) -> list[Item]:
    """At most ``most`` pictures with an object, evenly spaced by rank, with features of all blocks."""
    folder, _, value = name.partition(":")
    seen = []
    for case in iterate(folder, split):
        truth = largest_component(case.label == int(value)) if value else case.label > 0
        if truth.sum() >= SMALLEST:
            seen.append((case, truth))
    made = []
    for index in evenly(len(seen), most):
        view, truth = seen[index]
        fit = Fit(source=(truth.shape[0], truth.shape[1]), size=size)
        image = fit.image(picture(view))
        inside = torch.from_numpy(truth).float()[None]
        mask = fit.image(inside)[0].clamp(0, 1)
        valid = fit.labels(torch.ones(truth.shape, dtype=torch.int64), outside=0) > 0
        with torch.no_grad():
            features = backbone.encode(image[None], range(backbone.spec.num_blocks))
        made.append(
            Item(
                case=view.id,
                picture=picture(view),
                truth=truth,
                image=image,
                mask=mask * valid,
                valid=valid,
                features=features,
            )
        )
    return made


def references(shown: Sequence[Item]) -> References:
    """Of some items, with the features that were computed."""
    made = make_references(
        torch.stack([item.image for item in shown]),
        torch.stack([item.mask for item in shown]),
        valid=torch.stack([item.valid for item in shown]),
    )
    taps = shown[0].features.taps
    features = Features(
        neck=torch.cat([item.features.neck for item in shown]),
        taps={tap: torch.cat([item.features.taps[tap] for item in shown]) for tap in taps},
    )
    return replace(made, features=features)


@torch.no_grad()
def answer(prompter: ObjectPrompter, backbone: Backbone, shown: References) -> Answer:
    """What a method finds in an item."""

    def call(item: Item) -> NDArray[np.bool_]:
        context = {"references": shown, "valid": item.valid[None]}
        with torch.no_grad():
            found: FoundObjects = prompter.find(backbone, item.features, item.image[None], context)
        return item.native(found.logits[0])

    return call


def built(backbone: Backbone, config: Any, shown: References) -> ObjectPrompter:
    """A method, trained on its references where it can be."""
    prompter: Any = config.build(backbone).eval()
    if hasattr(prompter, "fit"):
        prompter.fit(backbone, shown)
    return prompter


def centre(item: Item) -> Prompts:
    """The point deepest inside the label, in pixels of the network input."""
    x, y = deepest_point(item.truth)
    scale, (top, left) = item.image.shape[-1] / item.fit.side, item.fit.corner
    point = torch.tensor([[[(x + left + 0.5) * scale - 0.5, (y + top + 0.5) * scale - 0.5]]])
    zero = torch.zeros(1, dtype=torch.int64)
    return Prompts(image_index=zero, points=point, labels=torch.ones(1, 1).long(), from_ground_truth=True)


def one_look(item: Item, backbone: Backbone, *, multimask: bool) -> NDArray[np.bool_]:
    """The answer to the centre point on the picture as the other methods see it."""
    with torch.no_grad():
        return item.native(decode_best(backbone, item.features, centre(item), multimask=multimask)[0][0])


def engine(item: Item, backbone: Backbone) -> NDArray[np.bool_]:
    """What ``samgraft segment --point`` answers to the centre point."""
    found = segment_points(backbone, item.picture, torch.tensor([[deepest_point(item.truth)]]).float())[0]
    return max(found, key=lambda mask: mask.iou).full()


CENTRE: dict[str, Callable[[Item, Backbone], NDArray[np.bool_]]] = {
    "centre point: one look, one mask": partial(one_look, multimask=False),
    "centre point: one look, best of 3 by IoU": partial(one_look, multimask=True),
    "centre point: engine": engine,
}
"""One point from the label."""
TOLD = "centre point: persam_f, only the place is told"


def told(prompter: Any, backbone: Backbone) -> Answer:
    """PerSAM-F that is told the place by the label: what is left is its choice of the mask."""

    def call(item: Item) -> NDArray[np.bool_]:
        with torch.no_grad():
            found = decode_best(backbone, item.features, centre(item), multimask=True, mix=prompter.mixture())
        return item.native(found[0][0])

    return call


def score(call: Answer, seen: Sequence[Item]) -> float:
    """Mean Dice."""
    return mean_by_case([(item.case, dice(call(item), item.truth)) for item in seen])


def plan(name: str, shots: Sequence[int]) -> list[Task]:
    """The rows of one set."""
    found: list[Task] = [{"method": method, "references": 0, "from_ground_truth": True} for method in CENTRE]
    found.append({"method": TOLD, "references": 1, "from_ground_truth": True})
    for method, config in CONFIGS.items():
        for number in shots if isinstance(config, InContextConfig) else (1,):
            found.append({"method": method, "references": number, "from_ground_truth": False})
    own = {TOLD: CONFIGS["persam_f"], **CONFIGS}
    configs = {method: config.to_dict() for method, config in own.items()}
    return [{"set": name, **task, "config": configs.get(task["method"])} for task in found]


def scores(task: Task, backbone: Backbone, train: Sequence[Item], val: Sequence[Item], runs: int) -> list[float]:
    """Dice of one row, for each draw of references."""
    method = task["method"]
    if method in CENTRE:
        return [score(lambda item: CENTRE[method](item, backbone), val)]
    found = []
    for shown in draws(train, task["references"], runs):
        prompter = built(backbone, CONFIGS["persam_f" if method == TOLD else method], shown)
        found.append(score(told(prompter, backbone) if method == TOLD else answer(prompter, backbone, shown), val))
    return found


def compare(backbone: Backbone, name: str, options: argparse.Namespace, done: Sequence[Task]) -> Iterator[Task]:
    """All methods on one set, but for what is done."""
    setting = {"images": options.images, "runs": options.runs, "size": options.size}
    tasks = [task | setting | {"weights": backbone.weights_hash()} for task in plan(name, options.shots)]
    missing = [task for task in tasks if not is_there(task, done, KEY)]
    if not missing:
        return
    train = items(backbone, name, "train", size=options.size, most=max(*options.shots, options.runs))
    val = items(backbone, name, "val", size=options.size, most=options.images)
    for task in missing:
        start = time.process_time()
        found = scores(task, backbone, train, val, options.runs)
        spread = {"dice": float(np.mean(found)), "lowest": min(found), "highest": max(found), "draws": len(found)}
        yield task | spread | {"seconds": (time.process_time() - start) / (len(found) * len(val))}


def draws(train: Sequence[Item], shots: int, runs: int) -> list[References]:
    """``runs`` different sets of references; neighbours in rank are kept apart, the largest sets overlap."""
    if shots == 1:
        return [references([train[i]]) for i in evenly(len(train), runs)]
    if shots >= len(train):
        return [references(train)]
    return [
        references([train[(start + i * len(train) // shots) % len(train)] for i in range(shots)])
        for start in range(min(runs, len(train) // shots))
    ]


CONFIGS: dict[str, Any] = {
    "persam": PersamConfig(),
    "persam, published attention": PersamConfig(variant="published"),
    "persam_f": PersamFConfig(),
    "matcher": PROMPTERS.get("matcher")(),
    "reference_region": PROMPTERS.get("reference_region")(),
    "in_context: read-out": InContextConfig(),
    "in_context: read-out, border at one half": InContextConfig(relative=False),
    "in_context: mask and box prompt": InContextConfig(prompts=("mask", "box")),
}
"""What is compared."""


def taps(backbone: Backbone, name: str, options: argparse.Namespace, done: Sequence[Task]) -> Iterator[Task]:
    """Neighbours' labels and the place of the largest similarity, for all features; train images only."""
    setting = {"set": name, "method": "taps", "references": 1, "weights": backbone.weights_hash()}
    setting |= {"images": options.images, "runs": options.runs, "size": options.size}
    extras: list[dict[str, Any]] = [
        {"tap": tap, "position": position, "appearance": appearance, "centre": bool(centred)}
        for tap in ("neck", *range(backbone.spec.num_blocks))
        for position, appearance, centred in options.extras
    ]
    missing = [extra for extra in extras if not is_there(setting | {"config": extra}, done, KEY)]
    if not missing:
        return
    train = items(backbone, name, "train", size=options.size, most=2 * options.images)
    shown, seen = train[::2], train[1::2]
    other = [[item for item in seen if item.case != ref.case] for ref in shown]
    for extra in missing:
        hits, found = [], []
        for i in evenly(len(shown), options.runs):
            few = references([shown[i]])
            hits.append(hit_rate(PersamConfig(**extra), backbone, few, other[i]))
            found.append(score(answer(InContextConfig(**extra).build(backbone), backbone, few), other[i]))
        yield setting | {"config": extra, **extra, "hits": float(np.mean(hits)), "dice": float(np.mean(found))}


@torch.no_grad()
def hit_rate(config: ReferenceConfig, backbone: Backbone, shown: References, seen: Sequence[Item]) -> float:
    """Share of images whose most similar place lies on the object."""
    prompter: Any = config.build(backbone)
    hits = []
    for item in seen:
        found = prompter(item.features, item.image[None], {"references": shown, "valid": item.valid[None]})
        x, y = found.points[0, 0].round().long().tolist()
        hits.append(float(item.mask[y, x] > 0.5))
    return float(np.mean(hits))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.one_shot", description=__doc__)
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or weight file")
    parser.add_argument("--sets", nargs="*", default=list(SETS), metavar="SET")
    parser.add_argument("--size", type=int, default=256, help="side of the network input in pixels")
    parser.add_argument("--images", type=int, default=60, help="most val pictures of a set")
    parser.add_argument("--runs", type=int, default=5, help="different references, one after the other")
    parser.add_argument("--taps", action="store_true", help="compare features instead, on train images")
    parser.add_argument(
        "--extras",
        nargs="*",
        type=lambda text: tuple(float(v) for v in text.split(",")),
        metavar="P,A,C",
        default=[(0.0, 0.0, 1.0)],
        help="weights of position and appearance, and centring (0 or 1), for --taps",
    )
    parser.add_argument("--shots", nargs="*", type=int, default=list(SHOTS), help="references of in_context")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/one_shot.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    backbone, results = open_backbone(options.backbone), Results(options.json)
    work, name_of = (taps, "taps") if options.taps else (compare, "results")
    for name in options.sets:
        for row in work(backbone, name, options, results.rows(name_of)):
            results.add(name_of, row, KEY)
            print(f"{name} {row['method']} {row['references']}: {row['dice']:.3f}", flush=True)
    setting = {"images": options.images, "runs": options.runs, "size": options.size}
    keys = ("set", *setting, "weights")
    asked = [setting | {"set": name, "weights": backbone.weights_hash()} for name in options.sets]
    own = [row for row in results.rows(name_of) if any(is_there(one, [row], keys) for one in asked)]
    print(markdown(own, TAP_COLUMNS if options.taps else COLUMNS))


if __name__ == "__main__":
    main()
