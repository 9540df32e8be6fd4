"""The public functions of ``samgraft`` that need more than one folder; re-exported lazily by the root."""

from samgraft.adapters.prompts.improve import Improvement
from samgraft.recipes.continual.merging import MergeReport, merge_adapters
from samgraft.recipes.continual.router import Domains, Route
from samgraft.recipes.engine.correcting import VolumeSession
from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.engine.propagated import VolumeOptions, VolumeResult, segment_volume
from samgraft.recipes.engine.referenced import Example, Examples
from samgraft.recipes.engine.run import adapter_meta, load_adapter, segment, with_meta
from samgraft.recipes.locating import FitLocator, LocateResult, fit_locator, locate
from samgraft.recipes.mosaic.run import MosaicSummary
from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic
from samgraft.recipes.predicting import Outcome, find_inputs, predict
from samgraft.recipes.prompt_files import FilePrompts, prompts_from_file
from samgraft.recipes.prompting import MaskPrompt, ObjectPrompt, ObjectPrompts, UserPrompts
from samgraft.recipes.test_time.methods import EntropyConfig, StatisticsConfig
from samgraft.recipes.test_time.segmenting import segment_adapted
from samgraft.recipes.volume_prompt_files import read_volume_prompts
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts

__all__ = [
    "Domains",
    "EntropyConfig",
    "EverythingConfig",
    "Example",
    "Examples",
    "FilePrompts",
    "FitLocator",
    "Improvement",
    "LocateResult",
    "MaskPrompt",
    "MergeReport",
    "MosaicOptions",
    "MosaicSummary",
    "ObjectPrompt",
    "ObjectPrompts",
    "Outcome",
    "Route",
    "StatisticsConfig",
    "UserPrompts",
    "VolumeOptions",
    "VolumePrompt",
    "VolumePrompts",
    "VolumeResult",
    "VolumeSession",
    "adapter_meta",
    "automatic_masks",
    "find_inputs",
    "fit_locator",
    "load_adapter",
    "locate",
    "merge_adapters",
    "predict",
    "prompts_from_file",
    "read_volume_prompts",
    "segment",
    "segment_adapted",
    "segment_mosaic",
    "segment_volume",
    "with_meta",
]
