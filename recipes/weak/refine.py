"""Pseudo-labels from the adapter's own output: a few rounds during training, each bounded by the weak labels.

In every tile each object gets the pixels where the adapter is sure of its class, among those where it may lie (its box,
the band of its outline, its side of the points); pixels that are less sure and touch them are unknown (hysteresis). A
mask that leaves its weak label is refused, and the object keeps what it had: the mask's own box has to agree with the
weak box, a mask with its coarse outline and with the mask that the object had, points have to be hit, and with
scribbles the tile's drawn pixels. Nor is anything taken from a tile in which most of a class is seen where none of its
objects may be: such an adapter fills boxes, which agree with themselves.

Source:
    Rounds of training on one's own masks, bounded by boxes: Dai et al., BoxSup, arXiv:1503.01640, section 3.3, and
    Khoreva et al., Simple does it, arXiv:1603.07485, section 3.1 (masks cut by the box, and reset where they lose it).
Deviations:
    Uncertain pixels are ignored; a refused object keeps its last mask instead of its box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.graft import Grafted
from samgraft.recipes.losses import IGNORE, at_least_float
from samgraft.recipes.representations import Maps, Representation
from samgraft.recipes.weak.pseudo import Claim, Domain, Labelled, claim_of, domain, paint_claims
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_labels.labels import box_ious, box_of, nearest_cells
from samgraft.recipes.weak_learning.learning import foreground
from samgraft.recipes.weak_learning.tiles import TileObject, WeakTiles

_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What a round of refinement did."""

    accepted: int
    """Objects (with scribbles: tiles) that got a new mask."""
    refused: int
    """Those that kept what they had."""
    unknown: float
    """Share of pixels that teach nothing now."""


def hysteresis(probability: NDArray[np.floating], where: Domain, low: float, high: float) -> Claim:
    """What an object claims by the probability of its class.

    Args:
        probability: On the domain's rows and columns.
        where: Where it may lie. If part of it is certain, only what hangs together with that counts.
        low: Pixels below are not of the object.
        high: Pixels above are, if they may be; those in between count where they hang together with such.
    """
    above = (where.allowed & (probability >= low)) | where.core
    seeds = where.core if where.core.any() else where.allowed & (probability > high)
    parts, _ = ndimage.label(above)
    kept = np.isin(parts, np.setdiff1d(np.unique(parts[seeds]), [0]))
    return claim_of(probability, where, (low, _HALF, high), kept)


def agreement_of(one: TileObject, inside: NDArray[np.bool_], place: tuple[slice, slice]) -> float:
    """How well a mask agrees with its weak label, 0 to 1: IoU of boxes or of areas, share of points.

    Args:
        one: The object.
        inside: (h, w) its mask.
        place: Rows and columns of the mask in the tile.
    """
    if one.points and one.region is None:
        right = 0
        for row, col, on in one.points:
            r, c = row - place[0].start, col - place[1].start
            there = 0 <= r < inside.shape[0] and 0 <= c < inside.shape[1] and bool(inside[r, c])
            right += there == bool(on)
        return right / len(one.points)
    if not inside.any():
        return 0.0
    if one.region is not None:
        both = np.zeros_like(inside)
        rows = slice(max(one.rows[0], place[0].start), min(one.rows[1] + 1, place[0].stop))
        cols = slice(max(one.cols[0], place[1].start), min(one.cols[1] + 1, place[1].stop))
        top, left = place[0].start, place[1].start
        here = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
        both[here] = one.region[
            rows.start - one.rows[0] : rows.stop - one.rows[0], cols.start - one.cols[0] : cols.stop - one.cols[0]
        ]
        return float((inside & both).sum() / max(int((inside | both).sum()), 1))
    own = (float(one.cols[0]), float(one.rows[0]), float(one.cols[1]), float(one.rows[1]))
    return float(box_ious([box_of(inside, place)], [own])[0, 0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """New labels of a tile."""

    labels: NDArray[np.int32]
    """(S, S), with ``IGNORE``."""
    unsure: NDArray[np.bool_]
    """(S, S): a guess."""
    accepted: int
    """Objects with a new mask; with scribbles 1 if the tile has one."""
    refused: int
    """Objects that kept what they had."""


def _as_before(where: Domain, value: int, before: Labelled) -> Claim:
    """What an object had."""
    labels, unsure = (table[where.place] for table in before)
    return Claim(
        place=where.place,
        inside=where.allowed & (labels == value),
        unsure=where.allowed & unsure & (labels != IGNORE),
        unknown=where.allowed & (labels == IGNORE),
    )


def inside_share(
    probability: NDArray[np.floating], domains: Sequence[Domain], channels: Sequence[int], channel: int
) -> float:
    """Share of a class's pixels in a tile that lie where some object of the class may; 1 if there is none."""
    predicted = probability > _HALF
    allowed = np.zeros_like(predicted)
    for where, own in zip(domains, channels, strict=True):
        if own == channel:
            allowed[where.place] |= where.allowed
    return float((predicted & allowed).sum() / max(1, int(predicted.sum()))) if predicted.any() else 1.0


class Refiner:
    """Makes the pseudo-labels of tiles again.

    Args:
        tiles: Changed in place.
        config: Thresholds.
    """

    def __init__(self, tiles: WeakTiles, config: WeakConfig) -> None:
        """Remember both."""
        self.tiles, self.config = tiles, config

    def tile(self, number: int, probabilities: NDArray[np.floating]) -> "Refined":
        """New labels of a tile.

        Args:
            number: Of the tile.
            probabilities: (C, S, S) of the foreground classes, or (1, S, S) where all objects are of one kind.
        """
        tiles, marks = self.tiles, self.tiles.marks[number].numpy()
        before = tiles.labels[number].numpy(), tiles.unsure[number].numpy()
        if tiles.supervision == "scribbles":
            labels, unsure, good = self._scribbled(before, marks, probabilities)
            total = 1
        else:
            objects = tiles.objects[number]
            (labels, unsure), good = self._objects(objects, before, probabilities, marks)
            total = len(objects)
        labels = np.where(marks != IGNORE, marks, labels).astype(np.int32)
        labels[tiles.void[number].numpy()] = IGNORE
        return Refined(labels=labels, unsure=unsure & (marks == IGNORE), accepted=good, refused=total - good)

    def _objects(
        self,
        objects: tuple[TileObject, ...],
        before: Labelled,
        probabilities: NDArray[np.floating],
        marks: NDArray[np.int32],
    ) -> tuple[Labelled, int]:
        shape = (before[0].shape[0], before[0].shape[1])
        cells = nearest_cells([[(r, c) for r, c, on in one.points if on] for one in objects], shape)
        whole = (slice(0, shape[0]), slice(0, shape[1]))
        domains = [domain(one.in_tile(), index, cells, shape, whole) for index, one in enumerate(objects)]
        channels = [0 if self.tiles.instance else one.label - 1 for one in objects]
        inside = [inside_share(probability, domains, channels, c) for c, probability in enumerate(probabilities)]
        claims, values, accepted = [], [], 0
        for one, where, channel in zip(objects, domains, channels, strict=True):
            value = one.number if self.tiles.instance else one.label
            chance = probabilities[channel][where.place]
            claim = hysteresis(chance, where, self.config.low, self.config.high)
            seen = claim.inside & (chance > _HALF)  # a certain pixel that the adapter does not see is no agreement
            old = where.allowed & (before[0][where.place] == value) & (marks[where.place] == IGNORE)
            agreement = min(agreement_of(one, seen, where.place), inside[channel])
            if old.any():
                agreement = min(agreement, float((seen & old).sum() / (seen | old).sum()))
            if (claim.inside & ~claim.unsure).any() and agreement >= self.config.min_agreement:
                accepted += 1
            else:
                claim = _as_before(where, value, before)
            claims.append(claim)
            values.append(value)
        return paint_claims(claims, values, shape), accepted

    def _scribbled(
        self, before: Labelled, marks: NDArray[np.int32], probabilities: NDArray[np.floating]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
        """The likeliest class everywhere; objects cannot be told apart by their class, so that numbers stay."""
        whole = np.concatenate([1 - probabilities.sum(axis=0, keepdims=True), probabilities])
        best = whole.argmax(axis=0)
        drawn = marks >= 0
        right = float((best == marks)[drawn].mean()) if drawn.any() else 0.0
        if self.tiles.instance or right < self.config.min_agreement:
            return *before, 0
        return best.astype(np.int32), whole.max(axis=0) <= self.config.high, 1

    @torch.no_grad()
    def round(self, grafted: Grafted, representation: Representation, *, batch: int = 8) -> RoundResult | None:
        """Refine all tiles; None for heads without maps, whose tiles stay as they are.

        Args:
            grafted: The network; it is put into evaluation mode and back.
            representation: What its channels mean.
            batch: Tiles predicted together.
        """
        if not isinstance(representation, Maps):
            return None
        mode, accepted, refused, unknown = grafted.training, 0, 0, 0
        device = next(grafted.backbone.parameters()).device
        grafted.eval()
        try:
            for first in range(0, len(self.tiles), batch):
                chosen = range(first, min(first + batch, len(self.tiles)))
                images = torch.stack([self.tiles.images[n] for n in chosen]).to(device).float() / 255
                found = self._probabilities(grafted, representation, images)
                for number, one in zip(chosen, found, strict=True):
                    new = self.tile(number, one.cpu().numpy())
                    self.tiles.labels[number] = torch.from_numpy(new.labels)
                    self.tiles.unsure[number] = torch.from_numpy(new.unsure)
                    accepted, refused = accepted + new.accepted, refused + new.refused
                    unknown += int(((new.labels == IGNORE) | new.unsure).sum())
        finally:
            grafted.train(mode)
        share = unknown / max(1, len(self.tiles) * self.tiles.size**2)
        return RoundResult(accepted=accepted, refused=refused, unknown=share)

    @staticmethod
    def _probabilities(grafted: Grafted, representation: Maps, images: Tensor) -> Tensor:
        logits = at_least_float(representation.logits(grafted.predict(images)))
        logits = functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return foreground(representation, logits)
