"""Frozen, promptable backbones, by name."""

from samgraft.adapters.backbones.base import (
    Backbone,
    BackboneSpec,
    Features,
    MaskDecoderPatch,
    MaskDecoderState,
    Promptable,
)
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import BACKBONES, BackboneEntry, load_backbone
from samgraft.adapters.backbones.sites import BlockSites, EncoderSites, SiteContext, WindowInfo

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "BackboneSpec",
    "BlockSites",
    "EncoderSites",
    "Features",
    "HFSamBackbone",
    "MaskDecoderPatch",
    "MaskDecoderState",
    "Promptable",
    "SiteContext",
    "WindowInfo",
    "load_backbone",
]
