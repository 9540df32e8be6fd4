"""``samgraft validate``: score an adapter on the validation cases of a data set."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import (
    add_fit_config,
    fit_words,
    new_parser,
    parse,
    read_fit_config,
    say,
    to_fit_config,
)
from samgraft.recipes.config import FitConfig


def run(arguments: Sequence[str]) -> None:
    """Parse, load the adapter, score, print the table."""
    parser = new_parser(
        "validate", "Score an adapter on validation cases, at their own geometry. No label reaches the network."
    )
    parser.add_argument("-a", "--adapter", default=None, help="adapter file; by default adapter.graft of --run")
    parser.add_argument("--run", default=None, help="run folder of samgraft fit, for its configuration")
    parser.add_argument("-o", "--output", default=None, help="folder for metrics.json, samples.npz and report.html")
    add_fit_config(parser)
    words = fit_words(arguments)
    if "--run" in words and "--config" not in words:
        at = words.index("--run")
        recorded = Path(words[at + 1] if at + 1 < len(words) else "") / "config.yaml"
        read_fit_config(recorded)
        words = ["--config", str(recorded), *words]
    values = parse(parser, words)
    config = to_fit_config(parser, values)
    adapter = Path(values.adapter or (Path(values.run) / "adapter.graft" if values.run else ""))
    if not adapter.is_file():
        raise ConfigError(
            f"no adapter file {str(adapter)!r}; add --adapter A.graft, or --run with the folder of samgraft fit"
        )
    if not (config.data.path or config.data.rasters or config.data.dataset):
        raise ConfigError("no data set named; add --data PATH, or --run with the folder of samgraft fit")
    score(config, adapter, None if values.output is None else Path(values.output))


def score(config: FitConfig, adapter: Path, output: Path | None) -> None:
    """Score ``adapter`` with the data settings of ``config``; input size and windows come from its header."""
    from samgraft.recipes.callbacks import write_metrics
    from samgraft.recipes.report import report_run, write_text
    from samgraft.recipes.training import load_adapted, validate, write_config

    task, data = load_adapted(config, adapter)
    summaries = validate(task, data, progress=config.train.progress)
    say(f"{adapter} on {config.data.path}: {len(data.val_refs)} validation cases, no ground truth in any prompt")
    for summary in summaries:
        say(f"  {summary.name:<28} {summary.mean:.4f}  (n = {summary.n})")
    if output is not None:
        write_config(output, task.config)
        write_metrics(output, task, step=0, seconds=0.0)
        write_text(output / "trainable.txt", task.grafted.trainable_table() + "\n")
        say(f"report: {report_run(output)}")
