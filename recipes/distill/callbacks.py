"""What happens beside the steps of a phase: the best student is kept, figures are recorded, the clock is watched."""

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import SamModel

from samgraft.domains.atomic import atomic_path
from samgraft.errors import CheckpointError
from samgraft.recipes.distill.phases import Phase
from samgraft.recipes.report import write_text


def _phase(module: lightning.LightningModule) -> Phase:
    if not isinstance(module, Phase):
        raise TypeError(f"module is {type(module).__name__}; these callbacks serve a Phase of distillation")
    return module


class Keeper(Callback):
    """Keep the weights with the best held-out figure, those at the start included, and append to ``history.jsonl``.

    Args:
        folder: Of the phase; ``best.safetensors`` is written there.
        history: File of all phases.
        every: Steps between records of the training loss.

    Attributes:
        before: Figures at the start of the phase.
        best: Figures of the kept weights.
        step: When they were reached.
    """

    def __init__(self, folder: Path, history: Path, *, every: int = 20) -> None:
        """Nothing is known yet."""
        self.folder, self.history, self.every = folder, history, every
        self.before: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.value, self.step = float("-inf"), 0
        self.total, self.count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """For a resumed run."""
        return {"before": self.before, "best": self.best, "value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.before, self.best = dict(state_dict["before"]), dict(state_dict["best"])
        self.value, self.step = float(state_dict["value"]), int(state_dict["step"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget what a killed run recorded after the checkpoint that goes on here."""
        trim_history(self.history, _phase(pl_module).number, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the mean loss of the last steps."""
        self.total, self.count = self.total + float(outputs["loss"]), self.count + 1
        if self.count >= self.every:
            self._append(_phase(pl_module), trainer.global_step, {"train/loss": self.total / self.count})
            self.total, self.count = 0.0, 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the figures; keep the weights if they are the best so far."""
        phase = _phase(pl_module)
        if phase.figures is None or trainer.sanity_checking:
            return
        figures, step = asdict(phase.figures), trainer.global_step
        self._append(phase, step, {f"val/{name}": value for name, value in figures.items()})
        if not self.before:
            self.before = figures
        value = phase.better(phase.figures)
        if value > self.value or not self.best:
            self.best, self.value, self.step = figures, value if value == value else float("-inf"), step
            save_weights(self.folder / "best.safetensors", phase.student.sam)

    def _append(self, phase: Phase, step: int, values: dict[str, float]) -> None:
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase.number, "step": step, **values}) + "\n")


def trim_history(history: Path, phase: int, step: int) -> None:
    """Drop records of later phases, and those of ``phase`` after ``step``; the last line may be half written."""
    if not history.is_file():
        return
    kept = []
    for line in history.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if (row["phase"], row["step"]) <= (phase, step):
                kept.append(line)
    write_text(history, "".join(f"{line}\n" for line in kept))


class Deadline(Callback):
    """Stop at the last step or when the time is used, after one more look at the held-out tiles."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the trainer to stop."""
        phase = _phase(pl_module)
        late = phase.minutes is not None and phase.seconds() >= 60 * phase.minutes
        if late or trainer.global_step >= phase.steps:
            trainer.should_stop = True


def save_weights(path: Path, model: SamModel) -> None:
    """Write all tensors of ``model`` to a safetensors file, whole or not at all.

    Raises:
        CheckpointError: a value is NaN or Inf, as after training with too large a rate.
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(f"the student has NaN or Inf in {bad[:3]}; train again with a lower lr")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
        os.chmod(temporary, 0o644)  # safetensors writes files that only their owner can read


def load_weights(path: Path, model: SamModel) -> None:
    """Load what :func:`save_weights` wrote.

    Raises:
        CheckpointError: missing, damaged, or of another student.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}; start the run again in a new folder") from error
