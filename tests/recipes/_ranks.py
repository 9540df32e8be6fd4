"""Work for two processes over gloo, each started as ``python -m tests.recipes._ranks FOLDER`` with RANK in its
environment; :func:`start_ranks` starts them, and the tests compare what they leave in FOLDER with one process."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from samgraft.recipes import tasks
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.losses import IGNORE, SegmentationLoss
from samgraft.recipes.ranks import sum_over_ranks, whole_state
from samgraft.recipes.training import build, make_trainer
from tests.adapters.toy import toy_backbone

WORLD = 2
GRAFTS = {"class_tokens": {}, "lora": {"lora": {"rank": 2}}}
"""Run -> what is in the encoder."""


def config(name: str, data: Path, **train: Any) -> FitConfig:
    """Six steps on 64 pixels, with every kind of random change.

    In float64, because AdamW divides by the size of the gradient: where that is zero but for rounding, such as along a
    bias that softmax does not see, float32 runs part by the learning rate after one step, however they are split.
    """
    return FitConfig(
        task=TaskConfig(grafts=GRAFTS[name], lr=2e-3, warmup=0.1),
        data=DataConfig(path=str(data), layout="image_mask", size=64, batch_size=4),
        augment=AugmentConfig(rotate=5, scale=0.05, quarter_turns=True, elastic=0.02, colour=0.1),
        train=TrainConfig(steps=6, val_every=3, progress=False, accelerator="cpu", cache=False, **train),
    )


def train(settings: FitConfig, run: Path, *, epochs: int | None = None) -> dict[str, Tensor]:
    """Train, from the last checkpoint if there is one, to the end or for some epochs; the attached tensors after it."""
    task, module = build(settings, backbone=toy_backbone().double())
    trainer = make_trainer(settings, run)
    if epochs is not None:
        trainer.fit_loop.max_epochs = epochs
    last = run / "checkpoints" / "last.ckpt"
    trainer.fit(task, datamodule=module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    state = {key: value.detach().clone() for key, value in whole_state(task.grafted.graft_state()).items()}
    figures = torch.tensor([summary.mean for summary in task.summaries])
    numbers = torch.tensor([trainer.global_step, len(task.panels)])  # both are the same on every process
    return state | {"figures": figures, "numbers": numbers}


def loss_inputs() -> tuple[Tensor, Tensor]:
    """Logits (4, 3, 8, 8) and labels whose foreground and unknown pixels lie almost wholly in the first half."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64).float()
    labels = torch.zeros(4, 8, 8, dtype=torch.long)
    labels[:2, :, :4], labels[:2, :, 4:6] = 1, 2
    labels[3, 0, 0] = 1
    labels[2:, 4:] = IGNORE
    return logits, labels


def loss_and_gradient(part: slice, *, world: int) -> dict[str, Tensor]:
    """Loss of all rows, and its gradient to the rows of ``part`` as averaging over ``world`` processes would see it."""
    logits, labels = loss_inputs()
    own = logits[part].clone().requires_grad_(True)
    loss = SegmentationLoss(class_weights=(0.5, 1, 2), reduce=sum_over_ranks)(own, labels[part])
    loss.backward()
    assert own.grad is not None
    return {"loss": loss.detach(), "gradient": own.grad / world}


def start_ranks(folder: Path, data: Path) -> None:
    """Run :func:`main` in :data:`WORLD` processes and wait."""
    root = Path(__file__).resolve().parents[2]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{root / '.src'}:{root}"
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(WORLD), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.recipes._ranks", str(folder), str(data)]
    started = []
    for rank in range(WORLD):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "SAMGRAFT_CACHE": str(folder / f"features{rank}")}
        log = (folder / f"log{rank}.txt").open("w")
        started.append(subprocess.Popen(words, env=shared | own, stdout=log, stderr=log))
    codes = [process.wait(timeout=3000) for process in started]
    assert codes == [0] * WORLD, "\n".join((folder / f"log{rank}.txt").read_text() for rank in range(WORLD))


def result(folder: Path, rank: int, name: str) -> dict[str, Tensor]:
    """What a process left behind."""
    return load_file(folder / f"{name}-{rank}.safetensors")


def main(folder: Path, data: Path) -> None:
    """Everything that needs two processes, one after the other."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])

    def keep(name: str, tensors: dict[str, Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}-{rank}.safetensors")

    for name in GRAFTS:
        keep(name, train(config(name, data, devices=WORLD), folder / name))
    split = config("lora", data, devices=WORLD, strategy="fsdp")
    keep("fsdp", train(split, folder / "fsdp"))
    for job, settings in (("ddp_resumed", config("lora", data, devices=WORLD)), ("fsdp_resumed", split)):
        train(settings, folder / job, epochs=1)
        keep(job, train(settings, folder / job))
    if rank == 1:  # a clock that runs a million times faster
        tasks.time = SimpleNamespace(monotonic=lambda: 1e6 * time.monotonic())
    keep("clock", train(config("class_tokens", data, devices=WORLD, minutes=60), folder / "clock"))
    keep("loss", loss_and_gradient(slice(2 * rank, 2 * rank + 2), world=WORLD))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # all is written; while the interpreter ends, a thread of gloo aborted one run in dozens (torch 2.13)
