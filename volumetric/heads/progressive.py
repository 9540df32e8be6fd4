"""MA-SAM's progressive decoder: SAM's two-way transformer with a token per class, and logits at every pixel.

    tokens, neck + "no mask" -> transformer -> as many doublings as the patch has factors of 2 (C/4, C/8, C/16, C/32)
      -> MLP of each class token . map -> (K, H, W)

Slices are decoded one by one; that they belong together is what the grafts of the encoder know. For SAM and 13 channels
5,108,800 parameters: those of the published 5,243,725 that are not in the IoU head, which class maps do not read.

Source:
    MA-SAM, arXiv:2309.08842, section 3 (progressive up-sampling); layers from its code (cchen-cc/MA-SAM,
    segment_anything/modeling/mask_decoder.py).
Deviations:
    The embedding of "no mask" is read from the frozen prompt encoder. Background is an explicit channel or, with
    "sigmoid", none. A patch of 8 pixels has three doublings, so that its logits lie on the pixels too.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.conv_head import doubled
from samgraft.adapters.decoders.sam_parts import image_positions, no_mask_dense, sam_mask_decoder, trainable_copy
from samgraft.adapters.decoders.semantic import SemanticConfig

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

MOST = 4
"""Doublings at most: those of a patch of 16 pixels."""
LEAST_WIDTH = 8
"""Channels of the finest map at least."""


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(SemanticConfig):
    """A token per class, and logits at full resolution."""

    method: ClassVar[str] = "progressive"
    train_transformer: bool = True
    """Train a copy of the two-way transformer, as published; else read the frozen one."""

    def build(self, backbone: Backbone) -> "ProgressiveDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return ProgressiveDecoder(self, backbone)


class ProgressiveDecoder(DecoderPatch):
    """Class tokens, transformer, doublings.

    Attributes:
        tokens: (1 + K, C): SAM's IoU token, which takes part and is not read, and one per class.
    """

    def __init__(self, config: ProgressiveConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        decoder, channels = sam_mask_decoder(backbone), backbone.spec.neck_channels
        first, masks = decoder.iou_token.weight.detach(), decoder.mask_tokens.weight.detach()
        fresh = masks.std() * torch.randn(config.num_channels, channels, device=masks.device, dtype=masks.dtype)
        self.tokens = nn.Parameter(torch.cat([first, fresh]))
        self.transformer = trainable_copy(decoder.transformer) if config.train_transformer else None
        widths = [channels, *(max(LEAST_WIDTH, channels // 4 // 2**step) for step in range(doublings(backbone)))]
        with torch.device(masks.device):
            steps = [doubled(*pair) for pair in pairwise(widths)]
            layers = [layer for step in steps for layer in step]
            del layers[-2]  # as in SAM, no norm after the last doubling
            self.upscale = nn.Sequential(*layers)
            self.mlps = nn.ModuleList(_mlp(channels, widths[-1]) for _ in range(config.num_channels))
        for part in (self.upscale, self.mlps):
            part.to(masks.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, H, W) of the neck (B, C, h, w); ``image`` and ``prompts`` are not used."""
        del image, prompts
        source = features.neck + no_mask_dense(backbone, features.neck)
        batch, _, height, width = source.shape
        transformer = sam_mask_decoder(backbone).transformer if self.transformer is None else self.transformer
        tokens, keys = transformer(
            point_embeddings=self.tokens.expand(batch, 1, -1, -1),
            image_embeddings=source,
            image_positional_embeddings=image_positions(backbone, source).expand(batch, -1, -1, -1),
            attention_similarity=None,
        )  # (B, 1, 1 + K, C), (B, 1, h w, C)
        fine = self.upscale(keys[:, 0].transpose(1, 2).unflatten(2, (height, width)))  # (B, c, H, W)
        weights = torch.stack([mlp(tokens[:, 0, 1 + k]) for k, mlp in enumerate(self.mlps)], dim=1)  # (B, K, c)
        logits = (weights @ fine.flatten(2)).unflatten(2, fine.shape[-2:])
        return SemanticOutput(logits=logits, activation=self.config.activation)


def doublings(backbone: Backbone) -> int:
    """How often the patch can be halved, at most :data:`MOST` times."""
    patch, count = backbone.spec.patch_size, 0
    while patch % 2 == 0 and count < MOST:
        patch, count = patch // 2, count + 1
    return count


def _mlp(channels: int, outputs: int) -> nn.Sequential:
    """Token to the weights of a classifier; as SAM's hypernetworks."""
    inner = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*inner, nn.Linear(channels, outputs))
