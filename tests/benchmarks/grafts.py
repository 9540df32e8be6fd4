"""Every graft on real images in equal time: ``python -m tests.benchmarks.grafts``.

All methods of the registry with their defaults and a few more rows, on frozen graft-tiny with a class-token decoder
that is trained with them; "decoder only" has no graft. All rows of the same data and seed begin with the same decoder,
which was trained alone for ``--start`` seconds; from there every run goes on at a quarter of the rate for the same time
of its one thread, which is wall time on a machine with nothing else to do, and is scored once on the validation cases,
at its end. Seed 0 of everything comes first. Every result is written as it comes and found again, so that a benchmark
that was stopped in any way goes on where it was.

``--tune`` compares learning rates on held-out training cases, for ``lr_factor`` of the methods; ``--costs`` measures
steps and memory, a process per method; ``--summary`` only writes the tables of what is there; ``--forget`` drops the
results of ``--methods``, whose code has changed.
"""

import argparse
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import _graft_summary
from tests.benchmarks._arguments import settled, trained
from tests.benchmarks._arms import decoder_config
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._graft_rows import HASH, KEY, config_hash, many, optimiser, recipe_hash, rows, spec_of
from tests.benchmarks._process import end_with_parent, isolated, report, streamed
from tests.benchmarks._sets import SPECS, training_cases
from tests.benchmarks._steps import costs
from tests.benchmarks._table import is_there, markdown, read_json, write_json
from tests.benchmarks.cache import pictures

SETS = ("nuclei", "cardiac_mr", "retina_vessels", "buildings_banepa")
TUNED_ON = ("cardiac_mr", "nuclei")
FACTORS = (0.3, 1.0, 3.0)
COST_SET = "nuclei"
"""Whose size and batch ``--costs`` uses."""
COST_KEY = ("method", "config", "weights", "size", "batch")
Task = dict[str, Any]


def plan(options: argparse.Namespace, weights: str) -> list[Task]:
    """All runs that were asked for, in the order of :func:`asked`."""
    found = []
    for task in asked(options, weights):
        spec = spec_of(task["set"])
        for factor in FACTORS if options.tune else (None,):
            config = config_hash(rows(factor)[task["method"]])
            recipe = recipe_hash(spec, optimiser(spec, start=options.start), options.start)
            found.append(task | {"factor": factor, "config": config, "recipe": recipe, "start": options.start})
    return found


def asked(options: argparse.Namespace, weights: str) -> Iterator[Task]:
    """What of a run the command line says: seed by seed, then set by set, few images before many, method by method."""
    for seed, name, fraction in product(options.seeds, options.sets, options.fractions):
        shared = {"set": name, "cases": training_cases(fraction), "seed": seed, "tune": options.tune}
        for method in options.methods:
            yield shared | {"method": method, "budget": options.budget, "weights": weights}


def groups(tasks: Sequence[Task], done: Sequence[Task]) -> list[list[Task]]:
    """What ``done`` lacks, in the order of ``tasks``; tasks that share data and seed together."""
    found: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        if not is_there(task, done, KEY):
            found.setdefault((task["seed"], task["set"], task["cases"]), []).append(task)
    return list(found.values())


def planned(results: Sequence[Task], tasks: Sequence[Task]) -> list[Task]:
    """The results of ``tasks``, in their order; others, of earlier settings or code, stay in the file unseen."""
    found = {tuple(row.get(key) for key in KEY): row for row in results}
    return [found[key] for task in tasks if (key := tuple(task[k] for k in KEY)) in found]


class Results:
    """The file of results, which several threads write.

    Args:
        path: JSON file; read if it is there.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path, self.content, self._lock = path, read_json(path), threading.Lock()

    def rows(self, name: str) -> list[Task]:
        """Rows of "results", "costs" or "failed"."""
        found: list[Task] = self.content.setdefault(name, [])
        return found

    def add(self, name: str, row: Task, keys: Sequence[str]) -> None:
        """Add a row and write the file; a failed run that went well later is no longer a failed one."""
        with self._lock:
            self.content["failed"] = [old for old in self.rows("failed") if not is_there(row, [old], keys)]
            self.rows(name).append(row)
            write_json(self.path, self.content)

    def forget(self, methods: Sequence[str]) -> int:
        """Drop all rows of ``methods``; how many there were."""
        before = sum(len(self.rows(name)) for name in ("results", "costs", "failed"))
        for name in ("results", "costs", "failed"):
            self.content[name] = [row for row in self.rows(name) if row["method"] not in methods]
        write_json(self.path, self.content)
        return before - sum(len(self.rows(name)) for name in ("results", "costs", "failed"))


def run(
    missing: Sequence[list[Task]], results: Results, options: argparse.Namespace, *, module: str = "grafts"
) -> None:
    """Do groups of tasks, ``options.jobs`` of them at a time, each in a process of ``module`` with one thread."""

    def do(group: list[Task]) -> None:
        folder = str(results.path.resolve().with_suffix(".starts"))
        request = json.dumps({"tasks": group, "backbone": options.backbone, "folder": folder})
        try:
            for row in streamed(module, ["--task", request], threads=1):
                results.add("failed" if "failed" in row else "results", row, KEY)
                print(_told(row), flush=True)
        except RuntimeError as error:  # what it did is kept, and the next call does the rest
            print(f"a worker ended early: {error}", flush=True)

    print(f"{sum(map(len, missing))} runs to do, at least {options.budget:g} s each", flush=True)
    pool = ThreadPoolExecutor(options.jobs)
    try:
        for future in as_completed([pool.submit(do, group) for group in missing]):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _told(row: Task) -> str:
    where = f"{row['set']} {row['cases'] or 'all'} seed {row['seed']} {row['method']}"
    if "failed" in row:
        return f"{where}: FAILED, {row['failed']}"
    return f"{where}: {row['metric']} {row[row['metric']]:.3f}, {row['steps']} steps, lr {row['lr']:g}"


def measure_costs(results: Results, options: argparse.Namespace, weights: str) -> None:
    """Steps and memory of every method, each in a process of its own; what is there is skipped."""
    spec = spec_of(COST_SET)
    for method in options.methods:
        batch = optimiser(spec).batch
        task = {"method": method, "config": config_hash(rows()[method]), "weights": weights}
        task |= {"size": spec.size, "batch": batch, "cost": COST_SET, "backbone": options.backbone}
        if is_there(task, results.rows("costs"), COST_KEY):
            continue
        try:
            row = task | isolated("grafts", ["--task", json.dumps(task)], threads=1)
        except RuntimeError as error:
            results.add("failed", task | {"set": "costs", "failed": str(error)[-500:]}, COST_KEY)
            print(f"costs of {method}: FAILED, {error}", flush=True)
            continue
        results.add("costs", row, COST_KEY)
        print(markdown([row], ("method", "seconds", "extra_mb", "trainable")), flush=True)


def work(task: Task) -> None:
    """What a process started by this benchmark does: one group of runs, or the costs of one method."""
    torch.set_num_threads(1)
    end_with_parent()
    if "cost" not in task:
        for row in many(task):
            report(row)
        return
    spec, backbone = spec_of(task["cost"]), open_backbone(task["backbone"])
    batch = pictures(task["size"], task["batch"])
    report(costs(backbone, rows()[task["method"]], decoder_config(spec), batch, warm=2, steps=5))


def tell(results: Results, tasks: Sequence[Task], *, tune: bool) -> str:
    """The tables of ``tasks``, as markdown."""
    own = planned(results.rows("results"), tasks)
    if tune:
        return markdown(_graft_summary.tuning(own))
    names = {(task["method"], task["config"]) for task in tasks}
    measured = [row for row in results.rows("costs") if (row["method"], row["config"]) in names]
    return _graft_summary.page(own, measured, results.rows("failed"))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line, with defaults that follow ``--tune``."""
    default = f"{', '.join(SETS)}; to tune {', '.join(TUNED_ON)}"
    parser = trained("grafts", __doc__, sets=list(SPECS), default=default, budget=16, dropped="--methods")
    parser.add_argument("--methods", nargs="*", default=list(rows()), choices=list(rows()), metavar="METHOD")
    parser.add_argument("--start", type=float, default=120, help="seconds that the decoder all begin with has trained")
    parser.add_argument("--costs", action="store_true", help="measure steps and memory instead")
    return settled(parser.parse_args(argv), sets=SETS, tuned_on=TUNED_ON)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = arguments(argv)
    if options.task:
        work(json.loads(options.task))
        return
    results = Results(options.json)
    if options.forget:
        print(f"{results.forget(options.methods)} rows dropped")
        return
    weights = open_backbone(options.backbone).weights_hash()[:HASH]
    tasks = plan(options, weights)
    if options.costs:
        measure_costs(results, options, weights)
    elif not options.summary:
        run(groups(tasks, results.rows("results")), results, options)
    text = tell(results, tasks, tune=options.tune)
    options.json.with_suffix(".tune.md" if options.tune else ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
