"""VRP: learned tokens that read an annotated reference image and a new one, and become the prompt.

Two encoder blocks give the features of both images; a shared 1 x 1 convolution brings them to the prompts' width. Each
cell is joined by the mean feature of the reference object and by a mask: in the reference that of the annotation, in
the new image a pseudo mask, the largest cosine of a cell with any cell of the object. Learned queries then look at the
reference and at the new image, and are handed to the frozen decoder as its sparse prompt.

    queries -> look at the reference -> look at each other -> look at the image -> look at each other -> tokens

It is trained on episodes: one labelled image is the reference of another. In :meth:`VrpPrompter.losses` the images of a
batch are each other's references.

Source:
    VRP-SAM, arXiv:2402.17726, section 3; github.com/syp2ysy/VRP-SAM, model/VRP_encoder.py (50 queries, 4 heads, one
    layer without MLP, norm after each step; mask times 10; dropout 0.5 on channels; dice plus cross-entropy, 1 to 1).
Deviations:
    The features are those of the backbone that is prompted, instead of a ResNet's. Masks come down by area instead of
    nearest, so a small object keeps its prototype. References may be several (their cells stand side by side), and
    show several kinds of objects, each of which gets prompts of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import check_positive
from samgraft.adapters.prompts.base import PrompterConfig, Prompts
from samgraft.adapters.prompts.matching import image_major
from samgraft.adapters.prompts.objects import FoundObjects, ObjectPrompter, Objects
from samgraft.adapters.prompts.references import References, prototypes, references_of
from samgraft.adapters.prompts.refining import decode_best, found_objects
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

CERTAIN = 10.0
"""What masks are multiplied by before they join the features."""


@dataclass(frozen=True, kw_only=True)
class VrpConfig(PrompterConfig):
    """Sparse prompts from learned queries that have read a reference."""

    method: ClassVar[str] = "vrp"
    point: ClassVar[str] = "sparse prompt"
    queries: int = 50
    """Tokens for each object."""
    heads: int = 4
    """Of every attention; divides the width of prompts."""
    dropout: float = 0.5
    """Of whole channels of the features, while training."""
    temperature: float = 10.0
    """What the pseudo mask, a cosine from 0 to 1, is multiplied by (10 is published)."""
    object_classes: int = 1
    """Kinds of objects that :meth:`VrpPrompter.losses` makes episodes of."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_positive(self.method, "temperature", self.temperature)
        if min(self.queries, self.heads, self.object_classes) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"vrp: queries {self.queries}, heads {self.heads}, object_classes {self.object_classes}, dropout "
                f"{self.dropout}; expected at least 1 each, and dropout in [0, 1)"
            )

    def build(self, backbone: "Backbone") -> "VrpPrompter":
        """Create the generator for the widths of ``backbone``."""
        return VrpPrompter(self, backbone)


class VrpEncoder(nn.Module):
    """Features of reference and image to tokens.

    Attributes:
        project: Features to the width of prompts.
        merge: Features, prototype and mask to the width of prompts; the same for reference and image.
        queries: (k, C).
    """

    def __init__(
        self, in_channels: int, width: int, *, queries: int = 50, heads: int = 4, dropout: float = 0.5
    ) -> None:
        """Build.

        Raises:
            ConfigError: heads do not divide the width.
        """
        super().__init__()
        if width % heads or width % 4:
            raise ConfigError(f"vrp: width {width} of the prompts cannot be shared by {heads} heads; choose a divisor")
        self.project = nn.Conv2d(in_channels, width, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)
        self.merge = nn.Conv2d(2 * width + 1, width, 1, bias=False)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, shown: Tensor, mask: Tensor, seen: Tensor, pseudo: Tensor) -> Tensor:
        """Tokens (B, k, C) of one object.

        Args:
            shown: (R, D, h', w') features of the references.
            mask: (R, h', w') share of each cell that is the object.
            seen: (B, D, h, w) features of the images.
            pseudo: (B, h, w) pseudo mask.
        """
        shown, seen = (self.dropout(self.project(x).relu()) for x in (shown, seen))
        target = prototypes(shown.permute(0, 2, 3, 1), mask[:, None])[0]  # (C,)
        memory = self._merged(shown, target, mask)  # (R, C, h', w')
        image = self._merged(seen, target, pseudo)
        batch = len(seen)
        memory_place, image_place = (sine_code(x.shape[1], x.shape[-2:]).to(x) for x in (memory, image))
        values = memory.flatten(2).transpose(1, 2).flatten(0, 1)[None].expand(batch, -1, -1)  # (B, R h' w', C)
        keys = (memory + memory_place).flatten(2).transpose(1, 2).flatten(0, 1)[None].expand(batch, -1, -1)
        tokens = self.queries[None].expand(batch, -1, -1)
        tokens = self._step(0, tokens, keys, values)
        tokens = self._step(1, tokens, tokens, tokens)
        tokens = self._step(2, tokens, *((x.flatten(2).transpose(1, 2)) for x in (image + image_place, image)))
        return self._step(3, tokens, tokens, tokens)

    def _merged(self, features: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        size = features.shape[-2:]
        parts = [features, target[None, :, None, None].expand(len(features), -1, *size), CERTAIN * mask[:, None]]
        merged: Tensor = self.merge(torch.cat([part.to(features.dtype) for part in parts], dim=1)).relu()
        return merged

    def _step(self, number: int, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        found = self.attentions[number](tokens, keys, values, need_weights=False)[0]
        summed: Tensor = self.norms[number](tokens + found)
        return summed


class VrpPrompter(ObjectPrompter):
    """Learned tokens for every image and each of the K objects of ``context["references"]``, image-major."""

    def __init__(self, config: VrpConfig, backbone: "Backbone") -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config, spec = config, backbone.spec
        self.object_classes = config.object_classes
        early = max(0, math.ceil(spec.num_blocks / 2) - 1)
        self.taps = tuple(sorted({early, spec.num_blocks - 1}))
        width, options = spec.neck_channels, {"queries": config.queries, "heads": config.heads}
        self.encoder = VrpEncoder(spec.embed_dim * len(self.taps), width, dropout=config.dropout, **options)

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) of sparse tokens; scores are the best similarity to the object, 0 to 1."""
        references = references_of(context)
        shown, seen = (self._joined(f) for f in (references.ready(self.taps), features))
        deep_shown, deep_seen = (f.neck for f in (references.ready(self.taps), features))
        tokens, scores = [], []
        for share in references.shares().transpose(0, 1):  # (R, h', w') of each object
            pseudo = pseudo_mask(deep_seen, deep_shown, share)
            scaled = self.config.temperature / CERTAIN * pseudo
            tokens.append(self.encoder(shown, share.to(shown.dtype), seen, scaled))
            scores.append(pseudo.flatten(1).amax(dim=1))
        index = image_major(len(image), len(tokens), image.device)
        return Prompts(
            image_index=index,
            sparse=torch.stack(tokens, dim=1).flatten(0, 1),
            scores=torch.stack(scores, dim=1).flatten().detach(),
        )

    def losses(self, backbone: "Backbone", features: Features, image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Each image of the batch is the reference of the one before it (a single image, of itself)."""
        truth = class_masks(objects, self.object_classes) & objects.known[:, None]
        parts: dict[str, list[Tensor]] = {"mask_ce": [], "mask_dice": []}
        for target in range(len(image)):
            for kind in range(self.object_classes):
                shown = reference_for(target, truth[:, kind])
                if shown is None or not bool(truth[target, kind].any()):
                    continue
                references = References(
                    images=image[shown][None],
                    masks=truth[shown, kind][None, None].to(image.dtype),
                    valid=objects.known[shown][None],
                    features=only(features, shown),
                )
                for name, value in self.episode_losses(
                    backbone,
                    only(features, target),
                    image[target][None],
                    references,
                    truth[target, kind][None],
                    objects.known[target][None],
                ).items():
                    parts[name].append(value)
        nothing = 0.0 * sum(parameter.sum() for parameter in self.parameters())
        return {name: torch.stack(values).mean() if values else nothing for name, values in parts.items()}  # type: ignore[misc]

    def episode_losses(
        self,
        backbone: "Backbone",
        features: Features,
        image: Tensor,
        references: References,
        truth: Tensor,
        known: Tensor,
    ) -> dict[str, Tensor]:
        """Cross-entropy and dice of the decoder's masks for images whose objects the references show.

        Args:
            backbone: The frozen backbone.
            features: Of B images, with :attr:`taps`.
            image: (B, 3, H, W) in [0, 1].
            references: Encoded, of one kind of object.
            truth: (B, H, W) bool.
            known: (B, H, W) bool: where the truth is known.
        """
        prompts: Prompts = self(features, image, {"references": references})
        logits = backbone.decode(features, prompts)[0][:, 0]  # (B, 4h, 4w)
        share, weight = (
            functional.adaptive_avg_pool2d(x[:, None].to(logits), (logits.shape[-2], logits.shape[-1]))[:, 0]
            for x in (truth & known, known)
        )
        entropy = functional.binary_cross_entropy_with_logits(logits, share, reduction="none")
        probability = logits.sigmoid()
        both = (probability * share * weight).flatten(1).sum(dim=1)
        total = ((probability + share) * weight).flatten(1).sum(dim=1)
        return {
            "mask_ce": (entropy * weight).sum() / weight.sum().clamp_min(1),
            "mask_dice": (1 - (2 * both + 1) / (total + 1)).mean(),
        }

    def find(self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]) -> FoundObjects:
        """One mask for each image and object; references without features are encoded.

        Raises:
            ConfigError: no references.
        """
        references = references_of(context).encode(backbone, self.taps)
        prompts: Prompts = self(features, image, {**context, "references": references})
        found = decode_best(backbone, features, prompts, multimask=False)
        return found_objects(prompts, *found, references.num_objects)

    def _joined(self, features: Features) -> Tensor:
        missing = [tap for tap in self.taps if tap not in features.taps]
        if missing:
            raise ConfigError(f"vrp reads blocks {list(self.taps)}; features lack {missing}; encode with prompter.taps")
        return torch.cat([features.taps[tap] for tap in self.taps], dim=-1).permute(0, 3, 1, 2)


def pseudo_mask(seen: Tensor, shown: Tensor, share: Tensor) -> Tensor:
    """(B, h, w) in [0, 1]: the largest cosine of each cell with any cell of the object, 0 if that is negative.

    Args:
        seen: (B, C, h, w).
        shown: (R, C, h', w').
        share: (R, h', w'): how much of each cell is the object.
    """
    own = functional.normalize(shown.permute(0, 2, 3, 1)[share >= 0.5 * share.max()], dim=-1)
    return (functional.normalize(seen.permute(0, 2, 3, 1), dim=-1) @ own.T).amax(dim=-1).clamp(0, 1)


def class_masks(objects: Objects, classes: int) -> Tensor:
    """(B, classes, H, W) bool: all objects of each class together."""
    batch, height, width = objects.known.shape
    masks = torch.zeros(batch, classes, height, width, dtype=torch.bool, device=objects.known.device)
    for image, kind, mask in zip(objects.image_index.tolist(), objects.classes.tolist(), objects.masks, strict=True):
        masks[image, kind] |= mask
    return masks


def reference_for(target: int, masks: Tensor) -> int | None:
    """The next image after ``target`` (around the end) in which masks (B, H, W) show the object; itself at last."""
    for step in range(1, len(masks) + 1):
        other = (target + step) % len(masks)
        if bool(masks[other].any()):
            return other
    return None


def only(features: Features, image: int) -> Features:
    """Features of one image."""
    taps = {tap: x[image][None] for tap, x in features.taps.items()}
    return Features(neck=features.neck[image][None], taps=taps)


def sine_code(channels: int, grid: tuple[int, int] | torch.Size) -> Tensor:
    """(1, C, h, w) sine position code: a quarter of the channels each for sine and cosine of row and column.

    Source:
        Attention Is All You Need, arXiv:1706.03762, section 3.5; DETR's normalised form, with coordinates to 2 pi.
    """
    quarter = channels // 4
    rate = 10000 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    codes = []
    for number in grid:
        turned = 2 * math.pi * (torch.arange(number) + 0.5)[:, None] / number * rate  # (n, C / 4)
        codes.append(torch.cat([turned.sin(), turned.cos()], dim=1).T)
    rows, columns = codes[0][:, :, None].expand(-1, -1, grid[1]), codes[1][:, None].expand(-1, grid[0], -1)
    return torch.cat([rows, columns])[None]
