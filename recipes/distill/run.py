"""A distillation from configuration to backbone folder: what ``samgraft distill`` does, callable from Python."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.errors import CheckpointError, InputError, OutputError
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.callbacks import Progress
from samgraft.recipes.config import to_yaml
from samgraft.recipes.distill.callbacks import Deadline, Keeper, load_weights, trim_history
from samgraft.recipes.distill.config import DistillConfig
from samgraft.recipes.distill.data import DistillData, Tiles, find_images, read_tiles, split_files
from samgraft.recipes.distill.export import draw_masks, export_student
from samgraft.recipes.distill.phases import EmbeddingPhase, MaskPhase, Phase
from samgraft.recipes.distill.student import differing, make_student
from samgraft.recipes.distill.teacher import Teacher
from samgraft.recipes.engine.focus import network_size
from samgraft.recipes.report import versions, write_text

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What a phase reached on held-out tiles; figures are those of ``judge.Figures``."""

    before: dict[str, Any]
    best: dict[str, Any]
    step: int
    """Step of the kept weights; 0 keeps the start."""
    steps: int
    """Steps that were made."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What a run left behind."""

    run: Path
    student: Path
    """Folder for ``load_backbone``."""
    picture: Path
    phases: tuple[PhaseResult, ...]
    facts: dict[str, Any]
    """What ``metrics.json`` holds."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher and student that fit each other."""

    teacher: Teacher
    student: HFSamBackbone
    student_size: int

    @property
    def side(self) -> int:
        """Side of the tiles: the larger of the two inputs."""
        return max(self.teacher.size, self.student_size)

    @property
    def grid(self) -> int:
        """Tokens per side of the student's embedding."""
        return self.student_size // self.student.spec.patch_size

    def describe(self) -> list[str]:
        """Sizes in words, and what is resized."""
        teacher, student = self.teacher.backbone.spec, self.student.spec
        lines = [
            f"teacher {teacher.name}: {self.teacher.size} px, {self.teacher.grid} x {self.teacher.grid} tokens, "
            f"encoder of {encoder_size(self.teacher.backbone) / 1e6:.2f} M parameters",
            f"student {student.name}: {self.student_size} px, {self.grid} x {self.grid} tokens, "
            f"encoder of {encoder_size(self.student) / 1e6:.2f} M parameters",
        ]
        if self.grid != self.teacher.grid:
            lines.append(
                f"grids differ: the teacher's embeddings are resized from {self.teacher.grid} to {self.grid} tokens "
                "per side (bilinear), and its mask logits likewise"
            )
        return lines


def make_pair(config: DistillConfig, teacher: HFSamBackbone | None = None) -> Pair:
    """Load the teacher and build the student.

    Args:
        config: The run.
        teacher: Ready backbone; None loads ``config.teacher``.

    Raises:
        ConfigError: the student does not fit the teacher.
        CheckpointError: a backbone that cannot be loaded.
        ShapeError: a size that is no multiple of the patch.
    """
    frozen = teacher if teacher is not None else load_backbone(config.teacher)
    size = network_size(frozen, config.teacher_size)
    store = FeatureStore(limit_gb=config.cache_gb) if config.views else None
    asked = Teacher(frozen, size=size, store=store, points_per_side=config.points_per_side, most=config.objects)
    student = make_student(config.student, frozen, name=config.name, grid=asked.grid, seed=config.seed)
    return Pair(teacher=asked, student=student, student_size=network_size(student, config.student_size))


def distill(
    config: DistillConfig,
    run: Path,
    *,
    resume: bool = False,
    teacher: HFSamBackbone | None = None,
    say: Say | None = None,
) -> DistillResult:
    """Train a student, keep the best one, write it with figures and a picture.

    Args:
        config: Everything that decides the run.
        run: Folder for config.yaml, files.json, checkpoints, history.jsonl, metrics.json, masks.png and student/.
        resume: Continue a run that was stopped; a finished phase is not repeated.
        teacher: Ready backbone; None loads ``config.teacher``.
        say: Takes lines for people; None is silent.

    Raises:
        OutputError: the folder holds a run already and ``resume`` is False.
        InputError: nothing to resume, no images, or other images than before.
        ConfigError: teacher and student do not fit.
        CheckpointError: the teacher or what should stay as it was changed, or training ended in NaN.
    """
    say = say or (lambda line: None)
    check_run(run, resume)
    train_files, held_files = split_files(find_images(Path(config.images)), config)
    pair = make_pair(config, teacher)
    train = read_tiles(train_files, pair.side, config, crops=config.crops)
    held = read_tiles(held_files, pair.side, config, crops=config.crops).some(config.val_tiles)
    notes = [*pair.describe(), _counted("training", train), _counted("held out", held)]
    for line in notes:
        say(line)
    _record_files(run, train, held, resume)
    if not resume:
        write_text(run / "config.yaml", to_yaml(config.to_dict()))
    results = _phases(config, pair, train, held, run, say)
    pair.teacher.require_unchanged()
    pair.teacher.to(next(pair.student.parameters()).device)  # Lightning has brought the student back to the CPU
    facts = _facts(config, pair, (train, held), results, notes)
    folder = export_student(run / "student", pair.student, {k: v for k, v in facts.items() if k != "versions"})
    draw_masks(run / "masks.png", pair.student, pair.student_size, pair.teacher, held)
    write_text(run / "metrics.json", json.dumps(facts, indent=1) + "\n")
    return DistillResult(run=run, student=folder, picture=run / "masks.png", phases=tuple(results), facts=facts)


def check_run(run: Path, resume: bool) -> None:
    """Refuse a folder that holds a run, or one that holds none to resume.

    Raises:
        OutputError: there is a run.
        InputError: there is none.
    """
    there = (run / "config.yaml").exists()
    if there and not resume:
        raise OutputError(f"{run} already holds a run; choose another --output, or add --resume to continue it")
    if resume and not there:
        raise InputError(f"{run} holds no run, so there is nothing to resume; run without --resume")


def _counted(what: str, tiles: Tiles) -> str:
    skipped = f"; {len(tiles.skipped)} files could not be read" if tiles.skipped else ""
    return f"{what}: {len(tiles)} tiles of {len(set(tiles.files))} files{skipped}"


def _record_files(run: Path, train: Tiles, held: Tiles, resume: bool) -> None:
    """Write which files train and which judge; a resumed run must find the same."""
    path = run / "files.json"
    facts = {"train": sorted(set(train.files)), "held_out": sorted(set(held.files))}
    facts["skipped"] = sorted((*train.skipped, *held.skipped))
    if resume and path.is_file() and json.loads(path.read_text(encoding="utf-8")) != facts:
        raise InputError(f"the images are not those of {path}; bring them back, or start a run in a new folder")
    write_text(path, json.dumps(facts, indent=1) + "\n")


def _phases(config: DistillConfig, pair: Pair, train: Tiles, held: Tiles, run: Path, say: Say) -> list[PhaseResult]:
    """Run what is left of both phases; the student ends with the best weights of the last one."""
    minutes = config.minutes
    if minutes is not None and config.phase2_steps:
        minutes = minutes * config.phase1_share
    parts = (config, pair.student, pair.student_size, pair.teacher)
    first = EmbeddingPhase(*parts, number=1, steps=config.steps, minutes=minutes, lr=config.lr)
    results = [_run_phase(first, train, held, run, say)]
    _require_kept(pair, decoder=True)
    if config.phase2_steps:
        left = None if config.minutes is None else max(0.05, config.minutes - results[0].seconds / 60)
        second = MaskPhase(*parts, number=2, steps=config.phase2_steps, minutes=left, lr=config.phase2_lr)
        results.append(_run_phase(second, train, held, run, say))
        _require_kept(pair, decoder=False)
    return results


def _require_kept(pair: Pair, *, decoder: bool) -> None:
    changed = differing(pair.student, pair.teacher.backbone, decoder=decoder)
    if changed:
        raise CheckpointError(f"tensors that are the teacher's changed in the student: {changed[:3]}; do not use it")


def _run_phase(phase: Phase, train: Tiles, held: Tiles, run: Path, say: Say) -> PhaseResult:
    """Train one phase, or load the best weights of one that is finished."""
    folder, config = run / "checkpoints" / f"phase{phase.number}", phase.config
    done, best = folder / "result.json", folder / "best.safetensors"
    if done.is_file():
        load_weights(best, phase.student.sam)
        return PhaseResult(**json.loads(done.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    data = DistillData(
        train,
        held,
        batch_size=config.batch_size,
        steps=min(config.val_every, phase.steps),
        seed=config.seed + 1000 * phase.number,
    )
    keeper, last = Keeper(folder, run / "history.jsonl"), folder / "last.ckpt"
    trainer = _trainer(phase, folder, keeper)
    if not last.is_file():
        trim_history(run / "history.jsonl", phase.number, -1)
        trainer.validate(phase, datamodule=data, verbose=False)
        say(f"phase {phase.number}, before: {in_words(keeper.before)}")
    checkpoint = str(last) if last.is_file() else None
    trainer.fit(phase, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    load_weights(best, phase.student.sam)
    result = PhaseResult(
        before=keeper.before,
        best=keeper.best,
        step=keeper.step,
        steps=trainer.global_step,
        seconds=round(phase.seconds(), 1),
    )
    write_text(done, json.dumps(asdict(result), indent=1) + "\n")
    say(f"phase {phase.number}, best at step {result.step} of {result.steps}: {in_words(result.best)}")
    return result


def in_words(figures: dict[str, Any]) -> str:
    """Held-out figures in one line, with n."""
    return (
        f"embedding MSE {figures['embedding_mse']:.4f}, relative error {figures['relative_error']:.3f} "
        f"(n = {figures['tiles']} tiles); mask IoU with the teacher {figures['mask_iou']:.3f}, "
        f"filled boxes {figures['box_iou']:.3f} (n = {figures['boxes']} boxes)"
    )


def _trainer(phase: Phase, folder: Path, keeper: Keeper) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = phase.config
    resumable = ModelCheckpoint(dirpath=folder, save_top_k=0, save_last=True, enable_version_counter=False)
    callbacks: list[Callback] = [keeper, Deadline(), resumable]
    if config.progress:
        callbacks.append(Progress())
    return lightning.Trainer(
        default_root_dir=folder,
        max_steps=phase.steps,
        max_epochs=-1,
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,  # type: ignore[arg-type]
        gradient_clip_val=config.clip,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=config.progress,
        enable_model_summary=False,
    )


def encoder_size(backbone: HFSamBackbone) -> int:
    """Parameters of the image encoder."""
    return sum(parameter.numel() for parameter in backbone.sam.vision_encoder.parameters())


@torch.no_grad()
def encode_seconds(backbone: HFSamBackbone, size: int, passes: int = 3) -> float:
    """Shortest of a few encodings of one blank image of side ``size``, on the backbone's device."""
    image = torch.zeros(1, 3, size, size, device=next(backbone.parameters()).device)
    times = []
    for _ in range(passes):
        began = time.perf_counter()
        float(backbone.encode(image).neck.sum())  # the sum waits for the device
        times.append(time.perf_counter() - began)
    return min(times)


def _facts(
    config: DistillConfig, pair: Pair, tiles: tuple[Tiles, Tiles], results: list[PhaseResult], notes: list[str]
) -> dict[str, Any]:
    backbone, spec = pair.teacher.backbone, pair.student.spec
    sides = {
        "teacher": (backbone, pair.teacher.size, pair.teacher.grid),
        "student": (pair.student, pair.student_size, pair.grid),
    }
    facts: dict[str, Any] = {
        role: {
            "name": network.spec.name,
            "size": size,
            "grid": grid,
            "encoder_parameters": encoder_size(network),
            "encode_seconds": round(encode_seconds(network, size), 5),
            "licence": network.spec.licence,
        }
        for role, (network, size, grid) in sides.items()
    }
    facts["teacher"] |= {"weights_hash": pair.teacher.hash, "source": backbone.spec.source}
    facts["student"] |= {"mean": list(spec.mean), "std": list(spec.std)}
    facts["tiles"] = {"train": len(tiles[0]), "held_out": len(tiles[1])}
    facts["files"] = {"train": len(set(tiles[0].files)), "held_out": len(set(tiles[1].files))}
    facts["phases"] = [asdict(result) for result in results]
    facts |= {"views": config.views, "notes": notes, "seed": config.seed, "versions": versions()}
    return facts
