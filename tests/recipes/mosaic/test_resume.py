"""Kill -9 at random moments, and full disks: what is finished stays, and the end is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from samgraft.errors import OutputError
from samgraft.recipes.mosaic.journal import work_folder
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


def finished_in(folder: Path, wait: float | None = None) -> bool:
    """Run in a copy of this process, which spares the imports, and kill it after some seconds; False if that was so."""
    child = get_context("fork").Process(target=run, args=(folder, 0.01))
    child.start()
    child.join(wait)
    if child.is_alive():
        child.kill()
    child.join()
    return child.exitcode != -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def check(tmp_path: Path, kills: int) -> None:
    expected = prepared(tmp_path / "whole")
    began = time.monotonic()
    assert finished_in(expected)
    seconds = time.monotonic() - began
    folder, chance, done = prepared(tmp_path / "killed"), random.Random(7), 0
    while done < kills:
        if finished_in(folder, chance.uniform(0.0, seconds)):
            for name in OUTPUTS:  # begin again from nothing
                (folder / name).unlink()
            continue
        done += 1
        for name in OUTPUTS:  # what has its name already is complete
            assert not (folder / name).exists() or (folder / name).read_bytes() == (expected / name).read_bytes()
    assert finished_in(folder)
    assert contents(folder) == contents(expected)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())


def test_killed_three_times_and_resumed(tmp_path: Path) -> None:
    check(tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    check(tmp_path, 20)


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


def killed_while_naming(folder: Path, number: int) -> None:
    """A run that dies before the rename ``number`` of its results."""
    rename, left = Path.replace, iter(range(number))

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name in OUTPUTS and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign]
    run(folder)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_killed_while_results_get_their_names(tmp_path: Path, number: int) -> None:
    """What has its name is complete, the others are still those of before, and the next call makes them all new."""
    expected, folder = prepared(tmp_path / "whole"), prepared(tmp_path / "killed")
    run(expected)
    for name in OUTPUTS:
        (folder / name).write_bytes(b"before")
    child = get_context("fork").Process(target=killed_while_naming, args=(folder, number))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    whole, found = contents(expected), contents(folder)
    assert [found[name] == whole[name] for name in OUTPUTS] == [place < number for place in range(3)]
    assert all(found[name] == b"before" for name in OUTPUTS[number:])
    run(folder)
    assert contents(folder) == whole
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())


def test_a_result_that_cannot_be_named_leaves_those_of_before(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "in_the_way")
    (folder / OUTPUTS[0]).write_bytes(b"before")
    journal = work_folder(folder / OUTPUTS[0])

    def block(self: Path, target: Path) -> Path:
        if Path(target).name == OUTPUTS[2]:
            raise PermissionError(13, "Permission denied", str(self), None, str(target))
        return rename(self, target)

    rename = Path.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", block)
        with pytest.raises(OutputError, match=r"out\.geojson its name: Permission denied; none of .*was written"):
            run(folder)
    assert (folder / OUTPUTS[0]).read_bytes() == b"before" and journal.is_dir()
    assert sorted(p.name for p in folder.iterdir()) == sorted([OUTPUTS[0], journal.name, "truth.tif"])
    run(folder)
    assert not journal.exists() and all((folder / name).stat().st_size > 6 for name in OUTPUTS)
