"""What docs/benchmarks/grafts.json and graft_costs.json say about methods; either file may be missing.

A row of "results" in grafts.json is one training run: "method" (a name of the registry, or such a name with options
behind a comma, or several joined by " + "), "set", "cases" (null: all), "seed", and under the name that "metric" holds
its score. "costs" has the memory of a step above what was loaded, "failed" what did not run. A row of graft_costs.json
is a step of one method.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks._table import markdown, read_json

RUN, RUN_COSTS = "python -m tests.benchmarks.grafts", "python -m tests.benchmarks.graft_costs"
BASELINE = "decoder only"
BESIDE = (BASELINE, "full fine-tuning")
"""Rows of graft_costs.json that stand in the table of every method."""
LABELS = ("method", "way", "row", "name")
"""Fields that may say which method a row is about; the first that is there counts."""
HIDDEN = ("weights", "config", "recipe", "steps", "threads", "size", "tune")
"""Fields of graft_costs.json that a table does not show; all rows have the same size."""
SETTLED = 0.9
"""Share of its time that a run should have had a processor."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All seeds of one method on one set with one number of images."""

    method: str
    set: str
    cases: int | None
    scores: tuple[float, ...]
    differences: tuple[float, ...]
    """Score minus that of the baseline with the same seed, where both are there."""
    rows: tuple[Row, ...]


def read(folder: Path, name: str, part: str = "results") -> list[Row]:
    """Rows of ``folder/name.json`` that are no search for a learning rate; none if there is no such file."""
    return [row for row in read_json(folder / f"{name}.json").get(part, []) if not row.get("tune")]


def current(rows: Sequence[Row]) -> list[Row]:
    """Runs of the most frequent wall time and weights, and of each method's last configuration; each run once.

    A file keeps what earlier settings and earlier code gave.
    """
    scored = [row for row in rows if _score(row) is not None]
    common = Counter((row.get("budget"), row.get("weights")) for row in scored).most_common(1)
    alike = [row for row in scored if common and (row.get("budget"), row.get("weights")) == common[0][0]]
    config = {label(row): row.get("config") for row in alike}
    recipe = {(label(row), row["set"]): row.get("recipe") for row in alike if row.get("config") == config[label(row)]}
    kept = [
        row
        for row in alike
        if (row.get("config"), row.get("recipe")) == (config[label(row)], recipe[label(row), row["set"]])
    ]
    return list({(label(row), *_run(row)): row for row in kept}.values())


def label(row: Row) -> str:
    """What a row calls its method."""
    return str(next((row[key] for key in LABELS if row.get(key)), ""))


def names(text: str) -> frozenset[str]:
    """The registered names in a label such as "lora, last 4" or "lora + decoder_lora"."""
    return frozenset(part.partition(",")[0].strip() for part in text.split(" + "))


def cells(rows: Sequence[Row]) -> list[Cell]:
    """The :func:`current` runs grouped by method, set and number of images."""
    kept = current(rows)
    baseline = {_run(row): _score(row) for row in kept if label(row) == BASELINE}
    groups: dict[tuple[str, str, Any], list[Row]] = {}
    for row in kept:
        groups.setdefault((label(row), str(row["set"]), row.get("cases")), []).append(row)
    return [
        Cell(
            method=method,
            set=name,
            cases=cases,
            scores=tuple(float(_score(row) or 0.0) for row in group),
            differences=tuple(
                float(_score(row) or 0.0) - base for row in group if (base := baseline.get(_run(row))) is not None
            ),
            rows=tuple(group),
        )
        for (method, name, cases), group in groups.items()
    ]


def section(method: str, folder: Path) -> str:
    """The tables of one method, or that there are none yet."""
    parts = [_scores(method, folder), *_failures(method, folder), _step(method, folder)]
    return "\n\n".join(part.strip("\n") for part in parts if part) or "Not measured yet."


def _scores(method: str, folder: Path) -> str:
    own = [cell for cell in cells(read(folder, "grafts")) if method in names(cell.method)]
    if not own:
        return ""
    own.sort(key=lambda cell: (cell.method != method, cell.method, cell.set, cell.cases or 10**9))
    gains = [mean(cell.differences) for cell in own if cell.method == method and cell.differences]
    lead = (
        f"`{RUN}`: graft-tiny with one class-token decoder, already trained, to begin with, and the same wall time "
        f'for all. Spread is the standard deviation over seeds; gain is the mean difference to "{BASELINE}", seed by '
        "seed."
    )
    if gains:
        better = sum(gain > 0 for gain in gains)
        lead += f" With the default options the gain is positive in {better} of {len(gains)} rows."
        lead += "" if better else " It fails to beat the decoder alone on every set."
    extra = {label(row): row.get("extra_mb") for row in read(folder, "grafts", "costs")}
    rows = [_cell_row(cell) | {"extra memory, MB": _whole(extra.get(cell.method))} for cell in own]
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return f"{lead}\n\n{markdown(rows, columns)}"


def _failures(method: str, folder: Path) -> list[str]:
    failed = {
        f"{row.get('set', '')}: {row['failed']}" for row in read(folder, "grafts", "failed") if _about(row, method)
    }
    return [f"Runs that failed, on {text}" for text in sorted(failed)]


def _step(method: str, folder: Path) -> str:
    rows = read(folder, "graft_costs")
    if not any(_about(row, method) for row in rows):
        return ""
    shown = [dict(_scalars(row)) for row in rows if _about(row, method) or label(row) in BESIDE]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    sizes = {row["size"] for row in rows if "size" in row}
    size = f" at {', '.join(map(str, sorted(sizes)))} px" if sizes else ""
    return f"`{RUN_COSTS}`: a training step on SAM-B's shape with random weights{size}.\n\n{markdown(shown, columns)}"


def ranking(folder: Path, links: Mapping[str, str]) -> str:
    """Methods by their mean gain over the baseline; ``links`` maps names to pages."""
    found = cells(read(folder, "grafts"))
    compared = [cell for cell in found if cell.differences and cell.method != BASELINE]
    if not compared:
        return f"Not measured yet; run `{RUN}`."
    lead = (
        f'From `{RUN}`, and from nothing else: gain is the mean difference to "{BASELINE}" over sets and numbers of '
        "training images, each a mean over seeds; spread is its standard deviation over those; better says on how "
        "many of them the mean gain is positive. A gain smaller than its spread says little. What a row costs stands "
        "on the page of its method."
    )
    runs = [row for cell in found for row in cell.rows if row.get("busy") is not None]
    disturbed = sum(row["busy"] < SETTLED for row in runs)
    if disturbed:
        lead += f" {disturbed} of {len(runs)} runs had a processor for less than {SETTLED:.0%} of their time."
    rows = sorted((_rank_row(name, compared, links) for name in {c.method for c in compared}), key=_by_gain)
    return f"{lead}\n\n{markdown(rows)}".rstrip("\n")


def _rank_row(name: str, compared: Sequence[Cell], links: Mapping[str, str]) -> dict[str, Any]:
    own = [cell for cell in compared if cell.method == name]
    gains = [mean(cell.differences) for cell in own]
    sizes = [float(row["trainable"]) for cell in own for row in cell.rows if row.get("trainable") is not None]
    return {
        "method": f"[{name}]({links[name]})" if name in links else name,
        "gain": mean(gains),
        "spread": _spread(gains),
        "better": f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
        "runs": sum(len(cell.differences) for cell in own),
        "trainable, with the decoder": round(mean(sizes)) if sizes else None,
    }


def _by_gain(row: Row) -> tuple[float, str]:
    return -float(row["gain"]), str(row["method"])


def _cell_row(cell: Cell) -> dict[str, Any]:
    return {
        "row": cell.method,
        "set": cell.set,
        "images": _images(cell),
        "metric": str(cell.rows[0]["metric"]),
        "mean": mean(cell.scores),
        "spread": _spread(cell.scores),
        "gain": mean(cell.differences) if cell.differences else None,
        "seeds": len(cell.scores),
        "trainable": _mean(cell.rows, "trainable", whole=True),
        "file, MB": _mean(cell.rows, "adapter_mb"),
        "s per step": _mean(cell.rows, "seconds_per_step"),
        "steps": _mean(cell.rows, "steps", whole=True),
    }


def _images(cell: Cell) -> str:
    if cell.cases is not None:
        return str(cell.cases)
    number = cell.rows[0].get("train_cases")
    return "all" if number is None else f"all {number}"


def _mean(rows: Sequence[Row], key: str, *, whole: bool = False) -> float | int | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    if not values:
        return None
    return round(mean(values)) if whole else mean(values)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("set", "cases", "seed"))


def _score(row: Row) -> float | None:
    value = row.get(str(row.get("metric")))
    return float(value) if isinstance(value, int | float) else None


def _about(row: Row, method: str) -> bool:
    return method in names(label(row))


def _scalars(row: Row) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key not in HIDDEN and isinstance(value, str | int | float | bool | None):
            yield key, value
