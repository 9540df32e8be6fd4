"""The settings of a training run, as frozen dataclasses; a recipe YAML maps to :class:`FitConfig` one to one.

Only the standard library is imported, so that ``samgraft --help`` stays quick.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from samgraft.recipes.checking import check
from samgraft.recipes.raster_config import RasterFields
from samgraft.recipes.weak_config import SUPERVISIONS, Supervision, WeakConfig

Kind = Literal["semantic", "instance"]
Layout = Literal["nnunet", "image_mask", "raster_vector", "mosaic", "samples"]
Strategy = Literal["auto", "ddp", "fsdp"]
OptimizerName = Literal["adamw", "adafactor", "adamw_8bit", "paged_adamw_8bit"]


MAX_VIEWS = 64
"""Most views of an image that ``augment.views`` can ask for."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of training images; see ``samgraft.recipes.augment``."""

    enabled: bool = True
    """Switch everything off with False."""
    flip_x: bool = False
    """Mirror left-right with probability one half; False where sides have a meaning."""
    flip_y: bool = False
    """Mirror top-bottom with probability one half."""
    quarter_turns: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, for images without an up."""
    rotate: float = 15.0
    """Largest rotation, degrees, either way."""
    scale: float = 0.2
    """Largest relative change of size; 0.2 draws log-uniformly from 1/1.2 to 1.2."""
    shift: float = 0.08
    """Largest shift as a fraction of the side."""
    elastic: float = 0.0
    """Largest smooth displacement as a fraction of the side; 0 for none."""
    elastic_nodes: int = 5
    """Control points per side of the elastic field."""
    gamma: float = 0.3
    """Largest log-change of the exponent on [0, 1] intensities."""
    contrast: float = 0.25
    """Largest relative change of contrast around the image mean."""
    brightness: float = 0.1
    """Largest additive change, in units of the [0, 1] range."""
    colour: float = 0.0
    """Largest independent gain per channel; for colour images, not for neighbouring slices."""
    invert: float = 0.0
    """Chance of the negative of an image: dark cells on a bright ground where they are bright on a dark one."""
    fourier: float | str = 0.0
    """Mix low-frequency Fourier amplitudes (lighting, contrast, cast) of other images in: a folder of target images
    without labels (at ``probability``), or a share of images that take those of other training images; 0 for none."""
    fourier_beta: float = 0.05
    """Frequencies up to this share of the side are mixed."""
    noise: float = 0.03
    """Largest standard deviation of white noise."""
    blur: float = 1.0
    """Largest Gaussian blur, pixels."""
    probability: float = 0.5
    """Chance per image of each of noise, blur, gamma and elastic."""
    views: int | None = None
    """How many different views each image has; 0 draws a new one every time. None: 32 where the whole encoder is frozen
    and ``train.cache`` keeps its features, and slices are not taken in slabs; else 0."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(
            self.views is None or 0 <= self.views <= MAX_VIEWS,
            f"augment.views is {self.views}; expected 0 to {MAX_VIEWS}",
        )
        for name in ("probability", "invert"):
            check(0.0 <= getattr(self, name) <= 1.0, f"augment.{name} is {getattr(self, name)}; expected 0 to 1")
        for name in (
            "rotate",
            "scale",
            "shift",
            "elastic",
            "gamma",
            "contrast",
            "brightness",
            "colour",
            "noise",
            "blur",
        ):
            value = getattr(self, name)
            check(value >= 0, f"augment.{name} is {value}; expected zero or more")
        share = isinstance(self.fourier, str) or 0.0 <= self.fourier <= 1.0
        check(share, f"augment.fourier is {self.fourier}; expected a folder of target images, or a share from 0 to 1")
        check(0 < self.fourier_beta < 0.5, f"augment.fourier_beta is {self.fourier_beta}; expected above 0, below 0.5")
        check(self.elastic_nodes >= 2, f"augment.elastic_nodes is {self.elastic_nodes}; expected at least 2")


@dataclass(frozen=True, kw_only=True)
class DataConfig(RasterFields):
    """Where the images are and how they become network inputs; layout "mosaic" has further fields."""

    layout: Layout = "nnunet"
    """"nnunet": imagesTr/ and labelsTr/ volumes; "image_mask": images/ and masks/ or instances/; "raster_vector":
    rasters with polygons; "mosaic": windows of rasters larger than memory; "samples": torchgeo data sets."""
    path: str = ""
    """Folder of the data set; on the command line ``--data PATH``."""
    labels: str | None = None
    """Label folder (image_mask) or vector file or folder (raster_vector); None finds the usual names."""
    images: str | None = None
    """Folder of rasters below ``path`` (raster_vector) or of pictures (image_mask); None finds the usual names."""
    fold: int = 0
    """Which entry of splits.json."""
    split_pattern: str | None = None
    """raster_vector: regular expression whose first group is a number in the raster's name, such as a tile column;
    rasters up to ``split_last_train`` train, others validate. None: splits.json, else the eastern fifth validates."""
    split_last_train: float | None = None
    """Largest number that still trains."""
    class_field: str | None = None
    """raster_vector: field of the vector file that holds the class; None makes one class, "object"."""
    cases: int | None = None
    """Train on this many cases only, drawn by ``seed``; None takes all. Validation cases stay as they are."""
    seed: int = 0
    """Seed of that draw."""
    size: int = 128
    """Side of the square network input in pixels; rounded up to a multiple of the backbone's patch."""
    window: int | None = None
    """Cut pictures and rasters into windows of this many native pixels (resized to ``size``); None takes them whole."""
    overlap: float = 0.25
    """Overlap of neighbouring windows, as a fraction of ``window``."""
    slice_axis: int | None = None
    """Array axis of a volume that is cut into slices; None takes the coarsest spacing (the first of equals)."""
    neighbours: bool = False
    """2.5D: the three channels are the previous, this and the next slice, instead of three copies."""
    slab: int | None = None
    """3D: train on, and predict, so many consecutive slices together, for grafts and heads that look across slices;
    None takes every slice by itself. The slices of a slab are ``batch_size`` times as many images."""
    slab_overlap: float = 0.5
    """Least overlap of neighbouring slabs when predicting, as a fraction of ``slab``."""
    modality: str | None = None
    """"CT", "MR", ... decides the intensity window; None asks dataset.json and the file."""
    intensity: tuple[float, float] | None = None
    """Fixed window (lower, upper) in file units, mapped to [0, 1]; None fits one."""
    normalise: Literal["percentile", "zscore"] | None = None
    """How a scale is measured on every volume where it is not fixed; the adapter keeps the rule. None: percentiles for
    MR, the soft-tissue window for CT, else as the file looks."""
    normalise_range: tuple[float, float] | None = None
    """What becomes 0 and 1: percentiles (0.5, 99.5), or standard deviations (-3, 3)."""
    tone: str = "plain"
    """Change of scaled values before the network sees them: "negative", "brighter", ... (``samgraft.recipes.tones``),
    as an adapter has it that was adapted to one."""
    bands: tuple[int, ...] | None = None
    """Zero-based raster bands shown as red, green, blue; None takes the first three."""
    supervision: Supervision = "masks"
    """What the labels are: "masks"; or "boxes", "points", "scribbles", "coarse" polygons, and then no mask is read,
    neither to train nor to validate."""
    weak: str | None = None
    """File or folder below ``path`` of weak labels; None finds the usual names (docs/weak_labels.md)."""
    scribble_background: int = 255
    """scribbles: the number that was drawn for background; 0 is not drawn."""
    partial: bool = False
    """Not every class was annotated in every case: a pixel without a label may be of a class that was not."""
    annotated: str | None = None
    """partial: JSON below ``path``, {case: [names of the classes annotated in it]}; None takes annotated.json."""
    foreground: float = 0.5
    """Share of each training batch that is drawn from slices or windows with foreground."""
    batch_size: int = 8
    """Images per step, over all processes together: each of ``train.devices`` x ``train.num_nodes`` gets its part."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        check(self.size >= 16, f"data.size is {self.size}; expected at least 16 pixels")
        check(
            self.cases is None or self.cases >= 1, f"data.cases is {self.cases}; expected at least 1, or null for all"
        )
        check(0.0 <= self.overlap < 1.0, f"data.overlap is {self.overlap}; expected 0 up to, not including, 1")
        check(0.0 <= self.foreground <= 1.0, f"data.foreground is {self.foreground}; expected 0 to 1")
        check(
            0.0 <= self.slab_overlap < 1.0,
            f"data.slab_overlap is {self.slab_overlap}; expected 0 up to, not including, 1",
        )
        check(self.slab is None or self.slab >= 1, f"data.slab is {self.slab}; expected at least 1 slice, or null")
        check(
            self.slab is None or self.layout == "nnunet",
            f"data.slab is {self.slab}, and layout {self.layout!r} has pictures; slabs are for volumes; set it to null",
        )
        check(
            self.supervision in SUPERVISIONS,
            f"data.supervision is {self.supervision!r}; expected one of {', '.join(SUPERVISIONS)}",
        )
        check(
            self.slab is None or (self.supervision == "masks" and not self.partial),
            f"data.slab is {self.slab}; weak and partial labels are learned slice by slice; set it to null",
        )
        check(
            self.scribble_background > 0,
            f"data.scribble_background is {self.scribble_background}; expected a number above 0, which is not drawn",
        )
        check(self.slice_axis in (None, 0, 1, 2), f"data.slice_axis is {self.slice_axis}; expected 0, 1 or 2")
        check(self.batch_size >= 1, f"data.batch_size is {self.batch_size}; expected at least 1")
        check(self.window is None or self.window >= 16, f"data.window is {self.window}; expected at least 16 pixels")
        if self.intensity is not None:
            low, high = self.intensity
            check(low < high, f"data.intensity is {self.intensity}; expected lower < upper")
            check(self.normalise is None, "data.intensity and data.normalise both set the scale; give one of them")
        check(
            self.normalise is not None or self.normalise_range is None,
            f"data.normalise_range is {self.normalise_range}; it needs data.normalise: percentile or zscore",
        )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which network is trained and how."""

    kind: Kind = "semantic"
    """"semantic": a class per pixel; "instance": separate objects, from the distances of head "distances" or from
    interior and border probabilities of the other heads."""
    backbone: str = "graft-tiny"
    """Name, folder or file for ``samgraft.load_backbone``."""
    grafts: dict[str, dict[str, Any]] = field(default_factory=lambda: {"lora": {}})
    """Graft name -> its options."""
    head: str = "class_tokens"
    """"class_tokens" (decoder), "distances" (decoder, for instance), or the name of an automatic prompter such as
    "autosam"."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """Options of the head."""
    class_names: tuple[str, ...] | None = None
    """Names of the foreground classes; None takes them from the data set."""
    optimizer: OptimizerName = "adamw"
    """"adamw"; "adafactor" (factored states, a small share of the memory); "adamw_8bit" and "paged_adamw_8bit" (CUDA,
    with bitsandbytes). States are as many as trained values, so this matters where much is trained."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Weight decay, on matrices only."""
    warmup: float = 0.05
    """Share of the steps with a linearly rising rate; a cosine to a hundredth of ``lr`` follows."""
    dice_weight: float = 1.0
    """Weight of Dice in the loss."""
    ce_weight: float = 1.0
    """Weight of cross-entropy in the loss."""
    class_weights: tuple[float, ...] | None = None
    """Cross-entropy weight per class, background first; None weighs all alike. Distances have no classes: no effect."""
    distance_weight: float = 2.0
    """Weight of the distances in the loss, for head "distances"."""
    clip: float = 1.0
    """Largest gradient norm."""
    border: int = 1
    """instance: width in network pixels of the border class."""
    min_area: int = 12
    """instance: smallest object kept, network pixels."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self.lr > 0, f"task.lr is {self.lr}; expected a positive rate")
        check(
            0.0 <= self.warmup < 1.0, f"task.warmup is {self.warmup}; expected a share from 0 up to, not including, 1"
        )
        check(
            self.dice_weight + self.ce_weight > 0,
            "task.dice_weight and task.ce_weight are both 0; give one of them weight",
        )
        check(self.border >= 1, f"task.border is {self.border}; expected at least 1 pixel")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how often, where."""

    steps: int = 2000
    """Optimiser steps."""
    minutes: float | None = None
    """Stop after this wall time even if steps are left; the schedule follows whichever ends first."""
    val_every: int = 200
    """Steps between validations."""
    seed: int = 0
    """Seed of initial values, batches and augmentation."""
    accelerator: str = "auto"
    """Lightning's accelerator: "auto", "cpu", "gpu"."""
    devices: int = 1
    """Processes per node, each with a GPU of its own, or on the CPU. The result does not depend on it."""
    num_nodes: int = 1
    """Machines; start the same command on each."""
    strategy: Strategy = "auto"
    """How processes share the work: "ddp" (each holds everything), "fsdp" (weights are split between steps); "auto" is
    "ddp" where there are several."""
    precision: str = "32-true"
    """Lightning's precision, such as "32-true" or "bf16-mixed"."""
    accumulate: int = 1
    """Batches whose gradients are summed before a step; a larger batch in the memory of a small one."""
    checkpointing: bool = False
    """Compute encoder blocks again in the backward pass: less memory, about a third more time."""
    start_from: str | None = None
    """An adapter to start from: its grafts and head, which have to be those of this run, are copied before training."""
    return_memory: bool = False
    """glibc: give freed memory back at once. A lower peak for slower steps; see ``samgraft.recipes.heap``."""
    fast_dev_run: bool = False
    """Two training steps and one validation, to see that everything fits together."""
    progress: bool = True
    """Show a progress bar."""
    val_cases: int | None = None
    """Validate on the first few cases only while training; None takes all."""
    cache: bool = True
    """Keep what frozen encoder blocks give for a view on disk (see ``samgraft cache info``)."""
    cache_gb: float = 20.0
    """Largest size of that store in GB; what was not used for longest goes first."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self.steps >= 1, f"train.steps is {self.steps}; expected at least 1")
        check(self.accumulate >= 1, f"train.accumulate is {self.accumulate}; expected at least 1")
        check(self.val_every >= 1, f"train.val_every is {self.val_every}; expected at least 1")
        check(self.cache_gb > 0, f"train.cache_gb is {self.cache_gb}; expected a positive size")
        check(self.minutes is None or self.minutes > 0, f"train.minutes is {self.minutes}; expected a positive time")
        check(self.devices >= 1, f"train.devices is {self.devices}; expected at least 1 process")
        check(self.num_nodes >= 1, f"train.num_nodes is {self.num_nodes}; expected at least 1 machine")
        known = ("auto", "ddp", "fsdp")
        check(self.strategy in known, f"train.strategy is {self.strategy!r}; expected one of {', '.join(known)}")

    @property
    def world(self) -> int:
        """Processes that train together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that decides a training run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """The network and its optimiser."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training images."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length and place of the run."""
    weak: WeakConfig = field(default_factory=WeakConfig)
    """What is made of weak and partial labels."""

    def __post_init__(self) -> None:
        """Check what concerns two groups."""
        batch, world = self.data.batch_size, self.train.world
        check(
            batch % world == 0,
            f"data.batch_size is {batch}; it is shared by {world} processes (train.devices x train.num_nodes) and has "
            f"to be a multiple of {world}, such as {-(-batch // world) * world}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types (tuples become lists), nested as in the YAML."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, Any]]) -> "FitConfig":
        """Inverse of :meth:`to_dict`."""

        def fields(name: str) -> dict[str, Any]:
            return {key: tuple(v) if isinstance(v, list) else v for key, v in data.get(name, {}).items()}

        return cls(
            task=TaskConfig(**fields("task")),
            data=DataConfig(**fields("data")),
            augment=AugmentConfig(**fields("augment")),
            train=TrainConfig(**fields("train")),
            weak=WeakConfig(**fields("weak")),
        )


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text in the order of the fields."""
    import yaml

    options = {"sort_keys": False, "default_flow_style": None, "width": 110, "allow_unicode": True}
    return str(yaml.safe_dump(dict(values), **options))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
