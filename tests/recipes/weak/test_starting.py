"""train.start_from: what is copied, and what is refused by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samgraft.adapters.bundle import load_bundle
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.config import FitConfig
from samgraft.recipes.starting import start_from
from samgraft.recipes.training import build, fit
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures
from tests.recipes.test_tasks import small_config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitConfig]:
    """An adapter of a few steps, and the configuration that made it."""
    folder = tmp_path_factory.mktemp("source")
    config = small_config(write_pictures(folder / "p", classes=2), layout="image_mask")
    config = replace(
        config, train=replace(config.train, steps=4, cache=False), task=replace(config.task, class_names=("a", "b"))
    )
    return fit(config, folder / "run", backbone=toy_backbone(), report=False).adapter, config


def test_a_run_starts_with_the_weights_of_an_adapter(source: tuple[Path, FitConfig]) -> None:
    adapter, config = source
    fresh, _ = build(config, backbone=toy_backbone())
    started, _ = build(replace(config, train=replace(config.train, start_from=str(adapter))), backbone=toy_backbone())
    stored = load_bundle(adapter, toy_backbone()).graft_state()
    assert all(torch.equal(value, stored[name]) for name, value in started.grafted.graft_state().items())
    assert any(not torch.equal(value, stored[name]) for name, value in fresh.grafted.graft_state().items())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"grafts": {"bottleneck": {}}}, "has the grafts lora; this run has bottleneck"),
        ({"grafts": {"lora": {"rank": 3}}}, "graft 'lora' of .* has rank = 2; of this run 3"),
        ({"class_names": ("b", "a")}, "the same in another order"),
        ({"head": "autosam"}, "'class_tokens'|'autosam'|absent"),
    ],
)
def test_another_make_is_refused_by_name(source: tuple[Path, FitConfig], task: dict[str, object], message: str) -> None:
    adapter, config = source
    changed = replace(config, task=replace(config.task, **task))  # type: ignore[arg-type]
    network, _ = build(changed, backbone=toy_backbone())
    before = {name: value.clone() for name, value in network.grafted.graft_state().items()}
    with pytest.raises(ConfigError, match=message):
        start_from(adapter, network.grafted, network.class_names)
    assert all(torch.equal(value, before[name]) for name, value in network.grafted.graft_state().items())


def test_another_backbone_is_refused(source: tuple[Path, FitConfig]) -> None:
    adapter, config = source
    network, _ = build(config, backbone=toy_backbone(seed=1))
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        start_from(adapter, network.grafted, network.class_names)
    with pytest.raises(CheckpointError, match="there is no adapter file"):
        start_from("missing.graft", network.grafted, network.class_names)
