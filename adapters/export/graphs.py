"""What is written to ONNX: encoder, prompt decoder and adapted network, each a module of tensors only.

``Backbone.decode`` looks at values (which prompts share an image, whether labels are known) and so cannot be recorded;
the modules here run the same parts without looking.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.decoding import NOT_A_POINT, decode_masks, fourier_code, image_code
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError

CORNER = 2
"""Label of a box's top-left corner; the bottom-right one has the next number."""


class EncoderGraph(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to neck (B, C, h, w); normalisation is inside.

    Args:
        backbone: The frozen backbone; shared, not copied.
    """

    def __init__(self, backbone: HFSamBackbone) -> None:
        """Hold the backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """The neck."""
        return self.backbone.encode(image).neck


class DecoderGraph(nn.Module):
    """Prompts of one image to masks.

    A prompt is a row of K labelled points, as in the ONNX model of Segment Anything: 1 foreground, 0 background, 2 and
    3 the corners of a box, -1 "not a point", -10 nothing. A prompt without a box needs one point of label -1, which
    SAM was trained with; ``Backbone.decode`` adds it by itself.

    Args:
        backbone: Its prompt encoder and mask decoder are shared, not copied.
    """

    def __init__(self, backbone: HFSamBackbone) -> None:
        """Hold the parts."""
        super().__init__()
        self.prompt_encoder, self.mask_decoder = backbone.sam.prompt_encoder, backbone.sam.mask_decoder
        self.patch_size = backbone.spec.patch_size

    def forward(
        self, neck: Tensor, points: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All four masks of SAM: the first for an unambiguous prompt, the others for an ambiguous one.

        Args:
            neck: (1, C, h, w) of the encoder.
            points: (N, K, 2) float, (x, y) in pixels of the network input; 0 is the first pixel's centre.
            labels: (N, K) int64.
            mask: (N, 1, 4h, 4w) float, logits of an earlier mask; read only where ``has_mask`` is 1.
            has_mask: (N,) float, 1 or 0.

        Returns:
            Mask logits (N, 4, 4h, 4w) and predicted IoU (N, 4).
        """
        height, width = neck.shape[-2:]
        encoder: Any = self.prompt_encoder
        matrix = encoder.shared_embedding.positional_embedding
        extent = torch.tensor((width * self.patch_size, height * self.patch_size), dtype=points.dtype)
        code = fourier_code(matrix, (points + 0.5) / extent)  # (N, K, C)
        kind = labels[..., None]
        sparse = torch.zeros_like(code)
        for label, embedding in enumerate(encoder.point_embed):
            sparse = torch.where(kind == label, code + embedding.weight, sparse)
        sparse = torch.where(kind == NOT_A_POINT, encoder.not_a_point_embed.weight, sparse)
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask[:, None, None, None] > 0.5, encoder.mask_embed(mask), no_mask)
        return decode_masks(
            self.mask_decoder,
            Features(neck=neck),
            (sparse, dense),
            image_code(matrix, (height, width)),
            torch.zeros_like(has_mask, dtype=torch.int64),
            multimask=None,
        )


class AdaptedGraph(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to class logits (B, K, h', w').

    Args:
        grafted: Backbone with its parts; shared, not copied.

    Raises:
        ConfigError: nothing attached gives class maps, or the prompter writes points or boxes.
    """

    def __init__(self, grafted: Grafted) -> None:
        """Check that every part can be recorded."""
        super().__init__()
        self.grafted = grafted
        head = grafted.decoder
        if head is not None and not head.needs_prompts:
            return
        if grafted.prompter is None or grafted.prompter.num_classes < 1:
            method = "none" if grafted.prompter_config is None else grafted.prompter_config.method
            raise ConfigError(
                f"an exported model needs a head that gives class maps; the prompter is {method} and the decoder "
                "answers prompts; train with head class_tokens or autosam, or export the backbone without an adapter"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Class logits."""
        backbone = cast(HFSamBackbone, self.grafted.backbone)
        features = self.grafted.encode(image)
        head = self.grafted.decoder
        if head is not None and not head.needs_prompts:
            logits: Tensor = head(backbone, features, image, None).logits
            return logits
        prompts = self.grafted.prompt(features, image)
        if prompts.dense is None or prompts.points is not None or prompts.boxes is not None:
            raise ConfigError("the prompter writes points or boxes, which cannot be exported; use autosam")
        sparse = prompts.dense.new_zeros(prompts.dense.shape[0], 0, prompts.dense.shape[1])
        matrix = backbone.sam.shared_image_embedding.positional_embedding
        height, width = features.neck.shape[-2:]
        code = image_code(matrix, (height, width))
        embeddings = (sparse, prompts.dense)
        masks, _ = decode_masks(
            backbone.sam.mask_decoder, features, embeddings, code, prompts.image_index, multimask=False
        )
        return masks.reshape(image.shape[0], -1, *masks.shape[-2:])
