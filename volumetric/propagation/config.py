"""Options of a propagation: what is carried from slice to slice, how far edges move, and when it ends."""

from dataclasses import dataclass, field
from typing import Any

from samgraft.errors import ConfigError

CARRIES = ("box", "mask", "points")
"""What the previous mask can become."""


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a walk leaves the object. The slice that breaks a rule is empty, and so is everything behind it.

    ``None`` switches a rule off. Defaults were chosen on training cases of sarcoma_mr. Between two annotated slices
    only ``min_agreement`` and an empty mask stop a walk: there the object is known to go on, unless the picture says
    otherwise.
    """

    min_iou: float | None = 0.4
    """Least IoU with the mask of the slice before; less is asked of small objects in thick slices (see ``limit``)."""
    max_growth: float | None = 1.6
    """Largest area over the largest area on an annotated slice."""
    max_regrowth: float | None = 3.0
    """Largest area over the smallest one of the walk so far, once that is under half the annotated one: behind a neck
    there is another object. Everything behind the neck is taken back."""
    length: float | None = 0.75
    """Half the length of the object across the slices, in diameters of its annotated mask (of a disc of that area); 0.5
    is a ball. At most ``max_growth`` times that of an ellipsoid of this length is left of an area, the surest pixels
    first, and the walk ends where the ellipsoid ends. For lesions and compact organs; vessels, bones and the like need
    ``None``, or more than one annotated slice."""
    min_share: float | None = 0.03
    """Least area over that of the annotated slice where the walk began."""
    min_predicted_iou: float | None = 0.3
    """Least IoU that the decoder predicts."""
    min_agreement: float | None = 0.2
    """Least agreement of intensities: 1 where the mask is as bright as on the annotated slice, 0 where it is as bright
    as that slice's surroundings (see ``stop.Intensities``)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("min_iou", "min_share", "min_predicted_iou", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"stop rule: {name} is {value}; expected a share in [0, 1], or None for no rule")
        if self.length is not None and not self.length > 0:
            raise ConfigError(f"stop rule: length is {self.length}; expected diameters above 0, or None for no rule")
        for name in ("max_growth", "max_regrowth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"stop rule: {name} is {value}; expected at least 1, or None for no rule")


@dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """How a mask is carried through a volume."""

    carry: tuple[str, ...] = ("box",)
    """What the previous mask becomes on the next slice: "box", "mask" (logits of -6.9 and 6.9), "points", or several
    of them together. On training cases of sarcoma_mr graft-tiny did best with the box alone."""
    points: int = 1
    """With "points": how many positive ones, deepest first."""
    edge_slope: float = 1.0
    """How far an edge may move in the plane, in mm per mm between slices; 1 is 45 degrees. What an answer adds beyond
    that is cut off."""
    box_margin: float = 0.0
    """The carried box is larger than the mask by this share of that distance, on each side. A decoder may leave the
    box, so that 0 does not stop an object from growing."""
    memory: int = 0
    """Past slices that are remembered by their features, beside the annotated ones; 0 for no memory."""
    memory_weight: float = 0.5
    """Weight of what the memory says against the previous mask, in [0, 1]."""
    stop: StopRule = field(default_factory=StopRule)

    def __post_init__(self) -> None:
        """Check numbers and words."""
        object.__setattr__(self, "carry", tuple(self.carry))
        unknown = [word for word in self.carry if word not in CARRIES]
        if unknown or not self.carry:
            raise ConfigError(f"propagation: carry is {list(self.carry)}; expected one or more of {', '.join(CARRIES)}")
        if self.points < 1 or self.memory < 0:
            raise ConfigError(
                f"propagation: points is {self.points} and memory {self.memory}; expected at least 1 and at least 0"
            )
        if not self.edge_slope > 0 or self.box_margin < 0:
            raise ConfigError(
                f"propagation: edge_slope is {self.edge_slope} and box_margin {self.box_margin}; expected a slope "
                "above 0 and a margin of at least 0"
            )
        if not 0 <= self.memory_weight <= 1:
            raise ConfigError(f"propagation: memory_weight is {self.memory_weight}; expected a share in [0, 1]")

    def reach(self, spacing: tuple[float, float, float]) -> float:
        """How far an edge may move from one slice to the next, mm; at least one pixel.

        Args:
            spacing: (D, H, W), the cut axis first.
        """
        return max(self.edge_slope * spacing[0], max(spacing[1:]))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PropagationConfig":
        """From plain values, as they stand in a header or on the command line."""
        given = dict(values)
        if isinstance(given.get("stop"), dict):
            given["stop"] = StopRule(**given["stop"])
        return cls(**given)
