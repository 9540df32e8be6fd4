"""Tables of the benchmark of domain shift: every row of every pair, the share of the gap that it closes, the aims."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks._graft_summary import SETTLED, score, spread
from tests.benchmarks._table import markdown

Row = Mapping[str, Any]
SOURCE, UPPER = "source only", "all target labels"
NO_LABELS, BOXES = "no labels", "weak boxes"
LEAST_GAP = 0.02
"""Least gap of which a share is told: the upper bound has to be so much above the source adapter."""
BOXES_AIM = 0.60
NO_LABELS_AIM, NO_LABELS_PAIRS = 0.25, 3
HARM = 0.01
"""Most that adaptation without labels may lose, in any run: a point."""


def of(rows: Sequence[Row], pair: str, method: str) -> list[Row]:
    """The runs of a row on a pair."""
    return [row for row in rows if row["set"] == pair and row["method"] == method]


def names(rows: Sequence[Row], key: str) -> list[str]:
    """Values of ``key``, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def mean(rows: Sequence[Row]) -> float | None:
    """Mean of the metric; None without runs."""
    return statistics.mean(score(row) for row in rows) if rows else None


def closed(rows: Sequence[Row], pair: str, method: str) -> float | None:
    """Share of the gap between source only and all target labels that a row closes, of means over seeds.

    0 is the source adapter, 1 the upper bound; below 0 it does harm, above 1 it beats the bound. Only seeds that have
    all three rows count. None without any, and where the gap is below :data:`LEAST_GAP`.
    """
    by_seed = [{row["seed"]: score(row) for row in of(rows, pair, name)} for name in (SOURCE, method, UPPER)]
    seeds = set(by_seed[0]) & set(by_seed[1]) & set(by_seed[2])
    if not seeds:
        return None
    low, found, high = (statistics.mean(values[seed] for seed in seeds) for values in by_seed)
    return (found - low) / (high - low) if high - low >= LEAST_GAP else None


def differences(rows: Sequence[Row], pair: str, method: str) -> list[float]:
    """Metric minus that of the source adapter of the same seed."""
    base = {row["seed"]: score(row) for row in of(rows, pair, SOURCE)}
    return [score(row) - base[row["seed"]] for row in of(rows, pair, method) if row["seed"] in base]


def percent(share: float | None) -> str | None:
    """A share in percent, without digits after the point."""
    return None if share is None else f"{100 * share:.0f} %"


def overview(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per row, one column per pair: mean of the metric, and the share of the gap that is closed."""
    found = []
    for method in names(rows, "method"):
        line: dict[str, Any] = {"row": method}
        for pair in names(rows, "set"):
            value, share = mean(of(rows, pair, method)), percent(closed(rows, pair, method))
            line[pair] = None if value is None else f"{value:.3f}" + (f" ({share})" if share else "")
        found.append(line)
    return found


def long_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per pair and row: mean and deviation over seeds, gap closed, costs, how often the guard fell back."""
    found = []
    for pair in names(rows, "set"):
        for method in names(rows, "method"):
            own = of(rows, pair, method)
            if not own:
                continue
            gaps = differences(rows, pair, method)
            guarded = [bool(row["fell_back"]) for row in own if row.get("fell_back") is not None]
            line: dict[str, Any] = {"pair": pair, "row": method, "metric": own[0]["metric"], "mean": mean(own)}
            line |= {"std": spread([score(row) for row in own]), "gap_closed": percent(closed(rows, pair, method))}
            line |= {"worst_difference": min(gaps, default=None), "seeds": len(own), "n": own[0]["n"]}
            line |= {"objects": own[0].get("objects"), "labelled": own[0].get("labelled")}
            line |= {"steps": int(statistics.median(row["steps"] for row in own))}
            line |= {"seconds": round(statistics.median(row["seconds"] for row in own))}
            line["fell_back"] = f"{sum(guarded)} of {len(guarded)}" if guarded else None
            found.append(line)
    return found


def aims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per aim of the issue, with what was found; "reached" is None while a pair has no figure."""
    pairs = names(rows, "set")
    boxes = {pair: closed(rows, pair, BOXES) for pair in pairs}
    free = {pair: closed(rows, pair, NO_LABELS) for pair in pairs}
    worst = {pair: min(differences(rows, pair, NO_LABELS), default=None) for pair in pairs}
    known = [value for value in worst.values() if value is not None]
    enough = [pair for pair, share in free.items() if share is not None and share >= NO_LABELS_AIM]
    return [
        {
            "aim": f"{BOXES} close at least {BOXES_AIM:.0%} of the gap on every pair",
            "found": _listed({pair: percent(share) for pair, share in boxes.items()}),
            "reached": None if None in boxes.values() else min(v or 0 for v in boxes.values()) >= BOXES_AIM,
        },
        {
            "aim": f"{NO_LABELS} closes at least {NO_LABELS_AIM:.0%} on {NO_LABELS_PAIRS} pairs",
            "found": _listed({pair: percent(share) for pair, share in free.items()}),
            "reached": True if len(enough) >= NO_LABELS_PAIRS else None if None in free.values() else False,
        },
        {
            "aim": f"{NO_LABELS} is never more than {HARM:.2f} below {SOURCE}, in any run",
            "found": _listed({pair: None if v is None else f"{v:+.3f}" for pair, v in worst.items()}),
            "reached": False if min(known, default=0) < -HARM else None if len(known) < len(worst) else True,
        },
    ]


def _listed(values: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name} {value or '-'}" for name, value in values.items())


def complaints(rows: Sequence[Row], failed: Sequence[Row]) -> list[str]:
    """What a reader must know before believing the tables."""
    disturbed = [row for row in rows if row["busy"] < SETTLED]
    notes = [f"{len(rows)} runs; {len(disturbed)} of them had a processor for less than {SETTLED:.0%} of their time."]
    notes += [f"- failed: {row['method']} on {row['set']}, seed {row['seed']}: {row['failed']}" for row in failed]
    for flag, what in (("backbone_unchanged", "Backbone"), ("source_unchanged", "Source adapter")):
        changed = sorted({f"{row['method']} on {row['set']}" for row in rows if not row[flag]})
        notes.append(f"{what} changed by: {', '.join(changed) or 'none'}.")
    sources: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if row.get("source_adapter"):
            sources.setdefault((row["set"], row["seed"]), set()).add(row["source_adapter"])
    mixed = [f"{pair} seed {seed}" for (pair, seed), adapters in sources.items() if len(adapters) > 1]
    if mixed:
        notes.append(f"Rows of different source adapters are compared, forget and repeat them: {', '.join(mixed)}.")
    return notes


def page(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """All tables as markdown, and what to know of them."""
    parts = ["## Every row", "Metric, and the share of the gap between source only and all target labels."]
    parts += [markdown(overview(rows)), "## Aims", markdown(aims(rows)), "## All figures", markdown(long_table(rows))]
    return "\n\n".join([*parts, "\n".join(complaints(rows, failed))]) + "\n"
