"""Pseudo-labels from the adapter's own output: a few rounds during training, each bounded by the weak labels.

In every tile each object gets the pixels where the adapter is sure of its class, among those where it may lie (its box,
the band of its outline, its side of the points); pixels that are less sure and touch them are unknown (hysteresis). A
mask that leaves its weak label is refused, and the object keeps what it had: the mask's own box has to agree with the
weak box, a mask with its coarse outline, points have to be hit, and with scribbles the tile's drawn pixels.

Source:
    Rounds of training on one's own masks, bounded by boxes: Dai et al., BoxSup, arXiv:1503.01640, section 3.3, and
    Khoreva et al., Simple does it, arXiv:1603.07485, section 3.1 (masks cut by the box, and reset where they lose it).
Deviations:
    Uncertain pixels are ignored; a refused object keeps its last mask instead of its box.
"""

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
from samgraft.recipes.weak.config import WeakConfig
from samgraft.recipes.weak.labels import nearest_cells
from samgraft.recipes.weak.learning import foreground
from samgraft.recipes.weak.pseudo import Claim, Domain, domain, paint_claims
from samgraft.recipes.weak.tiles import TileObject, WeakTiles

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


def hysteresis(
    probability: NDArray[np.floating], domain: Domain, low: float, high: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Sure and unsure pixels of an object.

    Args:
        probability: Of its class, on the domain's rows and columns.
        domain: Where it may lie. If part of it is certain, only what hangs together with that counts.
        low: Pixels below are not of the object.
        high: Pixels above are, if they may be.
    """
    above = domain.allowed & (probability > low)
    seeds = domain.core if domain.core.any() else domain.allowed & (probability > high)
    parts, _ = ndimage.label(above | domain.core)
    kept = np.isin(parts, np.setdiff1d(np.unique(parts[seeds]), [0]))
    sure = (kept & (probability > high) & domain.allowed) | domain.core
    return sure, kept & ~sure


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
        here = (slice(rows.start - place[0].start, rows.stop - place[0].start),)
        here += (slice(cols.start - place[1].start, cols.stop - place[1].start),)
        both[here] = one.region[
            rows.start - one.rows[0] : rows.stop - one.rows[0], cols.start - one.cols[0] : cols.stop - one.cols[0]
        ]
        return float((inside & both).sum() / max(int((inside | both).sum()), 1))
    common, sides = 1, []
    for axis, (first, last) in ((1, one.rows), (0, one.cols)):
        lines = np.flatnonzero(inside.any(axis=axis)) + place[1 - axis].start
        common *= max(0, min(int(lines[-1]), last) - max(int(lines[0]), first) + 1)
        sides.append((int(lines[-1]) - int(lines[0]) + 1, last - first + 1))
    areas = [down * across for down, across in zip(*sides, strict=True)]
    return common / (sum(areas) - common)


class Refiner:
    """Makes the pseudo-labels of tiles again.

    Args:
        tiles: Changed in place.
        config: Thresholds.
    """

    def __init__(self, tiles: WeakTiles, config: WeakConfig) -> None:
        """Remember both."""
        self.tiles, self.config = tiles, config

    def tile(self, number: int, probabilities: NDArray[np.floating]) -> tuple[NDArray[np.int32], int, int]:
        """New labels (S, S) of a tile, and how many objects were accepted and refused.

        Args:
            number: Of the tile.
            probabilities: (C, S, S) of the foreground classes, or (1, S, S) where all objects are of one kind.
        """
        tiles, marks = self.tiles, self.tiles.marks[number].numpy()
        current = tiles.labels[number].numpy()
        if tiles.supervision == "scribbles":
            labels, good = self._scribbled(current, marks, probabilities)
            counts = (int(good), int(not good))
        else:
            labels, counts = self._objects(tiles.objects[number], current, probabilities)
        labels = np.where(marks != IGNORE, marks, labels)
        labels[tiles.void[number].numpy()] = IGNORE
        return labels.astype(np.int32), *counts

    def _objects(
        self, objects: tuple[TileObject, ...], current: NDArray[np.int32], probabilities: NDArray[np.floating]
    ) -> tuple[NDArray[np.int32], tuple[int, int]]:
        shape = (current.shape[0], current.shape[1])
        cells = nearest_cells([[(r, c) for r, c, on in one.points if on] for one in objects], shape)
        whole = (slice(0, shape[0]), slice(0, shape[1]))
        claims, values, accepted = [], [], 0
        for index, one in enumerate(objects):
            where = domain(one.in_tile(), index, cells, shape, whole)
            value = one.number if self.tiles.instance else one.label
            chance = probabilities[0 if self.tiles.instance else one.label - 1][where.place]
            sure, unsure = hysteresis(chance, where, self.config.low, self.config.high)
            inside = (sure | unsure) & (chance > _HALF)
            if agreement_of(one, inside, where.place) >= self.config.min_agreement and sure.any():
                accepted += 1
            else:
                before = current[where.place]
                sure = where.allowed & (before == value)
                unsure = where.allowed & (before == IGNORE)
            claims.append(Claim(place=where.place, sure=sure, unsure=unsure))
            values.append(value)
        return paint_claims(claims, values, shape), (accepted, len(objects) - accepted)

    def _scribbled(
        self, current: NDArray[np.int32], marks: NDArray[np.int32], probabilities: NDArray[np.floating]
    ) -> tuple[NDArray[np.int32], bool]:
        """Sure pixels of all classes; objects cannot be told apart by their class, so that numbers stay."""
        whole = np.concatenate([1 - probabilities.sum(axis=0, keepdims=True), probabilities])
        best = whole.argmax(axis=0)
        drawn = marks >= 0
        right = float((best == marks)[drawn].mean()) if drawn.any() else 0.0
        if self.tiles.instance or right < self.config.min_agreement:
            return current.copy(), False
        return np.where(whole.max(axis=0) > self.config.high, best, IGNORE).astype(np.int32), True

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
                    labels, good, bad = self.tile(number, one.cpu().numpy())
                    self.tiles.labels[number] = torch.from_numpy(labels)
                    accepted, refused = accepted + good, refused + bad
                    unknown += int((labels == IGNORE).sum())
        finally:
            grafted.train(mode)
        share = unknown / max(1, len(self.tiles) * self.tiles.size**2)
        return RoundResult(accepted=accepted, refused=refused, unknown=share)

    @staticmethod
    def _probabilities(grafted: Grafted, representation: Maps, images: Tensor) -> Tensor:
        logits = at_least_float(representation.logits(grafted.predict(images)))
        logits = functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return foreground(representation, logits)
