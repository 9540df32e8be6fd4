"""Run one measurement in a process of its own, so that memory and threads are its own."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MARK = "RESULT "


def isolated(module: str, arguments: list[str], *, threads: int) -> dict[str, Any]:
    """Call ``python -m tests.benchmarks.MODULE ARGUMENTS`` and return what it handed to :func:`report`.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    found = list(streamed(module, arguments, threads=threads))
    if not found:
        raise RuntimeError(f"{module} {arguments} reported nothing")
    return found[-1]


def streamed(module: str, arguments: list[str], *, threads: int) -> Iterator[dict[str, Any]]:
    """The same for a call that reports several times: every result as it comes.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{module}", *arguments]
    with tempfile.TemporaryFile("w+") as errors:  # a file, since a full pipe that nobody reads would stop the child
        with subprocess.Popen(
            command, env=os.environ | limits, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            for line in child.stdout or ():
                if line.startswith(MARK):
                    yield dict(json.loads(line.removeprefix(MARK)))
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(f"{module} {arguments} failed with {child.returncode}: {errors.read()[-2000:]}")


def report(result: dict[str, Any]) -> None:
    """Hand a result to the process that called :func:`isolated`."""
    print(MARK + json.dumps(result), flush=True)


def end_with_parent(every: float = 1.0) -> None:
    """End this process soon after the one that started it, also if that was killed: else it would disturb the next."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def options_or_work(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, work: Callable[[dict[str, Any]], dict[str, Any]]
) -> argparse.Namespace | None:
    """Options of the command line; or None after doing the ``--task`` that :func:`isolated` handed to this process."""
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.task:
        return options
    report(work(json.loads(options.task)))
    return None
