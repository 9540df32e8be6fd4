"""Every way to three dimensions on real volumes in equal time: ``python -m tests.benchmarks.volumes``.

Rows: slices and 2.5D (class tokens and LoRA), the volumetric grafts with their heads, and from scratch a MONAI UNet of
0.6 M parameters and a small SwinUNETR. All see the same slices, fitted into squares, in slabs at the spacing of the
file; training takes the same process time of one thread, and validation cases are scored once, at the end, on the grid
of the file: Dice, NSD at 1 and 2 mm, HD95 in mm. Runs that are in the JSON file already are not done again.

``--tune`` scores every fifth training case instead; ``--summary`` only writes the table of what is there; ``--forget``
drops the results of ``--methods``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._graft_rows import HASH, short_hash
from tests.benchmarks._process import end_with_parent, report
from tests.benchmarks._table import markdown
from tests.benchmarks._volume_rows import ROWS, VOLUMES, many, recipe_hash
from tests.benchmarks._volume_summary import COLUMNS, table
from tests.benchmarks.grafts import Results, asked, groups, planned, run

Task = dict[str, Any]


def plan(options: argparse.Namespace, weights: str) -> list[Task]:
    """All runs that were asked for, with what decides each of them."""
    return [
        task | {"config": short_hash(ROWS[task["method"]].to_dict()), "recipe": recipe_hash(VOLUMES[task["set"]])}
        for task in asked(options, weights)
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.volumes", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="METHOD")
    parser.add_argument("--sets", nargs="*", default=list(VOLUMES), choices=list(VOLUMES))
    parser.add_argument("--fractions", nargs="*", default=["5", "all"], help='numbers of training cases, or "all"')
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=240, help="seconds of process time that a run trains")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="workers at a time, one core each")
    parser.add_argument("--tune", action="store_true", help="score held-out training cases; val is not read")
    parser.add_argument("--summary", action="store_true", help="only write the table of what is there")
    parser.add_argument("--forget", action="store_true", help="drop the results of --methods, and stop")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/volumes.json"))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = arguments(argv)
    if options.task:
        torch.set_num_threads(1)
        end_with_parent()
        for row in many(json.loads(options.task)):
            report(row)
        return
    results = Results(options.json)
    if options.forget:
        print(f"{results.forget(options.methods)} rows dropped")
        return
    tasks = plan(options, open_backbone(options.backbone).weights_hash()[:HASH])
    if not options.summary:
        run(groups(tasks, results.rows("results")), results, options, module="volumes")
    text = markdown(table(planned(results.rows("results"), tasks)), COLUMNS)
    options.json.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
