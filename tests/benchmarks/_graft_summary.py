"""Tables of the benchmark of grafts: one line per method and data, and one per method against the decoder alone."""

import statistics
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from tests.benchmarks._graft_rows import BASELINE
from tests.benchmarks._table import markdown

Row = Mapping[str, Any]
Cell = tuple[str, int | None]
"""Set and number of training cases, None for all."""
SETTLED = 0.9
"""Least share of its wall time that a run had a processor; below, others had it and the comparison is not fair."""
COLUMNS = (
    "method",
    "set",
    "images",
    "metric",
    "mean",
    "std",
    "seeds",
    "n",
    "trainable",
    "adapter_mb",
    "seconds_per_step",
    "extra_mb",
    "steps",
    "without_gradient",
    "least_busy",
    "backbone_unchanged",
)


def score(row: Row) -> float:
    """The value that methods are compared by."""
    return float(row[row["metric"]])


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def sign_test(wins: int, losses: int) -> float:
    """Two-sided probability of a split at least this uneven if both were equally likely; ties do not count."""
    total, most = wins + losses, max(wins, losses)
    return min(1.0, 2 * sum(comb(total, k) for k in range(most, total + 1)) / 2**total)


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """Set and fraction of every comparison, in order of appearance."""
    return list(dict.fromkeys((row["set"], row["cases"]) for row in rows))


def _of(rows: Sequence[Row], method: str, cell: Cell) -> list[Row]:
    return [row for row in rows if row["method"] == method and (row["set"], row["cases"]) == cell]


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def long_table(rows: Sequence[Row], costs: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method, set and number of images: mean and spread over seeds, and costs."""
    extra = {row["method"]: row.get("extra_mb") for row in costs}
    found = []
    for cell in cells_of(rows):
        for method in _methods(rows):
            own = _of(rows, method, cell)
            if own:
                found.append(_line(method, cell, own) | {"extra_mb": extra.get(method)})
    return found


def _line(method: str, cell: Cell, own: Sequence[Row]) -> dict[str, Any]:
    scores = [score(row) for row in own]
    first = own[0]
    return {
        "method": method,
        "set": cell[0],
        "images": first["train_cases"],
        "metric": first["metric"],
        "mean": statistics.mean(scores),
        "std": spread(scores),
        "seeds": len(own),
        "n": first["n"],
        "trainable": first["trainable"],
        "adapter_mb": first["adapter_mb"],
        "seconds_per_step": statistics.median(row["seconds_per_step"] for row in own),
        "steps": int(statistics.median(row["steps"] for row in own)),
        "without_gradient": max(row["without_gradient"] for row in own),
        "least_busy": min(row["busy"] for row in own),
        "backbone_unchanged": all(row["backbone_unchanged"] for row in own),
    }


def differences(rows: Sequence[Row], method: str, cell: Cell) -> list[float]:
    """Scores minus those of the decoder alone with the same seed."""
    base = {row["seed"]: score(row) for row in _of(rows, BASELINE, cell)}
    return [score(row) - base[row["seed"]] for row in _of(rows, method, cell) if row["seed"] in base]


def summary(rows: Sequence[Row], costs: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method: mean per set and fraction with the difference to the decoder alone, and who wins.

    "wins", "losses" and "p" (sign test) count single runs, paired by set, images and seed. "beats_every_set" compares
    means over seeds, for every set and fraction; None while one of them lacks a run with a partner.
    """
    cells, found = cells_of(rows), []
    measured = {row["method"]: row for row in costs}
    for method in _methods(rows):
        line: dict[str, Any] = {"method": method}
        gaps = {cell: differences(rows, method, cell) for cell in cells}
        for cell in cells:
            line["{}, {}".format(cell[0], cell[1] or "all")] = _text(rows, method, cell, gaps[cell])
        if method != BASELINE:
            line |= _verdict(gaps)
        cost = measured.get(method, {})
        found.append(line | {"seconds": cost.get("seconds"), "extra_mb": cost.get("extra_mb")})
    return found


def _text(rows: Sequence[Row], method: str, cell: Cell, gaps: Sequence[float]) -> str | None:
    scores = [score(row) for row in _of(rows, method, cell)]
    if not scores:
        return None
    mean = f"{statistics.mean(scores):.3f}"
    return mean if method == BASELINE or not gaps else f"{mean} ({statistics.mean(gaps):+.3f})"


def _verdict(gaps: Mapping[Cell, Sequence[float]]) -> dict[str, Any]:
    single = [gap for values in gaps.values() for gap in values]
    wins, losses = sum(gap > 0 for gap in single), sum(gap < 0 for gap in single)
    means = [statistics.mean(values) for values in gaps.values() if values]
    complete = len(means) == len(gaps)
    return {
        "wins": wins,
        "losses": losses,
        "p": sign_test(wins, losses),
        "sets_won": f"{sum(mean > 0 for mean in means)} of {len(means)}",
        "worst": min(means, default=None),
        "beats_every_set": all(mean > 0 for mean in means) if complete else None,
    }


def tuning(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per method: mean score over sets and seeds for every factor of the learning rate, and the best factor.

    Only (set, images, seed) that have every factor of the method count; "best" is None without any.
    """
    found = []
    for method in _methods(rows):
        own = [row for row in rows if row["method"] == method]
        factors = sorted({row["factor"] for row in own})
        table: dict[tuple[Any, ...], dict[float, float]] = {}
        for row in own:
            table.setdefault((row["set"], row["cases"], row["seed"]), {})[row["factor"]] = score(row)
        whole = [scores for scores in table.values() if len(scores) == len(factors)]
        means = {factor: statistics.mean(scores[factor] for scores in whole) for factor in factors} if whole else {}
        best = max(means, key=lambda factor: means[factor]) if means else None
        found.append({"method": method, **{f"x {f:g}": v for f, v in means.items()}, "runs": len(whole), "best": best})
    return found


def page(rows: Sequence[Row], costs: Sequence[Row], failed: Sequence[Row]) -> str:
    """Both tables as markdown, and what did not run."""
    disturbed = [row for row in rows if row["busy"] < SETTLED]
    notes = [f"{len(rows)} runs; {len(disturbed)} of them had a processor for less than {SETTLED:.0%} of their time."]
    notes += [f"- failed: {row['method']} on {row['set']}: {row['failed']}" for row in failed]
    changed = sorted({row["method"] for row in rows if not row["backbone_unchanged"]})
    notes.append(f"Backbone changed by: {', '.join(changed) or 'none'}.")
    parts = ["## Against the decoder alone", markdown(summary(rows, costs)), "## Every set"]
    return "\n\n".join([*parts, markdown(long_table(rows, costs), COLUMNS), "\n".join(notes)]) + "\n"
