"""SAM B, L and H on the meta device: shapes without memory, for parameter counts."""

from typing import Literal

import torch
from transformers import SamConfig, SamModel

from samgraft.adapters.backbones.hf import HFSamBackbone

SIZES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "b": (768, 12, 12, (2, 5, 8, 11)),
    "l": (1024, 24, 16, (5, 11, 17, 23)),
    "h": (1280, 32, 16, (7, 15, 23, 31)),
}
"""Size -> width, blocks, heads, global blocks."""


def meta_backbone(size: Literal["b", "l", "h"]) -> HFSamBackbone:
    """SAM of ``size`` on the meta device; a new one every time, since attaching changes it."""
    width, blocks, heads, global_blocks = SIZES[size]
    vision = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "global_attn_indexes": list(global_blocks),
        "mlp_dim": 4 * width,
    }
    with torch.device("meta"):
        return HFSamBackbone(SamModel(SamConfig(vision_config=vision)), name=f"sam-vit-{size}")
