"""``samgraft report RUN``: one HTML file about a training run."""

from collections.abc import Sequence

from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Write the report of a run folder."""
    parser = plain_parser("report", "Write one self-contained HTML file about a training run.")
    parser.add_argument("run", help="run folder of samgraft fit")
    parser.add_argument("-o", "--output", default=None, help="HTML file; by default report.html in the run folder")
    values = parser.parse_args(list(arguments))

    from samgraft.recipes.report import report_run

    say(f"report: {report_run(values.run, values.output)}")
