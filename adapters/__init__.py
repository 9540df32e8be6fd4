"""What is attached to a frozen promptable backbone, and the backbones. Torch only; no image file is read here.

Names are imported on first use, so that ``import samgraft`` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samgraft.adapters.backbones import BACKBONES
    from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta, save_bundle
    from samgraft.adapters.decoders import DECODERS, ClassTokensConfig, ConvHeadConfig, MaskConfig, SemanticOutput
    from samgraft.adapters.graft import Grafted, attach
    from samgraft.adapters.grafts import (
        GRAFTS,
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
        SsfConfig,
        VeraConfig,
        VptConfig,
    )
    from samgraft.adapters.prompts import PROMPTERS, AutoSamConfig, GridConfig, ManualConfig, Prompts, make_prompts
    from samgraft.adapters.shelf import AdapterShelf

_HOMES = {
    "BACKBONES": "backbones",
    "BundleMeta": "bundle",
    "load_bundle": "bundle",
    "read_header": "bundle",
    "read_meta": "bundle",
    "save_bundle": "bundle",
    "DECODERS": "decoders",
    "ClassTokensConfig": "decoders",
    "ConvHeadConfig": "decoders",
    "MaskConfig": "decoders",
    "SemanticOutput": "decoders",
    "Grafted": "graft",
    "attach": "graft",
    "GRAFTS": "grafts",
    "AdaptFormerConfig": "grafts",
    "BiasConfig": "grafts",
    "ChannelSpatialConfig": "grafts",
    "ConvLoraConfig": "grafts",
    "DecoderBottleneckConfig": "grafts",
    "DoraConfig": "grafts",
    "FactConfig": "grafts",
    "FullConfig": "grafts",
    "FullDecoderConfig": "grafts",
    "HighFrequencyConfig": "grafts",
    "Ia3Config": "grafts",
    "LayerNormConfig": "grafts",
    "LearnablePromptConfig": "grafts",
    "SsfConfig": "grafts",
    "VeraConfig": "grafts",
    "VptConfig": "grafts",
    "BottleneckConfig": "grafts",
    "DecoderLoraConfig": "grafts",
    "LoraConfig": "grafts",
    "PROMPTERS": "prompts",
    "AutoSamConfig": "prompts",
    "GridConfig": "prompts",
    "ManualConfig": "prompts",
    "Prompts": "prompts",
    "make_prompts": "prompts",
    "AdapterShelf": "shelf",
}

__all__ = [
    "AdaptFormerConfig",
    "AdapterShelf",
    "AutoSamConfig",
    "BACKBONES",
    "BiasConfig",
    "BottleneckConfig",
    "BundleMeta",
    "ChannelSpatialConfig",
    "ClassTokensConfig",
    "ConvHeadConfig",
    "ConvLoraConfig",
    "DECODERS",
    "DecoderBottleneckConfig",
    "DecoderLoraConfig",
    "DoraConfig",
    "FactConfig",
    "FullConfig",
    "FullDecoderConfig",
    "GRAFTS",
    "Grafted",
    "GridConfig",
    "HighFrequencyConfig",
    "Ia3Config",
    "LayerNormConfig",
    "LearnablePromptConfig",
    "LoraConfig",
    "ManualConfig",
    "MaskConfig",
    "PROMPTERS",
    "Prompts",
    "SemanticOutput",
    "SsfConfig",
    "VeraConfig",
    "VptConfig",
    "attach",
    "load_bundle",
    "make_prompts",
    "read_header",
    "read_meta",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    """Import ``name`` from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
