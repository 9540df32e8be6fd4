"""``samgraft report RUN``: one HTML file about a training run."""

from collections.abc import Sequence

from samgraft.recipes.commands.parsing import new_parser, parse, say


def run(arguments: Sequence[str]) -> None:
    """Write the report of a run folder."""
    parser = new_parser("report", "Write one self-contained HTML file about a training run.")
    parser.add_argument("run", help="run folder of samgraft fit")
    parser.add_argument("-o", "--output", default=None, help="HTML file; by default report.html in the run folder")
    values = parse(parser, arguments)

    from samgraft.recipes.report import report_run

    say(f"report: {report_run(values.run, values.output)}")
