"""Trainable forward of a SAM-shaped model at any input size, and the losses of pretraining.

The frozen :class:`Backbone` cannot be trained by design, so pretraining walks the same modules itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel

from samgraft.adapters.backbones.tiny import TINY_MEAN, TINY_STD


def encode(model: SamModel, image: Tensor) -> Tensor:
    """Neck output (B, C, h, w) of images (B, 3, H, W) in [0, 1]."""
    encoder = model.vision_encoder
    mean, std = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (TINY_MEAN, TINY_STD))
    x = encoder.patch_embed.projection((image - mean) / std).permute(0, 2, 3, 1)  # (B, h, w, D)
    table = encoder.pos_embed
    if table.shape[1:3] != x.shape[1:3]:
        resized = F.interpolate(table.permute(0, 3, 1, 2), x.shape[1:3], mode="bicubic", align_corners=False)
        table = resized.permute(0, 2, 3, 1)
    x = x + table
    for layer in encoder.layers:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out
    neck: Tensor = encoder.neck(x)
    return neck


def decode(
    model: SamModel,
    neck: Tensor,
    size: int,
    *,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    multimask: bool,
) -> tuple[Tensor, Tensor]:
    """Decode P prompts per image.

    Args:
        model: The model.
        neck: (B, C, h, w).
        size: Side of the network input in pixels.
        points: (B, P, n, 2) in (x, y) pixels of the network input.
        labels: (B, P, n).
        boxes: (B, P, 4).
        masks: (B * P, 1, 4h, 4w) logits of earlier masks.
        multimask: Three candidates instead of one.

    Returns:
        Logits (B, P, K, 4h, 4w) and predicted IoU (B, P, K).
    """
    native = model.prompt_encoder.input_image_size
    scale = native / size
    if points is not None:
        points = (points + 0.5) * scale - 0.5
    if boxes is not None:
        boxes = (boxes + 0.5) * scale - 0.5
    b, c, h, w = neck.shape
    sparse, _ = model.prompt_encoder(points, labels, boxes, None)
    count = sparse.shape[1]
    if masks is None:
        dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(b * count, c, h, w)
    else:
        dense = model.prompt_encoder.mask_embed(masks)
    logits, iou = _mask_decoder(model, neck, _grid_code(model, h, w, neck), sparse, dense, multimask)
    return logits, iou


def _mask_decoder(
    model: SamModel, neck: Tensor, code: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
) -> tuple[Tensor, Tensor]:
    """The decoder of transformers on prompts-as-batch, since its own dense prompts are per image, not per prompt."""
    b, p = sparse.shape[:2]
    image = neck.repeat_interleave(p, 0)
    out = model.mask_decoder(
        image_embeddings=image,
        image_positional_embeddings=code.expand(b * p, -1, -1, -1),
        sparse_prompt_embeddings=sparse.flatten(0, 1)[:, None],
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return out[0][:, 0].unflatten(0, (b, p)), out[1][:, 0].unflatten(0, (b, p))


def _grid_code(model: SamModel, h: int, w: int, like: Tensor) -> Tensor:
    rows = (torch.arange(h, device=like.device) + 0.5) / h
    cols = (torch.arange(w, device=like.device) + 0.5) / w
    y, x = torch.meshgrid(rows, cols, indexing="ij")
    code: Tensor = model.shared_image_embedding(torch.stack([x, y], dim=-1))
    return code.permute(2, 0, 1)[None]


def mask_loss(logits: Tensor, iou: Tensor, target: Tensor, balance: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus Dice of the best candidate, plus the error of the predicted IoU.

    Args:
        logits: (B, P, K, s, s).
        iou: (B, P, K) predicted.
        target: (B, P, s, s) in [0, 1]; area-averaged masks.
        balance: 1 weighs object and background equally, 0 weighs every pixel equally (near the object).

    Returns:
        The scalar loss and the true IoU of the chosen candidate, (B, P).
    """
    goal = target[:, :, None]
    near = F.max_pool2d((target > 0.5).float(), 9, 1, 4)[:, :, None]
    inside = goal.sum((-1, -2), keepdim=True).clamp_min(1.0)
    outside = (1 - goal).sum((-1, -2), keepdim=True).clamp_min(1.0)
    equal = 0.5 * (goal / inside + (1 - goal) / outside)
    local = (0.2 + near) / (0.2 + near).sum((-1, -2), keepdim=True)
    weight = balance * equal + (1 - balance) * local
    entropy = F.binary_cross_entropy_with_logits(logits, goal.expand_as(logits), reduction="none")
    entropy = (weight * entropy).sum((-1, -2))  # (B, P, K)
    soft = logits.sigmoid()
    dice = 1 - (2 * (soft * goal).sum((-1, -2)) + 1) / (soft.sum((-1, -2)) + goal.sum((-1, -2)) + 1)
    with torch.no_grad():
        truth = true_iou(logits, goal)
    best = (entropy + dice).argmin(-1, keepdim=True)
    chosen = (entropy + dice).gather(-1, best).mean()
    return chosen + F.mse_loss(iou, truth), truth.gather(-1, best)[..., 0]


def true_iou(logits: Tensor, goal: Tensor) -> Tensor:
    """IoU of ``logits > 0`` with ``goal > 0.5`` over the last two axes."""
    a, b = logits > 0, goal > 0.5
    return (a & b).sum((-1, -2)) / (a | b).sum((-1, -2)).clamp_min(1)


def border_loss(head: torch.nn.Module, neck: Tensor, regions: Tensor) -> Tensor:
    """Auxiliary task: do two pixels 1 or 4 steps apart lie in one region? Gives the encoder a signal at every pixel.

    ``head`` maps (B, C, h, w) to (B, 4 * 16, h, w), unfolded to four maps at four times the resolution.
    """
    maps = F.pixel_shuffle(head(neck), 4)  # (B, 4, 4h, 4w)
    step = regions.shape[-1] // maps.shape[-1]
    r = regions[:, ::step, ::step]
    losses = []
    for channel, (dy, dx) in enumerate([(0, 1), (1, 0), (0, 4), (4, 0)]):
        differs = (r[:, dy:, dx:] != r[:, : r.shape[1] - dy, : r.shape[2] - dx]).float()
        logits = maps[:, channel, : differs.shape[1], : differs.shape[2]]
        share = differs.mean().clamp(0.02, 0.5)
        weight = torch.where(differs > 0.5, 0.25 / share, 0.5 / (1 - share))
        losses.append((weight * F.binary_cross_entropy_with_logits(logits, differs, reduction="none")).mean())
    return torch.stack(losses).mean()
