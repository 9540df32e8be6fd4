"""SAM's mask decoder for many prompts on one image: the same function, with what prompts share computed once.

Until the first image-to-token attention every prompt sees the same image, so its keys and values are projected once.
And a prompt has few tokens: instead of projecting thousands of image tokens to attend to seven prompt tokens, the
projection is folded into the seven (``q . W k = (W' q) . k``). The upscaling runs channels-last as plain matrix
products. What is left is half of the arithmetic, on tensors that stay in the cache.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamAttention

UPSCALE_TOKENS = 1024
"""Image tokens whose 16 pixels each are computed together where no gradient is asked for: they stay in the cache."""


def can_share(decoder: Any) -> bool:
    """Whether every layer that is folded is what it was in SAM (a wrapped one, as for LoRA, is not).

    Self attention, MLPs and norms are called as modules, so those may be wrapped.
    """
    attentions = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    if any(type(attention) is not SamAttention for attention in attentions):
        return False
    linear = [getattr(a, name) for a in attentions for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    convolutions = (decoder.upscale_conv1, decoder.upscale_conv2)
    return all(type(layer) is nn.Linear for layer in linear) and all(
        type(layer) is nn.ConvTranspose2d and layer.stride == layer.kernel_size == (2, 2) for layer in convolutions
    )


class SharedImage:
    """One image, ready for prompts without masks.

    Args:
        decoder: ``SamMaskDecoder`` for which :func:`can_share` holds.
        image: (C, h, w): neck plus the embedding of "no mask".
        code: (1, C, h, w) position code.
    """

    def __init__(self, decoder: Any, image: Tensor, code: Tensor) -> None:
        """Project what all prompts share."""
        self.decoder, self.grid = decoder, (image.shape[1], image.shape[2])
        self.code = code[0].flatten(1).T.contiguous()  # (S, C)
        self.image = image.flatten(1).T.contiguous()
        self.placed = self.image + self.code
        attention = decoder.transformer.layers[0].cross_attn_token_to_image
        self.key = _heads(attention.k_proj(self.placed)[None], attention.num_attention_heads)  # (1, H, S, d)
        self.value = _heads(attention.v_proj(self.image)[None], attention.num_attention_heads)

    def decode(self, sparse: Tensor, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Mask logits (n, K, 4h, 4w) and predicted IoU (n, K) of prompts with tokens ``sparse`` (n, k, C)."""
        decoder = self.decoder
        wanted = range(1, decoder.num_mask_tokens) if multimask else range(1)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        code = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(own.dtype)], dim=1)  # (n, T, C)
        tokens, keys = code, self.image
        for number, layer in enumerate(decoder.transformer.layers):
            placed = keys + self.code if number else self.placed
            tokens = layer.layer_norm1(_attend_to_themselves(layer, tokens, code))
            attention = layer.cross_attn_token_to_image
            if number == 0:
                seen = self._first_look(attention, tokens + code)
            else:
                seen = look(attention, tokens + code, placed, keys)
            tokens = layer.layer_norm2(tokens + seen)
            tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
            keys = layer.layer_norm4(answer(layer.cross_attn_image_to_token, placed, tokens + code, tokens, keys))
        read = [0, *(1 + i for i in wanted)]  # the other tokens have said what they had to say
        tokens, code = tokens[:, read], code[:, read]
        seen = look(decoder.transformer.final_attn_token_to_image, tokens + code, keys, keys, place=self.code)
        tokens = decoder.transformer.layer_norm_final_attn(tokens + seen)
        heads = [decoder.output_hypernetworks_mlps[i] for i in wanted]
        weights = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
        iou: Tensor = decoder.iou_prediction_head(tokens[:, 0])
        return upscale(decoder, keys, weights, self.grid), iou[:, wanted.start : wanted.stop]

    def _first_look(self, attention: Any, query: Tensor) -> Tensor:
        """Prompt tokens of all n prompts as queries of one attention on the shared keys and values."""
        number, length, _ = query.shape
        heads = _heads(attention.q_proj(query).flatten(0, 1)[None], attention.num_attention_heads)
        found = functional.scaled_dot_product_attention(heads, self.key, self.value, scale=attention.scaling)
        joined: Tensor = attention.out_proj(found[0].transpose(0, 1).reshape(number, length, -1))
        return joined


def look(attention: Any, query: Tensor, key: Tensor, value: Tensor, *, place: Tensor | None = None) -> Tensor:
    """Prompt tokens (n, T, C) attend to image tokens (n, S, C); returns (n, T, C).

    ``place`` (S, C) is added to the keys, by a product of its own: with few queries that costs less than the sum. The
    bias of ``k_proj`` adds the same to all logits of a query, so it drops out; that of ``v_proj`` is added once,
    since weights sum to one.
    """
    heads, width = attention.num_attention_heads, query.shape[-1]
    folded = _heads(attention.q_proj(query), heads) @ _weight(attention.k_proj, heads)  # (n, H, T, C)
    folded = folded.flatten(1, 2) * attention.scaling
    logits = folded @ key.transpose(1, 2)  # (n, H T, S)
    if place is not None:
        logits += folded @ place.T
    context = (logits.softmax(-1) @ value).unflatten(1, (heads, -1))  # (n, H, T, C)
    found = context @ _weight(attention.v_proj, heads).transpose(1, 2)  # (n, H, T, d)
    joined: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return joined.view(*query.shape[:2], width)


def answer(attention: Any, query: Tensor, key: Tensor, value: Tensor, onto: Tensor) -> Tensor:
    """Image tokens attend to prompt tokens (n, T, C); the result is added to ``onto``, which may be overwritten.

    Args:
        attention: ``SamAttention``.
        query: (n, S, C), or (S, C) while all prompts share them.
        key: (n, T, C).
        value: (n, T, C).
        onto: As ``query``.

    Returns:
        (n, S, C).
    """
    heads, (number, length, _) = attention.num_attention_heads, key.shape
    projected = _heads(attention.k_proj(key), heads) * attention.scaling  # (n, H, T, d)
    folded = (projected @ _weight(attention.q_proj, heads)).flatten(1, 2)  # (n, H T, C)
    bias = projected @ attention.q_proj.bias.view(heads, -1, 1)  # (n, H, T, 1)
    if query.ndim == 2:  # one product for all prompts
        logits = (folded.flatten(0, 1) @ query.T).view(number, heads, length, -1)
        onto = onto.expand(number, -1, -1)
    else:
        logits = (folded @ query.transpose(1, 2)).unflatten(1, (heads, length))
    weights = logits.add_(bias).softmax(2).flatten(1, 2)  # (n, H T, S); the fast direction, for T is small
    spread = _weight(attention.out_proj, heads, output=True)  # (H, d, C)
    values = _heads(attention.v_proj(value), heads) @ spread + attention.out_proj.bias / heads  # weights sum to one
    same = onto.dtype == weights.dtype == values.dtype  # not so under autocast, which leaves in-place products alone
    keep = torch.is_grad_enabled() or query.ndim == 2 or not same  # else nobody reads the former image tokens again
    add = torch.baddbmm if keep else Tensor.baddbmm_
    summed: Tensor = add(onto, weights.transpose(1, 2), values.flatten(1, 2))
    return summed


def upscale(decoder: Any, image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks (n, K, 4h, 4w) of image tokens (n, S, C) and mask weights (n, K, C / 8)."""
    number, (height, width) = len(image), grid
    layers = (_double(decoder.upscale_conv1), _double(decoder.upscale_conv2))
    if torch.is_grad_enabled():
        masks = _finish(decoder, layers, image.flatten(0, 1)).unflatten(0, (number, -1)) @ weights.transpose(1, 2)
    else:
        masks = image.new_empty(number, 16 * height * width, weights.shape[1])
        together = max(1, UPSCALE_TOKENS // (height * width))
        tensors = (x.split(together) for x in (image, weights.transpose(1, 2), masks))
        for own, kernels, drawn in zip(*tensors, strict=True):
            for cells, pixels in zip(own.split(UPSCALE_TOKENS, 1), drawn.split(16 * UPSCALE_TOKENS, 1), strict=True):
                fine = _finish(decoder, layers, cells.flatten(0, 1)).unflatten(0, (len(own), -1))
                if fine.dtype == kernels.dtype == pixels.dtype:
                    torch.bmm(fine, kernels, out=pixels)
                else:  # under autocast
                    pixels.copy_(fine @ kernels)
    split: Tensor = masks.view(number, height, width, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return split.reshape(number, -1, 4 * height, 4 * width)


def _finish(decoder: Any, layers: Sequence[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor:
    """Image tokens (S, C) to pixels (16 S, C / 8): both doublings, row by row inside each token."""
    norm = decoder.upscale_layer_norm
    (weight, bias), (last_weight, last_bias) = layers
    fine = torch.addmm(bias, tokens, weight).view(-1, norm.normalized_shape[0])
    fine = decoder.activation(functional.layer_norm(fine, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
    finest: Tensor = decoder.activation(torch.addmm(last_bias, fine, last_weight))
    return finest.view(-1, finest.shape[1] // 4)


def _double(convolution: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A 2 x 2 transposed convolution of stride 2 as a product: weight (C, 4 C') and bias (4 C',)."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    bias = convolution.bias if convolution.bias is not None else weight.new_zeros(convolution.out_channels)
    return weight.contiguous(), bias.repeat(4)


def _attend_to_themselves(layer: Any, tokens: Tensor, code: Tensor) -> Tensor:
    if layer.skip_first_layer_pe:
        alone: Tensor = layer.self_attn(query=tokens[:, None], key=tokens[:, None], value=tokens[:, None])[0]
        return alone[:, 0]
    placed = (tokens + code)[:, None]
    changed: Tensor = layer.self_attn(query=placed, key=placed, value=tokens[:, None])[0]
    return tokens + changed[:, 0]


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n, S, H d) to (n, H, S, d)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def _weight(linear: Any, heads: int, *, output: bool = False) -> Tensor:
    """Rows of a projection by head, (H, d, C); for an output projection its columns, (H, d, C)."""
    weight = cast(Tensor, linear.weight)
    split: Tensor = (weight.T if output else weight).unflatten(0, (heads, -1))
    return split
