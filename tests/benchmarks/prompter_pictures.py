"""What methods found, side by side: ``python -m tests.benchmarks.prompter_pictures KEPT -o FILE --rows ROW ...``.

``KEPT`` is what ``python -m tests.benchmarks.prompters --keep KEPT`` left: label maps of scored pictures. A line per
picture: the picture with the true outlines, then one column per row of the benchmark. Pictures are spread evenly over
the set, none is chosen by hand, unless ``--pictures`` numbers them.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from samgraft.domains.atomic import atomic_path
from samgraft.recipes.report import Panel, overlay
from tests.benchmarks._data import Case, evenly
from tests.benchmarks._object_sets import SETS, folds
from tests.benchmarks._prompter_runs import kept_folder
from tests.benchmarks._sets import training_cases

GAP, HEAD = 6, 22
"""Pixels between pictures, and above a column for its name."""


def scored_cases(name: str, fraction: str, seed: int) -> list[Case]:
    """The pictures that a run of the benchmark is scored on, in its order."""
    return [case for _, held in folds(SETS[name], training_cases(fraction), seed, tune=False) for case in held]


def labels_of(folder: Path, number: int, case: Case) -> NDArray[np.int32]:
    """What a run found in a picture.

    Raises:
        SystemExit: it is not there, or of another picture.
    """
    path = folder / f"{number:03d}.npz"
    if not path.is_file():
        raise SystemExit(f"{path}: not there; run tests.benchmarks.prompters with --keep and this row first")
    with np.load(path, allow_pickle=False) as content:
        if str(content["name"]) != case.name:
            raise SystemExit(f"{path} is of {content['name']}, expected {case.name}; run the row again")
        labels: NDArray[np.int32] = content["labels"].astype(np.int32)
        return labels


def column(title: str, panels: Sequence[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    """A name, and pictures below each other, all ``width`` wide."""
    head = Image.new("RGB", (width, HEAD), "white")
    ImageDraw.Draw(head).text((2, 4), title, fill="black")
    parts = [np.asarray(head)]
    for panel in panels:
        height = round(panel.shape[0] * width / panel.shape[1])
        parts += [np.asarray(Image.fromarray(panel).resize((width, height))), np.full((GAP, width, 3), 255, np.uint8)]
    return np.concatenate(parts)


def sheet(columns: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Columns beside each other."""
    gap = np.full((len(columns[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for one in columns for part in (one, gap)], axis=1)


def save(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a PNG of 128 colours, whole or not at all, and say how large it is."""
    content = io.BytesIO()
    Image.fromarray(picture).quantize(128).save(content, "png", optimize=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())
    print(f"{path}: {picture.shape[1]} x {picture.shape[0]} pixels, {len(content.getvalue()):,} bytes")


def drawn(kept: Path, name: str, fraction: str, seed: int, rows: Sequence[str], numbers: Sequence[int]) -> NDArray:
    """The sheet of a set."""
    cases = scored_cases(name, fraction, seed)
    chosen = [(number, cases[number]) for number in numbers or evenly(len(cases), 3)]
    instances = SETS[name].kind != "classes"

    def panel(case: Case, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        return overlay(Panel(title=case.name, image=case.image, predicted=labels, instances=instances), side=320)

    columns = [column("truth", [panel(case, case.label.astype(np.int32)) for _, case in chosen], 300)]
    for row in rows:
        folder = kept_folder(kept, set=name, cases=training_cases(fraction), seed=seed, method=row)
        columns.append(column(row, [panel(case, labels_of(folder, number, case)) for number, case in chosen], 300))
    return sheet(columns)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prompter_pictures", description=__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--set", default="nuclei", choices=list(SETS))
    parser.add_argument("--fraction", default="all", help='number of training images, or "all"')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--pictures", nargs="*", type=int, default=[], help="numbers from 0; default three, spread")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    found = drawn(options.kept, options.set, options.fraction, options.seed, options.rows, options.pictures)
    save(found, options.output)


if __name__ == "__main__":
    main()
