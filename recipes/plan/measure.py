"""Two real steps in a process of its own, on random weights and pixels, to hold against the estimate.

The network, loss and optimiser are those of the run; Lightning, augmentation, data and validation are left out.
"""

import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from samgraft.errors import ConfigError
from samgraft.recipes.config import FitConfig
from samgraft.recipes.free_memory import resident_bytes
from samgraft.recipes.heap import return_memory
from samgraft.recipes.optimiser import make_optimizer
from samgraft.recipes.plan.network import (
    at_input_size,
    autocast,
    blank_target,
    class_logits,
    frozen_part,
    loss_function,
    make_batch,
    materialise,
    sam_config,
    skeleton,
    weight_dtype,
)

_MARK = "MEASURED "
STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What two steps took."""

    seconds: float
    """Of the last step: forward, backward and optimiser, one batch."""
    peak: int
    """Bytes; of the process, or on a GPU what torch reserved."""
    libraries: int
    """Bytes of the process after its imports; 0 on a GPU."""


def measure_steps(
    config: FitConfig, *, num_classes: int, cached: bool, device: str = "cpu", threads: int | None = None
) -> Measured:
    """Run :data:`STEPS` steps in a new process.

    Args:
        config: The run; its data is not read.
        num_classes: Foreground channels of the head.
        cached: Take features of the frozen part as they are.
        device: "cpu" or "cuda".
        threads: Of torch; None takes this process's number.

    Raises:
        ConfigError: it failed, most often for want of memory.
    """
    task: dict[str, Any] = {"config": config.to_dict(), "classes": num_classes, "cached": cached, "device": device}
    task["threads"] = torch.get_num_threads() if threads is None else threads
    command = [sys.executable, "-W", "ignore", "-m", "samgraft.recipes.plan.measure", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not found:
        raise ConfigError(
            f"the measured steps ended with code {done.returncode} (-9: out of memory); leave --measure out, or follow "
            f"the suggestions first. {done.stderr[-500:]}"
        )
    return Measured(**json.loads(found[-1].removeprefix(_MARK)))


def _steps(task: dict[str, Any]) -> Measured:
    """What the new process does."""
    importlib.import_module("samgraft.recipes.training")  # what a run imports, so that the memory compares

    config = FitConfig.from_dict(task["config"])
    torch.set_num_threads(int(task["threads"]))
    libraries, device = resident_bytes(), str(task["device"])
    if config.train.return_memory:
        return_memory()
    grafted = skeleton(config, sam_config(config.task.backbone), int(task["classes"]))
    materialise(grafted, "real", weight_dtype(config))
    grafted.to(device)
    trained = grafted.trainable_parameters()
    optimizer = make_optimizer(config.task.optimizer, trained, lr=1e-4, weight_decay=config.task.weight_decay)
    shape = (config.data.batch_size, -(-config.data.size // grafted.backbone.spec.patch_size))
    depth = config.data.slab or 1
    image, target = make_batch((shape[0] * depth, shape[1] * grafted.backbone.spec.patch_size), "real", grafted)
    target, loss_of = blank_target(config, grafted, target), loss_function(config, grafted).to(device)
    kept = None
    if task["cached"]:
        with autocast(config, device), torch.no_grad():
            kept = frozen_part(grafted, image, depth)
    seconds = 0.0
    for _number in range(STEPS):
        start = time.perf_counter()
        with autocast(config, device):
            loss = loss_of(at_input_size(class_logits(grafted, image, kept, depth), image), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss)  # waits for the device
        seconds = time.perf_counter() - start
    if device == "cuda":
        return Measured(seconds=seconds, peak=torch.cuda.max_memory_reserved(), libraries=0)
    return Measured(seconds=seconds, peak=resident_bytes("VmHWM"), libraries=libraries)


if __name__ == "__main__":
    print(_MARK + json.dumps(vars(_steps(json.loads(sys.argv[1])))), flush=True)
