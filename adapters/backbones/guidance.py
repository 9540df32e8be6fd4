"""Telling the mask decoder where to look and what to look for: a bias on its attention, and a vector for its tokens.

The two-way transformer of SAM's decoder lets tokens attend to the image once per layer, and once more at the end.
A :class:`Guidance` changes the first kind only: cells with a larger bias get more attention in every head. It may also
add one vector to all tokens before each layer.

    "additive"   softmax(q k / sqrt(d) + bias)
    "published"  softmax(softmax(q k / sqrt(d)) + bias), which is nearly uniform over the image

Cells are those of the features, (h, w) row by row, so the bias fits images of any shape.

Source:
    PerSAM, arXiv:2305.03048, section 3.2 (target-guided attention, target-semantic prompting).
Deviations:
    The additive form is not the published one. The released code makes the bias from a map of the unpadded image that
    is squashed to a square, so on images that are not square it is shifted against the keys; here it is given per cell.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamAttention

from samgraft.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """What the mask decoder is told beside prompts, for n prompts."""

    bias: Tensor | None = None
    """(n, h, w) finite: for the attention of tokens to the image, in the layers (not in the last attention)."""
    target: Tensor | None = None
    """(n, C): added to every token before each layer, and to the query of the last attention."""
    double_softmax: bool = False
    """The published form."""

    def select(self, rows: Tensor) -> "Guidance":
        """That of the prompts named by ``rows`` (indices or a boolean mask)."""
        return Guidance(
            bias=None if self.bias is None else self.bias[rows],
            target=None if self.target is None else self.target[rows],
            double_softmax=self.double_softmax,
        )

    def check(self, number: int, grid: tuple[int, int], channels: int) -> None:
        """Refuse what does not fit ``number`` prompts on features of ``grid`` (h, w) with ``channels``.

        Raises:
            ShapeError: ``bias`` or ``target`` has another shape.
        """
        for name, tensor, shape in (
            ("bias", self.bias, (number, *grid)),
            ("target", self.target, (number, channels)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"guidance.{name} has shape {tuple(tensor.shape)}; expected {shape}, one row per prompt on the "
                    "grid of the features"
                )


def guided(
    transformer: Any, queries: Tensor, image: Tensor, code: Tensor, guidance: Guidance | None
) -> tuple[Tensor, Tensor]:
    """Run the decoder's transformer.

    Args:
        transformer: ``SamTwoWayTransformer``.
        queries: (n, 1, T, C) tokens.
        image: (n, C, h, w).
        code: (1, C, h, w).
        guidance: For these n prompts, or None.

    Returns:
        Tokens (n, 1, T, C) and image (n, 1, h w, C).

    Raises:
        ShapeError: the guidance does not fit.
        ConfigError: the published form, and an attention layer is wrapped.
    """
    bias = target = None
    if guidance is not None:
        guidance.check(len(queries), (image.shape[2], image.shape[3]), image.shape[1])
        if guidance.bias is not None:
            bias = guidance.bias.flatten(1)[:, None, None].to(queries.dtype)  # (n, 1, 1, h w)
        if guidance.target is not None:
            target = guidance.target[:, None, None].to(queries.dtype)  # (n, 1, 1, C)
        if guidance.double_softmax and bias is not None:
            return _published(transformer, queries, image, code, bias, target)
    found: tuple[Tensor, Tensor] = transformer(
        point_embeddings=queries,
        image_embeddings=image,
        image_positional_embeddings=code,
        attention_similarity=bias,
        target_embedding=target,
    )
    return found


def _published(
    transformer: Any, queries: Tensor, image: Tensor, code: Tensor, bias: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same with the attention normalised twice; the tokens' own code takes the target too, as in ``transformers``.

    Raises:
        ConfigError: an attention layer is wrapped, as grafts on the decoder do.
    """
    keys, place = (x.flatten(2).transpose(1, 2)[:, None] for x in (image, code))  # (n, 1, S, C)
    own = queries if target is None else queries + target
    tokens = own
    for number, layer in enumerate(transformer.layers):
        if number and target is not None:
            tokens = tokens + target
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(query=tokens, key=tokens, value=tokens)[0]
        else:
            tokens = tokens + layer.self_attn(query=tokens + own, key=tokens + own, value=tokens)[0]
        tokens = layer.layer_norm1(tokens)
        seen = _twice_normalised(layer.cross_attn_token_to_image, tokens + own, keys + place, keys, bias)
        tokens = layer.layer_norm2(tokens + seen)
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        answer = layer.cross_attn_image_to_token(query=keys + place, key=tokens + own, value=tokens)[0]
        keys = layer.layer_norm4(keys + answer)
    last = transformer.final_attn_token_to_image(query=tokens + own, key=keys + place, value=keys)[0]
    return transformer.layer_norm_final_attn(tokens + last), keys


def _twice_normalised(attention: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(softmax(q k) + bias) v: (n, 1, T, C)."""
    if type(attention) is not SamAttention:
        raise ConfigError(
            f"the published form of guidance needs SAM's own attention layers; found {type(attention).__name__}; "
            "detach grafts of the decoder, or use the additive form"
        )
    heads = attention.num_attention_heads
    q, k, v = (
        projection(x)[:, 0].unflatten(-1, (heads, -1)).transpose(1, 2)  # (n, H, T or S, d)
        for projection, x in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value))
    )
    weights = functional.softmax(q @ k.transpose(2, 3) * attention.scaling, dim=-1)
    found = functional.softmax(weights + bias, dim=-1) @ v
    joined: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2))
    return joined[:, None]
