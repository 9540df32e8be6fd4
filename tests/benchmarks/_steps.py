"""Training steps that are measured: one optimiser step as a function, its seconds, and the memory it takes."""

import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.recipes.losses import SegmentationLoss
from tests.benchmarks._backbone import unfreeze

Encode = Callable[[Tensor], Features]
_RESET_PEAK = "5"
"""What proc(5) wants in clear_refs to set the peak to what is resident now."""


def training_step(
    grafted: Grafted, trained: Sequence[nn.Parameter], image: Tensor, target: Tensor, encode: Encode | None = None
) -> Callable[[], None]:
    """A function that does one step of AdamW on a fixed batch.

    Args:
        grafted: The network, in training.
        trained: What the optimiser changes.
        image: (B, 3, S, S) in [0, 1].
        target: (B, S, S) class numbers.
        encode: Where features come from; None for the network's own encoder.
    """
    optimizer, loss_of = torch.optim.AdamW(trained, lr=1e-4), SegmentationLoss()
    side = (image.shape[2], image.shape[3])

    def step() -> None:
        logits = grafted.predict(image, features=None if encode is None else encode(image)).logits
        scaled = functional.interpolate(logits, side, mode="bilinear", align_corners=False)
        optimizer.zero_grad(set_to_none=True)
        loss, extra = loss_of(scaled, target), grafted.penalty()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], count: int) -> list[float]:
    """Seconds of each of ``count`` calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_mb() -> float:
    """Largest resident size of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Extra:
    """Memory on top of what is resident now, which is what was loaded: create it, work, then read :meth:`mb`.

    Raises:
        RuntimeError: the system has no /proc that can forget a peak (it is Linux's).
    """

    def __init__(self) -> None:
        """Hand back what is free, and forget the peak of loading."""
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            raise RuntimeError(f"peak memory cannot be reset here: {error}; measure on Linux") from error
        self.before = _status("VmRSS")

    def mb(self) -> float:
        """Peak since then, MB above what was loaded."""
        return _status("VmHWM") - self.before


def costs(
    backbone: Backbone,
    configs: Sequence[GraftConfig],
    decoder: ClassTokensConfig,
    batch: tuple[Tensor, Tensor],
    *,
    warm: int,
    steps: int,
    full: bool = False,
) -> dict[str, Any]:
    """Attach grafts and measure training steps on one batch; the network is of no use afterwards.

    Args:
        backbone: Without grafts.
        configs: Grafts.
        decoder: Needs no prompts.
        batch: Image (B, 3, S, S) and target (B, S, S).
        warm: Steps before the clock counts.
        steps: Steps that count.
        full: Train the backbone's own tensors too, in place.

    Returns:
        "seconds" (median), "extra_mb" above what was loaded before attaching, "peak_mb" with it, "trainable".
    """
    extra = Extra()
    grafted = attach(backbone, configs, decoder=decoder).train()
    trained = unfreeze(grafted) if full else grafted.trainable_parameters()
    step = training_step(grafted, trained, *batch)
    timed(step, warm)
    seconds = statistics.median(timed(step, steps))
    sizes = {"extra_mb": extra.mb(), "peak_mb": peak_mb(), "trainable": sum(p.numel() for p in trained)}
    return {"seconds": seconds} | sizes


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))
