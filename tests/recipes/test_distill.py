"""Distillation: each phase helps, what is the teacher's stays so, a killed run ends the same, errors say what to do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from samgraft.adapters.backbones.hf import HFSamBackbone, hash_tensors
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.errors import CheckpointError, ConfigError, InputError, OutputError
from samgraft.recipes.commands.distill import read
from samgraft.recipes.distill.callbacks import load_weights
from samgraft.recipes.distill.config import DistillConfig
from samgraft.recipes.distill.phases import MaskPhase, Phase
from samgraft.recipes.distill.run import DistillResult, distill, make_pair
from samgraft.recipes.distill.student import differing, make_student
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.recipes._sets import write_pictures

ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
ENCODER |= {"window_size": 2, "global_attn_indexes": [1], "mlp_dim": 32}


def teacher_of(side: int = 32) -> HFSamBackbone:
    """Mask logits with a deviation of 5, as trained ones have; random weights alone give 0.2: masks of noise."""
    model = toy_sam(seed=3, side=side)
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 25
            mlp.proj_out.bias *= 25
    return HFSamBackbone(model, name="toy", mean=(0.4, 0.4, 0.4), licence="MIT")


def write_student(folder: Path, **changes: Any) -> str:
    path = folder / "small.json"
    path.write_text(json.dumps({**ENCODER, **changes}))
    return str(path)


def settings(root: Path, **changes: Any) -> DistillConfig:
    """A run of seconds on ten pictures of 60 x 70 pixels."""
    images = root / "set"
    if not images.is_dir():
        write_pictures(images, cases=10)
    options = {"steps": 3, "phase2_steps": 3, "val_every": 2, "batch_size": 4, "objects": 4, "points_per_side": 4}
    options |= {"lr": 5e-3, "phase2_lr": 1e-3, "prompts": 2, "rounds": 2, "held_out": 0.2}
    student = write_student(root)
    whole = {"images": str(images / "images"), "student": student, "progress": False, "accelerator": "cpu", **options}
    return DistillConfig(**{**whole, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillConfig, DistillResult, HFSamBackbone]:
    """One run long enough to learn something."""
    root, teacher = tmp_path_factory.mktemp("distilled"), teacher_of()
    write_pictures(root / "set", cases=16)
    options = {"steps": 40, "phase2_steps": 60, "val_every": 20, "held_out": 0.25, "crops": 3, "phase2_lr": 3e-4}
    config = settings(root, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMGRAFT_CACHE", str(root / "cache"))
        return config, distill(config, root / "run", teacher=teacher), teacher


Finished = tuple[DistillConfig, DistillResult, HFSamBackbone]


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_phase_1_approaches_the_embedding(finished: Finished) -> None:
    phase = finished[1].phases[0]
    assert phase.steps == 40 and phase.best["tiles"] == 16
    assert phase.best["embedding_mse"] < phase.before["embedding_mse"] / 2
    assert phase.best["relative_error"] < 1 < phase.before["relative_error"]


def test_phase_2_raises_the_agreement_of_masks(finished: Finished) -> None:
    phase = finished[1].phases[1]
    rows = [row for row in history(finished[1].run) if row["phase"] == 2 and "val/mask_iou" in row]
    assert rows[0]["step"] == 0 and rows[0]["val/mask_iou"] == phase.before["mask_iou"]
    assert rows[-1]["step"] == 60 and rows[-1]["val/mask_iou"] > phase.before["mask_iou"] + 0.02
    assert phase.best["mask_iou"] == max(row["val/mask_iou"] for row in rows)
    assert rows[-1]["val/iou_gap"] < 0.2 and phase.best["boxes"] >= 16


def test_what_is_the_teachers_stays_so(finished: Finished) -> None:
    config, result, teacher = finished
    assert hash_tensors(teacher.sam.state_dict()) == teacher.weights_hash() == result.facts["teacher"]["weights_hash"]
    student = make_student(config.student, teacher)
    load_weights(result.run / "checkpoints" / "phase1" / "best.safetensors", student.sam)
    assert differing(student, teacher) == []
    load_weights(result.run / "checkpoints" / "phase2" / "best.safetensors", student.sam)
    assert differing(student, teacher, decoder=False) == []
    assert all(name.startswith("mask_decoder.") for name in differing(student, teacher))
    assert len(differing(student, teacher)) > 10


def test_the_folder_is_a_backbone(finished: Finished) -> None:
    config, result, teacher = finished
    loaded = load_backbone(result.student)
    assert (loaded.spec.name, loaded.spec.licence, loaded.spec.mean) == ("toy-small", "MIT", (0.4, 0.4, 0.4))
    assert (loaded.spec.embed_dim, loaded.spec.num_blocks, loaded.spec.neck_channels) == (16, 2, 32)
    assert "learned from toy" in loaded.spec.source
    student = make_student(config.student, teacher)
    load_weights(result.run / "checkpoints" / "phase2" / "best.safetensors", student.sam)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode(image).neck, student.encode(image).neck)
    card = json.loads((result.student / "samgraft.json").read_text())["card"]
    assert card["phases"][1]["best"] == result.phases[1].best and card["files"] == {"train": 12, "held_out": 4}


def test_run_folder_says_what_happened(finished: Finished) -> None:
    config, result, _ = finished
    files = json.loads((result.run / "files.json").read_text())
    assert len(files["train"]) == 12 and len(files["held_out"]) == 4
    assert not set(files["train"]) & set(files["held_out"])
    assert read(["--config", str(result.run / "config.yaml"), "-o", "x"])[0] == config
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads((result.run / "metrics.json").read_text())["phases"][0]["best"] == result.phases[0].best
    assert not [path for path in result.run.rglob("*") if path.name.endswith((".part", ".tmp", ".old"))]


class Killed(Exception):
    """Stands for a kill in the middle of a step."""


@pytest.mark.parametrize(("number", "step"), [(1, 1), (1, 3), (2, 1), (2, 4)])
def test_a_killed_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    config, kill = settings(tmp_path, steps=5, phase2_steps=5), {"on": False}
    original = Phase.generator

    def generator(self: Phase) -> torch.Generator:
        if kill["on"] and (self.number, self.global_step) == (number, step):
            raise Killed
        return original(self)

    monkeypatch.setattr(Phase, "generator", generator)
    weights = []
    for name in ("whole", "killed"):
        monkeypatch.setenv("SAMGRAFT_CACHE", str(tmp_path / f"cache-{name}"))
        kill["on"] = name == "killed"
        if kill["on"]:
            with pytest.raises(Killed):
                distill(config, tmp_path / name, teacher=teacher_of())
            kill["on"] = False
        result = distill(config, tmp_path / name, resume=name == "killed", teacher=teacher_of())
        weights.append(load_file(result.student / "model.safetensors"))
        rows = [(row["phase"], row["step"]) for row in history(result.run) if "val/mask_iou" in row]
        assert rows == [(phase, done) for phase in (1, 2) for done in (0, 2, 4, 5)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("side", "changes", "grids"),
    [(32, {"image_size": 64}, (4, 8)), (64, {"patch_size": 16, "image_size": 64}, (8, 4)), (64, {}, (8, 4))],
)
def test_other_sizes_and_patches(tmp_path: Path, side: int, changes: dict[str, Any], grids: tuple[int, int]) -> None:
    config, said = settings(tmp_path, steps=1, phase2_steps=1), []
    write_student(tmp_path, **changes)
    result = distill(config, tmp_path / "run", teacher=teacher_of(side), say=said.append)
    assert (result.facts["teacher"]["grid"], result.facts["student"]["grid"]) == grids
    assert any(f"resized from {grids[0]} to {grids[1]} tokens" in line for line in said)
    assert load_backbone(result.student).encode(torch.rand(1, 3, 64, 64)).neck.shape[1] == 32


def test_presets_take_the_teachers_grid_and_neck(tmp_path: Path) -> None:
    pair = make_pair(DistillConfig(student="tiny-narrow", teacher_size=64), teacher_of(32))
    assert (pair.student_size, pair.grid, pair.student.spec.neck_channels) == (64, 8, 32)
    assert (pair.student.spec.embed_dim, pair.student.spec.num_blocks) == (96, 6)
    assert len(pair.describe()) == 2  # equal grids: nothing is resized
    start = write_hf_folder(tmp_path / "start", toy_sam(seed=9, side=32))
    student = make_student(str(start), teacher_of())
    ours, theirs = student.sam.state_dict(), toy_sam(seed=9, side=32).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key.startswith("vision_encoder."))
    assert differing(student, teacher_of()) == [] and student.spec.mean == (0.485, 0.456, 0.406)


def test_step_trains_encoder_and_decoder_and_nothing_else(tmp_path: Path) -> None:
    pair = make_pair(settings(tmp_path), teacher_of())
    config = settings(tmp_path, box_share=0.0)
    phase = MaskPhase(config, pair.student, pair.student_size, pair.teacher, number=2, steps=1, minutes=None, lr=1e-3)
    phase.log = lambda *_, **__: None  # type: ignore[method-assign]
    phase.training_step(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), 0).backward()
    moved = {name for name, parameter in pair.student.sam.named_parameters() if parameter.grad is not None}
    wanted = ("vision_encoder.", "mask_decoder.")
    assert moved and all(name.startswith(wanted) for name in moved)
    assert {name.split(".")[0] for name in moved} == {"vision_encoder", "mask_decoder"}
    assert all(parameter.grad is None for parameter in pair.teacher.backbone.parameters())


def _one_picture(root: Path) -> DistillConfig:
    config = settings(root)
    for path in sorted(Path(config.images).glob("*"))[1:]:
        path.unlink()
    return config


def _other_neck(root: Path) -> DistillConfig:
    config = settings(root)
    write_student(root, output_channels=48)
    return config


def _unknown_field(root: Path) -> DistillConfig:
    config = settings(root)
    write_student(root, hiden_size=3)
    return config


def _empty(root: Path) -> DistillConfig:
    (root / "nothing").mkdir()
    return settings(root, images=str(root / "nothing"))


def _there_already(root: Path) -> DistillConfig:
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text("")
    return settings(root)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_empty, InputError, "holds no image; expected files with"),
        (lambda root: settings(root, images=str(root / "absent")), InputError, "is no folder"),
        (_one_picture, InputError, "training and held-out images need one each"),
        (_other_neck, ConfigError, "has 48 channels; 'toy' has 32"),
        (_unknown_field, ConfigError, r"unknown fields \['hiden_size'\]"),
        (
            lambda root: settings(root, student="graft-tini"),
            ConfigError,
            "is no preset .tiny, .*did you mean 'graft-tiny'",
        ),
        (_there_already, OutputError, "already holds a run; choose another"),
        (lambda root: settings(root, group_pattern="(x"), ConfigError, "give a regular expression with one group"),
    ],
)
def test_errors(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        distill(make(tmp_path), tmp_path / "run", teacher=teacher_of())


def test_nothing_to_resume_and_other_images(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=1, phase2_steps=0)
    with pytest.raises(InputError, match="nothing to resume"):
        distill(config, tmp_path / "run", resume=True, teacher=teacher_of())
    assert len(distill(config, tmp_path / "run", teacher=teacher_of()).phases) == 1
    next(Path(config.images).iterdir()).unlink()
    with pytest.raises(InputError, match="the images are not those of"):
        distill(config, tmp_path / "run", resume=True, teacher=teacher_of())


def test_a_teacher_that_changes_is_noticed(tmp_path: Path) -> None:
    pair = make_pair(settings(tmp_path), teacher_of())
    pair.teacher.require_unchanged()
    with torch.no_grad():
        pair.teacher.backbone.sam.mask_decoder.iou_token.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="the frozen teacher changed"):
        pair.teacher.require_unchanged()


def test_damaged_card_of_a_folder(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "mine", toy_sam(side=32))
    (folder / "samgraft.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"samgraft\.json cannot be read"):
        load_backbone(folder)


def test_command_line(tmp_path: Path) -> None:
    words = [
        "pics",
        "-o",
        "out",
        "--phase2-steps",
        "7",
        "--augment.views=2",
        "--student=tiny-shallow",
        "--minutes",
        "3",
    ]
    config, folder, resume = read(words)
    assert (config.images, config.phase2_steps, config.views, config.minutes) == ("pics", 7, 2, 3.0)
    assert (config.student, folder, resume) == ("tiny-shallow", Path("out"), False)
    assert config.augment.quarter_turns and replace(config, augment=replace(config.augment, enabled=False)).views == 1
    for wrong, message in (
        (["-o", "out"], "no images named"),
        (["pics"], "no run folder named"),
        (["pics", "-o", "out", "--rounds", "0"], "rounds is 0; expected 1 to 16"),
        (["pics", "-o", "out", "--bce-weight", "0", "--dice-weight", "0"], "give one of them weight"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(wrong)
    with pytest.raises(InputError, match="nothing to resume"):
        read(["--resume", "-o", str(tmp_path)])
