"""The pretraining loop of graft-tiny: resumable, with an exponential average of the weights and held-out IoU.

Run as ``samgraft pretrain``. The learning rate warms up, stays, and falls linearly over the last steps, so that a run
can be stopped early (``--finish``), continued, or extended.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import SamModel

from samgraft.adapters.backbones.tiny import build_graft_tiny, tiny_config
from samgraft.errors import CheckpointError
from samgraft.recipes.pretrain.forward import border_loss, decode, encode, mask_loss, true_iou
from samgraft.recipes.pretrain.prompting import ProceduralStream, make_examples

HELD_OUT_SEED = 10**9


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What a pretraining run is made of."""

    run: str = "runs/graft-tiny"
    """Folder for checkpoints, the log and the exported weights."""
    start: str = ""
    """Weight file to begin a new run with (an exported graft_tiny.safetensors); empty draws new weights."""
    steps: int = 20_000
    """Last step; the learning rate reaches zero there."""
    decay_steps: int = 4_000
    """Length of the final linear decay."""
    warmup_steps: int = 300
    batch: int = 12
    """Images per step."""
    prompts: int = 6
    """Objects per image and step."""
    size: int = 128
    """Side of the training views in pixels."""
    lr: float = 8e-4
    weight_decay: float = 0.02
    ema: float = 0.999
    border_weight: float = 0.5
    """Weight of the border task; falls to a third after half of the steps."""
    corrections: float = 0.35
    """Share of steps with a second round: a corrective click and the first mask."""
    workers: int = 1
    """Processes per trainer that draw scenes."""
    processes: int = 1
    """Trainers that average their gradients after every step (CPU, gloo); each takes one core and ``batch`` images."""
    seed: int = 0
    device: str = "cpu"
    save_every: int = 250
    evaluate_every: int = 500


class Pretraining:
    """State of one run: model, average, optimiser, step."""

    def __init__(self, config: PretrainConfig, rank: int = 0) -> None:
        """Build or resume; ``rank`` is the number of this trainer."""
        self.config = config
        self.device = torch.device(config.device)
        self.model = build_graft_tiny(tiny_config(), seed=config.seed).to(self.device).train()
        if config.start:
            load_exported(self.model, Path(config.start))
        channels = self.model.config.vision_config.output_channels
        self.border = nn.Conv2d(channels, 64, 1).to(self.device)
        self.trainable = [p for p in [*self.model.parameters(), *self.border.parameters()] if p.requires_grad]
        matrices = [p for p in self.trainable if p.ndim > 1]
        vectors = [p for p in self.trainable if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.folder = Path(config.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "last.pt").exists():
            self._resume()
        self.rng = np.random.default_rng([config.seed, self.step, rank])

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.border.load_state_dict(state["border"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise CheckpointError(f"{path} cannot be resumed ({error}); delete it to start again") from error
        self.average = state["average"]
        self.step = int(state["step"])

    def save(self) -> None:
        """Write last.pt, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "border": self.border.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        temporary = self.folder / "last.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / "last.pt")

    def averaged(self) -> SamModel:
        """A copy of the model with the averaged weights."""
        model = build_graft_tiny(tiny_config())
        model.load_state_dict(self.average)
        return model.eval().to(self.device)

    def learning_rate(self) -> float:
        """Warm-up, plateau, linear decay."""
        c = self.config
        rise = min(1.0, (self.step + 1) / c.warmup_steps)
        fall = min(1.0, max(0.0, (c.steps - self.step) / max(1, c.decay_steps)))
        return c.lr * rise * fall

    def train_step(self, batch: list[Tensor]) -> dict[str, float]:
        """One optimiser step on (image, masks, regions, boxes, points)."""
        image, masks, regions, boxes, points = (t.to(self.device) for t in batch)
        size = image.shape[-1]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        neck = encode(self.model, image)
        progress = self.step / self.config.steps
        loss = border_loss(self.border, neck, regions) * self.config.border_weight * (1.0 if progress < 0.5 else 0.33)
        target = F.avg_pool2d(masks, size // (4 * neck.shape[-1]))
        balance = max(0.0, 1 - 2 * progress)
        by_box = bool(self.rng.random() < 0.55)
        labels = torch.ones(points.shape[:2], dtype=torch.long, device=self.device)[..., None]
        first = {"boxes": boxes} if by_box else {"points": points[:, :, None], "labels": labels}
        logits, iou = decode(self.model, neck, size, **first, multimask=not by_box)
        part, truth = mask_loss(logits, iou, target, balance)
        loss = loss + part
        log = {"box" if by_box else "point": float(truth.mean())}
        if progress > 0.15 and self.rng.random() < self.config.corrections:
            best = iou.argmax(-1)[..., None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
            previous = logits.detach().gather(2, best)[:, :, 0]
            again = correction(previous, target, points, size, with_point=not by_box)
            mask = previous.flatten(0, 1)[:, None] if self.rng.random() < 0.7 else None
            box = boxes if by_box else None
            logits, iou = decode(self.model, neck, size, boxes=box, **again, masks=mask, multimask=False)
            part, truth = mask_loss(logits, iou, target, balance)
            loss = loss + part
            log["corrected"] = float(truth.mean())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.trainable)
        nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return {"loss": float(loss.detach()), **log}

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.config.ema, (1 + self.step) / (20 + self.step))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - keep) if value.is_floating_point() else self.average[name].copy_(value)


def load_exported(model: SamModel, path: Path) -> None:
    """Load an exported weight file into ``model``.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:
        raise CheckpointError(
            f"{path} is no exported graft-tiny ({error}); give the file that --export wrote"
        ) from error
    lost = [key for key in [*missing, *unexpected] if "positional_embedding" not in key]  # that one is stored once
    if lost:
        raise CheckpointError(
            f"{path} does not match graft-tiny: {lost[:3]}; it was exported with another configuration"
        )


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all trainers; a parameter that one trainer did not use counts as zero."""
    if not distributed.is_initialized():
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


def correction(previous: Tensor, target: Tensor, points: Tensor, size: int, *, with_point: bool) -> dict[str, Tensor]:
    """A click in the middle of the largest-looking error: positive where object was missed, else negative.

    Args:
        previous: (B, P, s, s) logits.
        target: (B, P, s, s) in [0, 1].
        points: (B, P, 2) the first click.
        size: Side of the network input.
        with_point: Repeat the first click before the corrective one.
    """
    wrong = ((previous > 0) != (target > 0.5)).float()
    depth = F.avg_pool2d(wrong, 5, 1, 2) * wrong + 1e-3 * torch.rand_like(wrong)
    b, p, s, _ = wrong.shape
    index = depth.flatten(2).argmax(-1)
    rows, cols = index // s, index % s
    click = (torch.stack([cols, rows], -1).float() + 0.5) * (size / s) - 0.5
    label = (target.flatten(2).gather(-1, index[..., None])[..., 0] > 0.5).long()
    if not with_point:
        return {"points": click[:, :, None], "labels": label[..., None]}
    ones = torch.ones_like(label)
    return {"points": torch.stack([points, click], 2), "labels": torch.stack([ones, label], 2)}


@torch.no_grad()
def evaluate(
    model: SamModel, *, count: int = 60, size: int = 128, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Mean IoU per prompt type on held-out scenes, whole views and zoomed ones, at the resolution of the logits."""
    examples = [e for n in range(count) for e in make_examples(HELD_OUT_SEED + n, size=size, prompts=4, views=1)]
    box, point, predicted = [], [], []
    for e in examples:
        image, masks = e.image[None].to(device), e.masks[None].to(device)
        neck = encode(model, image)
        goal = F.avg_pool2d(masks, size // (4 * neck.shape[-1]))
        logits, iou = decode(model, neck, size, boxes=e.boxes[None].to(device), multimask=False)
        box.append(mask_loss(logits, iou, goal, 0.0)[1])
        labels = torch.ones(1, e.points.shape[0], 1, dtype=torch.long, device=device)
        logits, iou = decode(
            model, neck, size, points=e.points[None, :, None].to(device), labels=labels, multimask=True
        )
        truth = true_iou(logits, goal[:, :, None])
        point.append(truth.max(-1).values)
        predicted.append(truth.gather(-1, iou.argmax(-1, keepdim=True))[..., 0])
    return {
        "box": float(torch.cat(box).mean()),
        "point_best_of_3": float(torch.cat(point).mean()),
        "point_by_predicted_iou": float(torch.cat(predicted).mean()),
        "n": float(len(examples) * 4),
    }


def run(config: PretrainConfig) -> Path:
    """Train to ``config.steps``; returns the run folder. Safe to kill and call again."""
    if config.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn(_trainer, (config, port), nprocs=config.processes)
    else:
        _train(config, rank=0)
    return Path(config.run)


def _trainer(rank: int, config: PretrainConfig, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=config.processes
    )
    _train(config, rank)
    distributed.destroy_process_group()


def _train(config: PretrainConfig, rank: int) -> None:
    state = Pretraining(config, rank)
    if rank == 0:
        _append(state.folder / "stages.jsonl", {"from_step": state.step, **asdict(config)})
    loader = _batches(config, state.step, rank)
    started, first_step = time.monotonic(), state.step
    recent: list[dict[str, float]] = []
    while state.step < config.steps:
        recent.append(state.train_step(next(loader)))
        if rank > 0:
            continue
        if state.step % 50 == 0:
            keys = sorted({k for r in recent for k in r})
            line = {k: round(float(np.mean([r[k] for r in recent if k in r])), 4) for k in keys}
            rate = (state.step - first_step) / (time.monotonic() - started)
            _log(state.folder, {"step": state.step, "steps_per_s": round(rate, 3), **line})
            recent = []
        if state.step % config.save_every == 0 or state.step == config.steps:
            state.save()
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            _log(
                state.folder,
                {"step": state.step, "held_out": evaluate(state.averaged(), size=config.size, device=state.device)},
            )


def _batches(config: PretrainConfig, step: int, rank: int) -> Iterator[list[Tensor]]:
    """Batches of new scenes; no scene of the steps before ``step`` and none of another trainer comes again."""
    first = 10_000_000 * config.seed + 5_000_000 * rank + step * config.batch
    stream = ProceduralStream(first=first, size=config.size, prompts=config.prompts)
    ahead = 6 if config.workers else None
    return iter(DataLoader(stream, batch_size=config.batch, num_workers=config.workers, prefetch_factor=ahead))


def _log(folder: Path, record: dict[str, object]) -> None:
    _append(folder / "log.jsonl", record)
    print(json.dumps(record), flush=True)


def _append(path: Path, record: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
