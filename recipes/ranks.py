"""The processes that train together: which one this is, and what they tell each other.

Everything works on plain ``torch.distributed`` and is the identity where no process group exists, so that the same code
trains with one process and with many.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from samgraft.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a whole belongs to one process."""

    rank: int = 0
    """From 0."""
    world: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world}; expected 0 up to, not including, the world's size")

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor over the global batch: the ``rank``-th of ``world`` equal runs."""
        count = len(whole) // self.world
        return whole[self.rank * count : (self.rank + 1) * count]

    def dealt(self, items: Sequence[T]) -> list[T]:
        """Every ``world``-th item, from the ``rank``-th on."""
        return list(items[self.rank :: self.world])


ALONE = Share()
"""One process, all of it."""


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def current() -> Share:
    """This process among those of the running process group; :data:`ALONE` without one."""
    if not _running():
        return ALONE
    return Share(rank=distributed.get_rank(), world=distributed.get_world_size())


def launched_rank(devices: int, environment: Mapping[str, str] | None = None) -> int:
    """Rank that this process will have, from the environment, before a process group exists.

    ``RANK`` is set by torchrun, ``LOCAL_RANK`` (with ``NODE_RANK``) by Lightning for the processes it starts, and
    ``SLURM_PROCID`` by srun; a shell inside a SLURM job has the last one too, so it is asked last.

    Args:
        devices: Processes per node.
        environment: Variables; None takes this process's own.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env:
        return int(env["RANK"])
    if "LOCAL_RANK" in env or "SLURM_PROCID" not in env:
        return int(env.get("NODE_RANK", env.get("GROUP_RANK", "0"))) * devices + int(env.get("LOCAL_RANK", "0"))
    return int(env["SLURM_PROCID"])


def sum_over_ranks(part: Tensor) -> Tensor:
    """Sum of ``part`` over all processes, with a gradient that suits training by averaged gradients.

    Every process goes on to compute the same figure f from the sum S. DDP and FSDP average the gradients of W
    processes, so each part gets W times its share of f'(S): the average is then the gradient that one process with the
    whole batch would have. The backward pass needs no communication, since f'(S) is known to every process.

    Args:
        part: This process's summands, any shape, the same on every process.
    """
    world = current().world
    if world == 1:
        return part
    total = part.detach().clone()
    distributed.all_reduce(total)
    return total + world * (part - part.detach())


def gather(value: T) -> list[T]:
    """The value of every process, in order of rank, on every process (pickled between our own processes only)."""
    if not _running():
        return [value]
    found: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with every tensor that FSDP has split put together again; every process has to ask."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def from_first(value: float) -> float:
    """What the first process says, on every process."""
    if not _running():
        return value
    on_gpu = "nccl" in distributed.get_backend()
    told = torch.tensor([value], dtype=torch.float64, device="cuda" if on_gpu else "cpu")
    distributed.broadcast(told, src=0)
    return float(told)
