"""Every way to find objects without a person, in equal time: ``python -m tests.benchmarks.prompters``.

Rows are what the registries of prompters and decoders hold and can train (an ``ObjectHead``, or class maps with border
targets, or distance maps), beside everything mode untrained and a MONAI UNet with a watershed. Every run is a process
of its own with one thread, trains for the same time of that thread on frozen graft-tiny (for everything mode there is
nothing to train), and is scored once, at its end, on whole pictures. Pictures are walked in the same overlapping
windows by all rows; objects of windows are joined, maps of windows blended, and the result is a label map without
overlaps. Results are written as they come, and a benchmark that was stopped goes on where it was.

Scores: nuclei and buildings_banepa: AP50 and AP at 0.5:0.95 by COCO's definition, but without its limit of 100
predictions per image, since images hold more objects than that; nuclei also by the score of the competition that they
come from. trees_naip: centroids within 3 m of a point, one to one; a point is a disc of 2.5 m radius in training.
tree_crowns_neon: boxes; AP50, and recall and precision at IoU 0.4 as DeepForest's users count; a box is the ellipse in
it in training, and each picture is scored by a network that was trained on the other two. retina_vessels, cardiac_mr:
Dice. Where objects must be counted, the score from which they count is chosen on training pictures.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import _prompter_summary
from tests.benchmarks._arguments import settled, trained
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._graft_rows import HASH, KEY
from tests.benchmarks._object_rows import Row, rows
from tests.benchmarks._object_sets import SETS
from tests.benchmarks._process import end_with_parent, report
from tests.benchmarks._prompter_runs import hashes, one
from tests.benchmarks._sets import training_cases
from tests.benchmarks._table import is_there, markdown
from tests.benchmarks.grafts import Results, planned, run

TUNED_ON = ("nuclei", "buildings_banepa")
FACTORS = (0.3, 1.0, 3.0)
Task = dict[str, Any]


def plan(options: argparse.Namespace, weights: str, known: dict[str, Row]) -> list[Task]:
    """All runs that were asked for: seed by seed, then set by set, few images before many."""
    found = []
    for seed in options.seeds:
        for name in options.sets:
            chosen = SETS[name]
            for fraction in [f for f in options.fractions if f in chosen.fractions or f not in ("5", "all")]:
                for method in options.rows:
                    row = known[method]
                    untrained = row.kind in ("everything", "references") or not row.trained
                    if not row.runs_on(chosen) or (untrained and options.tune):
                        continue
                    if (row.kind == "everything" or not row.trained) and seed != options.seeds[0]:
                        continue
                    for factor in FACTORS if options.tune else (None,):
                        shared = {"set": name, "cases": training_cases(fraction), "seed": seed, "tune": options.tune}
                        own = {"method": method, "factor": factor, "weights": weights}
                        budget = {"budget": 0.0 if untrained else options.budget}
                        kept = {"keep": str(options.keep) if options.keep else None}
                        found.append(shared | own | budget | kept | hashes(row, chosen, factor))
    return found


def work(task: Task) -> None:
    """What a process started by this benchmark does: one run."""
    torch.set_num_threads(1)
    end_with_parent()
    for own in task["tasks"]:
        try:
            report(one(open_backbone(task["backbone"]), own))
        except Exception as error:  # any method may be broken, and the others are to be measured all the same
            report({key: own[key] for key in KEY} | {"failed": f"{type(error).__name__}: {error}"})


def tell(results: Results, tasks: Sequence[Task], *, tune: bool) -> str:
    """The tables of ``tasks``, as markdown."""
    own = planned(results.rows("results"), tasks)
    failed = planned(results.rows("failed"), tasks)
    return markdown(_prompter_summary.tuning(own)) if tune else _prompter_summary.page(own, failed)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line, with defaults that follow ``--tune``."""
    default = f"all; to tune {', '.join(TUNED_ON)}"
    parser = trained("prompters", __doc__, sets=list(SETS), default=default, budget=120, dropped="--rows")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="default all; --list names them")
    parser.add_argument("--keep", type=Path, help="folder for the label maps of scored pictures (prompter_pictures)")
    parser.add_argument("--list", action="store_true", help="name the rows, and stop")
    return settled(parser.parse_args(argv), sets=list(SETS), tuned_on=TUNED_ON)


def chosen_rows(options: argparse.Namespace, known: dict[str, Row]) -> list[str]:
    """The rows that were asked for.

    Raises:
        SystemExit: a name that is no row.
    """
    unknown = sorted(set(options.rows or ()) - set(known))
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are: {', '.join(known)}")
    return options.rows or list(known)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = arguments(argv)
    if options.task:
        work(json.loads(options.task))
        return
    backbone = open_backbone(options.backbone)
    known = rows(backbone)
    options.rows = chosen_rows(options, known)
    if options.list:
        lines = []
        for row in known.values():
            on = [name for name, chosen in SETS.items() if row.runs_on(chosen)]
            lines.append({"row": row.name, "kind": row.kind, "sets": ", ".join(on)})
        print(markdown(lines))
        return
    results = Results(options.json)
    if options.forget:
        print(f"{results.forget(options.rows)} rows dropped")
        return
    tasks = plan(options, backbone.weights_hash()[:HASH], known)
    if not options.summary:
        missing = [[task] for task in tasks if not is_there(task, results.rows("results"), KEY)]
        run(missing, results, options, module="prompters")
    text = tell(results, tasks, tune=options.tune)
    options.json.with_suffix(".tune.md" if options.tune else ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
