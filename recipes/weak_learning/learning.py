"""What a batch of places teaches: the usual loss on pseudo-labels, and beside it those of weak and partial labels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import Grafted
from samgraft.recipes.losses import IGNORE, as_multiclass, at_least_float
from samgraft.recipes.representations import DistanceMaps, Maps, ObjectMaps, Representation
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_labels.partial import exclusion_loss, marginal_logits
from samgraft.recipes.weak_learning.losses import alike_loss, marks_loss, tightness_loss
from samgraft.recipes.weak_learning.tiles import Known, WeakTiles, tile_numbers


def foreground(representation: Maps, logits: Tensor) -> Tensor:
    """Probabilities (B, C, H, W) of the foreground classes, or (B, 1, H, W) of an object, from logits (B, K, H, W)."""
    if isinstance(representation, DistanceMaps):
        return logits[:, :1].sigmoid()
    whole = as_multiclass(logits).softmax(dim=1)
    return 1 - whole[:, :1] if isinstance(representation, ObjectMaps) else whole[:, 1:]


def at_places(probabilities: Tensor, places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Bring probabilities back to where their pixels come from.

    Args:
        probabilities: (B, C, S, S).
        places: (B, S, S) of the augmented tiles, or below 0.
        size: S.

    Returns:
        (B, C, S, S), the largest of the pixels that show a place and 0 where none does; (B, S, S) bool, shown at all.
    """
    area = size * size
    within = torch.where(places >= 0, places % area, area).flatten(1).to(probabilities.device)
    index = within[:, None].expand(-1, probabilities.shape[1], -1)
    empty = probabilities.new_zeros(*probabilities.shape[:2], area + 1)
    found = empty.scatter_reduce(2, index, probabilities.flatten(2), "amax")
    seen = torch.zeros(len(places), area + 1, dtype=torch.bool, device=probabilities.device)
    seen.scatter_(1, within, True)
    return found[..., :area].unflatten(2, (size, size)), seen[:, :area].unflatten(1, (size, size))


def without_guesses(target: Tensor, unsure: Tensor) -> Tensor:
    """A target (B, S, S), or (B, K, S, S) whose first channel says what is known, without pixels that are a guess."""
    unsure = unsure.to(target.device)
    if target.ndim == unsure.ndim:
        return target.masked_fill(unsure, IGNORE)
    first = target[:, :1].masked_fill(unsure[:, None], IGNORE)
    return torch.cat([first, target[:, 1:]], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeakLearning:
    """The loss of a batch of weakly or partly labelled tiles."""

    tiles: WeakTiles
    """Where everything is looked up."""
    config: WeakConfig
    """Weights."""
    partial: bool
    """Not every class was annotated in every case."""

    def learn(
        self,
        representation: Representation,
        loss: nn.Module,
        grafted: Grafted,
        features: Features | None,
        image: Tensor,
        places: Tensor,
    ) -> Tensor:
        """The loss of a batch; see :meth:`Representation.learn`, with ``places`` (B, S, S) of the tiles as labels.

        Heads that find objects themselves learn from pseudo-labels only.
        """
        there = places.cpu()
        known = self.tiles.known(there)
        if isinstance(representation, Maps):
            loss = _BatchLoss(self, representation, loss, image=image, places=there, known=known)
        return representation.learn(loss, grafted, features, image, known.labels)


class _BatchLoss(nn.Module):
    """The usual loss and the weak ones, of one batch."""

    def __init__(
        self, owner: WeakLearning, representation: Maps, loss: nn.Module, *, image: Tensor, places: Tensor, known: Known
    ) -> None:
        super().__init__()
        self.owner, self.representation, self.loss = owner, representation, loss
        self.image, self.places, self.known = image, places, known
        self.numbers = tile_numbers(places, owner.tiles.size)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, K, S, S) and the target of the representation."""
        logits, weights = at_least_float(logits), self.owner.config
        target = without_guesses(target, self.known.unsure)
        total: Tensor = self._partial(logits, target) if self.owner.partial else self.loss(logits, target)
        if self.owner.tiles.supervision == "masks":
            return total
        found = foreground(self.representation, logits)
        if weights.tightness > 0 and self.owner.tiles.supervision == "boxes":
            total = total + weights.tightness * self._tightness(found)
        if weights.marks > 0 and self.owner.tiles.supervision in ("points", "scribbles"):
            marks = self.known.marks.clamp_max(1) if self.owner.tiles.instance else self.known.marks
            total = total + weights.marks * marks_loss(found, marks.to(found.device))
        if weights.crf > 0:
            shown = (self.places >= 0).to(found.device)
            alike = alike_loss(found, self.image, shown, radius=weights.crf_radius, colour=weights.crf_colour)
            total = total + weights.crf * alike
        return total

    def _partial(self, logits: Tensor, target: Tensor) -> Tensor:
        tiles = self.owner.tiles
        everything = torch.ones(tiles.classes, dtype=torch.bool)
        annotated = torch.stack([tiles.annotated[n] if n >= 0 else everything for n in self.numbers])
        total: Tensor = self.loss(marginal_logits(logits, annotated), target)
        return total + self.owner.config.exclusion * exclusion_loss(logits, target, annotated)

    def _tightness(self, found: Tensor) -> Tensor:
        tiles = self.owner.tiles
        rows, columns = tiles.bags(self.numbers)
        at, seen = at_places(found, self.places, tiles.size)
        return tightness_loss(
            at, rows.to(at.device), columns.to(at.device), seen=seen, sharpness=self.owner.config.sharpness
        )
