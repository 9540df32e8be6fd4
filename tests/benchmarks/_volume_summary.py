"""Tables of the benchmark of volumes: every row beside the others, samgraft beside networks from scratch."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks._graft_summary import spread
from tests.benchmarks._prompter_summary import named, notes, overview
from tests.benchmarks._table import markdown

Row = Mapping[str, Any]
SCRATCH = "scratch: "
"""How the names of rows from scratch begin."""
LEAST_GAIN: dict[tuple[str, int | None], float] = {("sarcoma_mr", 5): 0.10, ("sarcoma_ct", 5): 0.10}
"""Dice that the best samgraft row is to have more than the best network from scratch; elsewhere 0 with all cases."""
LEAST: dict[tuple[str, int | None], float] = {("hippocampus_mr", None): 0.88, ("hippocampus_mr", 5): 0.85}
"""Dice aimed at, of the best samgraft row."""
FIGURES = ("dice", "nsd_1mm", "nsd_2mm", "hd95")
COLUMNS = (
    "method",
    "set",
    "cases",
    "dice",
    "std",
    *FIGURES[1:],
    "hd95_n",
    "seeds",
    "n",
    "trainable",
    "seconds_per_step",
    "steps",
    "extra_mb",
    "without_gradient",
    "least_busy",
)


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per set, number of cases and method, best Dice first: means over seeds."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["cases"] is None, row["train_cases"], row["method"]), []).append(row)
    lines = []
    for (name, _, cases, method), own in sorted(cells.items()):
        line: dict[str, Any] = {"method": method, "set": name, "cases": cases, "seeds": len(own), "n": own[0]["n"]}
        line |= {figure: statistics.mean(row[figure] for row in own) for figure in FIGURES}
        line |= {
            "std": spread([row["dice"] for row in own]),
            "hd95_n": int(statistics.mean(row["hd95_n"] for row in own)),
            "trainable": own[0]["trainable"],
            "without_gradient": max(row["without_gradient"] for row in own),
            "seconds_per_step": statistics.median(row["seconds_per_step"] for row in own),
            "steps": int(statistics.median(row["steps"] for row in own)),
            "extra_mb": max(row["extra_mb"] for row in own),
            "least_busy": min(row["busy"] for row in own),
        }
        lines.append(line)
    return sorted(lines, key=lambda line: (line["set"], line["cases"], -line["dice"]))


def aims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per aim: the best samgraft row, the best network from scratch, and whether it is reached.

    Of each side only rows with the most seeds are compared: a lucky seed is no mean of three.
    """
    cells: dict[tuple[str, int | None], dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["cases"]), {}).setdefault(row["method"], []).append(row["dice"])
    found = []
    for cell, dice in cells.items():
        ours = {name: values for name, values in dice.items() if not name.startswith(SCRATCH)}
        theirs = {name: values for name, values in dice.items() if name.startswith(SCRATCH)}
        if not ours or not theirs:
            continue
        (best, dice_of_best), (scratch, dice_of_scratch) = _best(ours), _best(theirs)
        line = {"set": named(cell), "seeds": len(ours[best]), "best": best, "dice": dice_of_best}
        line |= {"from scratch": scratch, "its dice": dice_of_scratch}
        gain = LEAST_GAIN.get(cell, 0.0)
        if cell in LEAST_GAIN or cell[1] is None:
            aim = f"{gain:+.2f} over scratch" if gain else "at least scratch"
            found.append(line | {"aim": aim, "reached": dice_of_best - dice_of_scratch >= gain})
        if cell in LEAST:
            found.append(line | {"aim": f"at least {LEAST[cell]:.2f}", "reached": dice_of_best >= LEAST[cell]})
    return found


def _best(side: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """The row with the largest mean among those with the most seeds."""
    most = max(len(values) for values in side.values())
    means = {name: statistics.mean(values) for name, values in side.items() if len(values) == most}
    name = max(means, key=lambda one: means[one])
    return name, means[name]


def page(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """All tables as markdown, and what did not run."""
    parts = ["Dice:", markdown(overview(rows)), "Aims:", markdown(aims(rows)), "All figures:"]
    return "\n\n".join([*parts, markdown(table(rows), COLUMNS), notes(rows, failed)]) + "\n"
