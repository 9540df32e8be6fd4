"""One box, what it becomes, and what clicks make of it: ``python -m tests.benchmarks.propagation_pictures -o FILE``.

A line per slice, spread evenly over the object and a slice beyond either end; columns: every slice asked with the 3D
box, the box of one slice propagated, and the same after corrective clicks. White is the label, which also made the
prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.engine.propagated import asking, boxed_slices
from samgraft.recipes.engine.volume_slices import SceneSlices
from samgraft.recipes.look import look_at
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.report import Panel, overlay
from samgraft.volumetric.clicks import Session, simulated_rounds
from samgraft.volumetric.propagation import SlicePrompt
from samgraft.volumetric.propagation.slices import Bounded
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import box_of, evenly
from tests.benchmarks.prompter_pictures import column, save, sheet
from tests.benchmarks.propagation import BATCH, SIZE, volumes

Mask = NDArray[np.bool_]
MARGIN = 0.5
"""Of the box that is shown around the object, in sides of that box."""


def stages(slices: SceneSlices, truth: Mask, clicks: int) -> dict[str, Mask]:
    """Name -> mask (D, H, W)."""
    filled, key = np.flatnonzero(truth.any(axis=(1, 2))), int(truth.sum(axis=(1, 2)).argmax())
    whole = box_of(truth.any(axis=0))
    boxed = boxed_slices(Bounded(inner=slices, box=whole), whole, (int(filled[0]), int(filled[-1]))).volume()
    prompt = {key: SlicePrompt(box=box_of(truth[key]), tight=True)}
    rounds = simulated_rounds(Session(slices), prompt, truth, clicks)
    return {
        "3D box, slice by slice": boxed,
        f"box on slice {key}, propagated": rounds[0].mask,
        f"the same and {clicks} clicks": rounds[-1].mask,
    }


def window(truth: Mask) -> tuple[slice, slice]:
    """Rows and columns around the object."""
    x0, y0, x1, y1 = box_of(truth.any(axis=0))
    wide = MARGIN * max(x1 - x0, y1 - y0)
    spans = ((y0, y1, truth.shape[1]), (x0, x1, truth.shape[2]))
    rows, cols = (slice(int(max(0, low - wide)), int(min(end, high + wide)) + 1) for low, high, end in spans)
    return rows, cols


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.propagation_pictures", description=__doc__)
    parser.add_argument("--set", default="sarcoma_mr")
    parser.add_argument("--case", help="name; the first validation case by default")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--lines", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    found = (one for one in volumes(options.set, "val", None) if options.case in (None, one[0]))
    case, scene, truth = next(found)
    slices = SceneSlices(
        scene, look_at(scene), coarsest_axis(scene.grid), asking(open_backbone("graft-tiny"), SIZE, batch=BATCH)
    )
    filled, (rows, cols) = np.flatnonzero(truth.any(axis=(1, 2))), window(truth)
    span = range(max(0, int(filled[0]) - 1), min(len(truth), int(filled[-1]) + 2))
    chosen = [span[i] for i in evenly(len(span), options.lines)]

    def panel(mask: Mask, index: int) -> NDArray[np.uint8]:
        shown, label = (part[index, rows, cols].astype(np.int32) for part in (mask, truth))
        title = f"{case}, slice {index}"
        picture = slices.picture(index)[rows, cols]
        return overlay(Panel(title=title, image=picture, predicted=shown, truth=label), side=320)

    done = stages(slices, truth, options.clicks)
    save(sheet([column(name, [panel(mask, i) for i in chosen], 260) for name, mask in done.items()]), options.output)


if __name__ == "__main__":
    main()
