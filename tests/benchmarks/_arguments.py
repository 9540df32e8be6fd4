"""Command lines that several benchmarks share."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def scored(module: str, about: str | None, sets: Sequence[str]) -> argparse.ArgumentParser:
    """Options of a benchmark that trains nothing and scores pictures of real sets, all of ``sets`` by default."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{module}", description=about)
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or weight file")
    parser.add_argument("--sets", nargs="*", default=list(sets), choices=sets, metavar="SET", help=", ".join(sets))
    parser.add_argument("--size", type=int, default=128, help="side of the network input in pixels")
    parser.add_argument("--limit", type=int, help="most pictures per set")
    return parser


def trained(
    module: str, about: str | None, *, sets: Sequence[str], default: str, budget: float, dropped: str
) -> argparse.ArgumentParser:
    """Options of a benchmark of many runs that train for ``budget`` seconds each; :func:`settled` fills them in.

    Args:
        module: Its name.
        about: What it says of itself.
        sets: Names that ``--sets`` may have.
        default: Which these are if it is not given, in words.
        budget: Seconds.
        dropped: The option that names what ``--forget`` drops.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", nargs="*", choices=list(sets), help=f"default {default}")
    parser.add_argument("--fractions", nargs="*", help='numbers of training images, or "all"; default 5 and all')
    parser.add_argument("--seeds", nargs="*", type=int, help="default 0 1 2, to tune 0")
    parser.add_argument("--budget", type=float, default=budget, help="seconds that a run trains")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--tune", action="store_true", help="compare learning rates on held-out training cases")
    parser.add_argument("--summary", action="store_true", help="only write the tables of what is there")
    parser.add_argument("--forget", action="store_true", help=f"drop the results of {dropped}, and stop")
    parser.add_argument("--json", type=Path, default=Path(f"runs/benchmarks/{module}.json"))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser


def settled(options: argparse.Namespace, *, sets: Sequence[str], tuned_on: Sequence[str]) -> argparse.Namespace:
    """The options of :func:`trained` with defaults that follow ``--tune``."""
    options.sets = options.sets or list(tuned_on if options.tune else sets)
    options.fractions = options.fractions or (["all"] if options.tune else ["5", "all"])
    options.seeds = options.seeds or ([0] if options.tune else [0, 1, 2])
    return options
