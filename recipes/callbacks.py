"""What happens beside training: the frozen backbone is checked, figures are recorded, the best adapter is written."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from samgraft.adapters.backbones.hf import hash_tensors
from samgraft.errors import CheckpointError
from samgraft.recipes.monitor import monitor
from samgraft.recipes.ranks import whole_state
from samgraft.recipes.report import save_panels, versions, write_text
from samgraft.recipes.tasks import SegmentationTask


def _task(module: lightning.LightningModule) -> SegmentationTask:
    if not isinstance(module, SegmentationTask):
        raise TypeError(f"module is {type(module).__name__}; these callbacks serve SegmentationTask")
    return module


class FrozenCheck(Callback):
    """Compare every frozen tensor of the backbone before and after training (its own hash is that of the loaded file).

    Raises:
        CheckpointError: a frozen tensor changed.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.before: dict[str, str] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Remember a hash of each."""
        self.before = frozen_hashes(_task(pl_module).grafted.backbone)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare."""
        after = frozen_hashes(_task(pl_module).grafted.backbone)
        changed = sorted(name for name, value in self.before.items() if after.get(name) != value)
        if changed:
            raise CheckpointError(
                f"the frozen backbone changed during training: {len(changed)} of {len(self.before)} tensors, such as "
                f"{changed[:3]}; do not use this adapter, and report which graft was trained"
            )


def frozen_hashes(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter that asks for no gradient, by name; of this process's part where it is shared out."""
    frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    parts = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in frozen.items()}
    return {name: hash_tensors({name: value}) for name, value in parts.items()}


class Recorder(Callback):
    """Append losses and validation figures to ``history.jsonl``; keep the best validation in files.

    Only the first process writes.

    Args:
        run: Run folder.
        every: Steps between records of the training loss.
    """

    def __init__(self, run: Path, *, every: int = 20) -> None:
        """Remember where to write."""
        self.run, self.every = run, every
        self.best = float("-inf")
        self.total, self.count = 0.0, 0
        self.seconds = 0.0
        self.began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Best figure and time so far, for a resumed run."""
        return {"best": self.best, "seconds": self.seconds + time.monotonic() - self.began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best, self.seconds = float(state_dict["best"]), float(state_dict["seconds"])

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write down what is trainable."""
        self.began = time.monotonic()
        if trainer.is_global_zero:
            write_text(self.run / "trainable.txt", _task(pl_module).grafted.trainable_table() + "\n")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the mean loss of the last steps."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.total, self.count = self.total + float(loss), self.count + 1
        if self.count >= self.every:
            self._append(trainer, {"step": trainer.global_step, "train/loss": self.total / self.count})
            self.total, self.count = 0.0, 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the figures; if they are the best so far, keep them and write the adapter."""
        task = _task(pl_module)
        if trainer.sanity_checking or not task.summaries:
            return
        values = {s.name.removesuffix("/mean"): s.mean for s in task.summaries}
        record = {f"val/{k}": v for k, v in values.items() if v == v}
        self._append(trainer, {"step": trainer.global_step, **record, "val/n": task.summaries[0].n})
        figure = values[monitor(task.config).removeprefix("val/")]
        if trainer.state.fn != "fit" or not (figure > self.best or self.best == float("-inf")):
            return
        self.best = figure if figure == figure else self.best
        seconds = self.seconds + time.monotonic() - self.began
        state = whole_state(task.grafted.graft_state())
        if trainer.is_global_zero:
            write_metrics(self.run, task, step=trainer.global_step, seconds=seconds)
            save_adapter(self.run / "adapter.graft", task, trainer, seconds=seconds, state=state)

    def _append(self, trainer: lightning.Trainer, row: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        with (self.run / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def write_metrics(run: Path, task: SegmentationTask, *, step: int, seconds: float) -> None:
    """Write metrics.json and samples.npz of the validation that has just ended."""
    facts = {
        "step": step,
        "seconds": round(seconds, 1),
        "kind": task.config.task.kind,
        "classes": dict(enumerate(task.class_names, start=1)),
        "from_ground_truth": False,
        "summaries": [{"name": s.name, "mean": s.mean, "std": s.std, "n": s.n} for s in task.summaries],
        "scores": [vars(s) for s in task.table.scores],
        "versions": versions(),
    }
    write_text(run / "metrics.json", json.dumps(facts, indent=1))
    save_panels(run / "samples.npz", task.panels)


def save_adapter(
    path: Path,
    task: SegmentationTask,
    trainer: lightning.Trainer,
    *,
    seconds: float,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter with everything the engine needs to use it on a new image; ``state`` as in ``save_bundle``."""
    from samgraft.adapters.bundle import save_bundle
    from samgraft.recipes.header import bundle_meta

    metrics = {s.name: s.mean for s in task.summaries} | {"n": float(task.summaries[0].n)}
    data = getattr(trainer, "datamodule", None)
    meta = bundle_meta(task, data, metrics=metrics, step=trainer.global_step, seconds=seconds)
    save_bundle(path, task.grafted, meta=meta, state=state)


def checkpoints(run: Path, figure: str) -> list[ModelCheckpoint]:
    """``checkpoints/best.ckpt`` by the validation figure, and ``checkpoints/last.ckpt`` to resume from.

    They are two callbacks, since Lightning writes the "last" one of a monitored callback only where the figure
    improved: a killed run would go on from its best validation, however long ago that was.
    """
    common: dict[str, Any] = {"dirpath": run / "checkpoints", "save_top_k": 1, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=figure, mode="max", **common)
    return [best, ModelCheckpoint(filename="last", **common)]


class Progress(TQDMProgressBar):
    """Lightning's plain progress bar, without the version number."""

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Figures beside the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


class TimeLimit(Callback):
    """Stop after a wall time, at the end of a step, with one last validation; all processes at the same step."""

    def __init__(self, minutes: float) -> None:
        """Remember the limit."""
        self.seconds = minutes * 60

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the trainer to stop."""
        if _task(pl_module).elapsed > self.seconds:
            trainer.should_stop = True


def load_trainable(task: SegmentationTask, path: Path) -> None:
    """Load the trainable tensors of a checkpoint into ``task``, without unpickling objects.

    Raises:
        CheckpointError: damaged, or of another configuration.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); choose another checkpoint") from error
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
