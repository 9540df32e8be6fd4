"""SAM's prompt encoder and mask decoder over N prompts, on the modules of a ``transformers`` ``SamModel``.

Differences from ``SamModel.forward``, none of which changes a value: prompts of several images stand in one list,
points are normalised by the actual size of the network input (any H, W), and parts can be added through a
:class:`~samgraft.adapters.backbones.base.MaskDecoderPatch`.

Source:
    Segment Anything, arXiv:2304.02643, appendix A.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features, MaskDecoderPatch, MaskDecoderState
from samgraft.adapters.backbones.guidance import Guidance, guided
from samgraft.errors import ConfigError, PromptError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

PADDING = -10
"""Label of a point that fills up a row; its token is zero, but takes part in attention, as in ``SamModel``."""
NOT_A_POINT = -1
"""Label of the token that SAM appends to points where there is no box."""


def fourier_code(matrix: Tensor, coordinates: Tensor) -> Tensor:
    """Random Fourier position code.

    Args:
        matrix: (2, C / 2), frozen frequencies.
        coordinates: (..., 2), (x, y) as shares of the image's width and height.

    Returns:
        (..., C) in the dtype of ``matrix``, computed in float32 or better, also under autocast: half precision cannot
        tell neighbouring pixels apart.
    """
    with torch.autocast(device_type="cpu" if coordinates.is_meta else coordinates.device.type, enabled=False):
        wide = torch.promote_types(matrix.dtype, torch.float32)
        angles = 2 * math.pi * ((2 * coordinates.to(wide) - 1) @ matrix.to(wide))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix.dtype)


def image_code(matrix: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position code of every token centre, (1, C, h, w) for ``grid`` (h, w)."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    rows = (torch.arange(grid[0], device=matrix.device, dtype=wide) + 0.5) / grid[0]
    columns = (torch.arange(grid[1], device=matrix.device, dtype=wide) + 0.5) / grid[1]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return fourier_code(matrix, torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def embed_prompts(encoder: Any, prompts: "Prompts", size: tuple[int, int], patch_size: int) -> tuple[Tensor, Tensor]:
    """Sparse tokens (N, k, C) and dense embedding (N, C, h, w) of ``prompts``.

    Tokens come in the order points, (not a point, if there are points and no boxes), box corners, ``prompts.sparse``.

    Args:
        encoder: ``SamPromptEncoder``.
        prompts: N prompts; coordinates in pixels of the network input.
        size: (H, W) of the network input in pixels.
        patch_size: Pixels per token side.

    Raises:
        ShapeError: a mask, sparse or dense prompt has another size than the features.
        PromptError: a coordinate is not finite, or a label is unknown.
    """
    channels = encoder.no_mask_embed.weight.shape[-1]
    parts = []
    if prompts.points is not None and prompts.labels is not None:
        parts.append(_embed_points(encoder, prompts.points, prompts.labels, size, pad=prompts.boxes is None))
    if prompts.boxes is not None:
        parts.append(_embed_boxes(encoder, prompts.boxes, size))
    if prompts.sparse is not None:
        _expect("prompts.sparse", prompts.sparse, (len(prompts), prompts.sparse.shape[1], channels))
        parts.append(prompts.sparse)
    empty = encoder.no_mask_embed.weight.new_zeros(len(prompts), 0, channels)
    return torch.cat(parts, dim=1) if parts else empty, _embed_dense(encoder, prompts, size, patch_size, channels)


def _embed_points(encoder: Any, points: Tensor, labels: Tensor, size: tuple[int, int], *, pad: bool) -> Tensor:
    """(N, p, C), or (N, p + 1, C) with SAM's "not a point" token at the end if ``pad``."""
    known = (labels == 1) | (labels == 0) | (labels == NOT_A_POINT) | (labels == PADDING)
    if not bool(known.all()):
        got = sorted(set(labels.flatten().tolist()))
        raise PromptError(f"point labels are {got}; expected 1 foreground, 0 background, -10 padding")
    code = _pixel_code(encoder, points, size, "points")
    background, foreground = encoder.point_embed[0].weight, encoder.point_embed[1].weight
    kind = labels[..., None]
    code = torch.where(kind == 1, code + foreground, torch.where(kind == 0, code + background, code))
    code = torch.where(kind == NOT_A_POINT, encoder.not_a_point_embed.weight.to(code.dtype), code)
    code = torch.where(kind == PADDING, torch.zeros_like(code), code)
    if pad:
        code = torch.cat([code, encoder.not_a_point_embed.weight.to(code.dtype).expand(len(code), 1, -1)], dim=1)
    return code


def _embed_boxes(encoder: Any, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2, C): top-left and bottom-right corner."""
    corners = torch.cat([encoder.point_embed[2].weight, encoder.point_embed[3].weight])
    return _pixel_code(encoder, boxes.reshape(-1, 2, 2), size, "boxes") + corners


def _pixel_code(encoder: Any, pixels: Tensor, size: tuple[int, int], what: str) -> Tensor:
    """Code of pixel indices (N, p, 2), (x, y); half a pixel leads from an index to its centre."""
    if not bool(torch.isfinite(pixels).all()):
        raise PromptError(
            f"prompt {what} hold NaN or Inf; give finite (x, y) pixels; label -10 marks points that fill up a row"
        )
    matrix = encoder.shared_embedding.positional_embedding
    wide = torch.promote_types(torch.promote_types(pixels.dtype, matrix.dtype), torch.float32)
    extent = torch.tensor((size[1], size[0]), device=pixels.device, dtype=wide)
    return fourier_code(matrix, (pixels.to(wide) + 0.5) / extent)


def _embed_dense(encoder: Any, prompts: "Prompts", size: tuple[int, int], patch_size: int, channels: int) -> Tensor:
    grid = (size[0] // patch_size, size[1] // patch_size)
    if prompts.dense is not None:
        _expect("prompts.dense", prompts.dense, (len(prompts), channels, *grid))
        return prompts.dense
    if prompts.masks is not None:
        _expect("prompts.masks", prompts.masks, (len(prompts), 1, 4 * grid[0], 4 * grid[1]))
        dense: Tensor = encoder.mask_embed(prompts.masks.to(encoder.no_mask_embed.weight.dtype))
        return dense
    no_mask: Tensor = encoder.no_mask_embed.weight
    return no_mask.reshape(1, -1, 1, 1).expand(len(prompts), -1, *grid)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}; expected {shape} for these features; resize it to fit"
        )


def decode_masks(
    decoder: Any,
    features: Features,
    embeddings: tuple[Tensor, Tensor],
    code: Tensor,
    image_index: Tensor,
    *,
    multimask: bool | None,
    patch: MaskDecoderPatch | None = None,
    guidance: Guidance | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the mask decoder once for n prompts.

    Args:
        decoder: ``SamMaskDecoder``.
        features: Of B images.
        embeddings: Sparse (n, k, C) and dense (n, C, h, w), from :func:`embed_prompts`.
        code: (1, C, h, w), from :func:`image_code`.
        image_index: (n,), which image each prompt belongs to.
        multimask: Three masks instead of one; None for all four, the single one first.
        patch: Extra tokens and another ending, or None.
        guidance: Where these n prompts shall look and what for, or None.

    Returns:
        Mask logits (n, K, 4h, 4w) and predicted IoU (n, K).
    """
    sparse, dense = embeddings
    number, channels, height, width = dense.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    extra = None if patch is None else patch.tokens()
    added = own[:0] if extra is None else extra.to(own.dtype)
    image = features.neck.index_select(0, image_index) + dense
    apart = patch is not None and patch.apart and len(added) > 0
    queries, seen, keys = two_way(decoder.transformer, own, added, sparse, image, code, apart=apart, guidance=guidance)
    image = keys.transpose(1, 2).reshape(number, channels, height, width)
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled))

    count = decoder.num_mask_tokens
    wanted = range(1, count) if multimask else range(count if multimask is None else 1)
    weights = torch.stack([decoder.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in wanted], dim=1)
    logits = (weights @ upscaled.flatten(2)).reshape(number, len(wanted), *upscaled.shape[-2:])
    iou = decoder.iou_prediction_head(queries[:, 0])[:, wanted.start : wanted.stop]
    if patch is None:
        return logits, iou
    state = MaskDecoderState(
        features=features,
        image_index=image_index,
        mask_tokens=queries[:, 1 : 1 + count],
        extra_tokens=seen,
        image=image,
        upscaled=upscaled,
        logits=logits,
        iou=iou,
        multimask=bool(multimask),
    )
    return patch.finish(state)


def two_way(
    transformer: Any,
    own: Tensor,
    added: Tensor,
    sparse: Tensor,
    image: Tensor,
    code: Tensor,
    *,
    apart: bool = False,
    guidance: Guidance | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """SAM's two-way transformer with further tokens.

    Args:
        transformer: ``SamTwoWayTransformer``.
        own: (T, C), the decoder's tokens.
        added: (t, C), further tokens; they stand behind ``own`` and before ``sparse``.
        sparse: (n, k, C), tokens of the prompts.
        image: (n, C, h, w).
        code: (1, C, h, w), from :func:`image_code`.
        apart: The added tokens see everything, and nothing sees them: all else is what it is without them, bit by bit.
        guidance: For these n prompts, or None; not with ``apart``.

    Returns:
        What became of ``own`` and ``sparse``, (n, T + k, C), of ``added``, (n, t, C), and of the image, (n, h w, C).

    Raises:
        ConfigError: guidance of tokens that stand apart.
    """
    number, first = sparse.shape[0], len(own)  # not len(sparse): torch.export records it as a symbol
    if not apart:
        tokens = torch.cat([own, added]) if len(added) else own
        start = torch.cat([tokens.expand(number, -1, -1), sparse.to(tokens.dtype)], dim=1)[:, None]
        queries, keys = guided(transformer, start, image, code, guidance)
        rest = torch.cat([queries[:, 0, :first], queries[:, 0, len(tokens) :]], dim=1) if len(added) else queries[:, 0]
        return rest, queries[:, 0, first : len(tokens)], keys[:, 0]
    if guidance is not None:
        raise ConfigError("guidance cannot steer a decoder patch whose tokens stand apart; use joined tokens with it")
    start = torch.cat([own.expand(number, -1, -1), sparse.to(own.dtype)], dim=1)[:, None]  # (n, 1, T + k, C)
    watching = added.expand(number, 1, -1, -1)
    place = torch.cat([watching, start], dim=2)
    keys = image.flatten(2).transpose(1, 2).unsqueeze(1)  # (n, 1, h w, C)
    key_place = code.flatten(2).transpose(1, 2).unsqueeze(1)
    queries, watched = start, watching
    for layer in transformer.layers:
        watched = _watch(layer, watched, queries, place, keys, key_place)
        queries, keys, _ = layer(
            queries=queries,
            keys=keys,
            query_point_embedding=start,
            key_point_embedding=key_place,
            attention_similarity=None,
        )
    last = []
    for tokens, at in ((queries, start), (watched, watching)):
        read, _ = transformer.final_attn_token_to_image(query=tokens + at, key=keys + key_place, value=keys)
        last.append(transformer.layer_norm_final_attn(tokens + read)[:, 0])
    return last[0], last[1], keys[:, 0]


def _watch(layer: Any, watched: Tensor, queries: Tensor, place: Tensor, keys: Tensor, key_place: Tensor) -> Tensor:
    """Tokens (n, 1, t, C) after one layer whose other tokens are ``queries`` and do not see them.

    Args:
        layer: ``SamTwoWayAttentionBlock``.
        watched: (n, 1, t, C) before the layer.
        queries: (n, 1, T, C), the other tokens before the layer.
        place: (n, 1, t + T, C), what is added to both as their place.
        keys: (n, 1, S, C), the image before the layer.
        key_place: (1, 1, S, C).
    """
    everyone, own_place = torch.cat([watched, queries], dim=2), place[:, :, : watched.shape[2]]
    if layer.skip_first_layer_pe:
        watched, _ = layer.self_attn(query=watched, key=everyone, value=everyone)
    else:
        read, _ = layer.self_attn(query=watched + own_place, key=everyone + place, value=everyone)
        watched = watched + read
    watched = layer.layer_norm1(watched)
    read, _ = layer.cross_attn_token_to_image(
        query=watched + own_place, key=keys + key_place, value=keys, attention_similarity=None
    )
    watched = layer.layer_norm2(watched + read)
    result: Tensor = layer.layer_norm3(watched + layer.mlp(watched))
    return result
