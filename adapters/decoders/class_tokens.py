"""Class-token decoder: one learned token per class goes through the frozen two-way transformer; no prompt is needed.

The frozen mask decoder answers prompts; this one answers a fixed list of classes, background among them. Tokens attend
to the image in the backbone's transformer (frozen, or a trainable copy), which also updates the image features. These,
with earlier encoder blocks, are brought back to fine resolution along a convolutional path that meets the image itself.
A plain classifier reads the result, and a hypernetwork turns each token into a second one that knows the whole image;
it starts small. Everything the backbone owns is read at call time and never stored here.

    neck -> transformer(tokens) -> keys + taps -> detail path(image) -> classifier + hypernetwork(tokens) -> logits

Source:
    SAMed, arXiv:2304.13785 (classes + background, softmax); AutoSAM heads, arXiv:2306.13731 (learned tokens on a frozen
    encoder); the path is described in ``samgraft.adapters.decoders.detail``. docs/adr/0005-class-token-decoder.md says
    what was measured.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.detail import DetailPath, TokenFusion, finest_stride
from samgraft.adapters.decoders.sam_parts import (
    check_taps,
    image_positions,
    no_mask_dense,
    sam_mask_decoder,
    taps_of,
    trainable_copy,
)
from samgraft.adapters.decoders.semantic import SemanticConfig
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True)
class ClassTokensConfig(SemanticConfig):
    """Semantic decoder with explicit background."""

    method: ClassVar[str] = "class_tokens"
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks read beside the neck: "auto" (after a quarter, half and three quarters), "none", or indices."""
    width: int = 16
    """Channels of the detail path at a quarter of the patch; doubled at every coarser level."""
    fused: int = 64
    """Channels of the joined token maps."""
    full_resolution: bool = False
    """Logits at H x W; else four per patch side, as SAM's masks (the nearest power of 2 below)."""
    train_transformer: bool = False
    """Train a copy of the two-way transformer instead of reading the frozen one."""
    dropout: float = 0.0
    """Probability of dropping whole channels of the joined token maps while training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        if isinstance(self.taps, str):
            check_choice(self.method, "taps", self.taps, ("auto", "none"))
        for name, value in (("width", self.width), ("fused", self.fused)):
            if value < 8:
                raise ConfigError(f"class_tokens: {name} is {value}; expected at least 8 channels")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"class_tokens: dropout is {self.dropout}; expected a probability in [0, 1)")

    def build(self, backbone: Backbone) -> "ClassTokenDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return ClassTokenDecoder(self, backbone)


class ClassTokenDecoder(DecoderPatch):
    """Learned class tokens on a frozen mask decoder.

    Attributes:
        class_tokens: (K, C), starting near the backbone's mask tokens.
        hypernetwork: Token (C,) to the weights of a classifier on the fine map; its last layer starts small.
    """

    def __init__(self, config: ClassTokensConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        spec = backbone.spec
        self.taps = resolve_taps(config.taps, spec.num_blocks)
        decoder = sam_mask_decoder(backbone)
        like = decoder.mask_tokens.weight
        self.class_tokens = nn.Parameter(_initial_tokens(like, config.num_channels))
        self.transformer = trainable_copy(decoder.transformer) if config.train_transformer else None
        stride = 1 if config.full_resolution else finest_stride(spec.patch_size)
        channels = spec.neck_channels
        with torch.device(like.device):
            self.fusion = TokenFusion(len(self.taps), spec.embed_dim, channels, config.fused)
            self.dropout = nn.Dropout2d(config.dropout)
            self.path = DetailPath(config.fused, spec.patch_size, stride=stride, width=config.width)
            fine = self.path.widths[0]
            self.classifier = nn.Conv2d(fine, config.num_channels, 1)
            self.hypernetwork = nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, fine)
            )
        nn.init.normal_(cast(Tensor, self.hypernetwork[-1].weight), std=0.01 / math.sqrt(channels))
        nn.init.zeros_(cast(Tensor, self.hypernetwork[-1].bias))
        for part in (self.fusion, self.path, self.classifier, self.hypernetwork):
            part.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, H / s, W / s) with s a quarter of the patch, or 1; ``prompts`` are not used."""
        del prompts
        taps = taps_of("class_tokens", self.taps, features)
        tokens, keys = self._attend(backbone, features.neck + no_mask_dense(backbone, features.neck))
        fused = self.dropout(self.fusion(taps, keys))  # (B, fused, h, w)
        detail = self.path(image.to(fused.dtype), fused)  # (B, F, H / s, W / s)
        weights = self.hypernetwork(tokens)  # (B, K, F)
        by_token = (weights @ detail.flatten(2)).unflatten(2, detail.shape[-2:])
        return SemanticOutput(logits=self.classifier(detail) + by_token, activation=self.config.activation)

    def _attend(self, backbone: Backbone, source: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens (B, K, C) and image features (B, C, h, w) after the two-way transformer."""
        decoder = sam_mask_decoder(backbone)
        batch, _, height, width = source.shape
        tokens = torch.cat([decoder.iou_token.weight, self.class_tokens])  # (1 + K, C)
        transformer = decoder.transformer if self.transformer is None else self.transformer
        tokens, keys = transformer(
            point_embeddings=tokens.expand(batch, 1, -1, -1),
            image_embeddings=source,
            image_positional_embeddings=image_positions(backbone, source).expand(batch, -1, -1, -1),
            attention_similarity=None,
        )  # (B, 1, 1 + K, C), (B, 1, h w, C)
        return tokens[:, 0, 1:], keys[:, 0].transpose(1, 2).unflatten(2, (height, width))


def resolve_taps(taps: str | tuple[int, ...], num_blocks: int, owner: str = "class_tokens") -> tuple[int, ...]:
    """Block indices that ``taps`` means for an encoder of ``num_blocks``; never the last block for "auto".

    Args:
        taps: "auto", "none" or indices.
        num_blocks: Blocks of the encoder.
        owner: Who reads them, for the message.

    Raises:
        NoMatchError: an index that does not exist.
    """
    if taps == "none":
        return ()
    if isinstance(taps, str):
        chosen = {math.ceil(num_blocks * part) - 1 for part in (0.25, 0.5, 0.75)}
        return tuple(sorted(block for block in chosen if 0 <= block < num_blocks - 1))
    return check_taps(owner, taps, num_blocks)


def _initial_tokens(mask_tokens: Tensor, number: int) -> Tensor:
    """(number, C): the mean mask token plus noise of half the tokens' spread, so that classes can part."""
    base = mask_tokens.detach()
    spread = 0.5 * base.std()
    return base.mean(dim=0) + spread * torch.randn(number, base.shape[1], device=base.device, dtype=base.dtype)
