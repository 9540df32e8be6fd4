"""Pseudo-labels of a case: the frozen backbone is asked for a mask of everything that someone pointed at.

A box is asked exactly as ``samgraft segment --boxes`` asks it (``samgraft.recipes.engine.prompted``); a point goes with
the nearest points of other objects, as points off the object; a scribble is asked by some of its pixels, with pixels of
other scribbles as points off it; a coarse outline is an earlier mask. What is not certain teaches nothing: pixels whose
logit is near 0, pixels that objects quarrel over, and everything of an object whose mask is poor by the backbone's own
predicted IoU or by its stability, or does not fill its box. Pixels outside all objects are background; with scribbles
only those in a ring around a mask are, unless another mask holds them, since scribbles say nothing of the rest.

Source:
    Masks from boxes: SAMRS, arXiv:2305.02034, section 3.1; stability: Segment Anything, arXiv:2304.02643, section B.
Deviations:
    Uncertain pixels are ignored and not guessed; points get negatives from other objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.adapters.backbones.base import Promptable
from samgraft.recipes.box_masks import OFFSET
from samgraft.recipes.data.cases import CaseArrays, small_labels
from samgraft.recipes.engine.focus import CONTEXTS, network_size
from samgraft.recipes.engine.pipeline import encode_batch
from samgraft.recipes.engine.planes import fill_window
from samgraft.recipes.engine.prompted import AskSettings, ask_objects
from samgraft.recipes.engine.views import ObjectMask
from samgraft.recipes.engine.windows import Window
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompting import ObjectPrompt
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_labels.labels import WeakObject, box_ious, nearest_cells, pixel_box

NEGATIVES = 4
"""Points of other objects that go with a point or a scribble."""
STROKE_POINTS = 4
"""Pixels of a scribble that are asked."""
BAND = 0.15
"""A coarse outline may be off by this share of the square root of its area."""
RING = 0.3
"""Beside the mask of a scribble lies background, as far as this share of the square root of its area."""
LOST = 0.125
"""An object whose point got no mask may reach this share of the shorter side away."""

Place = tuple[slice, slice]
Labelled = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Labels (h, w), and where they are a guess."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """A slice of a case as prompts look at it."""

    pixels: NDArray[np.float32]
    """(3, h, w) in [0, 1]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def crop(self, window: Window) -> Tensor:
        """(3, side, side); edge pixels repeat."""
        rows, cols = window.clipped(self.shape)
        return fill_window(self.pixels[:, rows, cols], window, self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """What an object claims of a slice."""

    place: Place
    """Rows and columns; all masks lie on them."""
    inside: NDArray[np.bool_]
    """The object, as far as anyone can say."""
    unsure: NDArray[np.bool_]
    """Pixels in it and beside it that may well be wrong."""
    unknown: NDArray[np.bool_]
    """Pixels of which nothing can be said."""


class PseudoLabels:
    """Makes pseudo-labels of cases.

    Args:
        backbone: Frozen, without grafts.
        config: Settings.
        instance: Numbers of objects instead of classes.
    """

    def __init__(self, backbone: Promptable, config: WeakConfig, *, instance: bool) -> None:
        """Choose the size at which to look."""
        self.config, self.instance = config, instance
        self.asked, self.trusted = 0, 0
        size = network_size(backbone, config.network_size)
        self.settings = AskSettings(
            backbone=backbone,
            size=size,
            contexts=CONTEXTS,
            batch=encode_batch(backbone, size),
            depth=0,
            fit=True,
            better=None,
        )

    def __call__(self, case: CaseArrays) -> CaseArrays:
        """The case with pseudo-labels in the place of labels; pixels without data stay unknown."""
        if case.weak is None:
            return case
        shape = (case.num_slices, *case.plane)
        seeds = case.weak.seeds(shape, instance=self.instance, radius=self.config.point_radius)
        labels, unsure = np.full(shape, IGNORE, dtype=np.int32), np.zeros(shape, dtype=bool)
        for index in range(case.num_slices):
            pixels = case.image[index] if case.image.shape[1] == 3 else np.repeat(case.image[index], 3, axis=0)
            plane = Slice(pixels=np.asarray(pixels, dtype=np.float32) / np.float32(255))
            if case.weak.drawn is not None:
                labels[index], unsure[index] = self._scribbled(plane, seeds[index])
            else:
                labels[index], unsure[index] = self._pointed_at(plane, case.weak.on_slice(index))
        labels, unsure = np.where(seeds != IGNORE, seeds, labels), unsure & (seeds == IGNORE)
        nodata = case.labels == IGNORE
        known = nodata if nodata.any() else None
        weak = replace(case.weak, nodata=known, unsure=unsure, asked=self.config.prompts)
        return replace(case, labels=small_labels(labels, ~nodata), weak=weak)

    def _pointed_at(self, plane: Slice, found: Sequence[tuple[int, WeakObject]]) -> Labelled:
        """Labels of a slice with boxes, points or coarse areas."""
        objects = [one for _, one in found]
        prompts = [object_prompt(one, objects) for one in objects]
        masks = self._ask(plane, prompts)
        cells = nearest_cells([_places(one) for one in objects], plane.shape)
        claims = []
        for number, (one, mask) in enumerate(zip(objects, masks, strict=True)):
            reach = None if mask is None else mask.place
            claims.append(self._claim(domain(one, number, cells, plane.shape, reach), mask))
        values = [number if self.instance else one.label for number, one in found]
        return paint_claims(claims, values, plane.shape)

    def _ask(self, plane: Slice, prompts: Sequence[ObjectPrompt]) -> list[ObjectMask | None]:
        """A mask of each, None where it is not asked or not trusted."""
        if not prompts or not self.config.prompts:
            return [None] * len(prompts)
        with torch.no_grad():
            masks = ask_objects(plane, prompts, self.settings)
        good = [mask if self._trusted(mask, one) else None for mask, one in zip(masks, prompts, strict=True)]
        self.asked, self.trusted = self.asked + len(good), self.trusted + sum(one is not None for one in good)
        return good

    def _trusted(self, mask: ObjectMask, one: ObjectPrompt) -> bool:
        """Whether a mask is good by the backbone's own estimate, is stable, and fills its box."""
        most = int((mask.logits > -OFFSET).sum())
        stable = int((mask.logits > OFFSET).sum()) / max(most, 1)
        fills = one.box is None or float(box_ious([mask.box()], [one.box])[0, 0]) >= self.config.min_agreement
        good = mask.iou >= self.config.min_iou and stable >= self.config.min_stability
        return good and fills and bool(mask.crop.any())

    def _claim(self, where: "Domain", mask: ObjectMask | None) -> Claim:
        """What a mask gives its object, cut to where it may lie; without a mask nothing is known there."""
        core, allowed = where.core, where.allowed
        if mask is None:
            return Claim(place=where.place, inside=core, unsure=core & False, unknown=allowed & ~core)
        logits = _on_place(mask, where.place)
        return claim_of(logits, where, (-self.config.certain, 0.0, self.config.certain))

    def _scribbled(self, plane: Slice, seeds: NDArray[np.int32]) -> Labelled:
        """Labels of a slice with scribbles: every stroke is asked; what is not near any mask stays unknown."""
        strokes, beside = list(_strokes(seeds)), np.zeros(plane.shape, dtype=bool)
        masks = self._ask(plane, [stroke_prompt(value, inside, seeds) for value, inside in strokes])
        claims, values = [], []
        for (value, inside), mask in zip(strokes, masks, strict=True):
            if mask is not None:
                allowed = np.ones(mask.logits.shape, dtype=bool)
                where = Domain(place=mask.place, allowed=allowed, core=inside[mask.place])
                claims.append(self._claim(where, mask))
                values.append(value)
                beside[mask.place] |= _ring(mask, self.config.certain)
        labels, guess = paint_claims(claims, values, plane.shape, base=IGNORE)
        labels[beside & (labels == IGNORE) & ~guess] = 0
        return labels, guess


def _ring(mask: ObjectMask, certain: float) -> NDArray[np.bool_]:
    """Pixels beside a mask that are certainly not of it."""
    width = max(2.0, RING * float(np.sqrt(mask.crop.sum())))
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~mask.crop) <= width
    return near & (mask.logits.numpy() < -certain)


def _on_place(mask: ObjectMask, place: Place) -> NDArray[np.float32]:
    """Logits of a mask on other rows and columns; as low as can be where it was not looked for."""
    logits = np.full([part.stop - part.start for part in place], -np.inf, dtype=np.float32)
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(mask.place, place, strict=True)]
    if all(part.start < part.stop for part in both):
        there, here = (
            tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(both, origin, strict=True))
            for origin in (mask.place, place)
        )
        logits[here] = mask.logits.numpy()[there]
    return logits


def claim_of(
    values: NDArray[np.floating],
    where: "Domain",
    levels: tuple[float, float, float],
    kept: NDArray[np.bool_] | None = None,
) -> Claim:
    """A claim from logits or probabilities.

    Args:
        values: On the domain's rows and columns.
        where: Where the object may lie.
        levels: Below the first a pixel is off the object, above the second it is on it, above the third for sure.
        kept: Of the pixels above the first level, those that count; None for all.
    """
    low, half, high = levels
    possible = where.allowed & (values >= low)
    possible = possible if kept is None else possible & kept
    inside = (possible & (values > half)) | where.core
    return Claim(
        place=where.place,
        inside=inside,
        unsure=possible & ~(values > high) & ~where.core,
        unknown=np.zeros_like(inside),
    )


def paint_claims(claims: Sequence[Claim], values: Sequence[int], shape: tuple[int, int], *, base: int = 0) -> Labelled:
    """Labels of a slice from the claims of its objects.

    A pixel that is sure for one object and unsure for another belongs to the former; one that is sure for objects of
    different values is unknown.

    Args:
        claims: Of all objects.
        values: Their labels.
        shape: (h, w) of the slice.
        base: Label where nobody claims.

    Returns:
        (h, w) labels with ``IGNORE`` where nothing is known, and (h, w) bool where they are a guess.
    """
    labels = np.full(shape, base, dtype=np.int32)
    guess, sure, quarrel = (np.zeros(shape, dtype=bool) for _ in range(3))
    for claim in claims:
        labels[claim.place][claim.unknown] = IGNORE
        guess[claim.place] |= claim.unsure
    for claim, value in zip(claims, values, strict=True):
        labels[claim.place][claim.inside & claim.unsure] = value
    for claim, value in zip(claims, values, strict=True):
        part, own, there = labels[claim.place], claim.inside & ~claim.unsure, sure[claim.place]
        quarrel[claim.place] |= own & there & (part != value)
        part[own] = value
        there |= own
    labels[quarrel] = IGNORE
    return labels, guess & ~sure


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """Where an object may lie on a slice."""

    place: Place
    """Rows and columns."""
    allowed: NDArray[np.bool_]
    """Pixels that may be the object's."""
    core: NDArray[np.bool_]
    """Pixels that certainly are."""


def domain(
    one: WeakObject, number: int, cells: NDArray[np.integer], shape: tuple[int, int], reach: Place | None
) -> Domain:
    """Where an object may lie: in its box, near its outline, or nearer to its points than to those of others.

    Args:
        one: The object.
        number: Its place among the objects of the slice.
        cells: Of all their points, see :func:`nearest_cells`.
        shape: (h, w) of the slice.
        reach: Where its mask was looked for; None if it has none, and then a point reaches an eighth of the slice.
    """
    if one.region is not None:
        return _near_outline(one, shape)
    if one.box is not None:
        place = pixel_box(one.box, shape)
        size = (place[0].stop - place[0].start, place[1].stop - place[1].start)
        return Domain(place=place, allowed=np.ones(size, dtype=bool), core=np.zeros(size, dtype=bool))
    radius = LOST * min(shape)
    if reach is None:
        x0, y0, x1, y1 = one.around
        reach = pixel_box((x0 - radius, y0 - radius, x1 + radius, y1 + radius), shape)
    rows, cols = np.ogrid[reach]
    squares = [(cols - col) ** 2 + (rows - row) ** 2 for row, col in _places(one)]
    return Domain(place=reach, allowed=cells[reach] == number, core=np.minimum.reduce(squares) == 0)


def _places(one: WeakObject) -> list[tuple[int, int]]:
    """Row and column of every point on the object."""
    return [(round(y), round(x)) for x, y, on in one.points if on]


def _near_outline(one: WeakObject, shape: tuple[int, int]) -> Domain:
    """A coarse area, widened and narrowed by the band in which the true outline lies."""
    assert one.region is not None  # noqa: S101 - the caller asked
    region = one.region
    band = max(1.0, BAND * float(np.sqrt(region.inside.sum())))
    margin = int(np.ceil(band)) + 1
    height, width = region.inside.shape
    padded = np.pad(region.inside, margin)
    outside, inside = ndimage.distance_transform_edt(~padded), ndimage.distance_transform_edt(padded)
    top, left = region.top - margin, region.left - margin
    rows = slice(max(0, top), min(shape[0], top + height + 2 * margin))
    cols = slice(max(0, left), min(shape[1], left + width + 2 * margin))
    cut = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
    return Domain(place=(rows, cols), allowed=(outside <= band)[cut], core=(inside > band)[cut])


def object_prompt(one: WeakObject, others: Sequence[WeakObject]) -> ObjectPrompt:
    """What the backbone is asked about an object.

    Args:
        one: The object.
        others: All objects of the slice; the nearest ones with points give points off the object.
    """
    if one.box is not None:
        return ObjectPrompt(box=one.box)
    if one.region is not None:
        return ObjectPrompt(mask=one.region, tight=False)
    x0, y0 = next((x, y) for x, y, on in one.points if on)
    away = [(x, y) for other in others if other is not one for x, y, on in other.points if on]
    away.sort(key=lambda place: (place[0] - x0) ** 2 + (place[1] - y0) ** 2)
    return ObjectPrompt(points=(*one.points, *((x, y, 0) for x, y in away[:NEGATIVES])))


def _strokes(seeds: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Value and pixels (h, w) of every connected stroke that is no background."""
    for value in (int(v) for v in np.unique(seeds) if v > 0):
        parts, count = ndimage.label(seeds == value, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            yield value, parts == number


def stroke_prompt(value: int, inside: NDArray[np.bool_], seeds: NDArray[np.int32]) -> ObjectPrompt:
    """Pixels evenly along a stroke, and as points off it the nearest pixels of other values, apart from each other."""
    places = np.argwhere(inside)
    order = places[np.lexsort((places[:, 1], places[:, 0]))]
    if np.ptp(places[:, 1]) > np.ptp(places[:, 0]):
        order = places[np.lexsort((places[:, 0], places[:, 1]))]
    picked = order[np.unique(np.linspace(0, len(order) - 1, STROKE_POINTS).round().astype(int))]
    points = [(float(col), float(row), 1) for row, col in picked]
    away = np.argwhere((seeds >= 0) & (seeds != value))
    middle = picked.mean(axis=0)
    for _ in range(NEGATIVES):
        if not len(away):
            break
        row, col = away[((away - middle) ** 2).sum(axis=1).argmin()]
        points.append((float(col), float(row), 0))
        reach = 0.25 * ((np.array([row, col]) - middle) ** 2).sum()
        away = away[((away - [row, col]) ** 2).sum(axis=1) > reach]
    return ObjectPrompt(points=tuple(points))
