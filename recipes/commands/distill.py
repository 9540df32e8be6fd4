"""``samgraft distill``: train a smaller backbone to answer like a larger one, on images without labels."""

import contextlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import ActionConfigFile, set_parsing_settings  # type: ignore[attr-defined]

from samgraft.errors import ConfigError, InputError
from samgraft.recipes.commands.parsing import Parser, new_parser, parse, say
from samgraft.recipes.distill.config import DistillConfig


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and train."""
    config, folder, resume = read(arguments)

    from samgraft.recipes.distill.run import distill, in_words

    say(f"run folder: {folder}")
    result = distill(config, folder, resume=resume, say=say)
    say("")
    for number, phase in enumerate(result.phases, start=1):
        say(f"phase {number} ({phase.steps} steps, {phase.seconds:.0f} s)")
        say(f"  before  {in_words(phase.before)}")
        say(f"  kept    {in_words(phase.best)}")
    for role in ("teacher", "student"):
        say(f"{role}: one image of {result.facts[role]['size']} px in {result.facts[role]['encode_seconds']:.3f} s")
    say(f"student folder: {result.student}")
    say(f"picture: {result.picture}")


def read(arguments: Sequence[str]) -> tuple[DistillConfig, Path, bool]:
    """Configuration, run folder and whether to resume.

    Raises:
        ConfigError: an unknown option, a wrong value, or no images or output named.
        InputError: ``--resume`` of a folder without a run.
    """
    words = [_with_underscores(word) for word in arguments]
    parser = _parser()
    if "--resume" in words:
        words = [*_saved_config(words), *words]
    values = parse(parser, words)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    built = build(values)
    config = DistillConfig(**{field.name: getattr(built, field.name) for field in fields(DistillConfig)})
    if values.folder is not None:
        config = replace(config, images=str(values.folder))
    if not config.images:
        raise ConfigError("no images named; give a folder of images: samgraft distill FOLDER -o RUN")
    if values.output is None:
        raise ConfigError("no run folder named; add -o RUN")
    return config, Path(values.output), bool(values.resume)


def _parser() -> Parser:
    with contextlib.suppress(Exception):  # help texts need docstring-parser
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = new_parser("distill", "Train a smaller backbone to answer like a larger one, on images without labels.")
    parser.add_argument("folder", nargs="?", default=None, help="folder of images (the same as --images)")
    parser.add_argument("-o", "--output", default=None, help="run folder")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output with its own settings")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_class_arguments(DistillConfig, None, as_group=False)
    return parser


def _with_underscores(word: str) -> str:
    """``--phase2-steps`` is ``--phase2_steps``."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _saved_config(words: Sequence[str]) -> list[str]:
    """The settings of the run that is resumed; options on the command line win over them."""
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-o", "--output")]
    given += [word.partition("=")[2] for word in words if word.startswith("--output=")]
    if not given:
        raise ConfigError("--resume needs the run folder; add -o RUN")
    path = Path(given[-1]) / "config.yaml"
    if not path.is_file():
        raise InputError(f"{given[-1]} holds no run, so there is nothing to resume; run without --resume")
    return ["--config", str(path)]
