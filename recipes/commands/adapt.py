"""``samgraft adapt``: move an adapter to new images, without labels and without the images it was trained on."""

import contextlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, set_parsing_settings  # type: ignore[attr-defined]

from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.commands.parsing import Parser, new_parser, parse, say

_PLACES = ("--adapter", "--data", "-o", "--output", "--work", "--backbone", "--resume")
"""Options that say where, and not how."""


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and adapt."""
    parser = _parser()
    values = parse(parser, arguments)
    for name, given in (("--adapter", values.adapter), ("--data", values.data), ("-o", values.output)):
        if not given:
            raise ConfigError(
                f"{name} is missing; call samgraft adapt --adapter source.graft --data IMAGES -o adapted.graft"
            )
    config = None if values.resume and not _settings(arguments) else _config(parser, values)

    from samgraft.adapters.backbones.hub import load_backbone
    from samgraft.recipes.adaptation.run import adapt

    result = adapt(
        Path(values.adapter),
        [Path(path) for path in values.data],
        Path(values.output),
        config,
        work=None if values.work is None else Path(values.work),
        resume=bool(values.resume),
        backbone=None if values.backbone is None else load_backbone(values.backbone),
        tell=say,
    )
    say("")
    say(f"{'source adapter kept' if result.fell_back else f'adapted, step {result.best_step}'}: {result.reason}")
    say(f"adapter: {result.adapter}")
    say(f"report: {result.report}")


def _parser() -> Parser:
    with contextlib.suppress(Exception):  # help texts need docstring-parser
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = new_parser("adapt", "Move an adapter to new images, without labels and without its training images.")
    parser.add_argument("--adapter", default=None, help="the source adapter (*.graft); it is only read")
    parser.add_argument("--data", nargs="+", default=[], help="target images: files, folders, or a data set's folder")
    parser.add_argument("-o", "--output", default=None, help="the adapted bundle (*.graft)")
    parser.add_argument("--work", default=None, help="folder for state and report; by default NAME.adapt beside it")
    parser.add_argument("--backbone", default=None, help="name, folder or file; by default the adapter's")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_class_arguments(AdaptConfig, None, as_group=False)
    return parser


def _settings(arguments: Sequence[str]) -> bool:
    """Whether any setting was given beside the places."""
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    return any(option not in _PLACES for option in options)


def _config(parser: Parser, values: Any) -> AdaptConfig:
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    built = build(values)
    return AdaptConfig(**{field.name: getattr(built, field.name) for field in fields(AdaptConfig)})
