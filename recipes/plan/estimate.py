"""The plan of a run: parameters, memory, time, disk. :func:`make_plan` is the way in."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import SamConfig

from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError
from samgraft.recipes.augment import augment
from samgraft.recipes.config import FitConfig
from samgraft.recipes.data.fit import round_up
from samgraft.recipes.heap import THRESHOLD
from samgraft.recipes.plan.glibc import heap_peak
from samgraft.recipes.plan.machine import Machine, check_device, measure_machine
from samgraft.recipes.plan.network import StepTrace, sam_config, skeleton, trace_step, weight_dtype
from samgraft.recipes.plan.tiles import TileCount, assumed_tiles, count_tiles
from samgraft.recipes.tasks import CACHED_VIEWS, INSTANCE_CLASSES
from samgraft.recipes.training import device_type

MARGIN = 1.25
"""A run is said to fit where so many times its estimate is free: real processes took 5 to 22 % more than estimated,
since what kernels allocate inside is not seen."""
HEADER_BYTES = 4000
"""Of an adapter file beside its tensors, about; a name and place of each tensor come on top."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the moment when most is needed. On "cuda" of the GPU, else of the process."""

    libraries: int
    """Python, torch and the rest, before anything is loaded; on a GPU an assumed context."""
    data: int
    """Tiles and validation cases, which training holds in memory; 0 on a GPU."""
    weights: int
    states: int
    """Of the optimiser."""
    gradients: int
    batch: int
    activations: int
    """Kept from the forward to the backward pass, and still there at the peak."""
    transient: int
    holes: int
    """Freed memory between living tensors, which glibc keeps; a model, see ``glibc.py``."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds, all estimated from counted work and measured rates."""

    augment: float
    """Of a batch; measured."""
    frozen: float
    """Leading blocks that nothing changes, of a batch."""
    rest: float
    """Forward and backward of everything else, of a batch."""
    update: float
    """The optimiser."""
    predict: float
    """Of one tile."""
    step: float
    """One optimiser step as configured, features computed."""
    step_cached: float
    """The same with features from the store."""
    validation: float
    """All validation tiles, features computed."""
    validation_cached: float
    run: float
    """All steps and validations, features always computed."""
    run_cached: float
    """The same with each view's features computed once."""
    steps: int
    """Steps that the run makes before it ends by number or by ``train.minutes``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    backbone: str
    trainable: int
    """Parameters; exact."""
    frozen: int
    """Parameters of the backbone; exact."""
    adapter_bytes: int
    channels: int
    """Foreground channels of the head."""
    num_blocks: int
    frozen_blocks: int
    """Leading blocks that are never differentiated; exact."""
    frozen_encoder: bool
    """Whether that is the whole encoder."""
    size: int
    """Side of the network input in pixels."""
    batch: int
    saved_activations: int
    """Bytes that live from the forward to the backward pass; exact."""
    operations: int
    """Multiplications and additions of a step, forward and backward; exact."""
    memory: Memory
    times: Times
    tiles: TileCount
    views: int
    """Different views of a tile; 0: new ones every time, which no cache can hold."""
    cached: bool
    """Whether training takes features from the store."""
    cache_entry: int
    """Bytes of a view's features; 0 if nothing is frozen."""
    cache_bytes: int
    """Most that the run writes to the store."""
    cache_limit: int
    machine: Machine
    counted_by: str
    """"meta" or "fake": tensors without values; "real": a real step."""

    @property
    def needed(self) -> int:
        """Bytes that should be free, with :data:`MARGIN`; on a CPU the libraries of this process go when it ends."""
        own = 0 if self.machine.device == "cuda" else self.machine.libraries
        return round(MARGIN * self.memory.total) - own

    @property
    def fits(self) -> bool:
        """Whether the memory that is free now is enough."""
        return self.needed <= self.machine.free

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "total_bytes": self.memory.total, "fits": self.fits}


def make_plan(
    config: FitConfig,
    *,
    tiles: int | None = None,
    val_tiles: int | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Estimate a run without doing it.

    Args:
        config: The run.
        tiles: Training tiles; None counts those of ``data.path``.
        val_tiles: Validation tiles; None counts, or assumes a quarter of ``tiles``.
        machine: Rates and memory; None measures this one, for about a second.

    Raises:
        ConfigError: neither tiles nor data, or a device that is not here; and as training.
        CheckpointError: the backbone is not known and not here.
    """
    device = machine.device if machine is not None else device_type(config.train.accelerator)
    check_device(device)
    _check_tiles(config, tiles, val_tiles)
    shape = sam_config(config.task.backbone)
    if machine is None:  # before data is read, so that the libraries' memory is theirs
        machine = measure_machine(device, _compute_dtype(config))
    counts = _tiles(config, tiles, val_tiles, round_up(config.data.size, shape.vision_config.patch_size))
    return plan_with(config, shape, counts, machine)


def plan_with(config: FitConfig, shape: SamConfig, counts: TileCount, machine: Machine) -> Plan:
    """The plan, where backbone, data and machine are known already; arguments as in :func:`make_plan`."""
    classes = len(INSTANCE_CLASSES) if config.task.kind == "instance" else counts.classes
    grafted = skeleton(config, shape, classes)
    frozen_blocks, whole = grafted.frozen_blocks(), grafted.frozen_encoder()
    views = _views(config, whole)
    cached = config.train.cache and views > 0 and (whole or frozen_blocks > 0)
    step = trace_step(config, shape, num_classes=classes, cached=cached, device=machine.device)
    size = round_up(config.data.size, grafted.backbone.spec.patch_size)
    own = {id(p) for p in grafted.trainable_parameters()}
    entries = min(views * counts.train, _draws(config)) if cached else 0
    return Plan(
        backbone=config.task.backbone,
        trainable=sum(p.numel() for p in grafted.trainable_parameters()),
        frozen=sum(p.numel() for p in grafted.backbone.parameters() if id(p) not in own),
        adapter_bytes=_adapter_bytes(grafted),
        channels=classes,
        num_blocks=grafted.backbone.spec.num_blocks,
        frozen_blocks=frozen_blocks,
        frozen_encoder=whole,
        size=size,
        batch=config.data.batch_size,
        saved_activations=step.activations,
        operations=step.rest.operations + (0 if cached else step.frozen.operations),
        memory=_memory(config, step, counts, machine),
        times=_times(config, step, counts, machine, views),
        tiles=counts,
        views=views,
        cached=cached,
        cache_entry=step.entry,
        cache_bytes=step.entry * (entries + counts.val) if config.train.cache else 0,
        cache_limit=round(config.train.cache_gb * 10**9),
        machine=machine,
        counted_by=step.mode,
    )


def _check_tiles(config: FitConfig, tiles: int | None, val_tiles: int | None) -> None:
    if tiles is None and not config.data.path:
        raise ConfigError("the length of the run depends on the data; add --data PATH, or --tiles N for a number")
    if min(1 if tiles is None else tiles, 1 if val_tiles is None else val_tiles) < 1:
        raise ConfigError(f"tiles is {tiles} and val_tiles {val_tiles}; expected at least 1")


def _tiles(config: FitConfig, tiles: int | None, val_tiles: int | None, size: int) -> TileCount:
    if tiles is None:
        return count_tiles(config, size)
    return assumed_tiles(tiles, val_tiles, size=size, classes=len(config.task.class_names or ("object",)))


def _memory(config: FitConfig, step: StepTrace, counts: TileCount, machine: Machine) -> Memory:
    peak = step.trace.peak()
    on_host = machine.device == "cpu"
    held = heap_peak(step.trace, THRESHOLD if config.train.return_memory else None) if on_host else 0
    return Memory(
        libraries=machine.libraries,
        data=counts.bytes if on_host else 0,
        holes=max(0, held - sum(peak.values())),
        **{str(kind): size for kind, size in peak.items()},
    )


def _times(config: FitConfig, step: StepTrace, counts: TileCount, machine: Machine, views: int) -> Times:
    train, batch = config.train, config.data.batch_size
    frozen, rest, update = (machine.seconds(work) for work in (step.frozen, step.rest, step.update))
    predict = machine.seconds(step.predict) / batch
    warped = augment_seconds(config)
    one, one_cached = ((warped + rest + extra) * train.accumulate + update for extra in (frozen, 0.0))
    validation, kept = counts.val * predict, counts.val * max(0.0, predict - frozen / batch)
    number = max(1, train.steps // train.val_every)
    views_seen = distinct(max(views, 0) * counts.train, _draws(config))
    cold = (views_seen + counts.val) * frozen / batch
    run = train.steps * one + number * validation
    if views == 0 or not train.cache:  # only validation meets an image twice
        one_cached, cold = one, (counts.val * frozen / batch if train.cache else number * counts.val * frozen / batch)
    run_cached = train.steps * one_cached + number * kept + cold
    used = run_cached if train.cache else run
    limit = float("inf") if train.minutes is None else 60 * train.minutes
    return Times(
        augment=warped,
        frozen=frozen,
        rest=rest,
        update=update,
        predict=predict,
        step=one,
        step_cached=one_cached,
        validation=validation,
        validation_cached=kept,
        run=min(run, limit),
        run_cached=min(run_cached, limit),
        steps=train.steps if used <= limit else int(train.steps * limit / used),
    )


def augment_seconds(config: FitConfig) -> float:
    """Seconds to change a batch at random; the second of two tries on one image, times the batch."""
    size = config.data.size
    image, label = torch.rand(1, 3, size, size), torch.zeros(1, size, size, dtype=torch.int32)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        augment(image, label, torch.Generator().manual_seed(0), config.augment)
        seconds = time.perf_counter() - start
    return seconds * config.data.batch_size


def distinct(kinds: int, draws: int) -> float:
    """Expected number of different outcomes of ``draws`` draws from ``kinds`` equally likely ones."""
    return 0.0 if kinds <= 0 else kinds * (1 - (1 - 1 / kinds) ** draws)


def _draws(config: FitConfig) -> int:
    """Images that the run takes."""
    return config.train.steps * config.train.accumulate * config.data.batch_size


def _views(config: FitConfig, whole: bool) -> int:
    """As ``SegmentationTask`` decides."""
    if config.augment.views is not None:
        return config.augment.views
    return CACHED_VIEWS if config.train.cache and whole else 0


def _adapter_bytes(grafted: Grafted) -> int:
    state = grafted.graft_state()
    tensors = sum(value.numel() * value.element_size() for value in state.values())
    return tensors + HEADER_BYTES + sum(len(name) + 70 for name in state)


def _compute_dtype(config: FitConfig) -> torch.dtype:
    precision = config.train.precision
    if precision.endswith("mixed"):
        return torch.float16 if precision.startswith("16") else torch.bfloat16
    return weight_dtype(config)


def change(config: FitConfig, *, task: dict[str, Any] | None = None, **parts: dict[str, Any]) -> FitConfig:
    """``config`` with other values: ``change(config, train={"accumulate": 4})``."""
    found = {name: replace(getattr(config, name), **values) for name, values in parts.items()}
    if task is not None:
        found["task"] = replace(config.task, **task)
    return replace(config, **found)
