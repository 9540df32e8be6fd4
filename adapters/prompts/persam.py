"""PerSAM: one labelled image tells the frozen decoder which object to look for in another.

The mean feature of the reference object is compared with every cell of the new image. The most similar place becomes a
foreground point, the least similar one a background point. In the decoder, similar cells get more attention
(:mod:`samgraft.adapters.backbones.guidance`), and the mean feature is added to the tokens. The answer can be refined:
asked for again with the mask so found as prompt, and once more with its box.

    s = cos(target, cells),  bias = sigmoid((s - mean s) / std s)     over cells that are no padding

Nothing is trained. Several objects of a kind are found one after the other, what was found being left out.

Source:
    PerSAM, arXiv:2305.03048, sections 3.1 to 3.3; github.com/ZrrSkywalker/Personalize-SAM, persam.py.
Deviations:
    The bias is made on the grid of the features, where padding is left out; the released one is made from a map of the
    unpadded image squashed to a square, and misses on images that are not square. ``variant="clean"`` adds it before
    the softmax ("published" takes a second softmax). Masks are pooled by area, so an object smaller than a cell has a
    prototype. Features may be centred and extended by place and look, and come from any block. There is no refinement
    unless asked for (two are published).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.guidance import Guidance
from samgraft.adapters.config import check_choice
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.matching import (
    ReferenceConfig,
    ReferencePrompter,
    cell_centres,
    image_major,
    size_of,
    valid_cells,
)
from samgraft.adapters.prompts.object_masks import mask_iou
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.adapters.prompts.references import References, prototypes, references_of
from samgraft.adapters.prompts.refining import decode_refined, found_objects
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

SAME = 0.8
"""IoU of a mask with an earlier one from which nothing new was found."""
FINE = 4
"""The similarity is enlarged this often before its extremes are looked for."""


@dataclass(frozen=True, kw_only=True)
class PersamConfig(ReferenceConfig):
    """Points, attention and tokens from one reference; nothing is trained."""

    method: ClassVar[str] = "persam"
    point: ClassVar[str] = "prompt; I9 decoder attention and tokens"
    variant: Literal["clean", "published"] = "clean"
    """Where the attention's bias is added: "clean" before the softmax, "published" between two."""
    strength: float = 1.0
    """What the bias is multiplied by; 0 leaves the attention alone."""
    semantic: bool = True
    """Add the mean feature of the reference object to the decoder's tokens."""
    refinements: int = 0
    """Times that the decoder is asked again: first with its mask, then with the mask and its box (2 are published; the
    masks of graft-tiny grow beyond the object with each).
    """
    max_objects: int = 1
    """Most objects of a kind in an image."""
    alike: float = 0.9
    """A further object is looked for while its best cell is at least this similar, over that of the first."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        check_choice(self.method, "variant", self.variant, ("clean", "published"))
        if self.strength < 0 or self.refinements < 0 or self.max_objects < 1:
            raise ConfigError(
                f"{self.method}: strength {self.strength}, refinements {self.refinements}, max_objects "
                f"{self.max_objects}; expected at least 0, 0 and 1"
            )

    def build(self, backbone: "Backbone") -> "PersamPrompter":
        """Create the generator; the backbone is only read."""
        return PersamPrompter(self, backbone)


class PersamPrompter(ReferencePrompter):
    """A positive and a negative point for each image and object; :meth:`find` does the rest."""

    def __init__(self, config: PersamConfig, backbone: "Backbone") -> None:
        """Remember the options."""
        super().__init__(config, backbone)
        self.config = config

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) of two points, foreground and background; scores are similarities from 0 to 1."""
        similarity = self.similarity(features, image, references_of(context))
        return location_prior(similarity, valid_cells(context, features), size_of(image), negative=True)

    def similarity(self, features: Features, image: Tensor, references: References) -> Tensor:
        """(B, K, h, w) cosine in [-1, 1] of every cell with the mean of each object's cells."""
        seen, shown = self.cells(features, image, references)
        target = functional.normalize(prototypes(shown, references.shares()), dim=-1)  # (K, D)
        return (functional.normalize(seen, dim=-1) @ target.T).permute(0, 3, 1, 2)

    def guidance(self, similarity: Tensor, valid: Tensor, references: References) -> Guidance | None:
        """What the decoder is told for the B K prompts; None if both parts are off."""
        bias = target = None
        if self.config.strength > 0:
            bias = self.config.strength * attention_prior(similarity, valid).flatten(0, 1)
        if self.config.semantic:
            neck = references.ready().neck.permute(0, 2, 3, 1)
            target = prototypes(neck, references.shares()).repeat(len(similarity), 1)
        if bias is None and target is None:
            return None
        return Guidance(bias=bias, target=target, double_softmax=self.config.variant == "published")

    def answer(
        self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """One object for each image and kind, or up to ``max_objects``."""
        references = references_of(context)
        similarity = self.similarity(features, image, references)
        valid = valid_cells(context, features)
        first = similarity.masked_fill(~valid[:, None], -1).flatten(2).amax(dim=2)
        left = valid[:, None].expand_as(similarity)
        rounds: list[FoundObjects] = []
        going = torch.ones(similarity.shape[:2], dtype=torch.bool, device=similarity.device).flatten()
        for _ in range(self.config.max_objects):
            found = self._once(backbone, features, image, similarity, left, valid, references)
            if rounds:
                going &= self._new(found, rounds, similarity, left, first)
            rounds.append(found.select(going))
            if not bool(going.any()) or len(rounds) == self.config.max_objects:
                break
            inside = functional.adaptive_avg_pool2d((found.logits[:, None] > 0).float(), size_of(similarity))
            left = left & (inside[:, 0] < 0.5).unflatten(0, similarity.shape[:2])
            going &= left.flatten(2).any(dim=2).flatten()
        return joined(rounds)

    def _once(
        self,
        backbone: "Backbone",
        features: Features,
        image: Tensor,
        similarity: Tensor,
        left: Tensor,
        valid: Tensor,
        references: References,
    ) -> FoundObjects:
        """The three passes for all B K prompts."""
        size = size_of(image)
        prompts = location_prior(similarity, left, size, negative=True)
        told = self.guidance(similarity.masked_fill(~left, -1), valid, references)
        rounds = self.config.refinements
        found = decode_refined(
            backbone, features, prompts, size, multimask=False, rounds=rounds, boxed_from=1, guidance=told
        )
        return found_objects(prompts, *found, references.num_objects)

    def _new(
        self, found: FoundObjects, rounds: list[FoundObjects], similarity: Tensor, left: Tensor, first: Tensor
    ) -> Tensor:
        """(B K,) bool: whether a mask is none of those before, and its best cell similar enough."""
        peak = similarity.masked_fill(~left, -1).flatten(2).amax(dim=2)
        new = (peak >= self.config.alike * first).flatten()
        for earlier in rounds:
            same = (earlier.image_index[:, None] == found.image_index) & (earlier.classes[:, None] == found.classes)
            overlap = mask_iou(earlier.logits > 0, found.logits > 0)
            new &= ~(same & (overlap >= SAME)).any(dim=0)
        return new


def location_prior(similarity: Tensor, allowed: Tensor, size: tuple[int, int], *, negative: bool) -> Prompts:
    """Points at the most and the least similar place.

    Args:
        similarity: (B, K, h, w).
        allowed: (B, h, w) or (B, K, h, w) bool; a kind with no allowed cell takes the best of all.
        size: (H, W) of the network input.
        negative: Whether to give the least similar place as a background point.

    Returns:
        B K prompts, image-major, with scores from 0 to 1.
    """
    batch, kinds, height, width = similarity.shape
    mask = (allowed[:, None] if allowed.ndim == 3 else allowed).expand_as(similarity)
    mask = mask | ~mask.flatten(2).any(dim=2)[:, :, None, None]
    grid = (FINE * height, FINE * width)
    fine = functional.interpolate(similarity, size=grid, mode="bilinear", align_corners=False).flatten(2)
    inside = mask.repeat_interleave(FINE, dim=2).repeat_interleave(FINE, dim=3).flatten(2)
    infinite = torch.inf
    high, top = fine.masked_fill(~inside, -infinite).max(dim=2)
    chosen = [top]
    if negative:
        chosen.append(fine.masked_fill(~inside, infinite).min(dim=2).indices)
    centres = cell_centres(grid, size[0] / grid[0]).to(similarity)
    points = centres[torch.stack(chosen, dim=-1).flatten(0, 1)]  # (B K, 1 or 2, 2)
    labels = torch.zeros(points.shape[:2], dtype=torch.int64, device=similarity.device)
    labels[:, 0] = 1
    return Prompts(
        image_index=image_major(batch, kinds, similarity.device),
        points=points,
        labels=labels,
        scores=((1 + high.flatten()) / 2).clamp(0, 1),
    )


def attention_prior(similarity: Tensor, valid: Tensor) -> Tensor:
    """(B, K, h, w) in [0, 1]: sigmoid of the standardised similarity; 0 on padding, which counts in no mean.

    Args:
        similarity: (B, K, h, w).
        valid: (B, h, w) bool.
    """
    weight = valid[:, None].to(similarity)
    count = weight.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    mean = (similarity * weight).sum(dim=(2, 3), keepdim=True) / count
    spread = (((similarity - mean) * weight).square().sum(dim=(2, 3), keepdim=True) / count).sqrt()
    return ((similarity - mean) / spread.clamp_min(1e-6)).sigmoid() * weight


def joined(parts: list[FoundObjects]) -> FoundObjects:
    """Objects of several lists in one."""
    return FoundObjects(
        image_index=torch.cat([part.image_index for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        classes=torch.cat([part.classes for part in parts]),
        from_ground_truth=any(part.from_ground_truth for part in parts),
    )
