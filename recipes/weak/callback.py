"""Rounds of refinement during training, as a Lightning callback; and what they did, beside the run."""

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from samgraft.errors import CheckpointError
from samgraft.recipes.sheet import contact_sheet
from samgraft.recipes.tasks import SegmentationTask
from samgraft.recipes.weak.data import compact, tile_panels
from samgraft.recipes.weak.refine import Refiner
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_learning.tiles import WeakTiles


def round_shares(config: WeakConfig) -> tuple[float, ...]:
    """Share of the training at which each round begins: ``first_round``, and the others evenly over the rest."""
    rest = 1.0 - config.first_round
    return tuple(config.first_round + rest * number / config.rounds for number in range(config.rounds))


class Refinement(Callback):
    """Makes pseudo-labels again from the adapter's own output.

    Args:
        tiles: The training tiles; changed in place.
        config: When and how.
        run: Run folder, for ``history.jsonl`` and pictures.
    """

    def __init__(self, tiles: WeakTiles, config: WeakConfig, run: Path) -> None:
        """No round is done yet."""
        self.tiles, self.run, self.refiner = tiles, run, Refiner(tiles, config)
        self.shares, self.done = round_shares(config), 0

    def state_dict(self) -> dict[str, Any]:
        """Rounds done and the labels that they left, for a resumed run."""
        if not self.done:
            return {"done": 0}
        return {"done": self.done, "labels": compact(self.tiles.labels), "unsure": torch.stack(self.tiles.unsure)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the labels of the last round.

        Raises:
            CheckpointError: labels of other tiles.
        """
        self.done = int(state_dict["done"])
        if not self.done:
            return
        labels: torch.Tensor = state_dict["labels"]
        if labels.shape != (len(self.tiles), self.tiles.size, self.tiles.size):
            raise CheckpointError(
                f"the checkpoint has labels {tuple(labels.shape)}; this run has {len(self.tiles)} tiles of "
                f"{self.tiles.size} pixels; resume with the same data and configuration"
            )
        self.tiles.labels[:] = [one.int() for one in labels]
        self.tiles.unsure[:] = list(state_dict["unsure"])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do the round that is due."""
        if not isinstance(pl_module, SegmentationTask) or self.done >= len(self.shares):
            return
        if pl_module.progress(trainer.global_step) < self.shares[self.done]:
            return
        result = self.refiner.round(pl_module.grafted, pl_module.representation)
        self.done += 1
        if result is None or not trainer.is_global_zero:
            return
        row = {
            "step": trainer.global_step,
            "weak/round": self.done,
            **{f"weak/{k}": v for k, v in vars(result).items()},
        }
        with (self.run / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        contact_sheet(self.run / f"weak_round_{self.done}.png", tile_panels(self.tiles))
