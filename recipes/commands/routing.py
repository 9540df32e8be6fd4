"""Options of ``samgraft segment`` for several adapters, of which one is chosen; and that choice."""

import argparse
from pathlib import Path

from samgraft.errors import ConfigError, NoMatchError
from samgraft.recipes.commands.mosaic import reading_options
from samgraft.recipes.commands.parsing import PlainParser, say


def add_adapters(parser: PlainParser) -> None:
    """Add ``--adapter``, which may be given again, and ``--route``."""
    parser.add_argument(
        "-a",
        "--adapter",
        action="append",
        default=None,
        help="adapter file (*.graft); repeatable with --route, one per domain",
    )
    parser.add_argument(
        "--route",
        default=None,
        metavar="auto|NAME",
        help="several adapters: the one whose training images are nearest, or the one of that name (FILE without "
        ".graft); docs/continual.md",
    )


def choose_adapter(values: argparse.Namespace) -> str | None:
    """The one adapter file that a call uses.

    Raises:
        ConfigError: several and no route, or a route and no adapter.
        InputError: the image is far from all domains.
        NoMatchError: no adapter of that name.
    """
    given: list[str] = values.adapter or []
    if values.route is None:
        if len(given) > 1:
            raise ConfigError(f"{len(given)} adapters; add --route auto, or --route NAME, to say which one is used")
        return given[0] if given else None
    if not given:
        raise ConfigError(f"--route {values.route} chooses among adapters; add --adapter FILE, once per domain")

    from samgraft.recipes.continual.router import Domains, known, named_files

    files = named_files(given)
    if values.route != "auto":
        return str(_told(files, values.route))

    from samgraft.domains.opening import open_scene

    scene = open_scene(values.input if len(values.input) > 1 else values.input[0], **reading_options(values))
    route = Domains.load(files, values.backbone).route(scene)
    say(f"route: {route.text()}")
    return str(files[known(route, scene)])


def _told(files: dict[str, Path], name: str) -> Path:
    if name not in files:
        raise NoMatchError(f"--route {name}: no adapter of that name; known: {', '.join(files)}, or auto")
    return files[name]
