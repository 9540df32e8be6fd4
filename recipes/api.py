"""The public functions of ``samgraft`` that need more than one folder; re-exported lazily by the root."""

from samgraft.recipes.engine.everything import EverythingConfig
from samgraft.recipes.engine.run import adapter_meta, load_adapter, segment, with_meta
from samgraft.recipes.prompting import UserPrompts

__all__ = ["EverythingConfig", "UserPrompts", "adapter_meta", "load_adapter", "segment", "with_meta"]
