"""HQ-SAM: one more token in SAM's mask decoder and finer features from an early block, for sharper borders.

Everything of SAM stays frozen and prompts are answered as before. A learned token goes through the two-way transformer
behind the mask tokens. What becomes of it makes the weights of a linear classifier on features that join three sources:

    HQ features (C / 8, 4h, 4w) = up(output of the first global-attention block) + up(neck) + convs(upscaled features)
    HQ logits = MLP(token) . HQ features        answer = SAM's logits + HQ logits

One mask is given per prompt; where three were asked for, SAM's best of the three gets the HQ logits. The predicted IoU
is SAM's. 1,071,104 parameters on SAM-B, 1,333,248 on L, 1,595,392 on H (the paper's 4.1, 5.1 and 6.1 are MiB).

With ``init="identity"`` the last layer of the MLP is zero and the token starts as SAM's own token for a single mask.
With ``joined=False`` SAM's tokens do not see the new one, so that its logits stay what they were, and at step 0 the
answer is SAM's, bit by bit where the same arithmetic is used (many prompts on one image share work without the patch,
which changes last digits).

Trained on HQ logits alone, through :meth:`HqTokenDecoder.losses`: each object is asked for by its box, by ten of its
points or by its mask with a noisy border, one of the three at random.

Source:
    HQ-SAM, arXiv:2306.01567, sections 3.2 and 3.3; layers, prompts and loss from its code (SysCV/sam-hq,
    segment_anything/modeling/mask_decoder_hq.py and train/train.py).
Deviations:
    In the released code SAM's tokens see the new one, which changes SAM's own masks a little (``joined=True``). A noisy
    mask is given as logits of +-8; the released code gives 0 and 255. Several objects per image may be trained on at
    once, each with a prompt of its own; there it is one. Unknown pixels do not count. ``points=0`` compares all cells
    instead of 12,544 points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features, MaskDecoderState
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderConfig, PromptedDecoder
from samgraft.adapters.decoders.conv_head import ChannelNorm, doubled
from samgraft.adapters.decoders.sam_parts import sam_backbone, taps_of
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.mask_losses import POINTS, mask_losses
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.objects import Objects

KINDS = ("box", "points", "mask")
"""How an object is asked for in training."""
NUM_POINTS = 10
"""Points of an object in training."""
CERTAIN = 8.0
"""Logit of a mask given as a prompt."""
GRAIN = 32
"""Borders of such a mask are noisy as far as they are lost when it is reduced to about this many cells per side."""


@dataclass(frozen=True, kw_only=True)
class HqTokenConfig(DecoderConfig):
    """SAM's mask decoder with an HQ token; answers prompts."""

    method: ClassVar[str] = "hq_token"
    point: ClassVar[str] = "I9 decoder tokens; I10 head"
    hq_token_only: bool = False
    """Answer with the HQ logits alone instead of their sum with SAM's."""
    joined: bool = False
    """SAM's own tokens see the HQ token, as published; else they stay as they are without it."""
    init: Literal["identity", "published"] = "identity"
    """"identity": HQ logits are zero at step 0; "published": as the paper initialises."""
    points: int = POINTS
    """Points per mask at which losses are computed; 0 for every cell of the logits."""

    def __post_init__(self) -> None:
        """Check choices."""
        check_choice(self.method, "init", self.init, ("identity", "published"))
        if self.points < 0:
            raise ConfigError(f"hq_token: points is {self.points}; expected a number of points, or 0 for all cells")

    def build(self, backbone: Backbone) -> "HqTokenDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return HqTokenDecoder(self, backbone)


class HqTokenDecoder(PromptedDecoder):
    """SAM's mask decoder with one more token.

    Attributes:
        token: (1, C).
        mlp: Token to the weights of a classifier, (C,) to (C / 8,).
        from_early: First global-attention block to (C / 8, 4h, 4w).
        from_neck: Neck to the same.
        from_upscaled: The decoder's upscaled features to the same.
    """

    def __init__(self, config: HqTokenConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        decoder, spec = sam_backbone(backbone).sam.mask_decoder, backbone.spec
        if not spec.global_blocks:
            raise ConfigError(
                f"hq_token reads the first block with global attention; backbone {spec.name!r} names none"
            )
        self.taps = (spec.global_blocks[0],)
        like, channels, fine = decoder.mask_tokens.weight, spec.neck_channels, decoder.upscale_conv2.out_channels
        with torch.device(like.device):
            self.token = nn.Parameter(torch.randn(1, channels))
            self.mlp = nn.Sequential(
                nn.Linear(channels, channels),
                nn.ReLU(),
                nn.Linear(channels, channels),
                nn.ReLU(),
                nn.Linear(channels, fine),
            )
            self.from_early = _four_times(spec.embed_dim, channels, fine)
            self.from_neck = _four_times(channels, channels // 4, fine)
            self.from_upscaled = nn.Sequential(
                nn.Conv2d(fine, 2 * fine, 3, padding=1),
                ChannelNorm(2 * fine, eps=1e-6),
                nn.GELU(),
                nn.Conv2d(2 * fine, fine, 3, padding=1),
            )
        if config.init == "identity":
            last = cast(nn.Linear, self.mlp[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                self.token.copy_(like[:1])
        self.to(like.dtype)

    def decode_parts(
        self,
        backbone: Backbone,
        features: Features,
        prompts: Prompts,
        *,
        multimask: bool = False,
        chunk: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One mask per prompt (n, 1, 4h, 4w), whatever ``multimask``, and SAM's predicted IoU (n, 1)."""
        patch = _HqPatch(self, self._of_images(features), only=self.config.hq_token_only)
        return sam_backbone(backbone).decode_parts(features, prompts, multimask=multimask, patch=patch, chunk=chunk)

    def _of_images(self, features: Features) -> Tensor:
        """The part of the HQ features that does not depend on prompts, (B, C / 8, 4h, 4w)."""
        (early,) = taps_of("hq_token", self.taps, features)
        found: Tensor = self.from_early(early.permute(0, 3, 1, 2)) + self.from_neck(features.neck)
        return found

    def losses(self, backbone: Backbone, features: Features, image: Tensor, objects: "Objects") -> dict[str, Tensor]:
        """Cross-entropy ("bce") and Dice loss ("dice") of the HQ logits, each the mean over objects.

        Args:
            backbone: The frozen backbone.
            features: Of B images, with :attr:`taps`.
            image: (B, 3, H, W); not looked at.
            objects: The true objects, as for
                :meth:`~samgraft.adapters.prompts.objects.ObjectHead.losses`.
        """
        del image
        patch = _HqPatch(self, self._of_images(features), only=True)
        cells = (4 * features.neck.shape[-2], 4 * features.neck.shape[-1])
        kinds = torch.randint(len(KINDS), (len(objects),))
        bce, dice = [], []
        for number, kind in enumerate(KINDS):
            rows = (kinds == number).nonzero().flatten().to(objects.image_index.device)
            if not len(rows):
                continue
            prompts = training_prompts(kind, objects, rows, cells).to(features.neck.device)
            logits, _ = sam_backbone(backbone).decode(features, prompts, patch=patch)
            index = objects.image_index[rows]
            found = mask_losses(logits[:, 0], objects.masks[rows], objects.known[index], points=self.config.points)
            bce.append(found.bce)
            dice.append(found.dice)
        if not bce:
            nothing = torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0
            return {"bce": nothing, "dice": nothing}
        return {"bce": torch.cat(bce).mean(), "dice": torch.cat(dice).mean()}


@dataclass(frozen=True, eq=False)
class _HqPatch:
    """The decoder's patch for one batch of images, whose own part is computed once."""

    decoder: HqTokenDecoder
    of_images: Tensor
    """(B, C / 8, 4h, 4w)."""
    only: bool
    """HQ logits without SAM's."""

    @property
    def apart(self) -> bool:
        """See ``MaskDecoderPatch``."""
        return not self.decoder.config.joined

    def tokens(self) -> Tensor:
        """The HQ token, (1, C)."""
        return self.decoder.token

    def finish(self, state: MaskDecoderState) -> tuple[Tensor, Tensor]:
        """One mask per prompt, (n, 1, 4h, 4w), and SAM's IoU (n, 1)."""
        fine = self.decoder.from_upscaled(state.upscaled) + self.of_images.index_select(0, state.image_index)
        weights = self.decoder.mlp(state.extra_tokens)  # (n, 1, C / 8)
        logits = (weights @ fine.flatten(2)).unflatten(2, fine.shape[-2:])
        best = state.iou.argmax(dim=1, keepdim=True)
        iou = state.iou.gather(1, best)
        if self.only:
            return logits, iou
        own = state.logits.gather(1, best[..., None, None].expand(-1, -1, *state.logits.shape[-2:]))
        return own + logits, iou


def training_prompts(kind: str, objects: "Objects", rows: Tensor, cells: tuple[int, int]) -> Prompts:
    """Prompts for some objects, from their masks.

    Args:
        kind: One of :data:`KINDS`.
        objects: The true objects.
        rows: (n,) which of them.
        cells: (4h, 4w) of mask logits.
    """
    index, masks = objects.image_index[rows], objects.masks[rows]
    if kind == "box":
        return Prompts(image_index=index, boxes=objects.boxes[rows], from_ground_truth=True)
    if kind == "mask":
        return Prompts(image_index=index, masks=noisy_logits(masks, cells), from_ground_truth=True)
    points = pixels_of(masks, NUM_POINTS)
    labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    return Prompts(image_index=index, points=points, labels=labels, from_ground_truth=True)


def pixels_of(masks: Tensor, count: int) -> Tensor:
    """``count`` random pixels of each mask (N, H, W) bool, with repetition: (N, count, 2) float, (x, y).

    All pixels of a mask are equally likely; an empty mask gives pixels from anywhere.
    """
    weights = masks.flatten(1).double()
    weights = torch.where(weights.any(dim=1, keepdim=True), weights, torch.ones_like(weights))
    order = weights.cumsum(dim=1)
    drawn = torch.rand(len(masks), count, dtype=torch.float64, device=masks.device) * order[:, -1:]
    place = torch.searchsorted(order, drawn, right=True).clamp_max(order.shape[1] - 1)
    width = masks.shape[-1]
    return torch.stack([place % width, place // width], dim=-1).float()


def noisy_logits(masks: Tensor, cells: tuple[int, int]) -> Tensor:
    """Masks (N, H, W) bool as prompts (N, 1, h, w) of ``cells``, in logits, with noise where the border has detail.

    Detail is what is lost when the mask is reduced by a factor and enlarged again.
    """
    mask = functional.interpolate(masks[:, None].float(), size=cells, mode="area")
    coarse = [max(1, round(min(GRAIN, side / 2))) for side in cells]
    small = functional.interpolate(mask, size=coarse, mode="bilinear", align_corners=False)
    again = functional.interpolate(small, size=cells, mode="bilinear", align_corners=False)
    detail = (mask - again).abs() >= 0.01
    inside = mask + torch.randn_like(mask) * detail > 0.5
    return torch.where(inside, CERTAIN, -CERTAIN)


def _four_times(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Four times the height and width, by two transposed convolutions."""
    return nn.Sequential(*doubled(inputs, middle), nn.ConvTranspose2d(middle, outputs, 2, stride=2))
