"""Adapters moved to another scanner, stain, sensor or camera: ``python -m tests.benchmarks.shift``.

A source adapter is trained with masks on one domain (graft-tiny, the shipped recipe of the kind) and met by another.
Rows: the adapter as it is; its input aligned, by the rule and in every way; fitted to each scene at test time; adapted
to target images without labels; trained on from weak boxes or points of the target (and of vessels, around which a box
says little, from scribbles); trained on from 5 labelled target cases, and from all of them, which is the upper bound.
All that train begin with the source adapter and train for the same process time. Every row is scored on cases of the
target whose patients (or ground) nobody trained on: Dice of a case, or AP50 of all objects. The gap closed is (row -
source only) / (all target labels - source only), of means over seeds.

Every run is validated once, at its end, on a copy of a training case, so no figure chooses anything. Results are
written as they come and found again, so that a benchmark that was stopped goes on where it was.

Time, in process seconds: a seed trains 6 source adapters (240 s each) and 36 rows of 7 pairs (90 s each; reading, masks
made of weak labels, which take up to 120 s, and the last validation come on top, say 40 s), and scores 96 rows (about
15 s each): 6 x 240 + 36 x 130 + 96 x 15 = 7,560 s. Three seeds are 6.3 hours of one core, or 3.2 with ``--jobs 2``.

``--trial`` runs everything with a few cases and seconds, beside the real results; ``--summary`` only writes the tables
of what is there; ``--forget`` drops the results of ``--rows``, whose code has changed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import _shift_summary
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._graft_rows import HASH, KEY, short_hash
from tests.benchmarks._process import end_with_parent, report
from tests.benchmarks._shift_pairs import PAIRS, nuclei_by_staining
from tests.benchmarks._shift_rows import ROWS, many, recipe_hash
from tests.benchmarks._table import is_there, markdown
from tests.benchmarks.grafts import Results, planned, run

Task = dict[str, Any]
BUDGET, SOURCE_BUDGET, TRIAL_BUDGET = 90.0, 240.0, 5.0
"""Seconds of process time."""


def plan(options: argparse.Namespace, weights: str) -> list[Task]:
    """All runs that were asked for: seed by seed, then pair by pair, row by row."""
    found = []
    for seed in options.seeds:
        for name in options.pairs:
            pair = PAIRS[name]
            for row in (ROWS[method] for method in options.rows if ROWS[method].serves(pair)):
                task: Task = {"set": name, "cases": None, "seed": seed, "method": row.name, "weights": weights}
                task |= {"budget": options.budget if row.budgeted else 0.0, "tune": False, "trial": options.trial}
                task |= {"source_budget": options.source_budget, "work": str(options.work)}
                hashes = {"config": short_hash([row.name, dict(row.settings)]), "recipe": recipe_hash(pair, task)}
                found.append(task | hashes)
    return found


def groups(tasks: Sequence[Task], done: Sequence[Task]) -> list[list[Task]]:
    """What ``done`` lacks; tasks of one source domain and seed together, since they share the source adapter."""
    found: dict[tuple[int, str], list[Task]] = {}
    for task in tasks:
        if not is_there(task, done, KEY):
            found.setdefault((task["seed"], PAIRS[task["set"]].source), []).append(task)
    return list(found.values())


def counts(pairs: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """How many cases every side of the pairs has; and of nuclei, how many pictures have each staining."""
    lines = []
    for name in pairs:
        sides = PAIRS[name].sides(seed)
        sizes = {part: len(getattr(sides, part)) for part in ("source", "target", "scored")}
        people = {f"{part}_patients": len({i.patient for i in getattr(sides, part)}) for part in sizes}
        lines.append({"pair": name, **sizes, **people})
    if any("nuclei" in name for name in pairs):
        for staining, found in nuclei_by_staining().items():
            parts = {"target": len(found["train"]), "scored": len(found["val"])}
            lines.append({"pair": f"(nuclei, {staining})", "source": None, **parts})
    return lines


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line; a trial has a budget, a seed and a place of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.shift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS), metavar="PAIR")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="*", type=int, help="default 0 1 2, of a trial 0")
    parser.add_argument("--budget", type=float, help=f"process seconds of a row that trains; default {BUDGET:g}")
    parser.add_argument("--source-budget", type=float, help=f"of a source adapter; default {SOURCE_BUDGET:g}")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="source domains and seeds at a time, one core each")
    parser.add_argument("--trial", action="store_true", help=f"a few cases, {TRIAL_BUDGET:g} s a run")
    parser.add_argument("--list", action="store_true", help="say pairs, rows and numbers of cases, and stop")
    parser.add_argument("--summary", action="store_true", help="only write the tables of what is there")
    parser.add_argument("--forget", action="store_true", help="drop the results of --rows, and stop")
    parser.add_argument("--json", type=Path, help="default runs/benchmarks/shift.json")
    parser.add_argument("--work", type=Path, help="folder for data sets and adapters; default beside the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.seeds = options.seeds or ([0] if options.trial else [0, 1, 2])
    options.budget = options.budget or (TRIAL_BUDGET if options.trial else BUDGET)
    options.source_budget = options.source_budget or (TRIAL_BUDGET if options.trial else SOURCE_BUDGET)
    options.json = options.json or Path(f"runs/benchmarks/shift{'_trial' if options.trial else ''}.json")
    options.work = (options.work or options.json.with_suffix("")).resolve()
    return options


def work(task: Task) -> None:
    """What a process started by this benchmark does: all missing rows of a source domain and seed."""
    torch.set_num_threads(1)
    end_with_parent()
    for row in many(task):
        report(row)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = arguments(argv)
    if options.task:
        work(json.loads(options.task))
        return
    if options.list:
        print(markdown(counts(options.pairs, options.seeds[0])))
        print(markdown([{"row": row.name, "takes the budget": row.budgeted} for row in ROWS.values()]))
        return
    results = Results(options.json)
    if options.forget:
        print(f"{results.forget(options.rows)} rows dropped")
        return
    tasks = plan(options, open_backbone(options.backbone).weights_hash()[:HASH])
    if not options.summary:
        run(groups(tasks, results.rows("results")), results, options, module="shift")
    text = _shift_summary.page(planned(results.rows("results"), tasks), planned(results.rows("failed"), tasks))
    options.json.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
