"""``samgraft fit``: train an adapter."""

import os
from collections.abc import Sequence
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import add_fit_config, fit_words, new_parser, parse, say, to_fit_config
from samgraft.recipes.config import TrainConfig

_FOLDER = "SAMGRAFT_RUN_FOLDER"
"""Variable by which the first process tells the others where the run goes."""


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and train."""
    parser = new_parser(
        "fit", "Train an adapter. Short names: --data PATH --cases N --steps N --minutes M --size S --lr R"
    )
    parser.add_argument("-o", "--output", default=None, help="run folder; by default runs/<recipe>-<time>")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output from its last checkpoint")
    add_fit_config(parser)
    words = fit_words(arguments)
    namespace = parse(parser, words)
    config = to_fit_config(parser, namespace)
    if not (config.data.path or config.data.rasters or config.data.dataset):
        raise ConfigError(
            "no data set named; add --data PATH (a folder with imagesTr/labelsTr, or images and masks, or rasters), or "
            "--data.rasters FILES"
        )
    folder = shared_folder(words, namespace.output, config.train)

    from samgraft.recipes.training import fit, is_first

    first = is_first(config.train)
    if first:
        say(f"run folder: {folder}")
    else:
        from transformers.utils import logging

        logging.disable_progress_bar()
    result = fit(config, folder, resume=bool(namespace.resume))
    if not first:
        return
    say("")
    for summary in result.summaries:
        say(f"  {summary.name:<28} {summary.mean:.4f}  (n = {summary.n})")
    for label, path in (("adapter", result.adapter), ("report", result.report)):
        if path.is_file():
            say(f"{label}: {path}")


def shared_folder(words: Sequence[str], output: str | None, train: TrainConfig) -> Path:
    """Where the run goes, the same for all processes: those that Lightning starts learn it from the environment.

    Raises:
        ConfigError: no ``--output``, and processes that were not started by this one would choose other names.
    """
    if output or train.world == 1:
        return run_folder(words, output)
    if "LOCAL_RANK" in os.environ and _FOLDER in os.environ:
        return Path(os.environ[_FOLDER])
    if train.num_nodes > 1 or "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise ConfigError(
            f"no run folder named for {train.world} processes that were started apart; add --output FOLDER, "
            "the same for all"
        )
    folder = run_folder(words, None)
    os.environ[_FOLDER] = str(folder)
    return folder


def run_folder(words: Sequence[str], output: str | None) -> Path:
    """Where the run goes."""
    if output:
        return Path(output)
    import time

    name = Path(words[1]).stem if words[:1] == ["--config"] else "fit"
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
