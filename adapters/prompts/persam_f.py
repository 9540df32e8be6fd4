"""PerSAM-F: one labelled image, one point, and two trained numbers that say how large the object is meant to be.

A point is ambiguous: the decoder answers with three masks, from part to whole. Two numbers, trained on the references
in seconds, mix them:

    mask = (1 - w1 - w2) M0 + w1 M1 + w2 M2

The point is where the new image is most similar to the reference object (half the largest, half the mean value of
every channel over the object's cells). The mask can be refined, with its logits and its box as prompts.

Source:
    PerSAM, arXiv:2305.03048, section 3.4; github.com/ZrrSkywalker/Personalize-SAM, persam_f.py (dice plus focal loss
    with alpha 0.25 and gamma 2, AdamW at 1e-3 with eps 1e-4, cosine, 1000 steps).
Deviations:
    The loss is taken at the resolution of the decoder, against the share of every pixel that is object. Several
    references and several kinds of objects, each with numbers of its own, are possible. The mask is not refined unless
    asked for (twice is published); ``mixed`` lets refinements use the trained mixture instead of the mask with the
    highest predicted IoU. Features come from any block, may be centred, and are compared by place too. Islands and
    small holes of the mask go (``islands``, ``fill_holes``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import check_positive
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.matching import ReferencePrompter, size_of, valid_cells
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.adapters.prompts.persam import location_prior
from samgraft.adapters.prompts.references import References, prototypes, references_of
from samgraft.adapters.prompts.refining import decode_refined, found_objects
from samgraft.adapters.prompts.tidy import IslandsConfig
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss."""


@dataclass(frozen=True, kw_only=True)
class PersamFConfig(IslandsConfig):
    """One point and a trained mixture of three masks."""

    method: ClassVar[str] = "persam_f"
    objects: int = 1
    """Kinds of objects K in the references; two numbers each."""
    steps: int = 1000
    """Of :meth:`PersamFPrompter.fit`."""
    lr: float = 1e-3
    """Of AdamW, falling to zero along a cosine."""
    refinements: int = 0
    """Times that the decoder is asked again, with its mask and the mask's box (2 are published; the masks of graft-tiny
    grow beyond the object with each).
    """
    mixed: bool = True
    """Mix the masks of refinements too, instead of taking the one with the highest predicted IoU (as published)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_positive(self.method, "lr", self.lr)
        if self.objects < 1 or self.steps < 0 or self.refinements < 0:
            raise ConfigError(
                f"{self.method}: objects {self.objects}, steps {self.steps}, refinements {self.refinements}; expected "
                "at least 1, 0 and 0"
            )

    def build(self, backbone: "Backbone") -> "PersamFPrompter":
        """Create the generator; the backbone is only read."""
        return PersamFPrompter(self, backbone)


class PersamFPrompter(ReferencePrompter):
    """One foreground point for each image and object, and two numbers per kind of object.

    Attributes:
        weights: (K, 2): w1 and w2; a third at first.
    """

    multimask = True

    def __init__(self, config: PersamFConfig, backbone: "Backbone") -> None:
        """Start with the mean of the three masks."""
        super().__init__(config, backbone)
        self.config = config
        self.weights = nn.Parameter(torch.full((config.objects, 2), 1 / 3))

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) of one foreground point; scores are similarities from 0 to 1."""
        references = self._checked(references_of(context))
        seen, shown = self.cells(features, image, references)
        similarity = (functional.normalize(seen, dim=-1) @ targets(shown, references).T).permute(0, 3, 1, 2)
        return location_prior(similarity, valid_cells(context, features), size_of(image), negative=False)

    def mixture(self, batch: int = 1) -> Tensor:
        """(batch K, 3): shares of the three masks, summing to one."""
        return torch.cat([1 - self.weights.sum(dim=1, keepdim=True), self.weights], dim=1).repeat(batch, 1)

    def fit(self, backbone: "Backbone", references: References) -> list[float]:
        """Train the numbers on the references.

        Args:
            backbone: The frozen backbone.
            references: Encoded, or not.

        Returns:
            The loss of every step.
        """
        references = self._checked(references.encode(backbone, self.taps))
        valid = {} if references.valid is None else {"valid": references.valid}
        with torch.no_grad():
            features = references.ready(self.taps)
            prompts: Prompts = self(features, references.images, {"references": references, **valid})
            logits = backbone.decode(features, prompts, multimask=True)[0].detach().float()  # (R K, 3, 4h, 4w)
        parts = logits.shape[-1] // features.neck.shape[-1]
        truth = references.shares(parts=parts).flatten(0, 1).to(logits)  # (R K, 4h, 4w)
        known = references.known(parts=parts).repeat_interleave(references.num_objects, dim=0).to(logits)
        there = truth.flatten(1).sum(dim=1) > 0  # an object may be missing in some references
        optimizer = torch.optim.AdamW([self.weights], lr=self.config.lr, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.config.steps))
        losses = []
        with torch.enable_grad():
            for _ in range(self.config.steps):
                optimizer.zero_grad()
                mix = self.mixture(len(references)).float()
                loss = mask_loss((mix[there, :, None, None] * logits[there]).sum(dim=1), truth[there], known[there])
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
        self.weights.grad = None
        return losses

    def answer(
        self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """One object for each image and kind: the mixture of the decoder's three masks."""
        prompts: Prompts = self(features, image, context)
        logits, scores = decode_refined(
            backbone,
            features,
            prompts,
            size_of(image),
            multimask=True,
            rounds=self.config.refinements,
            mix=self.mixture(len(image)),
            mixed=self.config.mixed,
        )
        point = None if prompts.points is None else prompts.points[:, 0]
        logits = self.config.tidy(logits, references_of(context), point, size_of(image))
        return found_objects(prompts, logits, scores, self.config.objects)

    def _checked(self, references: References) -> References:
        if references.num_objects != self.config.objects:
            raise ConfigError(
                f"persam_f is built for {self.config.objects} kinds of objects; the references have "
                f"{references.num_objects}; build it with PersamFConfig(objects={references.num_objects})"
            )
        return references


def targets(cells: Tensor, references: References) -> Tensor:
    """(K, D) unit vectors: half the mean, half the largest value of every channel over the cells of each object."""
    shares = references.shares()
    mean = prototypes(cells, shares)
    largest = []
    for share in shares.transpose(0, 1):  # (R, h, w): cells that are the object, or as much so as any is
        largest.append(cells[share >= 0.5 * share.max()].amax(dim=0))
    return functional.normalize((mean + torch.stack(largest)) / 2, dim=-1)


def mask_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Dice plus sigmoid focal loss of masks (n, h, w) against shares in [0, 1], where ``known`` is above 0."""
    probability = logits.sigmoid()
    both = (probability * truth * known).flatten(1).sum(dim=1)
    total = ((probability + truth) * known).flatten(1).sum(dim=1)
    dice = 1 - (2 * both + 1) / (total + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = (probability - truth).abs()
    balance = ALPHA * truth + (1 - ALPHA) * (1 - truth)
    focal = (balance * missed**GAMMA * entropy * known).flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1).clamp_min(1)
    return (dice + focal).mean()
