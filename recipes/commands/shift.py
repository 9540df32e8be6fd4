"""``samgraft shift SOURCE TARGET``: how two sets of images differ, and which lever is worth trying."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samgraft.recipes.commands.parsing import plain_parser, say

if TYPE_CHECKING:
    from samgraft.recipes.shift.trials import Aligner
    from samgraft.recipes.shift.views import View


def run(arguments: Sequence[str]) -> None:
    """Measure, print, and write what was asked for."""
    parser = plain_parser(
        "shift",
        "Measure how the images of TARGET differ from those of SOURCE: values, colours, sharpness, pixel sizes and "
        "frozen features; and say which lever is worth trying. No label is opened.",
    )
    parser.add_argument(
        "source",
        help="images: a file, a folder, a data set, a list (.txt, one path per line); or an adapter (.graft) that "
        "remembers its training images",
    )
    parser.add_argument("target", help="images")
    parser.add_argument("-a", "--adapter", default=None, help="see both sets as this adapter sees images")
    parser.add_argument(
        "-o", "--output", action="append", default=[], help="report.html, figures.json or figure.png; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--views", type=int, default=128, help="views of each set, about (default 128)")
    parser.add_argument(
        "--group", default=None, help="regular expression: its first group in a file's name is the patient or scene"
    )
    parser.add_argument("--backbone", default=None, help="frozen backbone; by default the adapter's, else graft-tiny")
    parser.add_argument("--size", type=int, default=None, help="side of the network input in pixels")
    parser.add_argument("--no-features", action="store_true", help="pixels only: no backbone is loaded")
    parser.add_argument("--seed", type=int, default=0, help="seed of relabellings and folds")
    values = parser.parse_args(list(arguments))

    from samgraft.domains.shift.alignment import ALIGNMENTS
    from samgraft.recipes.shift.measure import ShiftOptions, measure_shift
    from samgraft.recipes.shift.report import check_suffix, shift_json, shift_text, write_shift

    outputs = [Path(path) for path in values.output]
    for path in outputs:
        check_suffix(path)
    options = ShiftOptions(
        views=values.views,
        size=values.size,
        group=values.group,
        features=not values.no_features,
        seed=values.seed,
    )
    tried = [name for name in ALIGNMENTS.names() if name != "fourier"]  # which needs whole pictures, and views are not
    found = measure_shift(
        values.source,
        values.target,
        adapter=values.adapter,
        backbone=values.backbone,
        options=options,
        aligners={name: _aligner(name) for name in tried},
        track=_track,
    )
    say(json.dumps(shift_json(found), indent=1, allow_nan=False) if values.json else shift_text(found))
    for path in outputs:
        write_shift(found, path)
        if not values.json:
            say(f"written: {path}")


def _aligner(name: str) -> "Aligner":
    """How the alignment of this name is fitted to two sets."""
    from samgraft.domains.shift.alignment import fit_alignment

    return lambda target, source: fit_alignment(name, target, source).apply


def _track(views: "Iterable[View]", title: str, count: int) -> "Iterable[View]":
    """A bar on stderr; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        views, description=title, total=count, console=console, transient=True, disable=not console.is_terminal
    )
