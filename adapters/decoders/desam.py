"""DeSAM: a branch that knows the prompt and says how good it is, and a branch that draws the mask whatever the prompt.

SAM's mask follows its prompt, so automatic prompts that miss the organ give masks of something else. Here the two are
taken apart:

    prompt branch (PRIM): a trainable copy of SAM's two-way transformer on neck and prompt
        -> predicted IoU, and the image embedding as the prompt has changed it
    mask branch (PDMM): a UNETR-like decoder on three earlier blocks of the encoder and that embedding -> logits

In training each image gets one random point, half of the time inside a class and half of the time in the background,
and always with the label "foreground". The mask that is asked for is the whole class wherever the point lies; the IoU
that is asked for is 1 if it lies inside and 0 if not. In use a grid of points is tried. Points with a predicted IoU
above a half give masks, near duplicates among these go (NMS), and a class is where any of the rest is. If no point is
good enough there is nothing. With ``prompts="box"`` one box around the whole image is the only prompt, in training and
use, and there is no IoU.

Source:
    DeSAM, arXiv:2306.00499; prompts, losses and layers from its code (yifangao112/DeSAM,
    desam/modeling/mask_decoder.py, utils/datasets.py and desam/training.py).
Deviations:
    Several classes: the IoU branch and the mask branch have one output each, and a point in a class is one in a class
    drawn evenly from those that the image has. Images without any class are trained on too (published: only slices
    with the organ), so the IoU's L1 loss weighs inside and outside alike (see ``iou_loss``).
    The loss of the masks is that of the recipe. At most ``keep`` points per image, those with the largest IoU, go
    through the mask branch. Small regions are not removed, and stability is not tested. The copy of SAM's transformer
    has no mask heads, which the released code keeps and never uses.
    The released evaluation leaves out slices without the organ and the last slice of each volume, and blanks the outer
    50 pixels, for the sake of its Dice; nothing here looks at labels, and an image without the organ counts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.class_tokens import resolve_taps
from samgraft.adapters.decoders.mask_branch import MaskBranch
from samgraft.adapters.decoders.sam_parts import image_positions, sam_mask_decoder, taps_of, trainable_copy
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.grid import grid_points
from samgraft.adapters.prompts.objects import boxes_of
from samgraft.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from transformers.models.sam.modeling_sam import SamMaskDecoder

TOKENS = 2**17
"""Image tokens that the prompt branch handles at once, over all prompts."""
EMPTY = -10.0
"""Logit where no point is good enough."""


@dataclass(frozen=True, kw_only=True)
class DesamConfig(DecoderConfig):
    """Class maps from a branch that judges prompts and a branch that draws masks."""

    method: ClassVar[str] = "desam"
    num_classes: int = 1
    """Foreground classes C, each read through a sigmoid."""
    prompts: Literal["points", "box"] = "points"
    """"points": random points in training and a grid in use; "box": one box around the image."""
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks of the mask branch: "auto" (after a quarter, half and three quarters), or up to three indices."""
    width: int | None = None
    """Channels of the mask branch at the neck's resolution, halved twice on the way up; None takes the neck's."""
    grid: int = 9
    """Points per side in use."""
    min_iou: float = 0.5
    """A point counts if its predicted IoU is above this."""
    nms: float = 0.7
    """Masks whose boxes have a larger IoU are the same; the one with the larger predicted IoU stays."""
    keep: int = 16
    """Most points per image that give masks."""
    iou_weight: float = 1.0
    """Weight of the IoU's loss beside that of the masks."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        check_choice(self.method, "prompts", self.prompts, ("points", "box"))
        if isinstance(self.taps, str):
            check_choice(self.method, "taps", self.taps, ("auto",))
        elif not 1 <= len(set(self.taps)) <= 3:
            raise ConfigError(f"desam: taps are {list(self.taps)}; expected one to three different blocks")
        for name in ("num_classes", "grid", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"desam: {name} is {getattr(self, name)}; expected at least 1")
        if self.width is not None and (self.width < 8 or self.width % 4):
            raise ConfigError(f"desam: width is {self.width}; expected a multiple of 4, at least 8")
        for name in ("min_iou", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"desam: {name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.iou_weight < 0:
            raise ConfigError(f"desam: iou_weight is {self.iou_weight}; expected zero or more")

    def build(self, backbone: Backbone) -> "DesamDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return DesamDecoder(self, backbone)


class DesamDecoder(DecoderPatch):
    """Both branches.

    Attributes:
        prompt_branch: Neck and prompts to IoU and embedding.
        mask_branch: Taps and embedding to logits.
    """

    def __init__(self, config: DesamConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        spec = backbone.spec
        self.taps = resolve_taps(config.taps, spec.num_blocks, owner=config.method)
        if not self.taps:
            raise ConfigError(
                f"desam reads blocks before the last one; backbone {spec.name!r} has {spec.num_blocks}; name taps"
            )
        decoder = sam_mask_decoder(backbone)
        like, channels = decoder.mask_tokens.weight, spec.neck_channels
        judged = config.num_classes if config.prompts == "points" else 0
        with torch.device(like.device):
            self.prompt_branch = PromptBranch(decoder, judged)
            width = config.width or -(-channels // 4) * 4
            self.mask_branch = MaskBranch(spec.embed_dim, channels, width, config.num_classes)
        self.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: Prompts | None = None
    ) -> SemanticOutput:
        """Class maps (B, C, 4h, 4w); ``prompts`` are not used.

        With points, in training: those of one random point per image (:meth:`learn` draws better ones).
        """
        del prompts
        size = (image.shape[-2], image.shape[-1])
        index = torch.arange(len(image), device=features.neck.device)
        if self.config.prompts == "box":
            box = torch.tensor([0, 0, size[1] - 1, size[0] - 1], device=index.device).float()
            logits, _ = self._answer(backbone, features, Prompts(image_index=index, boxes=box.expand(len(index), -1)))
            return SemanticOutput(logits=logits, activation="sigmoid")
        if self.training:
            anywhere = torch.zeros(len(image), *size, dtype=torch.int64, device=index.device)
            points, _ = draw_points(anywhere)
            logits, iou = self._answer(backbone, features, foreground_points(index, points))
            return SemanticOutput(logits=logits, activation="sigmoid", scores=iou)
        return self._by_grid(backbone, features, size)

    def learn(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: Prompts | None, labels: Tensor
    ) -> tuple[SemanticOutput, Tensor | None]:
        """Class maps of one point per image, drawn by ``labels``, and the loss of its predicted IoU.

        Raises:
            ShapeError: labels are not of the size of the image.
        """
        if self.config.prompts == "box":
            return self(backbone, features, image, prompts), None
        if labels.shape != (len(image), *image.shape[-2:]):
            raise ShapeError(f"labels are {tuple(labels.shape)}; expected {(len(image), *image.shape[-2:])}")
        points, hit = draw_points(labels)
        index = torch.arange(len(image), device=features.neck.device)
        logits, iou = self._answer(backbone, features, foreground_points(index, points))
        loss = self.config.iou_weight * iou_loss(iou, hit)
        return SemanticOutput(logits=logits, activation="sigmoid", scores=iou), loss

    def _answer(self, backbone: Backbone, features: Features, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Logits (n, C, 4h, 4w), and IoU (n, C), or (n, 0) where none is predicted."""
        embedding, iou = self.prompt_branch(backbone, features, prompts)
        levels = self.mask_branch.levels(taps_of(self.config.method, self.taps, features))
        rows = prompts.image_index
        logits = self.mask_branch(embedding, [level.index_select(0, rows) for level in levels])
        return logits, iou

    def _by_grid(self, backbone: Backbone, features: Features, size: tuple[int, int]) -> SemanticOutput:
        """Class maps from the points of a grid that are judged to be good."""
        batch, _, height, width = features.neck.shape
        points = grid_points(size, self.config.grid).to(features.neck.device)
        index = torch.arange(batch, device=points.device).repeat_interleave(len(points))
        every = foreground_points(index, points.repeat(batch, 1)[:, None])
        few = max(1, TOKENS // (height * width))
        parts = torch.arange(len(every), device=index.device).split(few)
        judged = [self.prompt_branch(backbone, features, every.select(rows))[1] for rows in parts]
        iou = torch.cat(judged).unflatten(0, (batch, -1))  # (B, G, C)
        best = iou.amax(dim=2)
        maps = []
        levels = self.mask_branch.levels(taps_of(self.config.method, self.taps, features))
        for number in range(batch):
            chosen = best[number].topk(min(self.config.keep, len(points))).indices
            good = best[number, chosen] > self.config.min_iou
            good[0] = True  # so that there is a map; it counts only where its IoU says so
            rows = chosen[good] + number * len(points)
            found = []
            for some in rows.split(few):
                embedding, _ = self.prompt_branch(backbone, features, every.select(some))
                found.append(
                    self.mask_branch(embedding, [level[number].expand(len(some), -1, -1, -1) for level in levels])
                )
            maps.append(self._union(torch.cat(found), iou[number, chosen[good]]))
        return SemanticOutput(logits=torch.stack(maps), activation="sigmoid", scores=iou.amax(dim=1))

    def _union(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Class maps (C, h', w') of one image from masks (m, C, h', w') and their IoU (m, C)."""
        maps = []
        for masks, scores in zip(logits.unbind(1), iou.unbind(1), strict=True):
            boxes = boxes_of(masks.detach() > 0)
            boxes[:, 2:] += 1  # outer edges
            good = ((scores > self.config.min_iou) & (masks.detach() > 0).flatten(1).any(dim=1)).nonzero().flatten()
            if not len(good):
                maps.append(0 * masks[0] + EMPTY)
                continue
            kept = non_max_suppression(boxes[good], scores[good].detach().float(), self.config.nms)
            maps.append(masks[good[torch.as_tensor(kept, device=good.device)]].amax(dim=0))
        return torch.stack(maps)


class PromptBranch(nn.Module):
    """Trainable copies of SAM's two-way transformer, tokens and IoU head.

    Args:
        decoder: The frozen mask decoder.
        judged: Classes whose IoU is predicted; 0 for none, and then there is no head.
    """

    def __init__(self, decoder: "SamMaskDecoder", judged: int) -> None:
        """Copy."""
        super().__init__()
        self.tokens = nn.Parameter(torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).detach().clone())
        self.layers = trainable_copy(decoder.transformer.layers)
        self.attention: nn.Module | None = None
        if judged:
            self.attention = trainable_copy(decoder.transformer.final_attn_token_to_image)
            self.norm = trainable_copy(decoder.transformer.layer_norm_final_attn)
            self.iou_head = trainable_copy(decoder.iou_prediction_head)
            self.iou_head.proj_out = _repeat_first(decoder.iou_prediction_head.proj_out, judged)

    def forward(self, backbone: Backbone, features: Features, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """The image embedding (n, C, h, w) as n prompts have changed it, and their IoU (n, judged)."""
        height, width = features.neck.shape[-2:]
        patch = backbone.spec.patch_size
        sparse, dense = backbone.embed(prompts, (height * patch, width * patch))
        image = features.neck.index_select(0, prompts.image_index) + dense
        own = self.tokens.expand(len(prompts), -1, -1)
        start = torch.cat([own, sparse.to(own.dtype)], dim=1)[:, None]  # (n, 1, T, C)
        keys = image.flatten(2).transpose(1, 2)[:, None]  # (n, 1, h w, C)
        place = image_positions(backbone, features.neck).flatten(2).transpose(1, 2)[:, None]
        queries = start
        for layer in self.layers:
            queries, keys, _ = layer(
                queries=queries,
                keys=keys,
                query_point_embedding=start,
                key_point_embedding=place,
                attention_similarity=None,
            )
        embedding = keys[:, 0].transpose(1, 2).unflatten(2, (height, width))
        if self.attention is None:
            return embedding, embedding.new_zeros(len(prompts), 0)
        read, _ = self.attention(query=queries + start, key=keys + place, value=keys)
        return embedding, self.iou_head(self.norm(queries + read)[:, 0, 0])


def foreground_points(index: Tensor, points: Tensor) -> Prompts:
    """One point (n, 1, 2) per prompt, with the label "foreground"."""
    return Prompts(image_index=index, points=points, labels=torch.ones_like(points[..., 0], dtype=torch.int64))


def iou_loss(iou: Tensor, hit: Tensor) -> Tensor:
    """Absolute error of the predicted IoU, which should be 1 for the class that a point hits and 0 for the others.

    The mean over what should be 1 and the mean over what should be 0, half of each. An absolute error is smallest at
    the median: where most points lie outside (several classes, images without any) a plain mean is smallest if nothing
    is ever found. With one class that every image has it is the published mean, but for chance.

    Args:
        iou: (B, C).
        hit: (B,) label under the point, 0 background, below it unknown (and not counted).
    """
    inside = hit[:, None] == torch.arange(1, iou.shape[1] + 1, device=hit.device)
    outside = ~inside & (hit >= 0)[:, None]
    error = (iou - inside.to(iou.dtype)).abs()
    parts = [(error * part).sum() / part.sum().clamp_min(1) for part in (inside, outside)]
    return torch.stack(parts).mean()


def draw_points(labels: Tensor) -> tuple[Tensor, Tensor]:
    """One random pixel per image, in a class or in the background with equal chances.

    Args:
        labels: (B, H, W) int64: 0 background, above it classes, below it unknown.

    Returns:
        Points (B, 1, 2), (x, y), and the label there (B,). A class is drawn evenly from those in the image; if there is
        none the point is in the background, and the other way round; where nothing is known it is anywhere.
    """
    points, hit = [], []
    for label in labels:
        classes = label[label > 0].unique()
        background = label == 0
        inside = len(classes) > 0 and (bool(torch.rand(()) < 0.5) or not bool(background.any()))
        if inside:
            allowed = label == classes[int(torch.randint(len(classes), ()))]
        else:
            allowed = background if bool(background.any()) else torch.ones_like(background)
        where = allowed.flatten().nonzero().flatten()
        place = where[int(torch.randint(len(where), ()))]
        points.append(torch.stack([place % label.shape[1], place // label.shape[1]]).float())
        hit.append(label.flatten()[place])
    return torch.stack(points)[:, None], torch.stack(hit)


def _repeat_first(layer: nn.Module, count: int) -> nn.Linear:
    """A linear layer with ``count`` outputs, all of them the first one of ``layer``."""
    frozen = cast(nn.Linear, layer)
    new = nn.Linear(frozen.in_features, count, device=frozen.weight.device, dtype=frozen.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(frozen.weight[:1].expand_as(new.weight))
        new.bias.copy_(frozen.bias[:1].expand_as(new.bias))
    return new
