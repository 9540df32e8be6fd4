"""Optimisers by name, with the memory that their states take; what is optional is asked for before anything is read.

Bytes of state per trained float32 value: adamw 8; adafactor 4 / rows + 4 / columns of a matrix, 4 of a vector, and
2.7 of 3 x 3 kernels; adamw_8bit and paged_adamw_8bit 2, where the latter moves to the host when the GPU is full.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from samgraft.errors import ConfigError
from samgraft.recipes.config import OptimizerName

_EIGHT_BIT = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
"""Name -> class of ``bitsandbytes.optim``."""
STATE_BYTES_8BIT = 2
"""Bytes of state per value of the 8-bit kinds, for an estimate; scales of blocks add less than two percent."""


def require_optimizer(name: OptimizerName, device: str) -> None:
    """Check that an optimiser can run, at no cost.

    Args:
        name: As in ``task.optimizer``.
        device: Where it is going to run, such as "cpu" or "cuda".

    Raises:
        ConfigError: an 8-bit optimiser without bitsandbytes or away from a CUDA device.
    """
    if name not in _EIGHT_BIT:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"task.optimizer is {name!r}, which needs bitsandbytes; pip install 'samgraft[cuda]', or use 'adafactor'"
        )
    if not device.startswith("cuda"):
        raise ConfigError(
            f"task.optimizer is {name!r}, which runs on CUDA devices; this run is on {device!r}; use 'adafactor' there"
        )


def make_optimizer(
    name: OptimizerName,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Build an optimiser whose groups are matrices with weight decay, and vectors and scalars without; per rate.

    Args:
        name: As in ``task.optimizer``.
        parameters: What is trained.
        lr: Peak rate; it means the same for all of them (see below).
        weight_decay: Decay per step, times the rate.
        factors: Parameter -> multiple of ``lr``; 1 where it is not named.

    Raises:
        ConfigError: see :func:`require_optimizer`.

    Source:
        AdamW, arXiv:1711.05101. Adafactor, arXiv:1804.04235: its steps are relative to the size of a tensor, with a
        floor of 1e-3. LoRA's B starts at zero and would learn a thousand times slower than A, so the floor is 1 here,
        which makes the steps absolute, as AdamW's are. 8-bit states, arXiv:2110.02861.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=lambda p: p.ndim <= 1):
        decay = weight_decay if parameter.ndim > 1 else 0.0
        alike.setdefault((lr * (factors or {}).get(parameter, 1.0), decay), []).append(parameter)
    groups = [{"params": params, "lr": own, "weight_decay": decay} for (own, decay), params in alike.items()]
    require_optimizer(name, parameters[0].device.type if parameters else "cpu")
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=lr, eps=(None, 1.0))
    if name in _EIGHT_BIT:
        kind = getattr(importlib.import_module("bitsandbytes.optim"), _EIGHT_BIT[name])
        optimizer: torch.optim.Optimizer = kind(groups, lr=lr)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the states of ``optimizer``."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
