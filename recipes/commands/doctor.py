"""``samgraft doctor PATH``: what is wrong with a file, a DICOM series or a data set; where, and what to do."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Examine and print; leaves with status 1 if there is an error."""
    parser = plain_parser(
        "doctor",
        "Check an image, a DICOM folder or a whole data set (nnU-Net layout, or images beside masks) in one pass. "
        "Status 0: no error; 1: errors were found.",
    )
    parser.add_argument("path", help="file or folder")
    parser.add_argument("--modality", default=None, help="CT or MR, where files and dataset.json do not say")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    values = parser.parse_args(list(arguments))

    from samgraft.recipes.doctor.examine import examine

    report = examine(values.path, modality=values.modality, track=_track)
    say(report.json() if values.json else report.text())
    if not report.healthy or (values.strict and report.count("warning")):
        raise SystemExit(1)


def _track(files: Iterable[Path], count: int) -> Iterable[Path]:
    """A bar on stderr; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        files, description="files", total=count, console=console, transient=True, disable=not console.is_terminal
    )
