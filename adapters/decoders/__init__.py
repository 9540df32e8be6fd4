"""Decoders: from features (and prompts) to class maps, by name."""

from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, MaskConfig, PromptedDecoder, SemanticOutput
from samgraft.adapters.decoders.class_masks import ClassMasksConfig
from samgraft.adapters.decoders.class_tokens import ClassTokensConfig
from samgraft.adapters.decoders.conv_head import ConvHeadConfig
from samgraft.adapters.decoders.desam import DesamConfig
from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.adapters.decoders.hq_token import HqTokenConfig
from samgraft.adapters.decoders.neck_heads import CnnHeadConfig, LinearHeadConfig
from samgraft.adapters.decoders.sam_seg import SamSegConfig
from samgraft.registry import Registry

DECODERS: Registry[type[DecoderConfig]] = Registry("decoder", more="samgraft.volumetric.heads")
"""Name -> configuration class; ``config.build(backbone)`` gives the module."""

for _config in (
    ClassMasksConfig,
    ClassTokensConfig,
    CnnHeadConfig,
    ConvHeadConfig,
    DesamConfig,
    DistancesConfig,
    HqTokenConfig,
    LinearHeadConfig,
    MaskConfig,
    SamSegConfig,
):
    DECODERS.register(_config.method)(_config)

__all__ = [
    "DECODERS",
    "ClassMasksConfig",
    "ClassTokensConfig",
    "CnnHeadConfig",
    "ConvHeadConfig",
    "DecoderConfig",
    "DecoderPatch",
    "DesamConfig",
    "DistancesConfig",
    "HqTokenConfig",
    "LinearHeadConfig",
    "MaskConfig",
    "PromptedDecoder",
    "SamSegConfig",
    "SemanticOutput",
]
