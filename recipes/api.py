"""The public functions of ``samgraft`` that need more than one folder; re-exported lazily by the root."""

from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.engine.run import adapter_meta, load_adapter, segment, with_meta
from samgraft.recipes.predicting import Outcome, find_inputs, predict
from samgraft.recipes.prompting import UserPrompts

__all__ = [
    "EverythingConfig",
    "Outcome",
    "UserPrompts",
    "adapter_meta",
    "automatic_masks",
    "find_inputs",
    "load_adapter",
    "predict",
    "segment",
    "with_meta",
]
