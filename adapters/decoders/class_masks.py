"""Class-prompted mask decoder of AutoSAM (heads): SAM's mask decoder with tokens of its own for every class.

Each class is asked for apart: its IoU token and two mask tokens go through a trainable copy of SAM's mask decoder,
beside the image alone and without a prompt, and the first mask token gives the class's logits:

    neck + "no mask", tokens of class c -> two-way transformer -> upscaled features . MLP(mask token 0) -> channel c

The tokens start as SAM's own with noise, so that classes can part, and the decoder as SAM's. 3 C values per class and,
with ``train_decoder``, a copy of the transformer, of the upscaling and of one MLP.

Source:
    How to Efficiently Adapt Large Segmentation Model (SAM) to Medical Images, arXiv:2306.13731, section on the
    prediction heads; its code (xhu248/AutoSAM, models/sam_decoder.py).
Deviations:
    The position code is SAM's; the released code draws a new random matrix, whose places the loaded weights do not
    know. The embedding of "no mask" is added as SAM does. Tokens start as SAM's (``init="published"``: random), and IoU
    tokens are trained, which the released code freezes at random values together with an IoU head that nothing reads.
    Images are normalised as the backbone wants them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.backbones.decoding import two_way
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.sam_parts import image_positions, no_mask_dense, sam_mask_decoder, trainable_copy
from samgraft.adapters.decoders.semantic import SemanticConfig

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

TOKENS = 3
"""Per class: an IoU token and two mask tokens."""
PARTS = ("transformer", "upscale_conv1", "upscale_layer_norm", "upscale_conv2", "output_hypernetworks_mlps")
"""Parts of SAM's mask decoder that are copied; of the MLPs the first one."""


@dataclass(frozen=True, kw_only=True)
class ClassMasksConfig(SemanticConfig):
    """SAM's mask decoder with tokens per class."""

    method: ClassVar[str] = "class_masks"
    train_decoder: bool = True
    """Train a copy of the mask decoder, as published; else read the frozen one, and train the tokens alone."""
    init: Literal["sam", "published"] = "sam"
    """Tokens start as SAM's with noise, or at random."""

    def __post_init__(self) -> None:
        """Check the choices."""
        super().__post_init__()
        check_choice(self.method, "init", self.init, ("sam", "published"))

    def build(self, backbone: Backbone) -> "ClassMaskDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return ClassMaskDecoder(self, backbone)


class ClassMaskDecoder(DecoderPatch):
    """One mask per class.

    Attributes:
        tokens: (K, 3, C).
        copies: Trainable parts of SAM's mask decoder by name; empty where the frozen ones are read.
    """

    def __init__(self, config: ClassMasksConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        decoder = sam_mask_decoder(backbone)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[:TOKENS].detach()
        noise = torch.randn(config.num_channels, *own.shape, device=own.device, dtype=own.dtype)
        self.tokens = nn.Parameter(noise if config.init == "published" else own + 0.5 * own.std() * noise)
        self.copies = nn.ModuleDict()
        if config.train_decoder:
            for name in PARTS:
                self.copies[name] = trainable_copy(_part(decoder, name))

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, 4h, 4w); ``image`` and ``prompts`` are not used."""
        del image, prompts
        decoder = sam_mask_decoder(backbone)
        transformer, first, norm, second, mlp = (
            self.copies[name] if name in self.copies else _part(decoder, name) for name in PARTS
        )
        source = features.neck + no_mask_dense(backbone, features.neck)
        batch, channels, height, width = source.shape
        classes = len(self.tokens)
        tokens = self.tokens.repeat(batch, 1, 1)  # (B K, 3, C)
        nothing = tokens[0, :0]
        queries, _, keys = two_way(
            transformer,
            nothing,
            nothing,
            tokens,
            source.repeat_interleave(classes, dim=0),
            image_positions(backbone, source),
            apart=False,
        )
        upscaled = keys.transpose(1, 2).reshape(batch * classes, channels, height, width)
        upscaled = decoder.activation(norm(first(upscaled)))
        upscaled = decoder.activation(second(upscaled))  # (B K, C / 8, 4h, 4w)
        logits = (mlp(queries[:, 1:2]) @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return SemanticOutput(logits=logits[:, 0].unflatten(0, (batch, classes)), activation=self.config.activation)


def _part(decoder: nn.Module, name: str) -> nn.Module:
    """A part of the mask decoder; of several MLPs the one of the single mask."""
    part = getattr(decoder, name)
    found: nn.Module = part[0] if isinstance(part, nn.ModuleList) else part
    return found
