"""A whole small run on a toy backbone: files, frozen weights, resume, both kinds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samgraft.adapters.bundle import load_bundle, read_meta
from samgraft.errors import CheckpointError, InputError, OutputError
from samgraft.recipes.callbacks import FrozenCheck
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.inference import predict_semantic
from samgraft.recipes.tasks import CACHED_VIEWS, SegmentationTask
from samgraft.recipes.training import build, fit, load_adapted, make_trainer, validate
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures, write_rasters, write_volumes

SMALL = {"lora": {"rank": 2}}


def small_config(path: Path, **data: object) -> FitConfig:
    """Few steps on 64 pixels."""
    return FitConfig(
        task=TaskConfig(grafts=SMALL, lr=5e-3, warmup=0.1),
        data=DataConfig(path=str(path), size=64, batch_size=4, **data),  # type: ignore[arg-type]
        augment=AugmentConfig(rotate=5, scale=0.05, shift=0.02),
        train=TrainConfig(steps=8, val_every=4, progress=False, accelerator="cpu"),
    )


def test_a_run_leaves_an_adapter_that_gives_the_same_masks(tmp_path: Path) -> None:
    config = small_config(write_volumes(tmp_path / "v"), neighbours=True)
    backbone = toy_backbone()
    before = [(parameter, parameter.clone()) for parameter in backbone.parameters()]
    run = tmp_path / "run"
    result = fit(config, run, backbone=backbone)
    assert all(torch.equal(parameter, copy) for parameter, copy in before)
    figures = ("dice", "iou", "nsd", "hd95_mm", "volume_error_ml")
    assert {s.name for s in result.summaries} == {f"{f}/{n}" for f in figures for n in ("left", "right", "mean")}
    assert all(s.n == 1 and s.mean >= 0 for s in result.summaries)
    assert all(s.mean <= 1 for s in result.summaries if s.name.startswith(("dice", "iou", "nsd")))
    for name in ("config.yaml", "history.jsonl", "metrics.json", "samples.npz", "trainable.txt", "report.html"):
        assert (run / name).stat().st_size > 50, name
    steps = [
        json.loads(line)["step"] for line in (run / "history.jsonl").read_text().splitlines() if "val/dice" in line
    ]
    assert steps == [4, 8]
    meta = read_meta(run / "adapter.graft")
    assert meta.classes == {1: "left", 2: "right"} and meta.modality == "MR" and meta.input_size == (64, 64)
    assert InputRecipe.from_meta(meta) == InputRecipe(size=64, neighbours=True, spacing=0.625)
    assert meta.metrics["n"] == 1 and meta.training["train_cases"] == 3

    task, data = load_adapted(config, run / "adapter.graft", backbone=toy_backbone())
    best = json.loads((run / "metrics.json").read_text())
    again = {s.name: s.mean for s in validate(task, data, progress=False)}
    for summary in best["summaries"]:
        assert again[summary["name"]] == pytest.approx(summary["mean"], abs=1e-6)
    case = data.val_refs[0].load()
    other = load_bundle(run / "adapter.graft", toy_backbone())
    twin = SegmentationTask(config, class_names=("left", "right"), size=64, grafted=other)
    assert (predict_semantic(task, case, size=64) == predict_semantic(twin, case, size=64)).all()


def test_a_frozen_tensor_that_changes_ends_the_run_with_its_name(tmp_path: Path) -> None:
    config = small_config(write_volumes(tmp_path / "v"))
    task, _ = build(config, backbone=toy_backbone())
    check, trainer = FrozenCheck(), make_trainer(config, tmp_path / "run")
    check.on_fit_start(trainer, task)
    check.on_fit_end(trainer, task)
    with torch.no_grad():
        task.grafted.backbone.get_parameter("sam.vision_encoder.neck.conv1.weight")[0, 0] += 1e-7
    with pytest.raises(
        CheckpointError, match=r"1 of \d+ tensors, such as \['sam\.vision_encoder\.neck\.conv1\.weight'\]"
    ):
        check.on_fit_end(trainer, task)


def test_checkpoints_hold_no_frozen_tensor_and_resume(tmp_path: Path) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    run = tmp_path / "run"
    fit(replace(config, train=replace(config.train, steps=4)), run, backbone=toy_backbone(), report=False)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["state_dict"] and not any(".backbone." in key for key in last["state_dict"])
    assert last["global_step"] == 4
    with pytest.raises(OutputError, match="already holds a run; choose another --output, or add --resume"):
        fit(config, run, backbone=toy_backbone())
    fit(config, run, resume=True, backbone=toy_backbone(), report=False)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    with pytest.raises(InputError, match="nothing to resume"):
        fit(config, tmp_path / "other", resume=True, backbone=toy_backbone())
    wider = replace(config, task=replace(config.task, grafts={"bottleneck": {}}))
    with pytest.raises(CheckpointError, match="does not fit this configuration"):
        fit(wider, run, resume=True, backbone=toy_backbone())


def test_instances_on_rasters(tmp_path: Path) -> None:
    config = small_config(write_rasters(tmp_path / "r"), layout="raster_vector", window=64)
    task = TaskConfig(
        kind="instance",
        grafts=SMALL,
        head_options={"full_resolution": True},
        class_names=("building",),
        class_weights=(1, 1, 2),
    )
    result = fit(replace(config, task=task), tmp_path / "run", backbone=toy_backbone())
    figures = {s.name: s for s in result.summaries}
    assert {"ap50", "object_iou", "dice/building", "iou/building"} <= set(figures)
    assert figures["ap50"].n == 1 and 0 <= figures["ap50"].mean <= 1
    assert read_meta(tmp_path / "run" / "adapter.graft").task == "instance"


def test_binary_autosam_learns_from_one_channel(tmp_path: Path) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    config = replace(config, task=replace(config.task, grafts={}, head="autosam", head_options={"channels": 16}))
    task, data = build(config, backbone=toy_backbone())
    data.setup("fit")
    logits = task(torch.rand(2, 3, 64, 64))
    assert logits.shape[:2] == (2, 2) and (logits[:, 0] == 0).all()
    batch = next(iter(data.train_dataloader()))
    loss = task.loss(torch.nn.functional.interpolate(task(batch[0].float() / 255), size=(64, 64)), batch[1].long())
    loss.backward()
    assert loss.item() > 0.1
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.grafted.trainable_parameters())
    assert all(p.grad is None for p in task.grafted.backbone.parameters())


def test_learning_rate_follows_steps() -> None:
    config = FitConfig(task=TaskConfig(warmup=0.1), train=TrainConfig(steps=100))
    rate = SegmentationTask._rate
    task = type("T", (), {"config": config, "began": 0.0, "progress": SegmentationTask.progress})()
    assert rate(task, 5) == pytest.approx(0.5, abs=0.01)
    assert rate(task, 10) == pytest.approx(1.0, abs=0.01)
    assert rate(task, 100) == pytest.approx(0.01, abs=0.001)


def test_frozen_encoder_is_run_once_per_view_by_default(tmp_path: Path) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    config = replace(
        config,
        task=replace(config.task, grafts={}),
        augment=replace(config.augment, views=2),
        train=replace(config.train, steps=16),
    )
    first, data = build(config, backbone=toy_backbone())
    make_trainer(config, tmp_path / "a").fit(first, datamodule=data)
    assert first.encoder is not None
    assert 0 < first.encoder.misses < first.encoder.hits
    again, data = build(config, backbone=toy_backbone())
    make_trainer(config, tmp_path / "b").fit(again, datamodule=data)
    assert again.encoder is not None and again.encoder.misses == 0
    for name, tensor in first.grafted.graft_state().items():
        assert torch.equal(tensor, again.grafted.graft_state()[name]), name
    assert build(replace(config, augment=AugmentConfig()), backbone=toy_backbone())[0].views == CACHED_VIEWS


def test_views_are_new_where_blocks_are_trained_or_nothing_is_kept(tmp_path: Path) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    assert build(config, backbone=toy_backbone())[0].views == 0
    off = replace(config, task=replace(config.task, grafts={}), train=replace(config.train, cache=False))
    task = build(off, backbone=toy_backbone())[0]
    assert task.views == 0 and task.encoder is None


def test_accumulated_batches_count_as_one_step_and_checkpointing_reaches_the_backbone(tmp_path: Path) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    train = replace(config.train, accumulate=2, checkpointing=True)
    backbone, run = toy_backbone(), tmp_path / "run"
    fit(replace(config, data=replace(config.data, batch_size=2), train=train), run, backbone=backbone, report=False)
    assert backbone.checkpointing
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val/dice" in row] == [4, 8]


@pytest.mark.parametrize(
    ("grafts", "balanced"), [({"conv_lora": {"gate": "published"}}, True), ({"conv_lora": {}}, False)]
)
def test_a_penalty_of_grafts_joins_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grafts: dict[str, dict[str, object]], balanced: bool
) -> None:
    config = small_config(write_pictures(tmp_path / "p"), layout="image_mask")
    task, data = build(replace(config, task=replace(config.task, grafts=grafts)), backbone=toy_backbone())
    data.setup("fit")
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    compared: list[torch.Tensor] = []
    task.loss.register_forward_hook(lambda module, given, loss: compared.append(loss))
    loss = task.train().training_step(next(iter(data.train_dataloader())), 0)
    assert logged["train/loss"] is loss
    assert ("train/penalty" in logged) == balanced
    added = task.grafted.penalty() if balanced else torch.zeros(())
    assert added is not None and loss.item() == pytest.approx(compared[0].item() + added.item())
    if balanced:
        assert added.item() > 1e-4
        loss.backward()
        gates = [p for name, p in task.grafted.grafts.named_parameters() if name.endswith("mixture.gate")]
        assert gates and all(gate.grad is not None and (gate.grad != 0).any() for gate in gates)
