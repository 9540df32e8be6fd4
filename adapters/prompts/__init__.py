"""Prompts, and generators that write them without a person, by name."""

from samgraft.adapters.prompts.autosam import AutoSamConfig
from samgraft.adapters.prompts.autosam_pyramid import AutoSamPyramidConfig
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.adapters.prompts.grid import GridConfig, chunk_prompts, grid_points
from samgraft.adapters.prompts.improve import Improvement
from samgraft.adapters.prompts.in_context import InContextConfig
from samgraft.adapters.prompts.manual import ManualConfig, check_prompts, make_prompts
from samgraft.adapters.prompts.matcher import MatcherConfig
from samgraft.adapters.prompts.persam import PersamConfig
from samgraft.adapters.prompts.persam_f import PersamFConfig
from samgraft.adapters.prompts.reference_region import ReferenceRegionConfig
from samgraft.adapters.prompts.references import References, make_references, masks_from_labels
from samgraft.adapters.prompts.rsprompter_anchor import RSPrompterAnchorConfig
from samgraft.adapters.prompts.rsprompter_query import RSPrompterQueryConfig
from samgraft.adapters.prompts.sam_cls import SamClsConfig
from samgraft.adapters.prompts.sam_det import SamDetConfig
from samgraft.adapters.prompts.simulated import SimulatedPrompts
from samgraft.adapters.prompts.text_boxes import TextBoxesConfig
from samgraft.adapters.prompts.vrp import VrpConfig
from samgraft.registry import Registry

PROMPTERS: Registry[type[PrompterConfig]] = Registry("prompter")
"""Name -> configuration class; ``config.build(backbone)`` gives the generator."""

for _config in (
    AutoSamConfig,
    AutoSamPyramidConfig,
    GridConfig,
    InContextConfig,
    ManualConfig,
    MatcherConfig,
    PersamConfig,
    PersamFConfig,
    RSPrompterAnchorConfig,
    RSPrompterQueryConfig,
    ReferenceRegionConfig,
    SamClsConfig,
    SamDetConfig,
    TextBoxesConfig,
    VrpConfig,
):
    PROMPTERS.register(_config.method)(_config)

__all__ = [
    "PROMPTERS",
    "AutoSamConfig",
    "AutoSamPyramidConfig",
    "GridConfig",
    "Improvement",
    "InContextConfig",
    "ManualConfig",
    "MatcherConfig",
    "PersamConfig",
    "PersamFConfig",
    "PromptGenerator",
    "PrompterConfig",
    "Prompts",
    "RSPrompterAnchorConfig",
    "RSPrompterQueryConfig",
    "SamDetConfig",
    "ReferenceRegionConfig",
    "References",
    "SimulatedPrompts",
    "TextBoxesConfig",
    "VrpConfig",
    "SamClsConfig",
    "check_prompts",
    "chunk_prompts",
    "grid_points",
    "make_prompts",
    "make_references",
    "masks_from_labels",
]
