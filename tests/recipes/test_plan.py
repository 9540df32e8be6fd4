"""Planning: what is said to be exact is exact, estimates lie near what a process takes, and the advice helps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import SamConfig

from samgraft.adapters.backbones.attention import attend, relative_table
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.errors import ConfigError
from samgraft.recipes import cli
from samgraft.recipes.assemble import build_network
from samgraft.recipes.cache.features import CachedEncoder
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.config import DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.fit import windows
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.free_memory import resident_bytes
from samgraft.recipes.plan import network
from samgraft.recipes.plan.advice import advise
from samgraft.recipes.plan.estimate import Plan, distinct, make_plan, plan_with
from samgraft.recipes.plan.machine import Machine, measure_machine
from samgraft.recipes.plan.measure import measure_steps
from samgraft.recipes.plan.network import StepTrace, class_logits, skeleton, trace_step
from samgraft.recipes.plan.text import expected_peak, render
from samgraft.recipes.plan.tiles import assumed_tiles, count_tiles
from samgraft.recipes.plan.trace import Tracer, saved_bytes
from tests.data.checkpoints import toy_config, toy_sam
from tests.recipes._sets import write_volumes

LORA: dict[str, dict[str, object]] = {"lora": {"rank": 2}}
LAST = {"lora": {"rank": 2, "blocks": "last:1"}}
GB = 10**9


def toy(grafts: dict[str, dict[str, object]], *, batch: int = 2, **train: object) -> FitConfig:
    """Two classes at 64 px."""
    return FitConfig(
        task=TaskConfig(grafts=grafts, class_names=("a", "b")),
        data=DataConfig(size=64, batch_size=batch),
        train=TrainConfig(steps=100, val_every=50, accelerator="cpu", **train),  # type: ignore[arg-type]
    )


def machine(*, free: float = 10 * GB, device: str = "cpu") -> Machine:
    """A machine of round numbers."""
    return Machine(
        device=device, threads=1, large=1e11, small=5e10, moved=1e10, call=1e-5, free=round(free), libraries=400 * 10**6
    )


def traced(grafts: dict[str, dict[str, object]], *, cached: bool = False, **train: object) -> StepTrace:
    return trace_step(toy(grafts, **train), SamConfig(**toy_config()), num_classes=2, cached=cached)


def planned(config: FitConfig, *, tiles: int = 200, free: float = 10 * GB) -> Plan:
    counts = assumed_tiles(tiles, None, size=64, classes=2)
    return plan_with(config, SamConfig(**toy_config()), counts, machine(free=free))


@pytest.fixture(autouse=True)
def _same_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one figure that is timed wherever a plan is made."""
    monkeypatch.setattr("samgraft.recipes.plan.estimate.augment_seconds", lambda config: 0.01)


@pytest.mark.parametrize("grafts", [LORA, LAST, {}], ids=["all", "last", "none"])
def test_activations_are_those_of_a_real_step(grafts: dict[str, dict[str, object]]) -> None:
    """The same network with values, counted by autograd's own hooks."""
    config = toy(grafts)
    backbone = HFSamBackbone(toy_sam())
    grafted = build_network(config.task, num_classes=2, backbone=backbone).train()
    image = torch.rand(2, 3, 64, 64)
    target = torch.randint(0, 3, (2, 64, 64))
    with saved_bytes([*grafted.parameters(), target]) as saved:
        logits = network.at_input_size(class_logits(grafted, image, None), image)
        loss = network.loss_function(config, grafted)(logits, target)
        real = saved()
    found = traced(grafts)
    assert found.mode == "meta" and loss.isfinite()
    assert found.saved == pytest.approx(real, rel=0.01)
    assert found.activations == pytest.approx(found.saved, rel=0.01)


def test_less_is_kept_the_later_the_grafts_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [traced(LORA).activations, traced(LAST).activations, traced(LAST, cached=True).activations]
    found += [traced({}).activations, traced({}, cached=True).activations]

    def everything(config: FitConfig, shape: SamConfig, classes: int) -> object:
        grafted = skeleton(config, shape, classes)
        for name, parameter in grafted.backbone.named_parameters():
            parameter.requires_grad_("positional_embedding" not in name)
        return grafted

    monkeypatch.setattr(network, "skeleton", everything)
    full, lora, last, last_kept, none, none_kept = traced(LORA).activations, *found
    assert full > lora > last >= last_kept > none >= none_kept


def test_checkpointing_keeps_inputs_of_blocks_only() -> None:
    plain, again = traced(LORA), traced(LORA, checkpointing=True)
    assert 300_000 < plain.activations - again.activations < 500_000  # 0.16 MB of a block, less 0.02 of its input
    assert again.predict == plain.predict and again.rest.operations > plain.rest.operations


def test_bfloat16_keeps_less() -> None:
    plain, mixed = traced(LAST), traced(LAST, precision="bf16-mixed")
    assert mixed.mode == "fake"
    assert 0.4 * plain.saved < mixed.saved < 0.95 * plain.saved


def test_operations_of_known_layers() -> None:
    def count(run: object) -> tuple[int, int]:
        with Tracer() as tracer:
            run()  # type: ignore[operator]
        return tracer.trace.work.large, tracer.trace.work.small

    x = torch.randn(7, 11, requires_grad=True)
    linear = torch.nn.Linear(11, 13)
    assert count(lambda: linear(x)) == (2 * 7 * 11 * 13, 0)
    assert count(lambda: linear(x).sum().backward()) == (3 * 2 * 7 * 11 * 13, 0)
    q, k, v = (torch.randn(2, 3, 24, 8, requires_grad=True) for _ in range(3))
    rel = (relative_table(torch.randn(7, 8), 4), relative_table(torch.randn(11, 8), 6))
    own, bias = 2 * 2 * 2 * 3 * 24 * 24 * 8, 2 * 2 * 3 * 24 * 8 * (4 + 6)
    assert count(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)) == (0, own)
    assert sum(count(lambda: attend(q, k, v, rel))) == own + bias
    # backward: logits again, and two products for each of forward's two; the bias likewise twice
    both = sum(count(lambda: attend(q, k, v, rel).sum().backward()))
    assert both == pytest.approx(own * 3.5 + bias * 2, rel=0.01)  # the tables are frozen: one product, not two


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    """Six blocks of width 192 at 384 px with patch 16, 2 pictures."""
    folder = tmp_path_factory.mktemp("middle")
    vision = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "mlp_dim": 768, "window_size": 7}
    vision |= {"image_size": 384, "global_attn_indexes": [2, 5], "output_channels": 128, "num_pos_feats": 64}
    parts = {"prompt_encoder_config": {"image_size": 384, "hidden_size": 128}}
    parts["mask_decoder_config"] = {"hidden_size": 128, "mlp_dim": 256, "iou_head_hidden_dim": 128}
    SamConfig(vision_config=vision, **parts).save_pretrained(folder)
    config = toy(LORA, batch=2)
    return replace(
        config,
        task=replace(config.task, backbone=str(folder)),
        data=replace(config.data, size=384),
    )


def test_configuration_survives_json() -> None:
    config = toy({"lora": {"rank": 2, "targets": ["q", "v"]}})
    config = replace(config, data=replace(config.data, intensity=(0.0, 1.0), bands=(2, 1, 0)))
    assert FitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.slow
def test_peak_is_within_thirty_percent_of_a_process(middle: FitConfig) -> None:
    plan = make_plan(middle, tiles=10, machine=machine())
    measured = measure_steps(middle, num_classes=2, cached=False, threads=1)
    assert measured.peak > measured.libraries + plan.memory.weights
    assert expected_peak(plan.memory, measured) == pytest.approx(measured.peak, rel=0.3)
    text = render(plan, (), measured)
    assert "measured   " in text and "estimated" in text


def test_parameters_time_and_disk() -> None:
    plan = planned(toy(LAST))
    grafted = build_network(toy(LAST).task, num_classes=2, backbone=HFSamBackbone(toy_sam()))
    own = {id(p) for p in grafted.trainable_parameters()}
    assert plan.trainable == sum(p.numel() for p in grafted.trainable_parameters())
    assert plan.frozen == sum(p.numel() for p in grafted.backbone.parameters() if id(p) not in own)
    assert (plan.frozen_blocks, plan.frozen_encoder, plan.cached, plan.views) == (2, False, False, 0)
    assert plan.tiles.val == 50 and plan.cache_bytes == 50 * plan.cache_entry  # only validation meets a view twice
    assert plan.memory.total == sum(vars(plan.memory).values())
    t = plan.times
    assert t.step == pytest.approx(t.augment + t.frozen + t.rest + t.update)
    assert t.run == pytest.approx(100 * t.step + 2 * t.validation)
    assert t.run_cached < t.run
    four = planned(toy(LAST, accumulate=4)).times
    assert four.step == pytest.approx(4 * (four.augment + four.frozen + four.rest) + four.update)
    short = planned(toy(LAST, minutes=t.run / 60 / 1e3))
    assert short.times.run == pytest.approx(t.run / 1e3) and short.times.steps <= 1


def test_whole_encoder_is_kept_with_its_views(tmp_path: Path) -> None:
    """Bytes of a view are those that the store writes."""
    plan = planned(toy({}), tiles=3)
    assert plan.frozen_encoder and plan.cached and plan.views == 32
    assert plan.cache_bytes == (32 * 3 + 1) * plan.cache_entry
    grafted = build_network(toy({}).task, num_classes=2, backbone=HFSamBackbone(toy_sam()))
    store = FeatureStore(tmp_path)
    CachedEncoder(grafted, store)(torch.rand(1, 3, 64, 64))
    assert store.info().size == pytest.approx(plan.cache_entry, abs=600)  # and a header
    assert plan.times.step_cached < plan.times.step
    assert distinct(10, 1) == pytest.approx(1) and distinct(10, 1000) == pytest.approx(10)
    off = planned(toy({}, cache=False))
    assert (off.cached, off.cache_bytes) == (False, 0)
    assert off.times.run_cached == pytest.approx(off.times.run, rel=0.2)


def test_optimiser_and_returned_memory_show() -> None:
    config = toy(LORA)
    plain = planned(config)
    lean = planned(replace(config, task=replace(config.task, optimizer="adafactor")))
    eight = replace(config.task, optimizer="adamw_8bit")
    assert plain.memory.states == pytest.approx(8 * plain.trainable, rel=0.05)
    assert lean.memory.states < 0.5 * plain.memory.states
    assert planned(replace(config, task=eight)).memory.states == 2 * plain.trainable
    assert planned(toy(LORA, return_memory=True)).memory.holes <= plain.memory.holes + 10**6


def test_advice_where_memory_is_short() -> None:
    config = toy(LORA, batch=4)
    roomy = planned(config)
    assert roomy.fits
    assert roomy.needed == pytest.approx(1.25 * roomy.memory.total - roomy.memory.libraries, abs=1)
    tight = planned(config, free=roomy.needed - 1)
    assert not tight.fits
    shape = SamConfig(**toy_config())
    found = advise(config, shape, tight)
    words = [one.option for one in found]
    for part in ("return_memory", "batch_size 2 --train.accumulate 2", "checkpointing", "last:1"):
        assert any(part in option for option in words), part
    by_name = {one.option: one for one in found}
    half = by_name["--data.batch_size 2 --train.accumulate 2"]
    assert half.fits and half.total < tight.memory.total
    assert by_name["--train.checkpointing true"].step > tight.times.step
    assert "DOES NOT FIT" in render(tight, found) and "to need less" in render(tight, found)
    hopeless = advise(config, shape, planned(config, free=1))
    assert not any(one.fits for one in hopeless)


def test_tiles_are_counted_as_training_cuts_them(tmp_path: Path) -> None:
    path = write_volumes(tmp_path / "v")
    config = replace(toy(LORA), task=TaskConfig(grafts=LORA), data=DataConfig(path=str(path), size=64, window=24))
    data = SegmentationData(config.data, kind="semantic", size=64)
    data.setup("fit")
    counts = count_tiles(config, 64)
    assert counts.train == len(data.train_dataloader().dataset)  # type: ignore[arg-type]
    case = data.val_refs[0].load()
    assert counts.val == case.num_slices * len(windows(case.plane, 24, 0.25)) and counts.classes == 2
    assert counts.bytes == 7 * 64 * 64 * counts.train + case.image.nbytes + case.labels.nbytes


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plan.json"
    words = ["plan", "--config", "nuclei", "--tiles", "40", "--size", "64", "--batch-size", "1", "--device", "cpu"]
    assert cli.main([*words, "--task.grafts", "{}", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    for part in ("network    graft-tiny", "the whole encoder", "(exact)", "fits: ", "32 views of each tile"):
        assert part in text, text
    found = json.loads(target.read_text())
    assert found["fits"] and found["tiles"]["train"] == 40 and found["size"] == 64
    assert found["total_bytes"] == sum(found["memory"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nothing"], "no recipe 'nothing'"),
        (["--config", "nuclei"], "add --data PATH, or --tiles N"),
        (["--config", "nuclei", "--tiles", "0"], "tiles is 0"),
        (["--config", "nuclei", "--tiles", "5", "--device", "tpu"], "--device is 'tpu'; expected cpu or cuda"),
        (["--config", "nuclei", "--tiles", "5", "--device", "cuda"], "finds no CUDA device here"),
        (["--config", "nuclei", "--tiles", "5", "--backbone", "sam-vit-bas"], "did you mean 'sam-vit-base'"),
    ],
)
def test_errors(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["plan", *words]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_a_machine_is_measured() -> None:
    found = measure_machine("cpu")
    assert found.large > 1e8 and found.small > 1e7 and found.moved > 1e7 and 0 < found.call < 0.1
    assert found.free > 0 and resident_bytes("VmHWM") >= resident_bytes() * 0.5
    with pytest.raises(ConfigError, match="device is 'mps'; expected 'cpu' or 'cuda'"):
        measure_machine("mps")


def test_a_run_with_distances_is_planned() -> None:
    """Three maps and no class token: the parts of the head are what is trained, and the step is followed on meta."""
    head = {"head": "distances", "head_options": {"width": 8, "fused": 16}, "kind": "instance"}
    config = replace(toy({}), task=TaskConfig(grafts={}, **head))  # type: ignore[arg-type]
    found = trace_step(config, SamConfig(**toy_config()), num_classes=2)
    assert found.mode == "meta" and found.activations == pytest.approx(found.saved, rel=0.01)
