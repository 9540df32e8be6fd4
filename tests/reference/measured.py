"""What docs/benchmarks/grafts.json and graft_costs.json say about methods; either file may be missing.

A row of grafts.json is one training run: "method" (a name of the registry, or such a name with options behind a comma,
or several joined by " + "), "set", "cases" (null: all), "seed", and under the name that "metric" holds its score.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks._table import markdown, read_json

RUN = "python -m tests.benchmarks.grafts"
BASELINE = "decoder only"
LABELS = ("method", "way", "row", "name")
"""Fields that may say which method a row is about; the first that is there counts."""
HASHES = ("weights", "config", "recipe", "base", "commit")
"""Fields that nobody reads."""

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


def read(folder: Path, name: str) -> list[Row]:
    """Rows of ``folder/name.json``; none if there is no such file."""
    return [row for row in read_json(folder / f"{name}.json").get("results", []) if not row.get("tune")]


def label(row: Row) -> str:
    """What a row calls its method."""
    return str(next((row[key] for key in LABELS if row.get(key)), ""))


def names(text: str) -> frozenset[str]:
    """The registered names in a label such as "lora, last 4" or "lora + decoder_lora"."""
    return frozenset(part.partition(",")[0].strip() for part in text.split(" + "))


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Runs grouped by method, set and number of images; a later run of the same kind replaces an earlier one."""
    latest = {(label(row), *_run(row)): row for row in rows if _score(row) is not None}
    baseline = {key[1:]: _score(row) for key, row in latest.items() if key[0] == BASELINE}
    groups: dict[tuple[str, str, Any], list[Row]] = {}
    for row in latest.values():
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
    own = [cell for cell in cells(read(folder, "grafts")) if method in names(cell.method)]
    own.sort(key=lambda cell: (cell.method != method, cell.method, cell.set, cell.cases or 10**9))
    parts = []
    if own:
        lead = (
            f"`{RUN}`: graft-tiny with the same class-token decoder and the same wall time for all. Spread is the "
            f'standard deviation over seeds; gain is the mean difference to "{BASELINE}", seed by seed.'
        )
        parts.append(f"{lead}\n\n{markdown([_cell_row(cell) for cell in own])}")
    failed = sorted({str(row["failed"]) for row in read(folder, "grafts") if row.get("failed") and _about(row, method)})
    parts += [f"Runs that failed: {text}" for text in failed]
    costs = [_plain(row) for row in read(folder, "graft_costs") if _about(row, method)]
    if costs:
        columns = list(dict.fromkeys(key for row in costs for key in row))
        parts.append(f"Cost of a step on SAM's shape with random weights:\n\n{markdown(costs, columns)}")
    return "\n\n".join(part.strip("\n") for part in parts) or "Not measured yet."


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
        "images": "all" if cell.cases is None else cell.cases,
        "metric": str(cell.rows[0]["metric"]),
        "mean": mean(cell.scores),
        "spread": _spread(cell.scores),
        "gain": mean(cell.differences) if cell.differences else None,
        "seeds": len(cell.scores),
        "trainable": _mean(cell.rows, "trainable", whole=True),
        "file, MB": _mean(cell.rows, "adapter_mb"),
        "s per step": _mean(cell.rows, "seconds_per_step"),
        "steps": _mean(cell.rows, "steps", whole=True),
        "peak, MB": _mean(cell.rows, "peak_mb", whole=True),
    }


def _mean(rows: Sequence[Row], key: str, *, whole: bool = False) -> float | int | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    if not values:
        return None
    return round(mean(values)) if whole else mean(values)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("set", "cases", "seed", "budget", "weights"))


def _score(row: Row) -> float | None:
    value = row.get(str(row.get("metric")))
    return float(value) if isinstance(value, int | float) else None


def _about(row: Row, method: str) -> bool:
    return method in names(label(row))


def _plain(row: Row) -> dict[str, Any]:
    """Values that fit a cell, without hashes."""
    return dict(_scalars(row))


def _scalars(row: Row) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key not in HASHES and isinstance(value, str | int | float | bool | None):
            yield key, value
