"""One walk from an annotated slice in one direction: prior, prompts, answer, stop rule, slice after slice.

A walk sees its own annotated slice, and with a memory the other annotated slices and what it has walked through itself.
It never sees what another walk wrote, so the order of walks cannot matter.

Source:
    Next prompt from the previous mask, end by a rule: micro-sam, multi_dimensional_segmentation.py
    (``segment_mask_in_volume``). A fresh state for each direction: MedSAM2, medsam2_infer_CT_lesion_npz_recist.py;
    without it SAM 2 gives other masks when directions are swapped (facebookresearch/sam2, issue 253).
Deviations:
    What an answer adds beyond the reach of an edge is cut off (``PropagationConfig.edge_slope``); a memory of features
    may move the prior before prompts are made of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from samgraft.volumetric.propagation.carry import carried_prompt, soft_prior, within_reach
from samgraft.volumetric.propagation.clicked import Point, obey
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.memory import FeatureMemory, on_slice
from samgraft.volumetric.propagation.slices import CERTAIN, Mask, SliceAnswer, Slices, box_of
from samgraft.volumetric.propagation.stop import Ellipsoid, Intensities, Watch

Clicks = Mapping[int, Sequence[Point]]
"""Slice -> points (x, y, label)."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Where and why a walk ended before its last slice."""

    start: int
    """Annotated slice where the walk began."""
    index: int
    """The first slice that is empty."""
    reason: str


@dataclass(kw_only=True)
class Walk:
    """What one walk found."""

    answers: dict[int, SliceAnswer] = field(default_factory=dict)
    """Slice -> answer, none of them empty; the annotated slice itself is not in it."""
    stopped: Stopped | None = None


def walk(
    slices: Slices,
    start: int,
    answer: SliceAnswer,
    indices: Sequence[int],
    *,
    config: PropagationConfig,
    largest: int,
    between: bool = False,
    shape: Ellipsoid | None = None,
    memory: FeatureMemory | None = None,
    clicks: Clicks | None = None,
) -> Walk:
    """Carry a mask from slice to slice.

    Args:
        slices: The volume and the network.
        start: The annotated slice.
        answer: Its mask, not empty.
        indices: The slices to walk through, in order; the first is a neighbour of ``start``.
        config: What is carried and when it ends.
        largest: Largest area on an annotated slice, pixels.
        between: Another annotated slice follows behind the last index.
        shape: How large the object is expected to be.
        memory: What annotated slices look like; a copy of it is filled on the way.
        clicks: Points that someone gave on slices; they go in with the carried prompts.
    """
    found, previous = Walk(), answer.mask()
    reach, plane = config.reach(slices.spacing), slices.spacing[1:]
    watch = Watch(
        rule=config.stop,
        start=int(previous.sum()),
        largest=largest,
        pixel_mm2=plane[0] * plane[1],
        reach=reach,
        intensities=Intensities.of(slices.picture(start), previous),
        between=between,
        shape=shape,
    )
    own = None if memory is None else memory.copy()
    for index in indices:
        points = tuple((clicks or {}).get(index, ()))
        prior = expected(slices, index, previous, config, own)
        asked = slices.ask(index, carried_prompt(prior, config, reach, plane, points))
        near = within_reach(asked.mask(), previous, reach, plane)
        near = surest(near, asked, watch.room(index))
        mask = obey(near, points) if points else near
        reason = watch.reason(index, previous, mask, slices.picture(index), asked.iou)
        if reason:
            _end(found, watch, start, index, reason)
            break
        found.answers[index] = masked(asked, mask)
        if own is not None:
            own.add(slices.features(index, _box(mask)), mask, iou=asked.iou)
        previous = mask
    return found


def expected(
    slices: Slices, index: int, previous: Mask, config: PropagationConfig, memory: FeatureMemory | None
) -> Mask:
    """Where the object is expected on slice ``index``: the previous mask, moved by what the memory recognises."""
    if memory is None or not config.memory_weight:
        return previous
    region = slices.features(index, _box(previous))
    seen = on_slice(memory.read(region), region, (previous.shape[0], previous.shape[1])).numpy()
    carried = soft_prior(previous, config.reach(slices.spacing), slices.spacing[1:])
    share = config.memory_weight
    moved = ((1 - share) * carried + share * seen > 0.5) & (carried > 0)
    return np.asarray(moved) if moved.any() else previous


def surest(mask: Mask, answer: SliceAnswer, count: float) -> Mask:
    """The ``count`` pixels of a mask (H, W) with the highest logits, of equal ones the deepest; all if it has fewer."""
    if mask.sum() <= count:
        return mask
    logits = np.full(answer.shape, -np.inf, dtype=np.float32)
    logits[answer.place] = answer.logits
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    order = np.lexsort((depth[mask], logits[mask]))
    kept = np.zeros_like(mask)
    kept[mask] = np.isin(np.arange(len(order)), order[len(order) - int(count) :])
    return kept


def masked(answer: SliceAnswer, mask: Mask) -> SliceAnswer:
    """``answer`` made to agree with ``mask`` (H, W); logits stay as they are where both agree already."""
    rows, cols = answer.place
    part = mask[rows, cols]
    if mask.sum() != part.sum():  # a click drew a pixel outside the rectangle
        wide = np.full(answer.shape, -CERTAIN, dtype=np.float32)
        wide[rows, cols] = answer.logits
        answer, part = replace(answer, top=0, left=0, logits=wide), mask
    own = answer.logits > 0
    logits = np.where(part & ~own, CERTAIN, np.where(own & ~part, -CERTAIN, answer.logits))
    return replace(answer, logits=logits.astype(np.float32))


def _end(found: Walk, watch: Watch, start: int, index: int, reason: str) -> None:
    """Note the end; behind a neck everything is taken back."""
    if reason.startswith("regrowth"):
        areas = {i: int((answer.logits > 0).sum()) for i, answer in found.answers.items()}
        walked = list(areas)
        neck = max(i for i, at in enumerate(walked) if areas[at] == watch.smallest)
        for behind in walked[neck + 1 :]:
            del found.answers[behind]
            index = behind if behind == walked[neck + 1] else index
    found.stopped = Stopped(start=start, index=index, reason=reason)


def _box(mask: Mask) -> tuple[float, float, float, float]:
    box = box_of(mask)
    return (0.0, 0.0, 0.0, 0.0) if box is None else box
