"""graft-tiny: a small promptable backbone of SAM's shape, with an initialisation that can be trained from scratch.

Three defaults of transformers' SAM configuration are harmless for loaded checkpoints and ruin training from scratch
(measured, see docs/adr/0002-graft-tiny.md): the frequency scale of the position code, an initial standard deviation of
1e-10 in the encoder, and 0.02 everywhere in the decoder.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import SamConfig, SamModel

TINY_MEAN = (0.5, 0.5, 0.5)
TINY_STD = (0.25, 0.25, 0.25)


def tiny_config(
    *, embed_dim: int = 192, num_blocks: int = 6, num_heads: int = 6, neck_channels: int = 128, native_size: int = 128
) -> dict[str, Any]:
    """Keyword arguments of :class:`transformers.SamConfig` for graft-tiny.

    Args:
        embed_dim: Width of the encoder.
        num_blocks: Encoder depth; every third block attends globally.
        num_heads: Heads of the encoder.
        neck_channels: Channels of the neck, of prompts and of the decoder.
        native_size: Side in pixels of the position table; the patch is 8 pixels.
    """
    grid = native_size // 8
    return {
        "vision_config": {
            "hidden_size": embed_dim,
            "output_channels": neck_channels,
            "num_hidden_layers": num_blocks,
            "num_attention_heads": num_heads,
            "image_size": native_size,
            "patch_size": 8,
            "window_size": 8,
            "global_attn_indexes": [i for i in range(num_blocks) if i % 3 == 2],
            "num_pos_feats": neck_channels // 2,
            "mlp_dim": 4 * embed_dim,
            "mlp_ratio": 4.0,
            "scale": 1,
        },
        "prompt_encoder_config": {
            "hidden_size": neck_channels,
            "image_size": native_size,
            "patch_size": 8,
            "mask_input_channels": 16,
            "image_embedding_size": grid,
        },
        "mask_decoder_config": {
            "hidden_size": neck_channels,
            "mlp_dim": 4 * neck_channels,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": neck_channels,
        },
    }


def build_graft_tiny(config: dict[str, Any] | None = None, *, seed: int = 0) -> SamModel:
    """Build the model of ``config`` (default :func:`tiny_config`) with fresh, trainable weights.

    The random Fourier matrix of the position code is drawn at scale 1 and frozen; linear and convolution layers get
    PyTorch's fan-in initialisation; the position table a truncated normal of 0.02; relative tables start at zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SamModel(SamConfig(**(config or tiny_config())))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                _fan_in(module)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif "rel_pos" in name:
                nn.init.zeros_(parameter)
        shared = model.shared_image_embedding.positional_embedding
        nn.init.normal_(shared)
        shared.requires_grad_(False)
        model.prompt_encoder.shared_embedding.positional_embedding = shared
    return model


def _fan_in(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        fan_in, _ = nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(module.bias, -bound, bound)
