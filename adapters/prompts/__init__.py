"""Prompts, and generators that write them without a person, by name."""

from samgraft.adapters.prompts.autosam import AutoSamConfig
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.adapters.prompts.grid import GridConfig, chunk_prompts, grid_points
from samgraft.adapters.prompts.manual import ManualConfig, check_prompts, make_prompts
from samgraft.adapters.prompts.sam_cls import SamClsConfig
from samgraft.registry import Registry

PROMPTERS: Registry[type[PrompterConfig]] = Registry("prompter")
"""Name -> configuration class; ``config.build(backbone)`` gives the generator."""

for _config in (AutoSamConfig, GridConfig, ManualConfig, SamClsConfig):
    PROMPTERS.register(_config.method)(_config)

__all__ = [
    "PROMPTERS",
    "AutoSamConfig",
    "GridConfig",
    "ManualConfig",
    "PromptGenerator",
    "PrompterConfig",
    "Prompts",
    "SamClsConfig",
    "check_prompts",
    "chunk_prompts",
    "grid_points",
    "make_prompts",
]
