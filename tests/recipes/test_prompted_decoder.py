"""Decoders of an adapter in recipes: one that answers prompts of ``segment``, and one that learns more than maps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.bundle import BundleMeta, read_meta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig, DesamConfig, HqTokenConfig
from samgraft.adapters.graft import attach
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.api import UserPrompts, with_meta
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.training import build, fit
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures

BOX = UserPrompts(boxes=((12.0, 30.0, 48.0, 60.0),))
META = BundleMeta(
    classes={1: "disc"},
    extra={
        "input": {"size": 64, "window": None, "overlap": 0.0, "slice_axis": None, "neighbours": False, "bands": None}
    },
)
POINT = UserPrompts(points=((30.0, 40.0, 1),))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def labels(result: Any) -> np.ndarray:
    return np.asarray(result.labels)


@pytest.mark.parametrize("prompts", [BOX, POINT], ids=["box", "point"])
def test_segment_asks_the_adapters_decoder(picture: Path, tmp_path: Path, prompts: UserPrompts) -> None:
    """At step 0 SAM's answer; trained, another one, from a file and in memory alike; class tokens change nothing."""
    plain = labels(samgraft.segment(picture, backbone=toy_backbone(), prompts=prompts, tight_boxes=False))
    grafted = attach(toy_backbone(), decoder=HqTokenConfig())
    fresh = labels(samgraft.segment(picture, adapter=grafted, prompts=prompts, tight_boxes=False))
    assert np.array_equal(fresh, plain)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    moved = labels(samgraft.segment(picture, adapter=grafted, prompts=prompts, tight_boxes=False))
    assert not np.array_equal(moved, plain)
    file = save_bundle(tmp_path / "hq.graft", grafted)
    read = samgraft.segment(picture, adapter=file, backbone=toy_backbone(), prompts=prompts, tight_boxes=False)
    assert np.array_equal(labels(read), moved)
    semantic = attach(toy_backbone(), decoder=ClassTokensConfig())
    assert np.array_equal(
        labels(samgraft.segment(picture, adapter=semantic, prompts=prompts, tight_boxes=False)), plain
    )


def test_without_prompts_it_says_what_is_missing(picture: Path) -> None:
    grafted = attach(toy_backbone(), decoder=HqTokenConfig())
    with pytest.raises(CheckpointError, match="names no classes"):
        samgraft.segment(picture, adapter=grafted)
    with pytest.raises(ConfigError, match="predict needs class maps, but the prompter is none"):
        samgraft.segment(picture, adapter=with_meta(grafted, META))


def config(path: Path) -> FitConfig:
    return FitConfig(
        task=TaskConfig(grafts={"lora": {"rank": 2}}, head="desam", head_options={"width": 16, "grid": 3}, lr=3e-3),
        data=DataConfig(path=str(path), size=64, batch_size=4, layout="image_mask"),
        augment=AugmentConfig(rotate=5, scale=0.05, shift=0.02),
        train=TrainConfig(steps=4, val_every=4, progress=False, accelerator="cpu"),
    )


def test_desam_trains_through_a_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fit(config(write_pictures(tmp_path / "p")), run, backbone=toy_backbone(), report=False)
    assert {s.name for s in result.summaries} >= {"dice/mean", "iou/mean"}
    assert read_meta(run / "adapter.graft").task == "semantic"


def test_what_a_decoder_learns_beside_maps_joins_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step without the IoU's weight, and with weight w, differ by w times the IoU's error."""
    seen: list[torch.Tensor] = []
    original = DesamConfig().build(toy_backbone()).learn.__func__  # type: ignore[attr-defined]

    def learn(self: Any, *arguments: Any) -> Any:
        output, further = original(self, *arguments)
        seen.append(further.detach())
        assert arguments[-1].shape == (4, 64, 64) and int(arguments[-1].max()) == 1
        return output, further

    monkeypatch.setattr("samgraft.adapters.decoders.desam.DesamDecoder.learn", learn)
    losses = []
    plain = config(write_pictures(tmp_path / "p"))
    for weight in (0.0, 3.0):
        options = {**plain.task.head_options, "iou_weight": weight}
        task, data = build(replace(plain, task=replace(plain.task, head_options=options)), backbone=toy_backbone())
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        task.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        torch.manual_seed(5)
        state = {
            k: torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) * 0.1
            for k, v in task.grafted.graft_state().items()
        }
        task.grafted.load_graft_state(state)
        losses.append(float(task.train().training_step(batch, 0).detach()))
    assert float(seen[0]) == 0 and float(seen[1]) > 0
    assert losses[1] - losses[0] == pytest.approx(float(seen[1]), rel=1e-4)
