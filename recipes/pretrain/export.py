"""From a pretraining run to the weight file in the package: fp16 safetensors, configuration and card."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from samgraft.adapters.backbones.tiny import TINY_MEAN, TINY_STD, tiny_config
from samgraft.errors import CheckpointError

MAX_BYTES = 16_000_000


def export(run: Path, folder: Path, *, name: str = "graft_tiny") -> Path:
    """Write ``folder/name.safetensors`` and ``folder/name.json`` from the averaged weights of ``run``.

    Tensors that share storage (the position code) are stored once, under the first name. A card that stands there
    already keeps its zero-shot table only if the weights did not change.

    Raises:
        CheckpointError: no checkpoint, a non-finite weight, or a file above 16 MB.
    """
    source = run / "last.pt"
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; run `samgraft pretrain --run {run}` first")
    state = torch.load(source, map_location="cpu", weights_only=True)
    tensors = _distinct(state["average"])
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(
            f"non-finite weights in {bad[:3]}; the run diverged; resume an earlier one with a lower lr"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.safetensors"
    temporary = target.with_suffix(".tmp")
    save_file(tensors, temporary)
    if temporary.stat().st_size > MAX_BYTES:
        size = temporary.stat().st_size
        temporary.unlink()
        raise CheckpointError(f"the weight file would have {size} bytes; at most {MAX_BYTES} are shipped")
    temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(temporary, target)
    _write_json(folder / f"{name}.json", _card(run, int(state["step"])))
    return target


def _distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: list[Tensor] = []
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if "positional_embedding" in key and any(torch.equal(value, other) for other in seen):
            continue
        if "positional_embedding" in key:
            seen.append(value)
        out[key] = value.to(torch.float16).contiguous()
    return out


def _card(run: Path, step: int) -> dict[str, Any]:
    stages = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    held_out = [r for r in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "held_out" in r]
    return {
        "name": "graft-tiny",
        "licence": "Apache-2.0",
        "source": "samgraft pretrain; procedural images only, no real image was seen",
        "config": tiny_config(),
        "mean": list(TINY_MEAN),
        "std": list(TINY_STD),
        "card": {
            "steps": step,
            "stages": stages,
            "held_out_at_logit_resolution": held_out[-1]["held_out"] if held_out else None,
            "commit": _commit(),
            "data": "samgraft.recipes.pretrain.scenes, layouts and appearance drawn from seeds below 10**9",
        },
    }


def _commit() -> str:
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
