"""Two of four Dask workers die by SIGKILL in the middle of a run and nobody starts them again: the same files."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from samgraft.recipes.mosaic.engines import DaskEngine
from samgraft.recipes.mosaic.journal import work_folder
from tests.recipes.mosaic._killed import OUTPUTS, run
from tests.recipes.mosaic.test_resume import contents, prepared

pytestmark = pytest.mark.slow
WORKERS = 4
PATIENCE = 120.0


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path, repo_root: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """Address of a scheduler, and four workers without the nanny that would replace a dead one."""
    distributed = pytest.importorskip("distributed")
    environment = os.environ | {"PYTHONPATH": f"{repo_root / '.src'}:{repo_root}"}
    with ExitStack() as stack:
        cluster = stack.enter_context(distributed.LocalCluster(n_workers=0, dashboard_address=None))
        client = stack.enter_context(distributed.Client(cluster))
        address = cluster.scheduler_address
        words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1"]
        words += ["--no-dashboard", "--local-directory", str(tmp_path / "scratch")]
        workers = [subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) for _ in range(WORKERS)]
        for worker in workers:
            stack.callback(worker.wait)
            stack.callback(worker.kill)
        client.wait_for_workers(WORKERS, timeout=PATIENCE)
        yield address, workers


def finished_tiles(folder: Path) -> int:
    """Artifacts of the run under way."""
    return len(list(work_folder(folder / OUTPUTS[0]).rglob("*.npz")))


def test_two_of_four_workers_die(tmp_path: Path, cluster: tuple[str, list["subprocess.Popen[bytes]"]]) -> None:
    address, workers = cluster
    expected, folder = prepared(tmp_path / "whole"), prepared(tmp_path / "killed")
    run(expected)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, folder, 0.5, DaskEngine(address, batch=1))
        deadline = time.monotonic() + PATIENCE
        while finished_tiles(folder) < 3 and not running.done():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for worker in workers[:2]:
            worker.send_signal(signal.SIGKILL)
        there = finished_tiles(folder)
        running.result(timeout=PATIENCE)
    assert 3 <= there < 18  # of 20: they died in the middle
    assert [worker.poll() for worker in workers] == [-signal.SIGKILL] * 2 + [None] * 2
    assert contents(folder) == contents(expected)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())
