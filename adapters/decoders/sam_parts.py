"""Parts of SAM's mask decoder that decoder patches read from a frozen backbone."""

import torch
from torch import Tensor
from transformers.models.sam.modeling_sam import SamMaskDecoder

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.decoding import image_code
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError


def sam_mask_decoder(backbone: Backbone) -> SamMaskDecoder:
    """The frozen mask decoder.

    Raises:
        ConfigError: the backbone has none of SAM's shape.
    """
    decoder = getattr(getattr(backbone, "sam", None), "mask_decoder", None)
    if not isinstance(decoder, SamMaskDecoder):
        raise ConfigError(
            f"backbone {backbone.spec.name!r} has no SAM mask decoder; class tokens need one; use decoder 'mask'"
        )
    return decoder


def no_mask_dense(backbone: Backbone, neck: Tensor) -> Tensor:
    """(1, C, h, w): the dense embedding that says "no mask was given", for a neck (B, C, h, w)."""
    patch = backbone.spec.patch_size
    empty = Prompts(image_index=torch.zeros(1, dtype=torch.int64, device=neck.device))
    _, dense = backbone.embed(empty, (neck.shape[-2] * patch, neck.shape[-1] * patch))
    return dense


def image_positions(backbone: Backbone, neck: Tensor) -> Tensor:
    """(1, C, h, w): position code of the neck's cells, the same that the backbone's own decoder uses.

    Raises:
        ConfigError: the backbone has no position code of SAM's kind.
    """
    code = getattr(getattr(backbone, "sam", None), "shared_image_embedding", None)
    if code is None:
        raise ConfigError(f"backbone {backbone.spec.name!r} has no shared position code; class tokens need one")
    return image_code(code.positional_embedding, (neck.shape[-2], neck.shape[-1]))
