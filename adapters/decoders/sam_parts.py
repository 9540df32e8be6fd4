"""Parts of SAM's mask decoder that decoder patches read from a frozen backbone."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamMaskDecoder

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.backbones.decoding import image_code
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError, NoMatchError

M = TypeVar("M", bound=nn.Module)


def sam_mask_decoder(backbone: Backbone) -> SamMaskDecoder:
    """The frozen mask decoder.

    Raises:
        ConfigError: the backbone has none of SAM's shape.
    """
    decoder = getattr(getattr(backbone, "sam", None), "mask_decoder", None)
    if not isinstance(decoder, SamMaskDecoder):
        raise ConfigError(
            f"backbone {backbone.spec.name!r} has no SAM mask decoder; this decoder needs one; use decoder 'mask'"
        )
    return decoder


def sam_backbone(backbone: Backbone) -> HFSamBackbone:
    """``backbone``, whose mask decoder takes further tokens.

    Raises:
        ConfigError: its decoder is not of SAM's shape.
    """
    sam_mask_decoder(backbone)
    if not isinstance(backbone, HFSamBackbone):
        raise ConfigError(f"backbone {backbone.spec.name!r} takes no decoder patch; load one with load_backbone")
    return backbone


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
        raise ConfigError(f"backbone {backbone.spec.name!r} has no shared position code; this decoder needs one")
    return image_code(code.positional_embedding, (neck.shape[-2], neck.shape[-1]))


def trainable_copy(module: M) -> M:
    """A copy of a frozen module whose parameters are trained."""
    return copy.deepcopy(module).requires_grad_(True)


def taps_of(owner: str, taps: tuple[int, ...], features: Features) -> list[Tensor]:
    """Outputs (B, h, w, D) of the blocks ``taps``.

    Raises:
        ConfigError: ``features`` lack one.
    """
    missing = [tap for tap in taps if tap not in features.taps]
    if missing:
        raise ConfigError(
            f"{owner} reads blocks {list(taps)}; features lack {missing}; encode with taps=decoder.taps, or through "
            "Grafted.encode"
        )
    return [features.taps[tap] for tap in taps]


def check_taps(owner: str, taps: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """``taps`` in ascending order, each once.

    Raises:
        NoMatchError: an index that does not exist.
    """
    bad = [tap for tap in taps if not 0 <= tap < num_blocks]
    if bad:
        raise NoMatchError(f"{owner}: taps {list(taps)} name {bad}; the backbone has blocks 0..{num_blocks - 1}")
    return tuple(sorted(set(taps)))
