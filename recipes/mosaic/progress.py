"""Progress of a mosaic run on a terminal: tiles per second and time left; elsewhere a line every half minute."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from samgraft.recipes.mosaic.run import Progress, Tell

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


def words(now: Progress) -> str:
    """One line: what, how many of how many, tiles per second, time left."""
    text = f"{now.what} {now.done:,} of {now.total:,}"
    if now.rate > 0:
        text += f", {now.rate:.2f} tiles/s" if now.rate < 100 else f", {now.rate:,.0f} tiles/s"
    left = now.left
    return text if left is None else f"{text}, {clock(left)} left"


def clock(seconds: float) -> str:
    """Seconds as "42 s", "5 min 03 s" or "7 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


@contextmanager
def shown(stream: TextIO) -> Iterator[Tell]:
    """Show progress on ``stream`` while the block runs."""
    if not stream.isatty():
        yield _lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), TextColumn("{task.description}"), console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(now: Progress) -> None:
            bar.update(task, completed=now.done, total=now.total, description=words(now))

        yield tell


def _lines(stream: TextIO) -> Tell:
    """One line now and then, and one at the end of a pass."""
    last = time.monotonic()

    def tell(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(words(now), file=stream, flush=True)

    return tell
