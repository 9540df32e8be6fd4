"""Tables of the benchmark of prompters: every row beside the others, the order that RSPrompter claims, all figures."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.benchmarks._graft_summary import SETTLED, Cell, cells_of, score, spread
from tests.benchmarks._table import markdown

Row = Mapping[str, Any]
ORDER = ("rsprompter_anchor", "sam_det", "everything")
"""Each is expected to beat the next (RSPrompter, arXiv:2306.16269, tables of its results)."""
AIMS = {("nuclei", None): 0.80, ("nuclei", 5): 0.70}
"""Least AP50 aimed at."""
FIGURES = ("ap50", "ap75", "ap", "best_iou", "dsb2018", "f1", "recall", "precision", "dice", "dice_patient")
COSTS = ("trainable", "steps", "seconds_per_step", "seconds_per_image", "training_mb", "use_mb")


def of(rows: Sequence[Row], method: str, cell: Cell) -> list[Row]:
    """The runs of a method on a set with a number of images."""
    return [row for row in rows if row["method"] == method and (row["set"], row["cases"]) == cell]


def methods(rows: Sequence[Row]) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(row["method"] for row in rows))


def named(cell: Cell) -> str:
    """Set and number of images."""
    return f"{cell[0]}, {cell[1] or 'all'}"


def overview(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method: mean and standard deviation over seeds for every set and number of images."""
    return [
        {"method": method} | {named(c): _text(of(rows, method, c)) for c in cells_of(rows)} for method in methods(rows)
    ]


def _text(own: Sequence[Row]) -> str | None:
    if not own:
        return None
    values = [score(row) for row in own]
    deviation = spread(values)
    return f"{statistics.mean(values):.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def long_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method, set and number of images: the mean over seeds of every figure, and costs."""
    found = []
    for cell in cells_of(rows):
        for method in methods(rows):
            own = of(rows, method, cell)
            if own:
                line = {"method": method, "set": cell[0], "images": own[0]["train_cases"], "seeds": len(own)}
                line["budget"] = own[0]["budget"]
                found.append(line | {key: _mean(own, key) for key in (*FIGURES, *COSTS)})
    return found


def _mean(own: Sequence[Row], key: str) -> float | int | None:
    values = [row[key] for row in own if row.get(key) is not None]
    if not values:
        return None
    return int(statistics.median(values)) if isinstance(values[0], int) else statistics.mean(values)


def order(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per neighbouring pair of :data:`ORDER`: mean difference on every set and number of images.

    Everything mode, of which no seed changes anything, is compared with the mean over seeds.
    """
    found = []
    for first, second in pairwise(ORDER):
        line: dict[str, Any] = {"difference": f"{first} - {second}"}
        for cell in cells_of(rows):
            ours, theirs = ([score(row) for row in of(rows, name, cell)] for name in (first, second))
            line[named(cell)] = f"{statistics.mean(ours) - statistics.mean(theirs):+.3f}" if ours and theirs else None
        found.append(line)
    return found


def aims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per aim: the best method there, and whether it is reached."""
    found = []
    for cell, aim in AIMS.items():
        means = {m: statistics.mean(score(r) for r in of(rows, m, cell)) for m in methods(rows) if of(rows, m, cell)}
        if means:
            best = max(means, key=lambda method: means[method])
            line = {"aim": f"{named(cell)}: AP50 at least {aim:.2f}", "best": best, "AP50": means[best]}
            found.append(line | {"reached": means[best] >= aim})
    return found


def tuning(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method: mean score over sets and seeds for every factor of its learning rate."""
    found = []
    for method in methods(rows):
        own = [row for row in rows if row["method"] == method]
        factors = sorted({row["factor"] for row in own})
        means = {f"x {f:g}": statistics.mean(score(row) for row in own if row["factor"] == f) for f in factors}
        found.append({"method": method, **means, "runs": len(own), "best": max(means, key=lambda key: means[key])})
    return found


def notes(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """What is to be known of runs: how many had a processor to themselves, which did not run, a changed backbone."""
    disturbed = [row for row in rows if row["busy"] < SETTLED]
    found = [f"{len(rows)} runs; {len(disturbed)} of them had a processor for less than {SETTLED:.0%} of their time."]
    found += [f"- failed: {row['method']} on {row['set']}: {row['failed']}" for row in failed]
    changed = sorted({row["method"] for row in rows if not row["backbone_unchanged"]})
    return "\n".join([*found, f"Backbone changed by: {', '.join(changed) or 'none'}."])


def page(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """All tables as markdown, and what did not run."""
    parts = ["## Every method", markdown(overview(rows)), "## Aims", markdown(aims(rows))]
    parts += ["## Who beats whom", markdown(order(rows)), "## All figures", markdown(long_table(rows))]
    return "\n\n".join([*parts, notes(rows, failed)]) + "\n"
