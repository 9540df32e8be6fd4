"""``samgraft plan``: what a training run will need, before it begins."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import add_fit_config, fit_words, new_parser, parse, say, to_fit_config


def run(arguments: Sequence[str]) -> None:
    """Parse like ``samgraft fit``, estimate, print."""
    parser = new_parser(
        "plan", "Estimate memory, time and disk of a training run. All options of samgraft fit, and these:"
    )
    parser.add_argument("--tiles", type=int, default=None, help="training tiles, where there is no data set yet")
    parser.add_argument("--val-tiles", type=int, default=None, help="validation tiles; by default a quarter of --tiles")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default what train.accelerator takes")
    parser.add_argument("--measure", action="store_true", help="also run two real steps on random pixels")
    parser.add_argument("--advise", action="store_true", help="print what would need less, even if the run fits")
    parser.add_argument("--json", default=None, help="file to write everything to")
    add_fit_config(parser)
    values = parse(parser, fit_words(arguments))
    config = to_fit_config(parser, values)
    if values.device is not None:
        if values.device not in ("cpu", "cuda"):
            raise ConfigError(f"--device is {values.device!r}; expected cpu or cuda; planning knows no other")
        accelerator = "cpu" if values.device == "cpu" else "gpu"
        config = replace(config, train=replace(config.train, accelerator=accelerator))

    from samgraft.recipes.plan.advice import advise
    from samgraft.recipes.plan.estimate import make_plan
    from samgraft.recipes.plan.machine import check_device
    from samgraft.recipes.plan.measure import measure_steps
    from samgraft.recipes.plan.network import sam_config
    from samgraft.recipes.plan.text import render
    from samgraft.recipes.report import write_text

    if values.device is not None:
        check_device(values.device)
    plan = make_plan(config, tiles=values.tiles, val_tiles=values.val_tiles)
    measured = None
    if values.measure:
        measured = measure_steps(config, num_classes=plan.channels, cached=plan.cached, device=plan.machine.device)
    advice = advise(config, sam_config(config.task.backbone), plan) if values.advise or not plan.fits else []
    say(render(plan, advice, measured))
    if values.json is not None:
        found = plan.to_dict() | {"advice": [asdict(one) for one in advice]}
        found["measured"] = None if measured is None else asdict(measured)
        write_text(Path(values.json), json.dumps(found, indent=1) + "\n")
