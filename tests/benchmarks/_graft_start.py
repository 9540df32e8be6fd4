"""The decoder that every row of the benchmark of grafts starts from: trained alone, once per data and seed.

A row that begins with a new decoder spends its time on the decoder, and what a graft adds drowns in that. From a common
start the difference to "decoder only", which goes on for the same time, is what the graft adds.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.graft import Grafted, attach
from tests.benchmarks._arms import decoder_config, graft_arm
from tests.benchmarks._sets import SetSpec
from tests.benchmarks._train import Optimiser, loop

FIELDS = ("set", "cases", "seed", "weights", "recipe", "tune")
"""What makes two starts the same; "recipe" covers their seconds."""


def place(folder: Path, task: Mapping[str, Any]) -> Path:
    """Where the start of a row is kept."""
    return folder / ("_".join(str(task[field]) for field in FIELDS) + ".safetensors")


def decoder_start(
    backbone: HFSamBackbone,
    spec: SetSpec,
    pictures: tuple[Tensor, Tensor],
    task: Mapping[str, Any],
    options: Optimiser,
    folder: Path,
) -> dict[str, Tensor] | None:
    """State of a decoder trained alone for ``task["start"]`` seconds of process time; None for 0 seconds.

    Args:
        backbone: Without grafts, and so again afterwards.
        spec: The set.
        pictures: Training images and targets.
        task: ``FIELDS``, and "start" in seconds.
        options: Rate and batch.
        folder: Where it is kept; read instead if it is there.
    """
    if not task["start"]:
        return None
    path = place(folder, task)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(_trained(backbone, spec, pictures, task, options), part)
        part.rename(path)
    return load_file(path)


def _trained(
    backbone: HFSamBackbone,
    spec: SetSpec,
    pictures: tuple[Tensor, Tensor],
    task: Mapping[str, Any],
    options: Optimiser,
) -> dict[str, Tensor]:
    torch.manual_seed(task["seed"])
    grafted = attach(backbone, (), decoder=decoder_config(spec))
    arm = graft_arm(grafted, full=False, batch=spec.batch)
    arm.module.train()
    now = time.process_time()
    loop(arm.forward, arm.trained, spec, pictures, options, start=now, deadline=now + task["start"], seed=task["seed"])
    state = {key: value.detach().clone() for key, value in _decoder(grafted).state_dict().items()}
    grafted.detach()
    return state


def begin_with(grafted: Grafted, state: Mapping[str, Tensor] | None) -> None:
    """Put a start into the decoder of a row; None leaves the new one."""
    if state is not None:
        _decoder(grafted).load_state_dict(state)


def _decoder(grafted: Grafted) -> torch.nn.Module:
    if grafted.decoder is None:
        raise ValueError("the rows of this benchmark have a decoder")
    return grafted.decoder
