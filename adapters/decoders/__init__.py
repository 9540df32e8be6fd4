"""Decoders: from features (and prompts) to class maps, by name."""

from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, MaskConfig, SemanticOutput
from samgraft.adapters.decoders.class_tokens import ClassTokensConfig
from samgraft.registry import Registry

DECODERS: Registry[type[DecoderConfig]] = Registry("decoder")
"""Name -> configuration class; ``config.build(backbone)`` gives the module."""

for _config in (ClassTokensConfig, MaskConfig):
    DECODERS.register(_config.method)(_config)

__all__ = ["DECODERS", "ClassTokensConfig", "DecoderConfig", "DecoderPatch", "MaskConfig", "SemanticOutput"]
