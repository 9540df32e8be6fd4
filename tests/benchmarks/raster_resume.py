"""Kill -9 again and again, and resume: ``python -m tests.benchmarks.raster_resume``.

A run over a label raster with a GeoPackage, a GeoTIFF and a GeoJSON as outputs is killed at random moments of its whole
course (computing, linking, writing, committing), started again each time, and its files compared with those of an
uninterrupted run. Nothing may be at a final path that is not complete.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks._table import markdown, write_json
from tests.data.rasters import write_raster
from tests.recipes.mosaic._killed import OUTPUTS
from tests.recipes.mosaic._scenes import separate


def truth(folder: Path, side: int) -> None:
    """Blocks and roads."""
    folder.mkdir()
    rows, cols = np.mgrid[:side, :side]
    labels = np.where((rows % 37 < 30) & (cols % 41 < 33), rows // 37 * 97 + cols // 41 + 1, 0)
    labels[side // 2 : side // 2 + 3] = 60_000
    path = write_raster(folder / "truth.tif", separate(labels.astype(np.uint16)))
    os.utime(path, ns=(10**18, 10**18))


def start(folder: Path, pause: float, workers: int) -> "subprocess.Popen[str]":
    """A run in a process of its own."""
    words = [sys.executable, "-m", "tests.recipes.mosaic._killed", str(folder), str(pause), "0", str(workers)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def finished(folder: Path, pause: float, workers: int) -> float:
    """Seconds from "ready" to the end of a run that nobody kills."""
    with start(folder, pause, workers) as child:
        began = _ready(child)
        text = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise RuntimeError(f"the run failed with {child.returncode}: {text[-500:]}")
    return time.monotonic() - began


def _ready(child: "subprocess.Popen[str]") -> float:
    if child.stdout:
        child.stdout.readline()
    return time.monotonic()


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds that a tile takes longer")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_resume.json"))
    options = parser.parse_args(argv)
    chance, rows = random.Random(options.seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name) / "whole", Path(name) / "killed"
        truth(whole, options.side)
        truth(folder, options.side)
        seconds = finished(whole, options.pause, options.workers)
        expected = {output: (whole / output).read_bytes() for output in OUTPUTS}
        while sum(row["killed"] for row in rows) < options.kills:
            wait = chance.uniform(0.0, seconds)
            with start(folder, options.pause, options.workers) as child:
                _ready(child)
                try:
                    child.wait(wait)
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
            there = [output for output in OUTPUTS if (folder / output).exists()]
            wrong = [output for output in there if (folder / output).read_bytes() != expected[output]]
            killed = child.returncode == -signal.SIGKILL
            rows.append(
                {"run": len(rows) + 1, "after_s": wait, "killed": killed, "final": len(there), "wrong": len(wrong)}
            )
            if not killed:  # done: begin again from nothing
                for output in OUTPUTS:
                    (folder / output).unlink()
        finished(folder, options.pause, options.workers)
        equal = all((folder / output).read_bytes() == expected[output] for output in OUTPUTS)
        left = sorted(p.name for p in folder.iterdir() if not (whole / p.name).exists())
    result = {
        "kills": sum(row["killed"] for row in rows),
        "uninterrupted_s": seconds,
        "wrong_at_final_path": sum(row["wrong"] for row in rows),
        "equal_bytes": equal,
        "left_behind": ", ".join(left) or "nothing",
    }
    print(markdown(rows))
    print(markdown([result]))
    write_json(options.json, {"runs": rows, "result": result})


if __name__ == "__main__":
    main()
