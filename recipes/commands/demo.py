"""``samgraft demo [-o FOLDER]``: train two small grafts on made-up images and show what they find."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.recipes.commands.parsing import new_parser, parse, say


def run(arguments: Sequence[str]) -> None:
    """Make two example images, segment them, write a report."""
    from samgraft.recipes.demo import DemoConfig, run_demo

    parser = new_parser(
        "demo", "Train two small grafts on made-up images, segment a CT-like volume and a map, write a report."
    )
    parser.add_argument("-o", "--output", default="demo_out", help="folder to write to")
    parser.add_argument("--seconds", type=float, default=DemoConfig.seconds, help="longest training time of each graft")
    values = parse(parser, arguments)
    run_demo(Path(values.output), config=DemoConfig(seconds=values.seconds), say=say)
