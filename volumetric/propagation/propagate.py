"""All walks of one object, and how they are joined.

From every annotated slice one walk goes up and one goes down, to the next annotated slice or to the end of the volume.
Between two annotated slices the probabilities of both walks are blended by distance: at a third of the way from a to b
the walk from a counts two thirds. A walk that has stopped says nothing from there on; an annotated slice that is empty
says 0 to the slices between.

Source:
    Walks from both ends towards the middle: micro-sam, multi_dimensional_segmentation.py
    (``segment_mask_in_volume``).
Deviations:
    micro-sam gives every slice to the nearer end, and asks again with the union where both are equally far. Here both
    walks go all the way and are blended, so that what they disagree about is known (``direction_agreement``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samgraft.errors import PromptError
from samgraft.volumetric.propagation.clicked import Point, obey
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.memory import FeatureMemory
from samgraft.volumetric.propagation.slices import (
    Mask,
    SliceAnswer,
    SlicePrompt,
    Slices,
    answer_of,
    box_of,
    from_probability,
)
from samgraft.volumetric.propagation.stop import Ellipsoid
from samgraft.volumetric.propagation.walk import Clicks, Stopped, Walk, masked, walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Propagated:
    """One object in a volume."""

    shape: tuple[int, int, int]
    """(D, H, W), the cut axis first."""
    answers: Mapping[int, SliceAnswer]
    """Slice -> answer, in order; slices without the object are missing."""
    annotated: tuple[int, ...]
    """Slices that the object was annotated on."""
    stopped: tuple[Stopped, ...]
    """Where walks ended before their last slice, and why."""
    direction_agreement: float | None = None
    """Dice in [0, 1] of walks that saw the same slices from two sides; None where there were none."""

    def mask(self, index: int) -> Mask:
        """(H, W) of one slice."""
        answer = self.answers.get(index)
        return np.zeros(self.shape[1:], dtype=np.bool_) if answer is None else answer.mask()

    def volume(self) -> Mask:
        """(D, H, W)."""
        full = np.zeros(self.shape, dtype=np.bool_)
        for index, answer in self.answers.items():
            full[index][answer.place] = answer.logits > 0
        return full

    @property
    def predicted_iou(self) -> float:
        """Mean of the decoder's predictions over slices, weighted by area; 0 for an empty object."""
        areas = np.array([int((a.logits > 0).sum()) for a in self.answers.values()], dtype=np.float64)
        quality = np.array([a.iou for a in self.answers.values()])
        return float((areas * quality).sum() / areas.sum()) if areas.sum() else 0.0


def annotate(slices: Slices, prompts: Mapping[int, SlicePrompt]) -> dict[int, SliceAnswer]:
    """Masks of annotated slices: a mask that was given alone is taken as it is, everything else is asked.

    Args:
        slices: The volume and the network.
        prompts: Slice -> what was said there.

    Raises:
        PromptError: a slice outside the volume.
    """
    found = {}
    for index, prompt in sorted(prompts.items()):
        if not 0 <= index < slices.shape[0]:
            raise PromptError(f"slice {index} lies outside the volume: there are slices 0..{slices.shape[0] - 1}")
        if prompt.mask is not None and prompt.box is None and not prompt.points:
            found[index] = answer_of(prompt.mask)
            continue
        asked = slices.ask(index, prompt)
        found[index] = masked(asked, obey(asked.mask(), prompt.points)) if prompt.points else asked
    return found


def propagate(
    slices: Slices,
    annotated: Mapping[int, SliceAnswer],
    config: PropagationConfig | None = None,
    *,
    within: tuple[int, int] | None = None,
    clicks: Clicks | None = None,
    upward_first: bool = True,
    return_walks: bool = False,
) -> Propagated:
    """One object in the whole volume.

    Args:
        slices: The volume and the network.
        annotated: Slice -> mask, as :func:`annotate` gives them. An empty mask says that the object is not there.
        config: What is carried and when it ends.
        within: First and last slice that the object may lie in, instead of ``StopRule.length``; None for the whole
            volume.
        clicks: Slice -> points on slices that are not annotated; they go in with the carried prompts.
        upward_first: Order of the walks. The result does not depend on it.
        return_walks: Walk back from where each outer walk ended, and compare with the annotated slice. Costs the same
            again; gives ``direction_agreement`` where only one slice is annotated.

    Raises:
        PromptError: no annotated slice shows anything.
    """
    config = config or PropagationConfig()
    length = config.stop.length if within is None else None  # an extent says itself how long the object is
    filled = {index: answer for index, answer in annotated.items() if (answer.logits > 0).any()}
    if not filled:
        raise PromptError(
            f"nothing was found on the annotated slices {sorted(annotated)}; give another box, a point or a mask there"
        )
    legs = _legs(sorted(annotated), slices.shape[0], within)
    memory = _memory(slices, filled, config)
    areas = {index: int((answer.logits > 0).sum()) for index, answer in filled.items()}
    largest = max(areas.values())
    walks: dict[tuple[int, int], Walk] = {}
    for (start, step), indices in sorted(legs.items(), key=lambda leg: -leg[0][1] if upward_first else leg[0][1]):
        if start in filled:
            between = _target(sorted(annotated), start, step) is not None
            walks[start, step] = walk(
                slices,
                start,
                filled[start],
                indices,
                config=config,
                largest=largest,
                between=between,
                shape=None if between or not length else Ellipsoid.through(areas, start, length, slices.spacing),
                memory=memory,
                clicks=clicks,
            )
    answers, agreements = _joined(sorted(annotated), filled, walks, legs)
    if return_walks:
        agreements += _returned(slices, filled, walks, legs, config, largest)
    stopped = [found.stopped for _, found in sorted(walks.items()) if found.stopped is not None]
    return Propagated(
        shape=slices.shape,
        answers=dict(sorted(answers.items())),
        annotated=tuple(sorted(annotated)),
        stopped=tuple(stopped),
        direction_agreement=float(np.mean(agreements)) if agreements else None,
    )


def _legs(anchors: Sequence[int], depth: int, within: tuple[int, int] | None) -> dict[tuple[int, int], Sequence[int]]:
    """(annotated slice, step) -> the slices of that walk, in order."""
    first, last = (0, depth - 1) if within is None else (max(0, within[0]), min(depth - 1, within[1]))
    legs: dict[tuple[int, int], Sequence[int]] = {}
    for number, start in enumerate(anchors):
        above = anchors[number + 1] - 1 if number + 1 < len(anchors) else last
        below = anchors[number - 1] + 1 if number else first
        legs[start, 1] = range(start + 1, above + 1)
        legs[start, -1] = range(start - 1, below - 1, -1)
    return legs


def _target(anchors: Sequence[int], start: int, step: int) -> int | None:
    """The annotated slice that a walk goes towards, or None for an end of the volume."""
    at = anchors.index(start) + step
    return anchors[at] if 0 <= at < len(anchors) else None


def _memory(slices: Slices, filled: Mapping[int, SliceAnswer], config: PropagationConfig) -> FeatureMemory | None:
    """What the object looks like on annotated slices; None if nothing is to be remembered."""
    if not config.memory:
        return None
    memory = FeatureMemory(config.memory)
    for index, answer in sorted(filled.items()):
        mask = answer.mask()
        box = box_of(mask)
        if box is not None:
            memory.add(slices.features(index, box), mask, annotated=True)
    return memory


def _joined(
    anchors: Sequence[int],
    filled: Mapping[int, SliceAnswer],
    walks: Mapping[tuple[int, int], Walk],
    legs: Mapping[tuple[int, int], Sequence[int]],
) -> tuple[dict[int, SliceAnswer], list[float]]:
    """Answers of all slices, and per pair of annotated slices the Dice of the two walks between them."""
    answers, agreements = dict(filled), []
    for (start, step), found in walks.items():
        if _target(anchors, start, step) is None:
            answers |= found.answers
    for low, high in zip(anchors, anchors[1:], strict=False):
        up, down = (walks.get(key, Walk()).answers for key in ((low, 1), (high, -1)))
        both = total = 0
        for index in legs[low, 1]:
            share = (high - index) / (high - low)
            votes = [(up.get(index), share, low in filled), (down.get(index), 1 - share, high in filled)]
            blended = blend([(answer, weight) for answer, weight, may_stop in votes if answer or not may_stop])
            if blended is not None and (blended.logits > 0).any():
                answers[index] = blended
            if low in filled and high in filled:
                common, areas = _overlap(up.get(index), down.get(index))
                both, total = both + common, total + areas
        if total:
            agreements.append(2 * both / total)
    return answers, agreements


def blend(votes: Sequence[tuple[SliceAnswer | None, float]]) -> SliceAnswer | None:
    """Weighted mean of the probabilities that walks give one slice; None says 0. None if there is no answer at all."""
    answers = [(answer, weight) for answer, weight in votes if answer is not None]
    if not answers:
        return None
    total = sum(weight for _, weight in votes)
    probability = np.zeros(answers[0][0].shape, dtype=np.float32)
    for answer, weight in answers:
        probability += np.float32(weight / total) * answer.probability()
    return from_probability(probability, sum(a.iou * w for a, w in answers) / sum(w for _, w in answers))


def _overlap(one: SliceAnswer | None, other: SliceAnswer | None) -> tuple[int, int]:
    """Common pixels, and the sum of both areas."""
    areas = sum(int((answer.logits > 0).sum()) for answer in (one, other) if answer is not None)
    if one is None or other is None:
        return 0, areas
    return int((one.mask() & other.mask()).sum()), areas


def _returned(
    slices: Slices,
    filled: Mapping[int, SliceAnswer],
    walks: Mapping[tuple[int, int], Walk],
    legs: Mapping[tuple[int, int], Sequence[int]],
    config: PropagationConfig,
    largest: int,
) -> list[float]:
    """Dice of annotated slices with what walks bring back to them from the farthest slice they reached."""
    anchors, found = sorted({start for start, _ in legs}), []
    for (start, step), there in sorted(walks.items()):
        if _target(anchors, start, step) is not None or not there.answers:
            continue
        far = list(there.answers)[-1]
        indices = range(far - step, start - step, -step)
        back = walk(slices, far, there.answers[far], indices, config=config, largest=largest, between=True)
        common, areas = _overlap(filled[start], back.answers.get(start))
        found.append(2 * common / areas)
    return found


def points_by_slice(points: Sequence[tuple[float, float, int, int]]) -> dict[int, tuple[Point, ...]]:
    """Points (x, y, slice, label) by slice."""
    found: dict[int, list[Point]] = {}
    for x, y, index, label in points:
        found.setdefault(int(index), []).append((float(x), float(y), int(label)))
    return {index: tuple(some) for index, some in sorted(found.items())}
