"""Checkpoints in Meta's own format (``.pth`` of SAM ViT-B, L, H, and MedSAM, which has the same keys).

The architecture is read from the shapes of the tensors, so smaller models in this format load too. Reading never runs
code of the file. ``SamModel`` uses an epsilon of 1e-6 in the decoder's norms where Meta has 1e-5; the former is kept,
so that one weight hash stands for one function.

Source:
    Layout of facebookresearch/segment-anything (Apache-2.0); key names only.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SamModel

from samgraft.adapters.backbones.loading import TIED, brief, build_model
from samgraft.errors import CheckpointError

_CODE = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_NEEDED = ("image_encoder.patch_embed.proj.weight", "image_encoder.neck.0.weight", _CODE)
"""Keys by which a SAM is told from another network."""
_IGNORED = ("pixel_mean", "pixel_std")
"""Buffers of the normalisation, which the backbone's spec holds."""
_HQ = ("mask_decoder.hf_token", "mask_decoder.hf_mlp", "mask_decoder.compress_vit_feat", "mask_decoder.embedding_")
"""Starts of keys that only SAM-HQ has."""
_RULES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"image_encoder\.pos_embed", r"vision_encoder.pos_embed"),
        (r"image_encoder\.patch_embed\.proj\.(weight|bias)", r"vision_encoder.patch_embed.projection.\1"),
        (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(weight|bias)", r"vision_encoder.layers.\1.layer_norm\2.\3"),
        (r"image_encoder\.blocks\.(\d+)\.((?:attn|mlp)\..+)", r"vision_encoder.layers.\1.\2"),
        (r"image_encoder\.neck\.0\.weight", r"vision_encoder.neck.conv1.weight"),
        (r"image_encoder\.neck\.1\.(weight|bias)", r"vision_encoder.neck.layer_norm1.\1"),
        (r"image_encoder\.neck\.2\.weight", r"vision_encoder.neck.conv2.weight"),
        (r"image_encoder\.neck\.3\.(weight|bias)", r"vision_encoder.neck.layer_norm2.\1"),
        (r"prompt_encoder\.point_embeddings\.(\d+)\.weight", r"prompt_encoder.point_embed.\1.weight"),
        (r"(prompt_encoder\.(?:not_a_point|no_mask)_embed\.weight)", r"\1"),
        (r"prompt_encoder\.mask_downscaling\.0\.(weight|bias)", r"prompt_encoder.mask_embed.conv1.\1"),
        (r"prompt_encoder\.mask_downscaling\.1\.(weight|bias)", r"prompt_encoder.mask_embed.layer_norm1.\1"),
        (r"prompt_encoder\.mask_downscaling\.3\.(weight|bias)", r"prompt_encoder.mask_embed.conv2.\1"),
        (r"prompt_encoder\.mask_downscaling\.4\.(weight|bias)", r"prompt_encoder.mask_embed.layer_norm2.\1"),
        (r"prompt_encoder\.mask_downscaling\.6\.(weight|bias)", r"prompt_encoder.mask_embed.conv3.\1"),
        (r"(mask_decoder\.transformer\.layers\.\d+\.)norm([1-4]\..+)", r"\1layer_norm\2"),
        (r"(mask_decoder\.transformer\.layers\.\d+\.(?:self_attn|cross_attn_\w+|mlp)\..+)", r"\1"),
        (r"(mask_decoder\.transformer\.final_attn_token_to_image\..+)", r"\1"),
        (r"mask_decoder\.transformer\.norm_final_attn\.(.+)", r"mask_decoder.transformer.layer_norm_final_attn.\1"),
        (r"(mask_decoder\.(?:iou_token|mask_tokens)\.weight)", r"\1"),
        (r"mask_decoder\.output_upscaling\.0\.(.+)", r"mask_decoder.upscale_conv1.\1"),
        (r"mask_decoder\.output_upscaling\.1\.(.+)", r"mask_decoder.upscale_layer_norm.\1"),
        (r"mask_decoder\.output_upscaling\.3\.(.+)", r"mask_decoder.upscale_conv2.\1"),
    )
)
"""Key in the file -> key in ``SamModel``; each pattern must match the whole key."""
_HEAD = re.compile(
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.(weight|bias)"
)
"""Multi-layer heads: first and last layer have names of their own in ``SamModel``."""


def load_sam_pth(path: Path, *, decoder_heads: int = 8) -> SamModel:
    """Read a checkpoint in Meta's format.

    Args:
        path: ``.pth`` file: a state, or a training checkpoint that holds one under "model" or "state_dict".
        decoder_heads: Attention heads of the mask decoder, which shapes do not tell; 8 in every published SAM.

    Raises:
        CheckpointError: no such file, damaged, not a SAM, SAM-HQ, or keys are missing, unknown or of other shapes.
    """
    state = _read_state(path)
    extra = sorted(key for key in state if key.startswith(_HQ))
    if extra:
        raise CheckpointError(
            f"{path} is a SAM-HQ checkpoint (it has {brief(extra)}); expected SAM or MedSAM; not supported yet"
        )
    absent = [key for key in _NEEDED if key not in state]
    if absent:
        raise CheckpointError(f"{path} is not a SAM checkpoint: no {brief(absent)}; it has {brief(sorted(state))}")
    try:
        config = infer_config(state, decoder_heads=decoder_heads)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} is not a complete SAM: {error} is missing; get the original file") from error
    return build_model(config, rename(state, str(path)), str(path))


def rename(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Give every tensor its name in ``SamModel``.

    Raises:
        CheckpointError: a key is not one of SAM's.
    """
    depth: dict[str, int] = {}
    for key in state:
        if match := _HEAD.fullmatch(key):
            depth[match[1]] = max(depth.get(match[1], 0), int(match[2]))
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if key == _CODE:
            renamed.update(dict.fromkeys(TIED, tensor))
        elif match := _HEAD.fullmatch(key):
            layer = int(match[2])
            name = "proj_in" if layer == 0 else "proj_out" if layer == depth[match[1]] else f"layers.{layer - 1}"
            renamed[f"{match[1]}.{name}.{match[3]}"] = tensor
        elif found := [match.expand(target) for rule, target in _RULES if (match := rule.fullmatch(key))]:
            renamed[found[0]] = tensor
        elif key not in _IGNORED:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{source} has keys that SAM does not have: {brief(sorted(unknown))}; load the original")
    return renamed


def infer_config(state: Mapping[str, Tensor], *, decoder_heads: int = 8) -> dict[str, Any]:
    """Keyword arguments of ``SamConfig`` from shapes, in Meta's key names.

    Width, depth and patch come from the embedding and the blocks, heads from the width of relative tables, the native
    size from the position table; a block is global, by its index, if its relative table has the length 2 S - 1 of the
    whole grid.

    Raises:
        CheckpointError: relative tables fit neither the whole grid nor one window size.
        KeyError: a tensor that is needed for this is missing.
    """
    width, _, _, patch = state["image_encoder.patch_embed.proj.weight"].shape
    channels = state["image_encoder.neck.0.weight"].shape[0]
    depth = _count(state, r"image_encoder\.blocks\.(\d+)\..+")
    grid = int(state["image_encoder.pos_embed"].shape[1])
    tables = [state[f"image_encoder.blocks.{block}.attn.rel_pos_h"] for block in range(depth)]
    global_blocks = [block for block, table in enumerate(tables) if len(table) == 2 * grid - 1]
    lengths = {len(table) for table in tables} - {2 * grid - 1}
    if len(lengths) > 1 or max(lengths, default=1) > 2 * grid - 1:
        raise CheckpointError(
            f"relative tables have lengths {sorted({len(table) for table in tables})}; expected {2 * grid - 1} "
            f"for global blocks (grid of {grid}) and one shorter length for windows; resize all tables alike"
        )
    window = (lengths.pop() + 1) // 2 if lengths else grid
    decoder = "mask_decoder.transformer.layers.0"
    vision = {
        "hidden_size": width,
        "output_channels": channels,
        "num_hidden_layers": depth,
        "num_attention_heads": width // tables[0].shape[1],
        "image_size": grid * patch,
        "patch_size": patch,
        "window_size": window,
        "global_attn_indexes": global_blocks,
        "num_pos_feats": state[_CODE].shape[1],
        "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in state,
        "mlp_dim": state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
    }
    prompt = {
        "hidden_size": channels,
        "image_size": grid * patch,
        "patch_size": patch,
        "mask_input_channels": state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        "num_point_embeddings": _count(state, r"prompt_encoder\.point_embeddings\.(\d+)\.weight"),
    }
    mask = {
        "hidden_size": channels,
        "mlp_dim": state[f"{decoder}.mlp.lin1.weight"].shape[0],
        "num_hidden_layers": _count(state, r"mask_decoder\.transformer\.layers\.(\d+)\..+"),
        "num_attention_heads": decoder_heads,
        "attention_downsample_rate": channels // state[f"{decoder}.cross_attn_token_to_image.q_proj.weight"].shape[0],
        "num_multimask_outputs": state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_head_depth": _count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight"),
        "iou_head_hidden_dim": state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }
    return {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": mask}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for key in state if (match := re.fullmatch(pattern, key))]
    if not found:
        raise KeyError(pattern)
    return max(found) + 1


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected a .pth file in Meta's format")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as tensors: {first}; it is damaged or holds code; get it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"{path} holds no table of tensors; expected SAM's, bare or under 'model' or 'state_dict'"
        )
    if all(str(key).startswith("module.") for key in loaded):
        loaded = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    return {str(key): value for key, value in loaded.items()}
