"""Corrective clicks in a volume: in the middle of the largest error, and what a click does to a propagation.

The figures that come out of simulated clicks say how well a person would be served; they are made from the ground
truth, and marked so.

Source:
    Click at the centre of the largest error region: RITM, arXiv:2102.06583, section 3.1; in volumes SAM-Med3D,
    arXiv:2310.15161 (random points of the error region there).
Deviations:
    Depth inside the error is measured in mm, so that thick slices do not pull clicks to their middle. A click changes
    its slice (asked again with the mask so far and all clicks there), which then is an annotated slice of the
    propagation: its neighbours follow by blending, where the change on the clicked slice reaches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from samgraft.errors import ShapeError
from samgraft.volumetric.propagation.carry import within_reach
from samgraft.volumetric.propagation.clicked import Point, obey, pixel, without_crumbs
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.propagation.propagate import Propagated, annotate, propagate
from samgraft.volumetric.propagation.slices import Mask, SliceAnswer, SlicePrompt, Slices, answer_of, box_of
from samgraft.volumetric.propagation.walk import masked

Click = tuple[float, float, int, int]
"""(x, y, slice, label): 1 on the object, 0 off it."""


def error_click(guess: Mask, truth: Mask, spacing: tuple[float, float, float]) -> Click | None:
    """The click that a person would correct ``guess`` with: the middle of the largest connected error.

    What was missed and what is too much are separate errors; they join over faces. Beyond the volume there is nothing,
    so an error at the edge has its middle inside.

    Args:
        guess: (D, H, W) bool.
        truth: (D, H, W) bool.
        spacing: mm, in the order of the axes.

    Returns:
        x, y, slice, and 1 where something was missed, 0 where something is too much; None without any error.

    Raises:
        ShapeError: the shapes differ.
    """
    if guess.shape != truth.shape or guess.ndim != 3:
        raise ShapeError(f"guess is {guess.shape}, truth {truth.shape}; give two masks (D, H, W) of one shape")
    most, best, label = 0, None, 0
    for wrong, sign in ((truth & ~guess, 1), (guess & ~truth, 0)):
        parts, _ = ndimage.label(wrong)
        sizes = np.bincount(parts.ravel())[1:]
        if len(sizes) and sizes.max() > most:
            most, label = int(sizes.max()), sign
            best = parts == 1 + int(sizes.argmax())
    if best is None:
        return None
    place = ndimage.find_objects(best.astype(np.uint8))[0]
    index, row, col = (int(v) + part.start for v, part in zip(_middle(best[place], spacing), place, strict=True))
    return float(col), float(row), index, label


def _middle(mask: Mask, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """Voxel of a mask that lies deepest in mm; of equally deep ones the deepest in its slice, then the most central."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    places = np.argwhere(depth >= depth.max() - 1e-6)
    planes = {
        int(d): ndimage.distance_transform_edt(np.pad(mask[d], 1), sampling=spacing[1:])[1:-1, 1:-1]
        for d in np.unique(places[:, 0])
    }
    within = np.array([planes[int(d)][row, col] for d, row, col in places])
    places = places[within >= within.max() - 1e-6]
    away = np.linalg.norm((places - places.mean(axis=0)) * np.array(spacing), axis=1)
    index, row, col = places[int(away.argmin())]
    return int(index), int(row), int(col)


@dataclass(eq=False)
class Session:
    """One object under correction: what was annotated, what was clicked, and the mask so far."""

    slices: Slices
    config: PropagationConfig = field(default_factory=PropagationConfig)
    within: tuple[int, int] | None = None
    """First and last slice that the object may lie in."""
    annotated: dict[int, SliceAnswer] = field(default_factory=dict)
    clicks: dict[int, tuple[Point, ...]] = field(default_factory=dict)
    """Slice -> all clicks there."""
    result: Propagated | None = None
    """Of the last propagation."""

    def start(self, prompts: Mapping[int, SlicePrompt]) -> Propagated:
        """Annotate and propagate; forgets what was before."""
        self.annotated, self.clicks = annotate(self.slices, prompts), {}
        self.result = propagate(self.slices, self.annotated, self.config, within=self.within)
        return self.result

    def click(self, click: Click) -> Propagated:
        """Correct one slice and propagate again.

        The slice is asked with its mask so far and every click on it. Of the answer the connected change that the click
        lies on is taken over, so that a click never harms what it does not point at; where the answer insists on what
        is off the object, its lobe of the mask goes. The slice is an annotated one from now on. A click takes the place
        of an earlier one on its pixel.
        """
        if self.result is None:
            raise ShapeError("nothing was annotated yet; call start() first")
        x, y, index, label = click
        point, plane = (x, y, label), self.slices.shape[1:]
        earlier = (one for one in self.clicks.get(index, ()) if pixel(one, plane) != pixel(point, plane))
        self.clicks[index] = (*earlier, point)
        so_far = self.result.mask(index)
        self.annotated[index] = self._corrected(index, so_far)
        if self.within is not None:
            self.within = min(self.within[0], index), max(self.within[1], index)
        again = propagate(self.slices, self.annotated, self.config, within=self.within)
        self.result = pointed_at(
            self.result, again, click, self.config.reach(self.slices.spacing), self.slices.spacing[1:]
        )
        return self.result

    def _corrected(self, index: int, so_far: Mask) -> SliceAnswer:
        """A slice after a click on it: what the click points at changes, and nothing else."""
        points = self.clicks[index]
        label = points[-1][2]
        if not so_far.any() and not any(sign for _, _, sign in points):
            return answer_of(so_far)
        place = pixel(points[-1], so_far.shape)
        for prompt in self._prompts(index, so_far, points):
            asked = self.slices.ask(index, prompt)
            answer = asked.mask()
            changed = answer & ~so_far if label else so_far & ~answer
            parts, _ = ndimage.label(changed)
            pointed = (parts == parts[place]) & changed[place]
            if pointed.sum() > 1:
                break
        corrected = so_far | pointed if label else without_crumbs(so_far, so_far & ~pointed)
        return masked(asked, obey(corrected, points))

    def _prompts(self, index: int, so_far: Mask, points: tuple[Point, ...]) -> list[SlicePrompt]:
        """What is asked until an answer follows the last click.

        All that is known; for what was missed then without the box, which ends at the click where that lies outside the
        mask, and then the click alone.
        """
        whole, last = self._prompt(index, so_far, points), points[-1:]
        if not points[-1][2] or not so_far.any():
            return [whole]
        return [whole, replace(whole, box=None), SlicePrompt(points=last)]

    def _prompt(self, index: int, so_far: Mask, points: tuple[Point, ...]) -> SlicePrompt:
        """The mask so far with all clicks; on a slice that was empty the box of the nearest slice, if it holds them."""
        if so_far.any():
            with_clicks = so_far.copy()
            for point in points:
                with_clicks[pixel(point, so_far.shape)] |= bool(point[2])
            return SlicePrompt(box=box_of(with_clicks), points=points, mask=so_far)
        known = {} if self.result is None else self.result.answers
        near = min(known, key=lambda other: abs(other - index), default=None)
        box = None if near is None else box_of(known[near].mask())
        wanted = [(x, y) for x, y, label in points if label]
        if box is None or not all(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in wanted):
            return SlicePrompt(points=points)
        return SlicePrompt(box=box, points=points)


def pointed_at(
    before: Propagated, after: Propagated, click: Click, reach: float, plane: tuple[float, float]
) -> Propagated:
    """``after`` with only those changes that a click asked for: of its sign, and reached from it slice by slice.

    What changes on the clicked slice may change on the next one too, and as far around it as an edge may move. So a
    walk that now ends early, or comes back along another way, takes nothing away where nobody clicked.

    Args:
        before: The result that the click corrects.
        after: What was propagated with the corrected slice.
        click: 1 may only add, 0 may only take away.
        reach: How far an edge may move from one slice to the next, mm (``PropagationConfig.reach``).
        plane: Spacing along rows and columns, mm.
    """
    index, label = click[2:]
    merged, new = before.volume(), after.volume()
    changed = new & ~merged if label else merged & ~new
    merged[index] = new[index]
    for step in (1, -1):
        near = changed[index]
        for i in range(index + step, len(new) if step > 0 else -1, step):
            near = within_reach(changed[i], near, reach, plane) if near.any() else near
            if not near.any():
                break
            merged[i] = merged[i] | near if label else without_crumbs(merged[i], merged[i] & ~near)
    answers = {
        int(i): masked(after.answers.get(int(i)) or before.answers[int(i)], merged[i])
        for i in np.flatnonzero(merged.any(axis=(1, 2)))
    }
    return replace(after, answers=answers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """The mask after some clicks."""

    clicks: int
    """Corrective clicks so far; 0 for the first prompt alone."""
    mask: Mask
    """(D, H, W)."""
    from_ground_truth: bool = True
    """The clicks were made of a label: such figures are never averaged with automatic ones."""


def simulated_rounds(session: Session, prompts: Mapping[int, SlicePrompt], truth: Mask, clicks: int) -> list[Round]:
    """The mask after 0, 1, ... ``clicks`` corrective clicks of a person who knows ``truth`` (D, H, W).

    Ends earlier only where nothing is wrong any more; the mask then repeats.
    """
    mask = session.start(prompts).volume()
    rounds = [Round(clicks=0, mask=mask)]
    for number in range(1, clicks + 1):
        click = error_click(mask, truth, session.slices.spacing)
        if click is not None:
            mask = session.click(click).volume()
        rounds.append(replace(rounds[-1], clicks=number, mask=mask))
    return rounds
