"""Fixtures for every test: fixed seeds, one thread, leak guards, and the real data beside the repository."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may download; a `network` test sets it back with monkeypatch

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.contract")  # before any test file imports it

ROOT = Path(__file__).resolve().parents[1]
SHADOWS = ("adapters", "domains", "volumetric", "recipes")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_feature_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's features."""
    monkeypatch.setenv("SAMGRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "features"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leak_guard() -> Iterator[None]:
    """Put the environment and folder back; fail a test that leaves torch in another state than it found."""
    env, folder = dict(os.environ), Path.cwd()
    before = _torch_state()
    yield
    after = _torch_state()
    os.chdir(folder)
    for name in set(os.environ) - set(env):
        del os.environ[name]
    os.environ.update(env)
    if (
        after != before
    ):  # only then: the deterministic switch imports the whole compiler, half a minute on a busy machine
        torch.set_default_dtype(before["default dtype"])
        torch.set_grad_enabled(before["grad mode"])
        torch.use_deterministic_algorithms(before["deterministic"])
    assert after == before, f"the test left torch changed: {after}, before it {before}"


def _torch_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images (``medical/``, ``geo/``); a test that needs it is skipped where it is absent.

    It is ``$SAMGRAFT_SHARED/data`` if that variable is set, else ``../shared/data`` beside the repository.
    """
    shared = Path(os.environ.get("SAMGRAFT_SHARED", ROOT.parent / "shared"))
    data = shared / "data"
    if not data.is_dir():
        pytest.skip(f"no real data at {data}; set SAMGRAFT_SHARED to the folder that holds data/")
    return data


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Say so if some test loaded our folders under their bare names (a second registry, second classes)."""
    import sys

    loaded = [name for name in SHADOWS if str(ROOT) in str(getattr(sys.modules.get(name), "__file__", None) or "")]
    if loaded:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nERROR: imported under a bare name instead of samgraft.<name>: {loaded}")
