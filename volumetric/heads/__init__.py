"""Heads for volumes; importing this registers them beside those of one image."""

from samgraft.adapters.decoders import DECODERS
from samgraft.adapters.decoders.base import DecoderConfig
from samgraft.volumetric.heads.detail_3d import Detail3dConfig
from samgraft.volumetric.heads.mla_3d import Mla3dConfig
from samgraft.volumetric.heads.progressive import ProgressiveConfig

_CONFIGS: tuple[type[DecoderConfig], ...] = (Detail3dConfig, Mla3dConfig, ProgressiveConfig)
for _config in _CONFIGS:
    DECODERS.register(_config.method)(_config)

__all__ = ["Detail3dConfig", "Mla3dConfig", "ProgressiveConfig"]
