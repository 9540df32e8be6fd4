"""RSPrompter-anchor: a detector whose RoI features become prompt tokens, learned through the frozen mask decoder.

    taps -> detector -> boxes, classes, scores
    levels + sine positions -> RoIAlign 14 x 14 -> 3x3 stride 2, norm, ReLU -> 3 linear layers -> (N, tokens, 2 C)
      -> sin(even) + odd -> (N, tokens, C) sparse prompts -> frozen mask decoder

The mask loss reaches the tokens through the decoder; encoder and decoder do not change. RoI features do not know where
they lie, and prompts must say it: hence the position code. With ``with_boxes`` the detected box is a prompt too, and
the tokens have to add only what it leaves open.

Source:
    RSPrompter, arXiv:2306.16269, section 3 (anchor-based prompter, sine regularisation); the second release of its code
    (KyanChen/RSPrompter, branch release, mmdet/rsprompter/models.py: RSPrompterAnchorMaskHead, with_extra_pe).
    Parameters of the token head for C = 256: 4,394,240 with 4 tokens, 4,525,824 with 5.
Deviations:
    The encoder is frozen, as in the paper: the released code asks for ``peft_config is None`` where it finds an empty
    mapping, and trains it. The mask decoder is frozen too; the released configurations train it.
    Group norm instead of BatchNorm (a step may have one RoI). The position code is added for the tokens only: what is
    in a box, and where its sides are, does not depend on its place. The mask loss is taken at the decoder's 4h x 4w
    instead of 1024 x 1024 pixels, against the share of every cell that is inside, and from at most ``mask_samples``
    RoIs per image; it has a Dice part beside the cross-entropy, since small objects hardly count in the mean over a
    whole image. Boxes are prompts beside the tokens by default; ``with_boxes=False`` is the published form.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.detection import DrawnRegions, inclusive_of
from samgraft.adapters.detection.matching import draw_rows
from samgraft.adapters.prompts.aggregator import sine_positions, sine_tokens
from samgraft.adapters.prompts.base import PrompterConfig, Prompts
from samgraft.adapters.prompts.detector import Detector, DetectorOptions, at_least, prompts_of
from samgraft.adapters.prompts.mask_losses import mask_losses
from samgraft.adapters.prompts.objects import ObjectPrompter, Objects

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features

BINS = 14
"""Bins per side of the RoI features that tokens are made of."""


@dataclass(frozen=True, kw_only=True)
class RSPrompterAnchorConfig(DetectorOptions, PrompterConfig):
    """Prompt tokens from RoI features."""

    method: ClassVar[str] = "rsprompter_anchor"
    point: ClassVar[str] = "sparse prompts"
    tokens: int = 5
    """Tokens per object (published: 4 in the first release, 5 in the second)."""
    token_hidden: int = 0
    """Width of the token head's linear layers; 0: as many as ``channels``, as published."""
    with_extra_pe: bool = True
    """Add a sine position code to the maps that tokens are read from."""
    with_boxes: bool = True
    """Prompt with the box too, before the tokens."""
    mask_samples: int = 16
    """RoIs per image in the mask loss: memory and time of a training step."""
    full_resolution: bool = False
    """Take the mask loss at the size of the network input instead of 4h x 4w."""
    mask_weight: float = 1.0
    """Of the cross-entropy of masks."""
    dice_weight: float = 1.0
    """Of the Dice loss of masks (published: 0)."""
    score_by_iou: bool = False
    """Multiply scores by the IoU that the mask decoder predicts."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        self.check(self.method)
        at_least(self, self.method, 1, ("tokens", "mask_samples"))
        at_least(self, self.method, 0, ("mask_weight", "dice_weight", "token_hidden"))

    def build(self, backbone: "Backbone") -> "RSPrompterAnchor":
        """Create the prompter for ``backbone``, which is only read."""
        return RSPrompterAnchor(self, backbone)


class TokenHead(nn.Module):
    """RoI features (N, channels, 14, 14) to prompt tokens (N, tokens, width).

    Args:
        channels: Of the RoI features.
        hidden: Width of the linear layers.
        tokens: Tokens per RoI.
        width: Channels C of prompt embeddings.
    """

    def __init__(self, channels: int, hidden: int, tokens: int, width: int) -> None:
        """Create the layers."""
        super().__init__()
        self.tokens = tokens
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.GroupNorm(math.gcd(channels, 8), channels),
            nn.ReLU(),
        )
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (BINS // 2) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * tokens * width),
        )

    def forward(self, regions: Tensor) -> Tensor:
        """(N, tokens, width)."""
        return sine_tokens(self.mlp(self.reduce(regions)).unflatten(1, (self.tokens, -1)))


class RSPrompterAnchor(ObjectPrompter):
    """One set of learned tokens per detection."""

    def __init__(self, config: RSPrompterAnchorConfig, backbone: "Backbone") -> None:
        """Build detector and token head; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        self.object_classes, self.score_by_iou = config.object_classes, config.score_by_iou
        self.detector = Detector(config, backbone)
        self.taps = self.detector.taps
        channels = self.detector.channels
        self.head = TokenHead(channels, config.token_hidden or channels, config.tokens, backbone.spec.neck_channels)

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Tokens (and boxes) with scores and class logits, the best first within each image."""
        del context
        levels = self.detector.levels(features)
        found = self.detector.detect(levels, (image.shape[2], image.shape[3]))
        tokens = self.tokens(levels, found.edges, found.image_index)
        return prompts_of(found, self.object_classes, boxes=self.config.with_boxes, sparse=tokens)

    def tokens(self, levels: tuple[Tensor, ...], edges: Tensor, image_index: Tensor) -> Tensor:
        """Prompt tokens (N, tokens, C) of boxes (N, 4) in edges."""
        if self.config.with_extra_pe:
            levels = tuple(
                level + sine_positions((level.shape[2], level.shape[3]), level.shape[1], like=level) for level in levels
            )
        found: Tensor = self.head(self.detector.regions(levels, edges, image_index, BINS))
        return found

    def losses(self, backbone: "Backbone", features: "Features", image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Those of the detector, ``mask`` (cross-entropy) and ``dice``, with their weights."""
        levels, size = self.detector.levels(features), (image.shape[2], image.shape[3])
        losses, drawn = self.detector.losses(levels, size, objects)
        return losses | self._mask_losses(backbone, features, levels, size, drawn, objects)

    def _mask_losses(
        self,
        backbone: "Backbone",
        features: "Features",
        levels: tuple[Tensor, ...],
        size: tuple[int, int],
        drawn: DrawnRegions,
        objects: Objects,
    ) -> dict[str, Tensor]:
        rows = positive_rows(drawn, self.config.mask_samples, self.detector.generator)
        empty = len(rows) == 0  # one RoI, the whole first image, keeps every parameter in the graph
        edges, index = drawn.edges[rows], drawn.image_index[rows]
        if empty:
            edges, index = edges.new_tensor([[0.0, 0.0, size[1], size[0]]]), index.new_zeros(1)
        prompts = Prompts(
            image_index=index,
            boxes=inclusive_of(edges) if self.config.with_boxes else None,
            sparse=self.tokens(levels, edges, index),
        )
        logits = backbone.decode(features, prompts)[0][:, 0]
        if empty:
            return {"mask": 0 * logits.sum(), "dice": 0 * logits.sum()}
        if self.config.full_resolution:
            logits = functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        found = mask_losses(logits, objects.masks[drawn.matched[rows]], objects.known[index])
        return {
            "mask": self.config.mask_weight * found.bce.mean(),
            "dice": self.config.dice_weight * found.dice.mean(),
        }


def positive_rows(drawn: DrawnRegions, most: int, generator: torch.Generator | None = None) -> Tensor:
    """(n,) int64: rows of RoIs with an object, at most ``most`` of every image, drawn at random."""
    positive = drawn.matched >= 0
    images = drawn.image_index.unique().tolist()
    return torch.cat(
        [draw_rows((positive & (drawn.image_index == image)).nonzero().flatten(), most, generator) for image in images]
        or [drawn.matched[:0]]
    )
