"""Decoders: from features (and prompts) to class maps, by name."""

from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, MaskConfig, SemanticOutput
from samgraft.adapters.decoders.class_tokens import ClassTokensConfig
from samgraft.adapters.decoders.conv_head import ConvHeadConfig
from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.adapters.decoders.sam_seg import SamSegConfig
from samgraft.registry import Registry

DECODERS: Registry[type[DecoderConfig]] = Registry("decoder")
"""Name -> configuration class; ``config.build(backbone)`` gives the module."""

for _config in (ClassTokensConfig, ConvHeadConfig, DistancesConfig, MaskConfig, SamSegConfig):
    DECODERS.register(_config.method)(_config)

__all__ = [
    "DECODERS",
    "ClassTokensConfig",
    "ConvHeadConfig",
    "DecoderConfig",
    "DecoderPatch",
    "DistancesConfig",
    "MaskConfig",
    "SamSegConfig",
    "SemanticOutput",
]
