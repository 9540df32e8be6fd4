"""What this machine gives: free memory, and how fast it multiplies, moves bytes and starts operations."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from samgraft.errors import ConfigError
from samgraft.recipes.free_memory import free_memory, resident_bytes
from samgraft.recipes.plan.trace import Work

CUDA_CONTEXT = 500 * 10**6
"""Bytes of a GPU that libraries take before the first tensor; assumed, not measured."""
_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates are measured with the configured precision and number of threads."""

    device: str
    """"cpu" or "cuda"."""
    threads: int
    large: float
    """Multiplications and additions per second in products of large matrices."""
    small: float
    """The same in attention: many products of small ones, and the softmax between."""
    moved: float
    """Bytes per second that elementwise operations read and write."""
    call: float
    """Seconds to start an operation."""
    free: int
    """Bytes that a new process can take."""
    libraries: int
    """Bytes of a process that has loaded everything and done nothing."""

    def seconds(self, work: Work) -> float:
        """How long ``work`` takes."""
        return work.large / self.large + work.small / self.small + work.moved / self.moved + work.calls * self.call


def measure_machine(device: str, dtype: torch.dtype = torch.float32) -> Machine:
    """Run short products and sums, about a second in all.

    Args:
        device: "cpu" or "cuda".
        dtype: Of the products.

    Raises:
        ConfigError: another device, or one that is not there.
    """
    check_device(device)
    libraries = CUDA_CONTEXT if device == "cuda" else resident_bytes()
    place = torch.device(device)
    x, w = torch.randn(1024, 768, device=place, dtype=dtype), torch.randn(768, 3072, device=place, dtype=dtype)
    q = torch.randn(12, 784, 64, device=place, dtype=dtype)
    a = torch.rand(2**22, device=place)
    b, tiny = a.clone(), torch.zeros(1, device=place)

    def attend() -> None:
        (q @ q.transpose(1, 2)).softmax(-1) @ q

    def sums() -> None:
        torch.add(a, b, out=b)
        torch.nn.functional.gelu(a)

    return Machine(
        device=device,
        threads=torch.get_num_threads(),
        large=2 * 1024 * 768 * 3072 / best_seconds(lambda: x @ w, device),
        small=4 * 12 * 784 * 784 * 64 / best_seconds(attend, device),
        moved=5 * a.nbytes / best_seconds(sums, device),
        call=best_seconds(lambda: [tiny.add_(1) for _ in range(200)], device) / 200,
        free=free_memory(device),
        libraries=libraries,
    )


def check_device(device: str) -> None:
    """Refuse a device that cannot be planned for on this machine.

    Raises:
        ConfigError: neither "cpu" nor "cuda", or no CUDA device here.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; expected 'cpu' or 'cuda'; planning knows no other")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device is 'cuda', but torch {torch.__version__} finds no CUDA device here; plan on the machine that will "
            "train, or take --device cpu"
        )


def best_seconds(run: Callable[[], object], device: str) -> float:
    """Median seconds of a call over a quarter of a second; the first call does not count."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]
