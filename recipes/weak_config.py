"""The settings of training with weak or partial labels; a part of :class:`samgraft.recipes.config.FitConfig`."""

from dataclasses import dataclass
from typing import Literal

from samgraft.recipes.checking import check

Supervision = Literal["masks", "boxes", "points", "scribbles", "coarse"]
SUPERVISIONS: tuple[Supervision, ...] = ("masks", "boxes", "points", "scribbles", "coarse")

MOST_SHARP = 20.0
"""Largest sharpness of the smooth maximum: sums of a whole line then still tell the exponentials of its parts apart."""


@dataclass(frozen=True, kw_only=True)
class WeakConfig:
    """How weak labels become pseudo-masks and losses.

    Nothing here counts with ``data.supervision: masks``, except
    ``exclusion`` where ``data.partial`` is set.
    """

    prompts: bool = True
    """Ask the frozen backbone for a mask of every box, point, scribble or polygon, and learn from the certain pixels.
    False: learn from the weak labels alone."""
    least_box_iou: float = 0.5
    """With ``train.start_from``: where its header says that the frozen backbone draws the true objects of its training
    images worse than this from their boxes (IoU; vessels: 0.2), nothing is asked, and the adapter's own masks within
    the weak labels teach from the first step on."""
    network_size: int | None = None
    """Side in pixels at which the frozen backbone looks; None takes its own."""
    min_iou: float = 0.5
    """Masks of which the backbone predicts a lower IoU teach nothing: their pixels are unknown."""
    min_stability: float = 0.6
    """Masks whose pixels above +1 are a smaller share of those above -1 teach nothing."""
    certain: float = 1.0
    """A pixel of a prompted mask is unknown if its logit lies within this of 0."""
    tightness: float = 0.3
    """Weight of the box loss: every row and column of a box holds a foreground pixel."""
    sharpness: float = 8.0
    """Of the smooth maximum in that loss, at most 20: between the mean (0) and the maximum."""
    crf: float = 0.3
    """Weight of the regulariser: neighbouring pixels that look alike get the same class."""
    crf_radius: int = 3
    """How far neighbours are, network pixels."""
    crf_colour: float = 0.1
    """How far values of pixels that look alike are apart, in [0, 1]."""
    marks: float = 0.5
    """Weight of the points and scribbles themselves, each mark counting alike whatever its size."""
    rounds: int = 2
    """How often pseudo-masks are made again from the adapter's own output; 0 keeps the first ones, and so do heads that
    find objects themselves."""
    first_round: float = 0.4
    """Share of the steps before the first of them; the others follow evenly. 0 with ``train.start_from``: the source
    adapter's own masks, within the weak labels, from the first step on."""
    low: float = 0.35
    """Refined masks: pixels below this probability are background."""
    high: float = 0.65
    """Refined masks: pixels above this are the object, and those in between that touch it are unknown."""
    min_agreement: float = 0.5
    """A refined mask is refused if its own box has a lower IoU with the weak box, if it misses more of its marks, if
    its IoU with the mask before is lower, or if less of what is seen in the tile lies where objects may be."""
    point_radius: int = 1
    """Radius of the disc around a point that certainly is of its class, network pixels."""
    exclusion: float = 0.2
    """``data.partial``: weight of the overlap of classes that are not annotated with pixels of annotated ones."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("least_box_iou", "min_iou", "min_stability", "first_round", "low", "high", "min_agreement"):
            check(0.0 <= getattr(self, name) <= 1.0, f"weak.{name} is {getattr(self, name)}; expected 0 to 1")
        for name in ("certain", "tightness", "crf", "marks", "exclusion"):
            check(getattr(self, name) >= 0, f"weak.{name} is {getattr(self, name)}; expected zero or more")
        check(0 <= self.sharpness <= MOST_SHARP, f"weak.sharpness is {self.sharpness}; expected 0 to {MOST_SHARP:g}")
        check(self.crf_colour > 0, f"weak.crf_colour is {self.crf_colour}; expected a positive number")
        check(self.low <= self.high, f"weak.low is {self.low} and weak.high {self.high}; expected low <= high")
        check(self.rounds >= 0, f"weak.rounds is {self.rounds}; expected zero or more")
        check(self.crf_radius >= 1, f"weak.crf_radius is {self.crf_radius}; expected at least 1 pixel")
        check(self.point_radius >= 0, f"weak.point_radius is {self.point_radius}; expected zero or more pixels")
