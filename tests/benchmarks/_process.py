"""Run one measurement in a process of its own, so that memory and threads are its own."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

MARK = "RESULT "


def isolated(module: str, arguments: list[str], *, threads: int) -> dict[str, Any]:
    """Call ``python -m tests.benchmarks.MODULE ARGUMENTS`` and return what it handed to :func:`report`.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{module}", *arguments]
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        raise RuntimeError(f"{module} {arguments} failed with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(found[-1].removeprefix(MARK)))


def report(result: dict[str, Any]) -> None:
    """Hand a result to the process that called :func:`isolated`."""
    print(MARK + json.dumps(result), flush=True)


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
