"""What a training step costs with every graft: ``python -m tests.benchmarks.graft_costs``, with nothing else running.

SAM-B's shape with random weights at 1024 px, one picture per step, class-token decoder: every method of the registry in
all blocks, and where it takes blocks in the last four, beside full fine-tuning (every weight in place, no copies) and
the decoder alone. Each has a process of its own. Rows are written as they come, and not measured again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.grafts import GRAFTS, GraftConfig
from samgraft.errors import SamgraftError
from tests.benchmarks._graft_rows import BASELINE, config_hash
from tests.benchmarks._process import isolated, options_or_work
from tests.benchmarks._steps import costs
from tests.benchmarks._table import is_there, markdown, read_json, write_json
from tests.benchmarks.cache import pictures
from tests.benchmarks.encoder import sam_base

FULL = "full fine-tuning"
BLOCKS = ("all", "last:4")
KEY = ("method", "blocks", "config", "size", "steps", "threads")
COLUMNS = ("method", "blocks", "trainable", "seconds", "time_share", "peak_mb", "memory_share", "extra_mb", "refused")


def variants(method: str, blocks: Sequence[str]) -> list[GraftConfig]:
    """The default of a method in each choice of blocks that its configuration takes."""
    base, found = GRAFTS.get(method)(), []
    for chosen in blocks if base.part == "encoder" else ("all",):
        try:
            found.append(replace(base, blocks=chosen))
        except SamgraftError:
            continue
    return found


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements: full fine-tuning, whose shares the others are told in, the decoder alone, the methods."""
    shape = {"size": options.size, "steps": options.steps, "threads": options.threads}
    asked: list[tuple[str, str, list[GraftConfig]]] = [(FULL, "all", []), (BASELINE, "-", [])]
    for method in options.methods:
        asked += [(method, str(config.blocks), [config]) for config in variants(method, options.blocks)]
    return [
        shape
        | {
            "method": method,
            "blocks": blocks,
            "config": config_hash(configs),
            "grafts": [config.to_dict() for config in configs],
        }
        for method, blocks, configs in asked
    ]


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The costs of one way; {"refused": why} where the method does not take these blocks."""
    torch.set_num_threads(task["threads"])
    backbone = HFSamBackbone(sam_base(task["size"]))
    configs = [config_from_dict(GRAFTS, data) for data in task["grafts"]]
    try:
        for config in configs:
            config.build(backbone)
    except SamgraftError as error:
        return {"refused": str(error)}
    batch, decoder = pictures(task["size"], 1), ClassTokensConfig(num_classes=2)
    return costs(backbone, configs, decoder, batch, warm=1, steps=task["steps"], full=task["method"] == FULL)


def with_shares(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with "time_share" and "memory_share" of full fine-tuning of the same size, steps and threads."""
    found = []
    for row in rows:
        alike = [r for r in rows if r["method"] == FULL and all(r[k] == row[k] for k in ("size", "steps", "threads"))]
        shares = {}
        if alike and "seconds" in row:
            shares = {
                "time_share": row["seconds"] / alike[0]["seconds"],
                "memory_share": row["peak_mb"] / alike[0]["peak_mb"],
            }
        found.append(dict(row) | shares)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.graft_costs", description=__doc__)
    names = [name for name in GRAFTS.names() if not GRAFTS.get(name).volumetric]
    parser.add_argument("--methods", nargs="*", default=list(names), choices=names, metavar="METHOD")
    parser.add_argument("--blocks", nargs="*", default=list(BLOCKS))
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=1, help="timed steps after the first; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/graft_costs.json"))
    options = options_or_work(parser, argv, measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = read_json(options.json).get("results", [])
    for task in plan(options):
        if is_there(task, rows, KEY):
            continue
        try:
            rows.append(task | isolated("graft_costs", ["--task", json.dumps(task)], threads=options.threads))
        except RuntimeError as error:  # not kept: the next call tries again
            print(f"{task['method']}, blocks {task['blocks']}: FAILED, {error}", flush=True)
            continue
        rows = with_shares(rows)
        write_json(options.json, {"results": rows})
        print(markdown(rows[-1:], COLUMNS), flush=True)
    print(markdown(with_shares(rows), COLUMNS))


if __name__ == "__main__":
    main()
