"""What glibc gives back, in a process of its own; and the model of it that planning uses."""

import subprocess
import sys
from pathlib import Path

import pytest

from samgraft.errors import ConfigError
from samgraft.recipes import heap
from samgraft.recipes.config import FitConfig, TrainConfig
from samgraft.recipes.plan.glibc import ALIGNED, LARGEST, LOST, START, HeapModel, aligned_extra, heap_peak
from samgraft.recipes.plan.trace import Block, Trace
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone

MB = 2**20
CHURN = """
import ctypes, random, sys
import importlib.util
def load(name):
    spec = importlib.util.spec_from_file_location("heap", name)
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module
if sys.argv[1] == "returned":
    assert load(sys.argv[2]).return_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def block(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address
libc.free(block(30 * 2**20))  # what raises the threshold by itself
rng, large = random.Random(0), []
small = []
for _ in range(12):
    large.append(block(rng.randrange(8, 20) * 2**20))
    small.append(block(100_000))
for address in large:
    libc.free(address)
held = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS"))
print(held / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_blocks_between_living_ones_are_returned(repo_root: Path) -> None:
    """Twelve freed blocks of 8 to 20 MB, 160 MB in all, each below a block of 0.1 MB that lives."""

    def resident(way: str) -> float:
        command = [sys.executable, "-c", CHURN, way, str(repo_root / "recipes" / "heap.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    kept, returned = resident("kept"), resident("returned")
    assert kept - returned > 100
    assert returned < 40


KEEP = """
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("heap", sys.argv[2])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
for step in sys.argv[1].split("+"):
    assert step == "default" or getattr(module, step)()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(10):
    address = libc.malloc(100 * 2**20)
    ctypes.memset(address, 1, 100 * 2**20)
    libc.free(address)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
faults = int(open("/proc/self/stat").read().rsplit(") ", 1)[1].split()[7])
print(int(status["VmRSS"].split()[0]) / 1024, faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_is_kept_for_the_next_block(repo_root: Path) -> None:
    """The pages of ten blocks of 100 MB, one after the other, are fetched once instead of ten times."""

    def run(way: str) -> tuple[float, int]:
        command = [sys.executable, "-c", KEEP, way, str(repo_root / "recipes" / "heap.py")]
        resident, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(resident), int(faults)

    default, kept, undone = run("default"), run("keep_memory"), run("keep_memory+return_memory")
    assert default[0] < 50 and undone[0] < 50
    assert 100 < kept[0] < 150
    assert kept[1] < 0.2 * default[1]


def test_fit_asks_for_it_and_other_c_libraries_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("samgraft.recipes.training.return_memory", lambda: calls.append(1))
    for wanted in (False, True):
        with pytest.raises(ConfigError, match=r"data.path is empty"):
            fit(FitConfig(train=TrainConfig(return_memory=wanted)), tmp_path / "run", backbone=toy_backbone())
        assert len(calls) == wanted
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with caplog.at_level("INFO", logger="samgraft.recipes.heap"):
        assert heap.return_memory() is False
    assert "not glibc" in caplog.text


def churn(model: HeapModel) -> None:
    """The same as above, of the model."""
    model.allocate(1000, 30 * MB)
    model.free(1000, 30 * MB)
    for index in range(12):
        model.allocate(2 * index, (8 + index) * MB)
        model.allocate(2 * index + 1, 100_000)
    for index in range(12):
        model.free(2 * index, (8 + index) * MB)


def test_the_model_keeps_holes_unless_the_threshold_is_set() -> None:
    own, fixed = HeapModel(), HeapModel(4 * MB)
    churn(own)
    churn(fixed)
    total = sum(8 + index for index in range(12)) * MB
    assert own.threshold > 30 * MB
    assert own.held == pytest.approx(total + 1_200_000, rel=0.001) and own.mapped == 0
    assert fixed.held == pytest.approx(1_200_000, rel=0.001)
    assert fixed.peak == pytest.approx(total + 1_200_000, rel=0.001)


def test_the_model_uses_holes_joins_neighbours_and_trims_the_end() -> None:
    model = HeapModel()
    model.threshold = LARGEST
    for name in range(4):
        model.allocate(name, 10 * MB)
    end = model.end
    model.free(0, 10 * MB)
    model.free(1, 10 * MB)
    model.allocate(4, 19 * MB)  # into the joined hole
    assert model.end == end
    model.allocate(5, 3 * MB)  # no hole is large enough
    assert model.end == pytest.approx(end + 3 * MB, abs=100)
    for name, size in ((2, 10), (3, 10), (5, 3)):
        model.free(name, size * MB)
    assert model.end == pytest.approx(end + 3 * MB, abs=100)  # 23 MB are less than twice the threshold
    model.threshold = 5 * MB
    model.free(4, 19 * MB)
    assert model.end == 0
    assert HeapModel().threshold == START


def test_some_aligned_blocks_leave_holes_that_are_too_small() -> None:
    """Before glibc 2.38: of eight blocks of 4 MB, one keeps its hole from joining the next."""
    assert [aligned_extra(v) for v in ("2.36", "2.37", "2.38", "2.41", "")] == [ALIGNED, ALIGNED, 0, 0, 0]
    found = []
    for extra in (0, ALIGNED):
        model = HeapModel(64 * MB, extra=extra)
        for name in range(2 * LOST):
            model.allocate(name, 4 * MB)
        for name in range(2 * LOST - 1):
            model.free(name, 4 * MB)
        model.allocate(100, 40 * MB)  # into a hole of 60 MB, or behind two of 32 and 28
        found.append(round(model.end / MB))
    assert found == [64, 104]


def test_peak_of_a_trace() -> None:
    blocks = [Block(40 * MB, "weights"), Block(10 * MB, "activations"), Block(20 * MB)]
    trace = Trace(blocks=blocks, events=[1, 2, 3, -3, -2])
    assert trace.live() == 40 * MB
    assert trace.peak() == {
        "weights": 40 * MB, "states": 0, "gradients": 0, "batch": 0, "activations": 10 * MB, "transient": 20 * MB,
    }  # fmt: skip
    assert heap_peak(trace) == pytest.approx(70 * MB, rel=1e-4)
