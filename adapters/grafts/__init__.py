"""Grafts: trainable parts inside the frozen encoder or decoder, by name."""

from samgraft.adapters.grafts.base import Graft, GraftConfig
from samgraft.adapters.grafts.bottleneck import BottleneckConfig
from samgraft.adapters.grafts.decoder_lora import DecoderLoraConfig
from samgraft.adapters.grafts.lora import LoraConfig
from samgraft.registry import Registry

GRAFTS: Registry[type[GraftConfig]] = Registry("graft")
"""Name -> configuration class; ``config.build(backbone)`` gives the module."""

for _config in (BottleneckConfig, DecoderLoraConfig, LoraConfig):
    GRAFTS.register(_config.method)(_config)

__all__ = ["GRAFTS", "BottleneckConfig", "DecoderLoraConfig", "Graft", "GraftConfig", "LoraConfig"]
