"""A training run from configuration to adapter file: what ``samgraft fit`` does, callable from Python."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import load_bundle, read_header, read_meta
from samgraft.adapters.grafts import GRAFTS
from samgraft.errors import CheckpointError, ConfigError, InputError, OutputError
from samgraft.recipes.boxed import INPUTS, remember_boxes
from samgraft.recipes.callbacks import FrozenCheck, Progress, Recorder, TimeLimit, checkpoints
from samgraft.recipes.config import FitConfig, Kind, TrainConfig, to_yaml
from samgraft.recipes.data.fit import round_up
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.features import remember_features
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.heap import return_memory
from samgraft.recipes.metrics import Summary
from samgraft.recipes.monitor import monitor
from samgraft.recipes.optimiser import require_optimizer
from samgraft.recipes.ranks import launched_rank
from samgraft.recipes.report import report_run, write_text
from samgraft.recipes.split_map import write_split
from samgraft.recipes.starting import settle_weak, start_from
from samgraft.recipes.strategies import choose_strategy
from samgraft.recipes.tasks import SegmentationTask
from samgraft.recipes.weak.callback import Refinement
from samgraft.recipes.weak.data import WeakData, needs_weak
from samgraft.recipes.weak_learning.learning import WeakLearning


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left behind."""

    run: Path
    adapter: Path
    report: Path
    summaries: tuple[Summary, ...]
    """Figures of the last validation."""
    seconds: float


def build(config: FitConfig, *, backbone: Backbone | None = None) -> tuple[SegmentationTask, SegmentationData]:
    """Make task and data module that fit each other.

    Raises:
        ConfigError: ``task.class_names`` does not match the data set, the head has too many classes, the optimiser
            cannot run here, or ``train.start_from`` is an adapter of another make.
        CheckpointError: ``train.start_from`` is no adapter, or one of another backbone.
    """
    require_optimizer(config.task.optimizer, device_type(config.train.accelerator))
    frozen = backbone if backbone is not None else load_backbone(config.task.backbone)
    size = round_up(config.data.size, frozen.spec.patch_size)
    batches = min(config.train.val_every, config.train.steps) * config.train.accumulate
    options: dict[str, Any] = {
        "kind": config.task.kind,
        "size": size,
        "steps": batches,
        "val_cases": config.train.val_cases,
        "class_names": config.task.class_names,
        "deal_validation": config.train.strategy != "fsdp",
    }
    weak = WeakData(config.data, config.weak, **options) if needs_weak(config.data) else None
    data = weak or SegmentationData(config.data, **options)
    names = config.task.class_names or data.class_names
    if len(names) != len(data.class_names) and config.task.kind == "semantic":
        raise ConfigError(
            f"task.class_names has {len(names)} names {names}; the data set has classes {data.class_names}"
        )
    lightning.seed_everything(config.train.seed, verbose=False)
    require_slab(config)
    if weak is not None:
        weak.prepare(frozen, tell=print if config.train.progress and is_first(config.train) else None)
    task = SegmentationTask(config, class_names=names, size=size, backbone=frozen)
    frozen.checkpointing = config.train.checkpointing
    if weak is not None:
        task.weak = WeakLearning(tiles=weak.tiles, config=config.weak, partial=config.data.partial)
    if config.train.start_from is not None:
        start_from(config.train.start_from, task.grafted, names, tone=config.data.tone)
    return task, data


def fit(
    config: FitConfig,
    run: Path,
    *,
    resume: bool = False,
    backbone: Backbone | None = None,
    report: bool = True,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train, keep the best adapter, write the report.

    With ``train.devices`` above 1 Lightning starts the other processes by running this program again; each of them
    comes to this call, and only the first one writes.

    Args:
        config: Everything that decides the run.
        run: Folder for config.yaml, checkpoints, history, adapter and report.
        resume: Continue from ``checkpoints/last.ckpt``.
        backbone: Ready backbone; None loads the configured one.
        report: Write ``report.html`` at the end.
        callbacks: Further ones of Lightning's, before those of the run.

    Raises:
        OutputError: the folder holds a run already and ``resume`` is False.
        InputError: there is nothing to resume.
    """
    first = is_first(config.train)
    config = settle_weak(config, print if config.train.progress and first else None)
    last = prepare_run(run, resume) if first else _last(run, resume)
    if config.train.return_memory:
        return_memory()
    trainer = make_trainer(config, run)
    task, data = build(config, backbone=backbone)
    if isinstance(data, WeakData) and config.data.supervision != "masks":
        trainer.callbacks.insert(0, Refinement(data.tiles, config.weak, run))  # type: ignore[attr-defined]
    trainer.callbacks[:0] = callbacks  # type: ignore[attr-defined]
    if first:
        write_config(run, config)
        if isinstance(data, WeakData):
            data.picture(run / "weak_labels.png")
        if data.index.windows is not None:
            write_split(data.index.windows, run)
    began = time.monotonic()
    trainer.fit(task, datamodule=data, ckpt_path=str(last) if last else None, weights_only=True)
    adapter = run / "adapter.graft"
    if first and adapter.is_file() and config.train.strategy != "fsdp":  # there no process has the whole network
        remember_features(adapter, task.grafted, data.index.train)
        if not isinstance(data, WeakData):
            remember_boxes(adapter, task.grafted, *data.samples(INPUTS), apart=config.task.kind == "instance")
    report = report and first and (run / "metrics.json").is_file()
    written = report_run(run) if report else run / "report.html"
    return RunResult(
        run=run, adapter=adapter, report=written, summaries=tuple(task.summaries), seconds=time.monotonic() - began
    )


def require_slab(config: FitConfig) -> None:
    """Refuse grafts that look across slices where slices come one by one.

    Raises:
        ConfigError: ``data.slab`` is not set.
    """
    across = [name for name in config.task.grafts if name in GRAFTS and GRAFTS.get(name).volumetric]
    if across and config.data.slab is None:
        raise ConfigError(
            f"graft {across[0]!r} looks across the slices of a volume; set data.slab to how many go together, such as "
            "--data.slab 8"
        )


def is_first(train: TrainConfig) -> bool:
    """Whether this process is the one that writes and speaks."""
    return train.world == 1 or launched_rank(train.devices) == 0


def _last(run: Path, resume: bool) -> Path | None:
    return run / "checkpoints" / "last.ckpt" if resume else None


def device_type(accelerator: str) -> str:
    """The kind of device that Lightning takes for ``train.accelerator``: "cpu", "cuda" or "mps"."""
    if accelerator in ("cpu", "mps"):
        return accelerator
    if accelerator in ("gpu", "cuda") or torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def prepare_run(run: Path, resume: bool) -> Path | None:
    """Check the run folder; gives the checkpoint to resume from, or None."""
    last = _last(run, resume)
    if last is not None:
        if not last.is_file():
            raise InputError(f"{last} does not exist, so there is nothing to resume; run without --resume")
        return last
    if (run / "config.yaml").exists():
        raise OutputError(f"{run} already holds a run; choose another --output, or add --resume to continue it")
    return None


def write_config(run: Path, config: FitConfig) -> None:
    """Save the resolved configuration with the run."""
    write_text(run / "config.yaml", to_yaml(config.to_dict()))


def make_trainer(config: FitConfig, run: Path) -> lightning.Trainer:
    """Lightning's trainer with the callbacks of a run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    train = config.train
    callbacks: list[Callback] = [FrozenCheck(), Recorder(run), *checkpoints(run, monitor(config))]
    if train.progress:
        callbacks.append(Progress())
    if train.minutes is not None:
        callbacks.append(TimeLimit(train.minutes))
    return lightning.Trainer(
        default_root_dir=run,
        max_steps=2 if train.fast_dev_run else train.steps,
        limit_train_batches=2 if train.fast_dev_run else None,
        limit_val_batches=1 if train.fast_dev_run else None,
        max_epochs=-1,
        accelerator=train.accelerator,
        devices=train.devices,
        num_nodes=train.num_nodes,
        strategy=choose_strategy(train),
        use_distributed_sampler=False,
        precision=train.precision,  # type: ignore[arg-type]
        gradient_clip_val=config.task.clip,
        accumulate_grad_batches=train.accumulate,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=train.progress,
        enable_model_summary=False,
    )


def validate(task: SegmentationTask, data: SegmentationData, *, progress: bool = True) -> tuple[Summary, ...]:
    """Score on the validation cases; the figures also stay in ``task.summaries``."""
    trainer = lightning.Trainer(
        accelerator=task.config.train.accelerator,
        devices=1,
        logger=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        callbacks=[Progress()] if progress else [],
    )
    trainer.validate(task, datamodule=data, verbose=False)
    return tuple(task.summaries)


def load_adapted(
    config: FitConfig, adapter: Path, *, backbone: Backbone | None = None
) -> tuple[SegmentationTask, SegmentationData]:
    """Task and data module around a finished adapter, whose header decides kind, classes, input size and windows.

    Raises:
        CheckpointError: a damaged adapter, or one of another backbone.
    """
    meta = read_meta(adapter)
    recipe = InputRecipe.from_meta(meta)
    names = tuple(meta.classes[k] for k in sorted(meta.classes))
    name = str(read_header(adapter)["backbone"]["name"])
    task_config = replace(config.task, kind=_kind(meta.task), class_names=names, backbone=name)
    data_config = replace(
        config.data,
        size=recipe.size,
        window=recipe.window,
        overlap=recipe.overlap,
        slice_axis=recipe.slice_axis,
        neighbours=recipe.neighbours,
        slab=recipe.slab,
        slab_overlap=recipe.slab_overlap,
        bands=recipe.bands,
        tone=recipe.tone,
        modality=config.data.modality or meta.modality or None,
    )
    config = replace(config, task=replace(task_config, min_area=recipe.min_area), data=data_config)
    frozen = backbone if backbone is not None else load_backbone(name)
    grafted = load_bundle(adapter, frozen)
    task = SegmentationTask(config, class_names=names, size=recipe.size, grafted=grafted)
    data = SegmentationData(
        data_config, kind=task_config.kind, size=recipe.size, val_cases=config.train.val_cases, class_names=names
    )
    return task, data


def _kind(name: str) -> Kind:
    if name == "instance":
        return "instance"
    if name == "semantic":
        return "semantic"
    raise CheckpointError(f"the adapter's task is {name!r}; expected 'semantic' or 'instance'")
