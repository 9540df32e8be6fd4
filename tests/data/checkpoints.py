"""Tiny SAM checkpoints in every format that ``load_backbone`` reads: HF folder, Meta ``.pth``, the embedded pair."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamConfig, SamModel

WIDTH, HEADS, PATCH, SIDE, WINDOW, NECK = 32, 4, 8, 64, 3, 32


def toy_config(*, side: int = SIDE, window: int = WINDOW, num_blocks: int = 3, rel_pos: bool = True) -> dict[str, Any]:
    """Arguments of ``SamConfig``: width 32, 4 heads, patch 8; block 1 is global; 8 decoder heads as in every SAM."""
    return {
        "vision_config": {
            "hidden_size": WIDTH,
            "output_channels": NECK,
            "num_hidden_layers": num_blocks,
            "num_attention_heads": HEADS,
            "image_size": side,
            "patch_size": PATCH,
            "window_size": window,
            "global_attn_indexes": [1],
            "num_pos_feats": NECK // 2,
            "mlp_dim": 48,
            "use_rel_pos": rel_pos,
        },
        "prompt_encoder_config": {
            "hidden_size": NECK,
            "image_size": side,
            "patch_size": PATCH,
            "mask_input_channels": 16,
        },
        "mask_decoder_config": {
            "hidden_size": NECK,
            "mlp_dim": 40,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": 24,
        },
    }


def toy_sam(*, seed: int = 0, attention: str = "sdpa", **options: Any) -> SamModel:
    """A ``SamModel`` whose every tensor is random and of a size that matters to the output."""
    config = SamConfig(**toy_config(**options))
    config._attn_implementation = attention
    model = SamModel._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
            elif "_embed" in name or "rel_pos" in name or "token" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def write_hf_folder(folder: Path, model: SamModel) -> Path:
    """``config.json`` and ``model.safetensors``."""
    model.save_pretrained(folder)
    return folder


def write_embedded(folder: Path, model: SamModel, config: dict[str, Any]) -> Path:
    """``graft_tiny.safetensors`` in fp16 and ``graft_tiny.json``, as the package holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if k != tied}
    save_file(tensors, folder / "graft_tiny.safetensors")
    about = {
        "config": config,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "name": "graft-tiny",
        "licence": "Apache-2.0",
        "card": {"steps": 1},
    }
    (folder / "graft_tiny.json").write_text(json.dumps(about))
    return folder


def meta_state(model: SamModel) -> dict[str, Tensor]:
    """The tensors of ``model`` under Meta's names."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name != "shared_image_embedding.positional_embedding":
            state[_meta_name(name)] = tensor.detach().clone()
    return state


def write_meta_pth(path: Path, model: SamModel, *, under: str | None = None) -> Path:
    """A ``.pth`` file; ``under`` wraps the state as a training checkpoint does."""
    state = meta_state(model)
    torch.save(state if under is None else {under: state, "epoch": 3}, path)
    return path


def _meta_name(name: str) -> str:
    plain = {
        "shared_embedding.positional_embedding": "pe_layer.positional_encoding_gaussian_matrix",
        "vision_encoder.": "image_encoder.",
        "image_encoder.layers.": "image_encoder.blocks.",
        "patch_embed.projection": "patch_embed.proj",
        "neck.conv1": "neck.0",
        "neck.layer_norm1": "neck.1",
        "neck.conv2": "neck.2",
        "neck.layer_norm2": "neck.3",
        "prompt_encoder.point_embed.": "prompt_encoder.point_embeddings.",
        "mask_embed.conv1": "mask_downscaling.0",
        "mask_embed.layer_norm1": "mask_downscaling.1",
        "mask_embed.conv2": "mask_downscaling.3",
        "mask_embed.layer_norm2": "mask_downscaling.4",
        "mask_embed.conv3": "mask_downscaling.6",
        "upscale_conv1": "output_upscaling.0",
        "upscale_layer_norm": "output_upscaling.1",
        "upscale_conv2": "output_upscaling.3",
        "layer_norm_final_attn": "norm_final_attn",
        "layer_norm": "norm",
    }
    if re.search(r"hypernetworks_mlps|iou_prediction_head", name):
        name = name.replace("layers.0", "layers.1").replace("proj_in", "layers.0").replace("proj_out", "layers.2")
    for ours, theirs in plain.items():
        name = name.replace(ours, theirs)
    return name
