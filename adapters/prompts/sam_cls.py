"""SAM-cls: everything mode proposes masks, and a small trained classifier says which are objects, and of which kind.

Points on a grid are decoded by the frozen backbone, three masks each; of those that pass loose filters on predicted IoU
and stability one per place stays. Each is described by the mean of the frozen features inside it and in a ring around
it, and by its size, form, predicted IoU and stability; a two-layer network gives class probabilities, "no object"
among them. The score of an object is the probability of its class times the predicted IoU; a last suppression by masks
ranks by that score. Only the network is trained, on proposals whose IoU with a true object is at least 0.5.

Source:
    RSPrompter, arXiv:2306.16269, section IV (baseline "SAM-cls": everything mode and a classifier of its masks).
Deviations:
    The paper crops every mask from the image and classifies the crop with a network of its own; here the features that
    the backbone has already computed are pooled, so that an image is encoded once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.adapters.prompts.grid import GridConfig, GridPrompts
from samgraft.adapters.prompts.object_masks import best_of_each_image, mask_iou
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, Objects
from samgraft.adapters.prompts.proposals import best_masks
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

FORM = 8
"""Numbers that describe size and form of a mask."""


@dataclass(frozen=True, kw_only=True)
class SamClsConfig(PrompterConfig):
    """Everything mode and a classifier of its masks."""

    method: ClassVar[str] = "sam_cls"
    point: ClassVar[str] = "masks of everything mode"
    object_classes: int = 1
    """Kinds of objects; "no object" comes on top."""
    points_per_side: int = 16
    """Points along each side of the network input."""
    min_iou: float = 0.3
    """Proposals need a larger predicted IoU; low, since the classifier decides."""
    min_stability: float = 0.5
    """Least stability of a proposal, at logit offset 1."""
    max_share: float = 0.6
    """Largest share of the image that a proposal may cover."""
    match_iou: float = 0.5
    """A proposal with at least this IoU with a true object is trained to be one."""
    nms: float = 0.4
    """Of two found objects with a larger IoU than this the better scored one stays."""
    hidden: int = 128
    """Width of the classifier."""
    ring: int = 2
    """Cells of the mask around it whose features are pooled, too."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("object_classes", "points_per_side", "hidden", "ring"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sam_cls: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("match_iou", "nms", "max_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"sam_cls: {name} is {getattr(self, name)}; expected above 0, at most 1")

    def build(self, backbone: "Backbone") -> "SamClsHead":
        """Create the classifier for the neck of ``backbone``."""
        return SamClsHead(self, backbone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Masks of B images with what the classifier reads; needs no gradient, and may be kept between epochs."""

    image_index: Tensor
    """(N,) int64."""
    logits: Tensor
    """(N, 4h, 4w)."""
    iou: Tensor
    """(N,) predicted, clipped to [0, 1]."""
    features: Tensor
    """(N, 2 C + ``FORM``): inside, around, form."""

    def __len__(self) -> int:
        """N, the number of masks."""
        return len(self.image_index)


class SamClsHead(PromptGenerator, ObjectHead):
    """Called as a prompt generator it writes the grid of points; :meth:`find` does the rest.

    Attributes:
        norm: Of the description.
        network: Description (2 C + ``FORM``) to 1 + object_classes logits, "no object" first.
    """

    multimask = True

    def __init__(self, config: SamClsConfig, backbone: "Backbone") -> None:
        """Build the classifier; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        self.object_classes = config.object_classes
        self.grid = GridPrompts(GridConfig(points_per_side=config.points_per_side))
        width = 2 * backbone.spec.neck_channels + FORM
        self.norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, 1 + config.object_classes)
        )

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """The grid of points, image-major."""
        prompts: Prompts = self.grid(features, image, context)
        return prompts

    @torch.no_grad()
    def propose(
        self, backbone: "Backbone", features: "Features", image: Tensor, context: Mapping[str, Any] | None = None
    ) -> Proposals:
        """Masks of everything mode at the decoder's resolution, with loose filters.

        Args:
            backbone: The frozen backbone.
            features: Of B images.
            image: (B, 3, H, W) in [0, 1].
            context: As for :meth:`forward`.
        """
        prompts = self(features, image, context or {})
        parts = []
        for number in range(len(image)):
            own = prompts.select(prompts.image_index == number)
            own = Prompts(image_index=torch.zeros_like(own.image_index), points=own.points, labels=own.labels)
            neck = features.neck[number : number + 1]
            found = best_masks(backbone, Features(neck=neck), own, test=self._test, nms=0.9)
            logits, iou = found.logits.to(neck.device), found.iou.to(neck.device).clamp(0, 1)
            if not len(iou):
                continue
            described = self._describe(neck[0], logits, iou)
            parts.append((torch.full((len(iou),), number, device=neck.device), logits, iou, described))
        if not parts:
            width = self.norm.normalized_shape[0]
            side = tuple(4 * n for n in features.neck.shape[-2:])
            empty = image.new_zeros
            index = torch.zeros(0, dtype=torch.int64, device=image.device)
            return Proposals(image_index=index, logits=empty(0, *side), iou=empty(0), features=empty(0, width))
        index, logits, iou, described = (torch.cat(column) for column in zip(*parts, strict=True))
        return Proposals(image_index=index, logits=logits, iou=iou, features=described)

    def losses(self, backbone: "Backbone", features: "Features", image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """``class``: cross-entropy of every proposal, objects and the rest with equal weight per image batch."""
        return self.losses_of(self.propose(backbone, features, image), objects)

    def losses_of(self, proposals: Proposals, objects: Objects) -> dict[str, Tensor]:
        """The same for proposals that are there already."""
        target, counts = self.targets(proposals, objects)
        return {"class": self.loss_of(proposals.features[counts], target[counts])}

    def loss_of(self, described: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of descriptions (N, 2 C + ``FORM``) with classes (N,), 0 for no object.

        Objects and the rest have equal weight in sum, since most proposals are none. N may be 0.
        """
        each = functional.cross_entropy(self._classify(described), target, reduction="none")
        sides = [each[side].mean() for side in (target > 0, target == 0) if bool(side.any())]
        return torch.stack(sides).mean() if sides else each.sum()

    def targets(self, proposals: Proposals, objects: Objects) -> tuple[Tensor, Tensor]:
        """Class of each proposal (N,), 0 for no object, and whether it counts (N,): most of it lies on known pixels."""
        masks = proposals.logits > 0
        target = torch.zeros_like(proposals.image_index)
        counts = torch.ones_like(masks[:, 0, 0]) if len(masks) else torch.zeros(0, dtype=torch.bool)
        for number in range(len(objects.known)):
            rows = (proposals.image_index == number).nonzero().flatten()
            if not len(rows):
                continue
            known = _small(objects.known[number : number + 1], masks.shape[-2:])[0]
            area = masks[rows].sum((1, 2))
            counts[rows] = (masks[rows] & known).sum((1, 2)) * 2 > area
            own = objects.of(number)
            if not len(own):
                continue
            overlap = mask_iou(masks[rows] & known, _small(objects.masks[own], masks.shape[-2:]))
            best, which = overlap.max(dim=1)
            target[rows] = torch.where(best >= self.config.match_iou, objects.classes[own][which] + 1, 0)
        return target, counts

    @torch.no_grad()
    def find(
        self, backbone: "Backbone", features: "Features", image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """Proposals by class probability times predicted IoU, doubles removed; the best of each image first."""
        return self.find_in(self.propose(backbone, features, image, context))

    @torch.no_grad()
    def find_in(self, proposals: Proposals) -> FoundObjects:
        """The same for proposals that are there already."""
        chances = self._classify(proposals.features).float().softmax(dim=1)[:, 1:]
        best, classes = chances.max(dim=1)
        scores = best * proposals.iou
        found = FoundObjects(image_index=proposals.image_index, logits=proposals.logits, scores=scores, classes=classes)
        return found.select(best_of_each_image(found, self.config.nms))

    def _classify(self, described: Tensor) -> Tensor:
        """(N, 1 + object_classes) logits."""
        weight = self.network[0].weight
        logits: Tensor = self.network(self.norm(described.to(weight.dtype)))  # type: ignore[arg-type]
        return logits

    def _test(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Which of (m, s, s) masks may be objects."""
        area = (logits > 0).sum((1, 2))
        keep = (iou > self.config.min_iou) & (_stability(logits) >= self.config.min_stability)
        return keep & (area > 0) & (area <= self.config.max_share * logits[0].numel())

    def _describe(self, neck: Tensor, logits: Tensor, iou: Tensor) -> Tensor:
        """(m, 2 C + ``FORM``) of masks (m, 4h, 4w) on a neck (C, h, w)."""
        inside = (logits > 0).to(neck.dtype)
        width = 2 * self.config.ring + 1
        around = functional.max_pool2d(inside, width, stride=1, padding=self.config.ring) - inside
        cells = neck.flatten(1).T  # (h w, C)
        pooled = []
        for region in (inside, around):
            share = functional.avg_pool2d(region, 4).flatten(1)
            pooled.append(share @ cells / share.sum(dim=1, keepdim=True).clamp_min(1e-6))
        return torch.cat([*pooled, _form(inside, logits, iou)], dim=1)


def _form(inside: Tensor, logits: Tensor, iou: Tensor) -> Tensor:
    """(m, ``FORM``): log area, log long axis, axis ratio, elliptic index, place of the centre, stability, IoU."""
    height, width = inside.shape[-2:]
    area = inside.sum((1, 2))
    y, x = (torch.arange(n, device=inside.device, dtype=inside.dtype) for n in (height, width))
    rows, cols = inside.sum(2), inside.sum(1)
    mean_y, mean_x = rows @ y / area, cols @ x / area
    yy = rows @ y**2 / area - mean_y**2 + 1 / 12
    xx = cols @ x**2 / area - mean_x**2 + 1 / 12
    yx = torch.einsum("mhw,h,w->m", inside, y, x) / area - mean_y * mean_x
    half, root = (yy + xx) / 2, (((yy - xx) / 2) ** 2 + yx**2).sqrt()
    long, short = (half + root).sqrt(), (half - root).clamp_min(1 / 12).sqrt()
    share = (area / (height * width)).log()
    edge = torch.minimum(
        torch.minimum(mean_y, height - 1 - mean_y) / height, torch.minimum(mean_x, width - 1 - mean_x) / width
    )
    values = [
        share / 3,
        (long / max(height, width)).log(),
        short / long,
        area / (4 * math.pi * long * short),
        edge,
        logits.clamp_min(0).sum((1, 2)) / area / 5,
        _stability(logits).to(inside.dtype),
        iou.to(inside.dtype),
    ]
    return torch.stack(values, dim=1)


def _stability(logits: Tensor) -> Tensor:
    """(m,) cells above logit 1 over cells above logit -1."""
    return (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2)).clamp_min(1)


def _small(masks: Tensor, size: torch.Size) -> Tensor:
    """Masks (n, H, W) bool at the decoder's resolution: cells of which at least half is covered."""
    return functional.adaptive_avg_pool2d(masks.float(), (size[0], size[1])) >= 0.5
