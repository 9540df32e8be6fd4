"""From prompts to one mask each, and again with that mask as a prompt: the steps that one-shot methods share.

Source:
    PerSAM, arXiv:2305.03048, section 3.2 (cascaded post-refinement).
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import FoundObjects, boxes_of
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Features, Promptable
    from samgraft.adapters.backbones.guidance import Guidance


def decode_best(
    backbone: "Promptable",
    features: "Features",
    prompts: Prompts,
    *,
    multimask: bool,
    guidance: "Guidance | None" = None,
    mix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One mask for each prompt: the one that the decoder thinks best, or a mixture.

    Args:
        backbone: Any backbone.
        features: Of B images.
        prompts: N prompts.
        multimask: Choose among three masks instead of taking the single one.
        guidance: For the N prompts.
        mix: (N, 3) shares of the three masks, instead of a choice.

    Returns:
        Logits (N, 4h, 4w) and predicted IoU (N,).

    Raises:
        ConfigError: guidance, and a backbone without SAM's mask decoder.
    """
    options: dict[str, Any] = {"multimask": multimask or mix is not None}
    if guidance is not None:
        if not hasattr(backbone, "sam"):
            raise ConfigError(
                f"backbone {backbone.spec.name!r} has no SAM mask decoder to guide; switch the guidance off"
            )
        options["guidance"] = guidance
    logits, iou = backbone.decode(features, prompts, **options)
    if mix is not None:
        mix = mix.to(logits)
        return (mix[:, :, None, None] * logits).sum(dim=1), (mix * iou).sum(dim=1)
    rows = torch.arange(len(prompts), device=iou.device)
    best = iou.argmax(dim=1)
    return logits[rows, best], iou[rows, best]


def refine(
    backbone: "Promptable",
    features: "Features",
    prompts: Prompts,
    found: tuple[Tensor, Tensor],
    size: tuple[int, int],
    *,
    boxed: bool,
    mix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ask again with what was found as mask prompt; an empty mask stays as it is.

    Args:
        backbone: Any backbone.
        features: Of B images.
        prompts: The N prompts of before; their points are kept.
        found: Logits (N, 4h, 4w) and predicted IoU (N,).
        size: (H, W) of the network input.
        boxed: Give the tight box of the mask too.
        mix: As for :func:`decode_best`.

    Returns:
        Logits (N, 4h, 4w) and predicted IoU (N,).
    """
    logits, iou = found
    rows = (logits > 0).flatten(1).any(dim=1).nonzero().flatten()
    if len(rows) == 0:
        return found
    some = replace(prompts.select(rows), masks=logits[rows][:, None], dense=None)
    if boxed:
        some = replace(some, boxes=tight_boxes(logits[rows], size))
    shares = None if mix is None else mix[rows]
    better, quality = decode_best(backbone, features, some, multimask=True, mix=shares)
    return logits.index_copy(0, rows, better), iou.index_copy(0, rows, quality)


def decode_refined(
    backbone: "Promptable",
    features: "Features",
    prompts: Prompts,
    size: tuple[int, int],
    *,
    multimask: bool,
    rounds: int = 0,
    boxed_from: int = 0,
    mix: Tensor | None = None,
    mixed: bool = True,
    guidance: "Guidance | None" = None,
) -> tuple[Tensor, Tensor]:
    """:func:`decode_best`, then :func:`refine` as often as asked.

    Args:
        backbone: Any backbone.
        features: Of B images.
        prompts: N prompts.
        size: (H, W) of the network input.
        multimask: Choose among three masks in the first answer.
        rounds: How often the decoder is asked again.
        boxed_from: The first of these rounds that is given the box of the mask too.
        mix: As for :func:`decode_best`.
        mixed: Mix the masks of the rounds too, instead of choosing one.
        guidance: Of the first answer.

    Returns:
        Logits (N, 4h, 4w) and predicted IoU (N,).
    """
    found = decode_best(backbone, features, prompts, multimask=multimask, guidance=guidance, mix=mix)
    for number in range(rounds):
        shares = mix if mixed else None
        found = refine(backbone, features, prompts, found, size, boxed=number >= boxed_from, mix=shares)
    return found


def tight_boxes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) boxes in pixels of an input of ``size`` (H, W) around logits (N, h', w') above 0; zeros where none is."""
    boxes = []
    for some in logits.split(16):  # at full size masks take memory
        large = functional.interpolate(some[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
        boxes.append(boxes_of(large > 0))
    return torch.cat(boxes).to(logits.dtype)


def found_objects(prompts: Prompts, logits: Tensor, scores: Tensor, num_objects: int) -> FoundObjects:
    """Objects of image-major prompts, ``num_objects`` for each image; scores are clipped to [0, 1]."""
    number = torch.arange(len(prompts), device=logits.device)
    return FoundObjects(
        image_index=prompts.image_index,
        logits=logits,
        scores=scores.clamp(0, 1),
        classes=number % num_objects,
        from_ground_truth=prompts.from_ground_truth,
    )
