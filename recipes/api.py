"""The public functions of ``samgraft`` that need more than one folder; re-exported lazily by the root."""

from samgraft.adapters.prompts.improve import Improvement
from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.engine.referenced import Example, Examples
from samgraft.recipes.engine.run import adapter_meta, load_adapter, segment, with_meta
from samgraft.recipes.mosaic.run import MosaicSummary
from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic
from samgraft.recipes.predicting import Outcome, find_inputs, predict
from samgraft.recipes.prompt_files import FilePrompts, prompts_from_file
from samgraft.recipes.prompting import MaskPrompt, ObjectPrompt, ObjectPrompts, UserPrompts

__all__ = [
    "EverythingConfig",
    "Example",
    "Examples",
    "FilePrompts",
    "Improvement",
    "MaskPrompt",
    "MosaicOptions",
    "MosaicSummary",
    "ObjectPrompt",
    "ObjectPrompts",
    "Outcome",
    "UserPrompts",
    "adapter_meta",
    "automatic_masks",
    "automatic_masks",
    "find_inputs",
    "load_adapter",
    "predict",
    "prompts_from_file",
    "segment",
    "segment_mosaic",
    "with_meta",
]
