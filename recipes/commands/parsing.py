"""What commands share: YAML recipes by name or path, short option names, parsers that raise ConfigError."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings  # type: ignore[attr-defined]

from samgraft.errors import ConfigError, InputError
from samgraft.recipes.config import FitConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHORT = {
    "--data": "--data.path",
    "--cases": "--data.cases",
    "--size": "--data.size",
    "--batch-size": "--data.batch_size",
    "--steps": "--train.steps",
    "--minutes": "--train.minutes",
    "--backbone": "--task.backbone",
    "--lr": "--task.lr",
}
"""Short names on the command line."""


def config_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))


def config_path(name: str) -> Path:
    """Path of a shipped recipe, or of the YAML file given.

    Raises:
        InputError: neither exists.
    """
    shipped = CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    raise InputError(f"no recipe {name!r}: neither a file nor one of {', '.join(config_names())}")


class Parser(ArgumentParser):
    """A parser whose complaints are ConfigErrors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise ConfigError(f"{message} (samgraft {self.prog.split()[-1]} --help shows all options)") from ex


class PlainParser(argparse.ArgumentParser):
    """The same of the standard library, for commands without a recipe; knows repeated options of several words."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise ConfigError(f"{message} (samgraft {self.prog.split()[-1]} --help shows all options)")


def plain_parser(command: str, description: str) -> PlainParser:
    """An empty plain parser for ``samgraft command``."""
    return PlainParser(prog=f"samgraft {command}", description=description, allow_abbrev=False)


def new_parser(command: str, description: str) -> Parser:
    """An empty parser for ``samgraft command``."""
    return Parser(prog=f"samgraft {command}", description=description, allow_abbrev=False)


def add_fit_config(parser: Parser) -> None:
    """Add ``--config`` and every field of :class:`FitConfig`."""
    with contextlib.suppress(Exception):  # help texts need docstring-parser
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    names = ", ".join(config_names())
    parser.add_argument("--config", action=ActionConfigFile, help=f"a shipped recipe ({names}) or a YAML file")
    parser.add_class_arguments(FitConfig, None, as_group=False)


def fit_words(words: Sequence[str]) -> list[str]:
    """Expand short names, and recipe names to paths; ``--config`` goes first, so that options win over it."""
    expanded: list[str] = []
    recipes: list[str] = []
    stream: Iterator[str] = iter(words)
    for word in stream:
        name, equals, value = word.partition("=")
        if name == "--config":
            given = value if equals else next(stream, "")
            recipes += ["--config", str(config_path(given))]
            continue
        if word == "--fast-dev-run":
            expanded.append("--train.fast_dev_run=true")
            continue
        expanded.append(SHORT.get(name, name) + equals + value)
    return recipes + expanded


def to_fit_config(parser: Parser, namespace: Any) -> FitConfig:
    """Turn parsed values into dataclasses, whose own checks run here."""
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    built = instantiate(namespace)
    return FitConfig(task=built.task, data=built.data, augment=built.augment, train=built.train, weak=built.weak)


def parse(parser: Parser, words: Sequence[str]) -> Any:
    """Parse; a dataclass check that fails comes out as its own ConfigError."""
    try:
        return parser.parse_args(list(words))
    except ConfigError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConfigError) and cause is not error:
                raise ConfigError(str(cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def read_fit_config(path: Path) -> FitConfig:
    """Read the ``config.yaml`` of a run folder, or a recipe.

    Raises:
        ConfigError: an unknown key or a wrong value, named.
    """
    parser = new_parser("fit", "")
    add_fit_config(parser)
    return to_fit_config(parser, parse(parser, ["--config", str(path)]))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, file=sys.stdout, flush=True)
