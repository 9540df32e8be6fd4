"""The validation figure by which the best checkpoint of a run is chosen."""

from samgraft.recipes.config import FitConfig

MONITOR = {"semantic": "val/dice", "instance": "val/ap50"}
"""Figure by which the best checkpoint is chosen; without masks it is ``AGREEMENT``."""
AGREEMENT = "val/agreement"
"""How well validation cases agree with their weak labels (``samgraft.recipes.weak_learning.judge``)."""


def monitor(config: FitConfig) -> str:
    """The figure that chooses the best checkpoint of a run."""
    return MONITOR[config.task.kind] if config.data.supervision == "masks" else AGREEMENT
