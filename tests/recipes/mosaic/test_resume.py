"""Kill -9 at random moments, and full disks: what is finished stays, and the end is the same."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.rasters import write_raster
from tests.recipes.mosaic._killed import OUTPUTS, run
from tests.recipes.mosaic._scenes import things

SHAPE = (150, 170)  # 20 tiles


def prepared(folder: Path) -> Path:
    folder.mkdir()
    path = write_raster(folder / "truth.tif", things(SHAPE))
    os.utime(path, ns=(10**18, 10**18))
    return folder


def start(folder: Path, root: Path, *, pause: float = 0.0, limit: int = 0) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": f"{root / '.src'}:{root}"}
    words = [sys.executable, "-m", "tests.recipes.mosaic._killed", str(folder), str(pause), str(limit), "1"]
    return subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def killed(folder: Path, root: Path, chance: random.Random) -> bool:
    """Start a run and kill it at a random moment; False if it was done before."""
    lines, pause = chance.randint(0, 12), chance.uniform(0.0, 0.05)
    with start(folder, root, pause=0.01) as child:
        for _ in range(lines + 1):
            if not (child.stdout and child.stdout.readline()):
                break
        try:
            child.wait(pause)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
    return child.returncode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def check(tmp_path: Path, root: Path, kills: int) -> None:
    expected = prepared(tmp_path / "whole")
    run(expected)
    folder, chance, done = prepared(tmp_path / "killed"), random.Random(7), 0
    for _ in range(kills):
        if killed(folder, root, chance):
            done += 1
            for name in OUTPUTS:  # what has its name already is complete
                assert not (folder / name).exists() or (folder / name).read_bytes() == (expected / name).read_bytes()
    assert done >= min(3, kills - 1)
    run(folder)
    assert contents(folder) == contents(expected)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())


def test_killed_three_times_and_resumed(tmp_path: Path, repo_root: Path) -> None:
    check(tmp_path, repo_root, 3)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(tmp_path: Path, repo_root: Path) -> None:
    check(tmp_path, repo_root, 20)


@pytest.mark.parametrize("limit", [6_000, 40_000])
def test_a_full_disk_is_named_and_leaves_no_final_file(tmp_path: Path, repo_root: Path, limit: int) -> None:
    folder = prepared(tmp_path / "full")
    with start(folder, repo_root, limit=limit) as child:
        text = child.communicate()[0]
    assert child.returncode == 2, text
    assert text.splitlines()[-1].startswith("OutputError: ")
    assert not any((folder / name).exists() for name in OUTPUTS)
    run(folder)
    expected = prepared(tmp_path / "whole")
    run(expected)
    assert contents(folder) == contents(expected)
