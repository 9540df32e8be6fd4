"""The settings of ``samgraft distill``, as one frozen dataclass that a YAML file maps to one to one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from samgraft.errors import ConfigError
from samgraft.recipes.config import AugmentConfig

DEFAULT_VIEWS = 4
"""Views of each tile where ``augment.views`` is null."""


def _augmentation() -> AugmentConfig:
    return AugmentConfig(flip_x=True, flip_y=True, quarter_turns=True, scale=0.3, colour=0.1)


_RANGES: Mapping[str, tuple[float, float]] = {
    "held_out": (0.0, 0.5),
    "crops": (0, 64),
    "per_file": (1, 100_000),
    "overlap": (0.0, 0.9),
    "batch_size": (1, 4096),
    "steps": (1, 10**9),
    "phase2_steps": (0, 10**9),
    "lr": (1e-9, 1.0),
    "phase2_lr": (1e-9, 1.0),
    "weight_decay": (0.0, 1.0),
    "warmup": (0.0, 0.9),
    "clip": (1e-6, 1e6),
    "rounds": (1, 16),
    "prompts": (1, 64),
    "box_share": (0.0, 1.0),
    "points_per_side": (1, 64),
    "objects": (1, 64),
    "bce_weight": (0.0, 1e3),
    "dice_weight": (0.0, 1e3),
    "iou_weight": (0.0, 1e3),
    "embedding_weight": (0.0, 1e3),
    "phase1_share": (0.05, 1.0),
    "val_every": (1, 10**9),
    "val_tiles": (1, 100_000),
    "cache_gb": (1e-6, 1e6),
}
"""Field -> smallest and largest value."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything that decides a distillation run."""

    images: str = ""
    """Folder of images; every file below it that ``samgraft.open`` reads, labels excepted: none are looked at."""
    teacher: str = "graft-tiny"
    """Name, folder or file for ``samgraft.load_backbone``."""
    student: str = "tiny"
    """A preset (``samgraft.recipes.distill.student.STUDENTS``), a JSON file with the fields of a SamVisionConfig, or a
    backbone to start from."""
    name: str | None = None
    """What the student is called in bundles and tables; None joins teacher and student."""
    teacher_size: int | None = None
    """Side in pixels of what the teacher sees; None takes its native size."""
    student_size: int | None = None
    """Side in pixels of what the student sees; None takes its native size."""
    held_out: float = 0.1
    """Share of the files that only judge; at least one file."""
    group_pattern: str | None = None
    """Regular expression whose first group, found in a file's path, names what must not be split between training and
    held-out files, such as the patient. None: every file is its own group."""
    window: int | None = None
    """Side in pixels of the windows that large pictures and rasters are cut into; None takes the whole up to 3 times
    the network's side, else windows of twice that side."""
    overlap: float = 0.0
    """Overlap of neighbouring windows, as a share of their side."""
    crops: int = 1
    """Further square crops per slice, picture or window, at random places with a quarter to 70 % of its side: the
    engine looks at objects closely, so the student should have seen close looks."""
    per_file: int = 64
    """Most slices or windows taken from one file, evenly spaced."""
    augment: AugmentConfig = field(default_factory=_augmentation)
    """Random changes of training tiles. ``augment.views`` versions of a tile exist (null: 4), and the teacher encodes
    each of them once; 0 draws a new one every time, and nothing is kept."""
    batch_size: int = 8
    """Tiles per step."""
    steps: int = 4000
    """Optimiser steps of phase 1: the encoder learns the teacher's embedding."""
    phase2_steps: int = 1000
    """Optimiser steps of phase 2: encoder and mask decoder learn the teacher's masks; 0 leaves it out."""
    minutes: float | None = None
    """Stop training after this wall time, both phases together, even if steps are left; the schedule follows whichever
    ends first. Reading the images comes on top."""
    phase1_share: float = 0.6
    """Share of ``minutes`` for phase 1, where there is a second one."""
    lr: float = 1e-3
    """Peak learning rate of phase 1."""
    phase2_lr: float = 2e-4
    """Peak learning rate of phase 2."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices; vectors have none."""
    warmup: float = 0.05
    """Share of a phase with a linearly rising rate; a cosine to a hundredth of the peak follows."""
    clip: float = 1.0
    """Largest gradient norm."""
    rounds: int = 3
    """Phase 2: decodings per step; each round but the first adds a click where student and teacher disagree."""
    prompts: int = 4
    """Phase 2: objects per tile and step."""
    box_share: float = 0.5
    """Phase 2: share of the steps that begin with boxes; the others begin with one point."""
    points_per_side: int = 6
    """Points along each side of the grid that asks the teacher for its objects, once per view; most of what the first
    steps of phase 2 cost."""
    objects: int = 16
    """Most objects kept per tile."""
    bce_weight: float = 5.0
    """Phase 2: weight of the cross-entropy with the teacher's probabilities."""
    dice_weight: float = 5.0
    """Phase 2: weight of Dice with the teacher's probabilities."""
    iou_weight: float = 1.0
    """Phase 2: weight of the squared difference of predicted IoU, so that the student's opinion of its masks stays
    usable."""
    embedding_weight: float = 0.0
    """Phase 2: weight of the loss of phase 1."""
    val_every: int = 250
    """Steps between looks at held-out tiles."""
    val_tiles: int = 64
    """Most held-out tiles that are looked at, evenly spaced."""
    seed: int = 0
    """Seed of initial values, the split, batches, views and prompts."""
    accelerator: str = "auto"
    """Lightning's accelerator: "auto", "cpu", "gpu"."""
    precision: str = "32-true"
    """Lightning's precision, such as "32-true" or "bf16-mixed"; the teacher always computes in float32."""
    checkpointing: bool = False
    """Compute the student's blocks again in the backward pass: less memory, about a third more time."""
    progress: bool = True
    """Show a progress bar."""
    cache_gb: float = 20.0
    """Largest size in GB of the store of teacher embeddings (``samgraft cache info``)."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: a value outside its range, named.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; expected {low:g} to {high:g}")
        for name in ("teacher_size", "student_size", "window"):
            value = getattr(self, name)
            if value is not None and value < 16:
                raise ConfigError(f"{name} is {value}; expected at least 16 pixels, or null")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes}; expected a positive time, or null")
        if self.bce_weight + self.dice_weight <= 0:
            raise ConfigError("bce_weight and dice_weight are both 0; give one of them weight")
        if self.augment.fourier:
            raise ConfigError("augment.fourier is for training adapters, and a distillation has no target; set it to 0")

    @property
    def views(self) -> int:
        """Different versions of each training tile; 0 for a new one every time."""
        if not self.augment.enabled:
            return 1
        return DEFAULT_VIEWS if self.augment.views is None else self.augment.views

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, nested as in the YAML."""
        return asdict(self)
