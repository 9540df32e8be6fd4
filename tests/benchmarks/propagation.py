"""One box on the key slice against a box on every slice: ``python -m tests.benchmarks.propagation``.

Validation cases of sarcoma_mr (or another volume set), the largest component of every structure. Prompts come from the
ground truth, and so do all figures.

    slices of a 3D box     every slice of the 3D box asked with its in-plane part
    propagated             the tight box on the slice with the largest area, carried both ways
    N clicks               the same, and N corrective clicks in the middle of the largest 3D error

``--ways`` compares what is carried; ``--clicks`` sets the rounds. Dice in 3D on the grid of the file. Propagation runs
up then down, and down then up; "same" says whether both gave the same bits.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

import samgraft
from samgraft.domains.scene import Scene
from samgraft.recipes.engine.focus import CONTEXTS
from samgraft.recipes.engine.propagated import asking, boxed_slices
from samgraft.recipes.engine.volume_slices import SceneSlices
from samgraft.recipes.look import look_at
from samgraft.recipes.prompting import coarsest_axis
from samgraft.volumetric.clicks import Session, simulated_rounds
from samgraft.volumetric.propagation import Propagated, PropagationConfig, SlicePrompt, propagate
from samgraft.volumetric.propagation.slices import Bounded
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import _members as members  # the split file is read in one place
from tests.benchmarks._data import box_of, data_root, volume_file
from tests.benchmarks._metrics import dice
from tests.benchmarks._table import markdown, write_json

WAYS = {
    "box": PropagationConfig(carry=("box",)),
    "mask": PropagationConfig(carry=("mask",)),
    "box+mask": PropagationConfig(carry=("box", "mask")),
    "box+points": PropagationConfig(carry=("box", "points"), points=3),
    "box+mask+memory": PropagationConfig(carry=("box", "mask"), memory=4, memory_weight=0.3),
}
DEFAULT = "default"
CLICKS = (1, 3, 5)
SIZE, BATCH = 128, 8
"""Side of the network input in pixels, and crops encoded together."""


def volumes(name: str, split: str, limit: int | None) -> Iterator[tuple[str, Scene, NDArray[np.bool_]]]:
    """Case, scene and the largest component of every structure, the coarsest axis first."""
    folder = data_root() / "medical" / name
    for member in members(name, split)[:limit]:  # type: ignore[arg-type]
        scene = samgraft.open(volume_file(name, member))
        label = np.rint(np.asarray(nib.load(folder / "labelsTr" / f"{member}.nii.gz").dataobj)).T
        label = np.moveaxis(label, coarsest_axis(scene.grid), 0)
        for value in np.unique(label[label > 0]):
            parts, _ = ndimage.label(label == value)
            yield member, scene, parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())


def measure(slices: SceneSlices, truth: NDArray[np.bool_], options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one object."""
    filled = np.flatnonzero(truth.any(axis=(1, 2)))
    key = int(truth.sum(axis=(1, 2)).argmax())
    whole = box_of(truth.any(axis=0))
    row: dict[str, Any] = {"slices": len(filled), "key": key}
    start = time.process_time()
    boxed = Bounded(inner=slices, box=whole)
    row["slices of a 3D box"] = dice(boxed_slices(boxed, whole, (int(filled[0]), int(filled[-1]))).volume(), truth)
    row["seconds boxed"] = round(time.process_time() - start, 1)
    prompt = {key: SlicePrompt(box=box_of(truth[key]), tight=True)}
    session = Session(slices, PropagationConfig())
    start = time.process_time()
    first = session.start(prompt)
    row["seconds propagated"] = round(time.process_time() - start, 1)
    row["propagated"] = dice(first.volume(), truth)
    other = propagate(slices, session.annotated, session.config, upward_first=False)
    row["same"] = same(first, other)
    row["first"], row["last"] = min(first.answers) - int(filled[0]), max(first.answers) - int(filled[-1])
    for name in options.ways:
        row[name] = dice(propagate(slices, session.annotated, WAYS[name]).volume(), truth)
    if options.clicks:
        rounds = simulated_rounds(session, prompt, truth, max(options.clicks))
        row |= {f"{n} clicks": dice(rounds[n].mask, truth) for n in options.clicks}
    return row


def same(one: Propagated, other: Propagated) -> bool:
    """Whether two results are equal bit by bit."""
    if one.answers.keys() != other.answers.keys():
        return False
    return all(a.logits.tobytes() == other.answers[i].logits.tobytes() for i, a in one.answers.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.propagation", description=__doc__)
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or weight file")
    parser.add_argument("--set", default="sarcoma_mr")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--limit", type=int, help="most cases")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the network input in pixels")
    parser.add_argument("--contexts", type=float, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), help="what is carried")
    parser.add_argument("--clicks", type=int, nargs="*", default=list(CLICKS), help="rounds to report; none for none")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = open_backbone(options.backbone)
    settings = asking(backbone, options.size, options.contexts, batch=BATCH)
    rows = []
    for case, scene, truth in volumes(options.set, options.split, options.limit):
        slices = SceneSlices(scene, look_at(scene), coarsest_axis(scene.grid), settings)
        rows.append({"case": case, **measure(slices, truth, options)})
        print(rows[-1], flush=True)
    figures = [k for k, v in rows[0].items() if isinstance(v, float) and "seconds" not in k]
    mean = {"case": f"mean of {len(rows)}", **{k: float(np.mean([row[k] for row in rows])) for k in figures}}
    mean["same"] = all(row["same"] for row in rows)
    print(markdown([*rows, mean]))
    if options.json:
        facts = {"set": options.set, "split": options.split, "prompt": "from ground truth"}
        write_json(options.json, facts | {"backbone": backbone.weights_hash(), "results": [*rows, mean]})


if __name__ == "__main__":
    main()
