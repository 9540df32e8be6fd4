"""``samgraft fit``: train an adapter."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import add_fit_config, fit_words, new_parser, parse, say, to_fit_config


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
    if not config.data.path:
        raise ConfigError(
            "no data set named; add --data PATH (a folder with imagesTr/labelsTr, or images and masks, or rasters)"
        )
    folder = run_folder(words, namespace.output)

    from samgraft.recipes.training import fit

    say(f"run folder: {folder}")
    result = fit(config, folder, resume=bool(namespace.resume))
    say("")
    for summary in result.summaries:
        say(f"  {summary.name:<28} {summary.mean:.4f}  (n = {summary.n})")
    for label, path in (("adapter", result.adapter), ("report", result.report)):
        if path.is_file():
            say(f"{label}: {path}")


def run_folder(words: Sequence[str], output: str | None) -> Path:
    """Where the run goes."""
    if output:
        return Path(output)
    import time

    name = Path(words[1]).stem if words[:1] == ["--config"] else "fit"
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
