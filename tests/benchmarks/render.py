"""Write the tables of pages in docs from result files: ``python -m tests.benchmarks.render``.

Text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is replaced; the rest of the page is written by hand.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import _graft_summary, _prompter_summary, _volume_summary, graft_costs
from tests.benchmarks import one_shot as one_shot_benchmark
from tests.benchmarks._sets import SPECS
from tests.benchmarks._table import markdown, read_json
from tests.reference.measured import current

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CARD = ROOT / "adapters" / "backbones" / "embedded" / "graft_tiny.md"
"""The weight card; it carries the zero-shot tables too."""
ZERO_SHOT_COLUMNS = ("set", "cases", "objects", "graft-tiny", "ellipse", "otsu", "walker", "margin")
COST_COLUMNS = (
    "set",
    "arm",
    "train_cases",
    "parameters",
    "trainable",
    "trainable_share",
    "adapter_mb",
    "steps",
    "seconds",
    "peak_mb",
)


def zero_shot(content: dict[str, Any]) -> str:
    """The section of zero_shot.json: procedural images, real sets, verdict."""
    parts = [f"Weights `{content['weights'][:12]}`, input {content.get('procedural', {}).get('size', 128)} px.\n"]
    if "procedural" in content:
        parts += ["Unseen procedural images, IoU over objects:\n", markdown([content["procedural"]])]
    parts += ["Real sets, val split, **box from ground truth**, IoU:\n", markdown(content["real"], ZERO_SHOT_COLUMNS)]
    parts.append(markdown([content["verdict"]]))
    return "\n".join(parts)


def first_slice(content: dict[str, Any]) -> str:
    """The section of first_slice.json: scores per set, costs, checks, share on SAM-B."""
    rows = [row for row in content["results"] if not row["tune"]]
    parts = []
    for name, spec in SPECS.items():
        own = sorted((r for r in rows if r["set"] == name), key=lambda r: (-r["train_cases"], r["seed"], r["arm"]))
        if own:
            columns = ["arm", "train_cases", "seed", "n", *_scores(own, spec.headline), "steps", "seconds"]
            parts += [f"### {name}\n", markdown(own, columns)]
    parts += ["### Costs\n", markdown(rows, COST_COLUMNS)]
    grafts = [r for r in rows if r["arm"] == "graft"]
    if grafts:
        columns = [
            "set",
            "train_cases",
            "seed",
            "weights",
            "backbone_unchanged",
            "pixels",
            "pixels_differing_in_new_process",
            "adapter_mb",
        ]
        parts += ["### Checks of the graft runs\n", markdown(grafts, columns)]
    base = [{"set": name, **values} for name, values in content.get("sam_base", {}).items()]
    if base:
        parts += ["### The same recipe on SAM-B, counted on the meta device\n", markdown(base)]
    return "\n".join(parts)


def _scores(rows: Sequence[dict[str, Any]], headline: Sequence[str]) -> list[str]:
    more = [key for key in rows[0] if key.startswith(("dice", "iou")) and key not in headline]
    return [*headline, *more]


def replaced(page: str, name: str, body: str) -> str:
    """``page`` with the text between the marks of ``name`` replaced.

    Raises:
        SystemExit: the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", flags=re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"the page has no marks '<!-- begin {name} -->' and '<!-- end {name} -->'; put them back")
    return pattern.sub(lambda found: f"{found[1]}\n{body}\n{found[2]}", page)


def rows_only(content: dict[str, Any]) -> str:
    """The section of a file that is a table."""
    return markdown(content["results"])


def quantized(content: dict[str, Any]) -> str:
    """The section of quantized.json: what int8 gains, and what it costs."""
    return "\n".join(markdown(content[key]) for key in ("speed", "accuracy") if content[key])


def grafts(content: dict[str, Any]) -> str:
    """The section of grafts.json: every method against the decoder alone, then set by set."""
    rows = current([row for row in content["results"] if not row["tune"]])
    return _graft_summary.page(rows, content.get("costs", []), content.get("failed", [])).replace("## ", "### ")


def prompters(content: dict[str, Any]) -> str:
    """The section of prompters.json: every method on every set, aims, who beats whom, costs."""
    rows = [row for row in content["results"] if not row["tune"]]
    return _prompter_summary.page(rows, content.get("failed", [])).replace("## ", "### ")


def prompters_long(content: dict[str, Any]) -> str:
    """The section of prompters_long.json: the same runs with more time."""
    return markdown(_prompter_summary.long_table(content["results"]))


def volumes(content: dict[str, Any]) -> str:
    """The section of volumes.json and volumes_long.json: every method on every set, aims, all figures."""
    rows = current([row for row in content["results"] if not row["tune"]])
    return _volume_summary.page(rows, content.get("failed", []))


def one_shot(content: dict[str, Any]) -> str:
    """The section of one_shot.json."""
    return markdown(content["results"], one_shot_benchmark.COLUMNS)


def step_costs(content: dict[str, Any]) -> str:
    """The section of graft_costs.json."""
    return markdown(content["results"], graft_costs.COLUMNS)


def raster_sets(content: dict[str, Any]) -> str:
    """The section of raster_sets.json: tilings, precision, other files."""
    titles = {
        "tilings": "Banepa, the whole mosaic:",
        "east": "Banepa, the east:",
        "others": "Other rasters (seconds include the start and the report):",
    }
    return "\n".join(f"{title}\n\n{markdown(content[key])}" for key, title in titles.items())


def raster_training(content: dict[str, Any]) -> str:
    """The section of raster_training.json."""
    return markdown(content["training"])


PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "benchmarks.md": {
        "zero_shot": zero_shot,
        "first_slice": first_slice,
        "grafts": grafts,
        "prompters": prompters,
        "prompters_long": prompters_long,
        "detected_masks": rows_only,
    },
    "everything.md": {"everything": rows_only},
    "prompts_without_a_person.md": {"one_shot": one_shot},
    "speed.md": dict.fromkeys(("encoder", "attention", "prompts", "cache", "memory", "pipeline"), rows_only)
    | {"quantized": quantized, "graft_costs": step_costs},
    "rasters_at_scale.md": {"raster_sets": raster_sets},
    "raster_training.md": {"raster_training": raster_training},
    "volume_prompts.md": {"propagation": rows_only, "localisation": rows_only},
    "volumes_3d.md": {"volumes": volumes, "volumes_long": volumes, "volume_memory": rows_only},
}
"""Page -> its sections, each named as its file of results."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.render", description=__doc__)
    parser.add_argument("--results", type=Path, default=DOCS / "benchmarks", help="folder of NAME.json")
    parser.add_argument("--card", action="store_true", help="write the zero-shot tables into the weight card as well")
    options = parser.parse_args(argv)
    for name, sections in PAGES.items():
        page = (DOCS / name).read_text()
        for section, body in sections.items():
            content = read_json(options.results / f"{section}.json")
            if not content:
                print(f"{section}: no {options.results / f'{section}.json'}, left as it is")
                continue
            page = replaced(page, section, body(content))
            if section == "zero_shot" and options.card:
                CARD.write_text(replaced(CARD.read_text(), section, body(content)))
        (DOCS / name).write_text(page)


if __name__ == "__main__":
    main()
