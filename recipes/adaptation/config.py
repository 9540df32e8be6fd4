"""The settings of an adaptation without labels, as frozen dataclasses; only the standard library is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from samgraft.errors import ConfigError
from samgraft.recipes.checking import check
from samgraft.recipes.config import AugmentConfig

Moving = Literal["all", "grafts", "head", "new"]
Mirror = Literal["auto", "yes", "no"]

WEAK = AugmentConfig(
    rotate=0.0,
    scale=0.0,
    shift=0.0,
    gamma=0.0,
    contrast=0.0,
    brightness=0.0,
    noise=0.0,
    blur=0.0,
)
"""What the teacher sees: the image as it is, mirrored where ``mirror`` says so."""
STRONG = AugmentConfig(
    rotate=15.0,
    scale=0.2,
    shift=0.08,
    gamma=0.6,
    contrast=0.4,
    brightness=0.2,
    noise=0.06,
    blur=1.5,
)
"""What the student sees on top of that."""


@dataclass(frozen=True, kw_only=True)
class TermWeights:
    """Weights of the losses."""

    pseudo: float = 1.0
    """The teacher's pseudo labels."""
    anchor: float = 0.5
    """Agreement with the source adapter where that is confident."""
    contrast: float = 0.1
    """Pooled features of student and source: the same object alike, others apart. Needs a part in the encoder."""
    entropy: float = 0.05
    """Uncertainty of the student's class probabilities. Class maps only."""
    prior: float = 0.1
    """Shares of the classes against those of the source's training images, where the adapter's header has them. Class
    maps only."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in asdict(self).items():
            check(value >= 0, f"weights.{name} is {value}; expected zero or more")
        check(any(asdict(self).values()), "all weights are 0, so nothing would be learned; give one of them weight")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When an adapted network is not trusted and the source adapter is kept. No label is involved."""

    margin: float = 0.0
    """Least gain of the score over the source adapter's."""
    least_agreement: float = 0.5
    """Least Dice with the source adapter, over pixels where that one is confident."""
    share_factor: float = 3.0
    """Largest ratio, either way, of a class's share of the pixels to its share in the source's training images (or, if
    the header does not have it, to what the source adapter finds on these images)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(
            0.0 <= self.least_agreement <= 1.0,
            f"guard.least_agreement is {self.least_agreement}; expected a Dice from 0 to 1",
        )
        check(self.share_factor > 1.0, f"guard.share_factor is {self.share_factor}; expected more than 1")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Everything that decides an adaptation."""

    steps: int = 400
    """Most optimiser steps."""
    seconds: float | None = None
    """Most process time (CPU time of this process, not the wall clock) for everything; the last round is finished by
    then. None: no limit."""
    every: int = 50
    """Steps of a round; criteria are computed after each."""
    patience: int = 4
    """Stop after so many rounds without a better score."""
    seed: int = 0
    """Seed of batches and augmentation."""
    batch_size: int = 4
    """Network inputs per step."""
    lr: float = 3e-4
    """Peak learning rate of AdamW."""
    momentum: float = 0.98
    """Share of the teacher that stays after each step; the rest comes from the student."""
    moving: Moving = "all"
    """What is moved: "all" the adapter's grafts and head; "grafts"; "head"; "new": only the grafts of ``new``, which
    are put on top of the adapter's own."""
    new: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``moving: new``: graft name -> its options, such as {"ssf": {}}."""
    portion: tuple[float, float] = (0.5, 0.8)
    """Share of the pixels of each class that become pseudo labels, the most certain first: at the beginning, and at the
    end. Each class has its own threshold, so that a rare one is not crowded out."""
    least_confidence: float = 0.5
    """No pixel becomes a pseudo label below this, whatever the share."""
    anchor_confidence: float = 0.9
    """The source adapter is listened to from here on."""
    temperature: float = 0.3
    """Of the contrastive term."""
    everything: int = 0
    """Points per side of everything mode on each training tile; its masks then snap the pseudo labels. 0: off."""
    snap_agreement: float = 0.7
    """A mask takes its majority class where at least this share of it agrees."""
    tiles: int = 600
    """Most tiles (slices, windows) that are used, drawn by ``seed``."""
    judge_tiles: int = 32
    """Tiles that criteria are computed on; where there are three times as many, these are not trained on."""
    weights: TermWeights = field(default_factory=TermWeights)
    """Of the losses."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When the source adapter is kept."""
    mirror: Mirror = "auto"
    """Mirror tiles left-right; "auto" does where the source adapter hardly minds (not where sides have a meaning)."""
    look: str = "auto"
    """How the source adapter sees tiles when it labels them (``samgraft.recipes.adaptation.looks``), such as "plain" or
    "negative"; "auto" takes another look than "plain" where criteria say that it is understood clearly better."""
    guide: str = "auto"
    """Where objects are separated: another adapter on the same backbone that labels instead of the source adapter for
    the first half of the run. "auto" takes one of the package (graft-tiny-objects) where criteria say that it
    understands the target clearly better; a file is taken without question; "none" never takes one."""
    weak: AugmentConfig = WEAK
    """Changes of what the teacher sees."""
    strong: AugmentConfig = STRONG
    """Further changes of what the student sees."""
    device: str = "auto"
    """Where the network runs: "cpu", "cuda"; "auto" takes a GPU if there is one."""
    progress: bool = True
    """Show a progress bar on a terminal."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("steps", "every", "patience", "batch_size", "judge_tiles", "tiles"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        check(self.seconds is None or self.seconds > 0, f"seconds is {self.seconds}; expected a positive time")
        check(self.lr > 0, f"lr is {self.lr}; expected a positive rate")
        check(0.0 <= self.momentum <= 1.0, f"momentum is {self.momentum}; expected a share from 0 to 1")
        low, high = self.portion
        check(0.0 < low <= 1.0 and 0.0 < high <= 1.0, f"portion is {self.portion}; expected two shares up to 1")
        for name in ("least_confidence", "anchor_confidence", "snap_agreement"):
            check(0.0 <= getattr(self, name) <= 1.0, f"{name} is {getattr(self, name)}; expected 0 to 1")
        check(self.temperature > 0, f"temperature is {self.temperature}; expected a positive value")
        check(self.everything >= 0, f"everything is {self.everything}; expected a number of points, or 0")
        check(
            (self.moving == "new") == bool(self.new),
            f"moving is {self.moving!r} and new is {self.new}; moving: new needs a graft such as new: {{ssf: {{}}}}, "
            "and only it",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain: dict[str, Any] = asdict(self)
        plain["portion"] = list(self.portion)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AdaptConfig":
        """Inverse of :meth:`to_dict`; what is left out has its default.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        nested = {"weights": TermWeights, "guard": GuardConfig, "weak": AugmentConfig, "strong": AugmentConfig}
        bases: dict[str, dict[str, Any]] = {"weak": asdict(WEAK), "strong": asdict(STRONG)}
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name in nested:
                values[name] = _build(nested[name], {**bases.get(name, {}), **dict(value)}, f"{name}.")
            else:
                values[name] = tuple(value) if isinstance(value, list) else value
        built: AdaptConfig = _build(cls, values, "")
        return built


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    known = [one.name for one in fields(kind)]
    odd = sorted(set(values) - set(known))
    if odd:
        raise ConfigError(f"unknown setting {prefix}{odd[0]}; expected one of {', '.join(known)}")
    return kind(**values)
