"""Grafts: trainable parts inside the frozen encoder or decoder, by name."""

from samgraft.adapters.grafts.adaptformer import AdaptFormerConfig
from samgraft.adapters.grafts.base import Graft, GraftConfig
from samgraft.adapters.grafts.bottleneck import BottleneckConfig
from samgraft.adapters.grafts.channel_spatial import ChannelSpatialConfig
from samgraft.adapters.grafts.conv_lora import ConvLoraConfig
from samgraft.adapters.grafts.decoder_bottleneck import DecoderBottleneckConfig
from samgraft.adapters.grafts.decoder_lora import DecoderLoraConfig
from samgraft.adapters.grafts.dora import DoraConfig
from samgraft.adapters.grafts.fact import FactConfig
from samgraft.adapters.grafts.high_frequency import HighFrequencyConfig
from samgraft.adapters.grafts.ia3 import Ia3Config
from samgraft.adapters.grafts.learnable_prompt import LearnablePromptConfig
from samgraft.adapters.grafts.lora import LoraConfig
from samgraft.adapters.grafts.neck_affine import NeckAffineConfig
from samgraft.adapters.grafts.ssf import SsfConfig
from samgraft.adapters.grafts.tuned import BiasConfig, FullConfig, FullDecoderConfig, LayerNormConfig
from samgraft.adapters.grafts.vera import VeraConfig
from samgraft.adapters.grafts.vpt import VptConfig
from samgraft.registry import Registry

GRAFTS: Registry[type[GraftConfig]] = Registry("graft", more="samgraft.volumetric.grafts")
"""Name -> configuration class; ``config.build(backbone)`` gives the module."""

_CONFIGS: tuple[type[GraftConfig], ...] = (
    AdaptFormerConfig,
    BiasConfig,
    BottleneckConfig,
    ChannelSpatialConfig,
    ConvLoraConfig,
    DecoderBottleneckConfig,
    DecoderLoraConfig,
    DoraConfig,
    FactConfig,
    FullConfig,
    FullDecoderConfig,
    HighFrequencyConfig,
    Ia3Config,
    LayerNormConfig,
    LearnablePromptConfig,
    LoraConfig,
    NeckAffineConfig,
    SsfConfig,
    VeraConfig,
    VptConfig,
)
for _config in _CONFIGS:
    GRAFTS.register(_config.method)(_config)

__all__ = [
    "GRAFTS",
    "AdaptFormerConfig",
    "BiasConfig",
    "BottleneckConfig",
    "ConvLoraConfig",
    "ChannelSpatialConfig",
    "DecoderLoraConfig",
    "FactConfig",
    "DecoderBottleneckConfig",
    "DoraConfig",
    "FullConfig",
    "FullDecoderConfig",
    "Graft",
    "GraftConfig",
    "HighFrequencyConfig",
    "Ia3Config",
    "LayerNormConfig",
    "LearnablePromptConfig",
    "LoraConfig",
    "NeckAffineConfig",
    "SsfConfig",
    "VeraConfig",
    "VptConfig",
]
