"""One scene after the other: what moves, that the entropy falls, and that nothing is left of any of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import samgraft
from samgraft.adapters.bundle import tensors_hash
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import BottleneckConfig, LoraConfig
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.api import adapter_meta, with_meta
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.features import learn_features
from samgraft.recipes.test_time.answers import Answers, Verdict
from samgraft.recipes.test_time.entropy import moved
from samgraft.recipes.test_time.methods import METHODS, EntropyConfig, SceneMethod, StatisticsConfig
from samgraft.recipes.test_time.scene import adapted_to, describe
from tests.adapters.toy import toy_backbone
from tests.contract import tree
from tests.recipes._adapters import blobs, save_picture, toy_adapter, toy_meta

SURE = {"change": 1e6, "inputs": 4}
"""A guard that only looks at the entropy."""


@pytest.fixture
def scenes(tmp_path: Path) -> list[Scene]:
    """Two pictures that differ."""
    images = [blobs(seed=0), blobs(seed=5, low=90, high=160)]
    return [open_scene(save_picture(tmp_path / f"{i}.png", image)) for i, image in enumerate(images)]


def with_features(grafted: Grafted, scenes: list[Scene]) -> Grafted:
    meta = adapter_meta(grafted)
    found = learn_features(grafted, recorded(grafted, meta), scenes)
    return with_meta(grafted, replace(meta, extra={**meta.extra, "features": found.to_json()}))


def windowed() -> Grafted:
    return toy_adapter((LoraConfig(rank=2), BottleneckConfig()), meta=toy_meta(window=40))


METHODS_USED: list[SceneMethod] = [
    EntropyConfig(moved="neck", steps=3, **SURE),
    EntropyConfig(moved="norms", steps=2, balanced=False, **SURE),
    EntropyConfig(moved="adapter", steps=2, **SURE),
    StatisticsConfig(prior=4, **SURE),
]
each = pytest.mark.parametrize("method", METHODS_USED, ids=lambda m: f"{m.method}-{getattr(m, 'moved', '')}")


def state_of(grafted: Grafted) -> tuple[str, str, dict[str, int], list[str], bool]:
    """Everything that must come back: tensors of the adapter and of the backbone, objects, names, mode."""
    frozen = {name: value for name, value in grafted.backbone.named_parameters() if not value.requires_grad}
    flags = [name for name, parameter in grafted.named_parameters() if parameter.requires_grad]
    return tensors_hash(grafted.graft_state()), tensors_hash(frozen), tree(grafted.backbone), flags, grafted.training


@each
def test_every_scene_starts_from_the_same_adapter(method: SceneMethod, scenes: list[Scene]) -> None:
    """Bit-equal weights after each scene, whatever the order: and so are the results."""
    grafted = with_features(windowed(), scenes)
    before = state_of(grafted)
    plain = [samgraft.segment(scene, adapter=grafted, progress=False).labels for scene in scenes]
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for order in ((0, 1), (1, 0)):
        results: dict[int, np.ndarray] = {}
        for number in order:
            with adapted_to(scenes[number], grafted, method):
                inside = state_of(grafted)
                results[number] = samgraft.segment(scenes[number], adapter=grafted, progress=False).labels
            assert state_of(grafted) == before
            frozen_tensors = method.method == "statistics" or method.moved in ("neck", "adapter")  # type: ignore[attr-defined]
            assert not frozen_tensors or inside[1] == before[1]
        found[order] = [results[0], results[1]]
    for first, second in zip(*found.values(), strict=True):
        assert np.array_equal(first, second)
    again = [samgraft.segment(scene, adapter=grafted, progress=False).labels for scene in scenes]
    assert all(np.array_equal(one, other) for one, other in zip(again, plain, strict=True))


@pytest.mark.parametrize("part", ["neck", "norms", "adapter"])
def test_entropy_falls_and_only_what_may_move_has_moved(part: str, scenes: list[Scene]) -> None:
    grafted = windowed()
    before = {key: value.clone() for key, value in grafted.graft_state().items()}
    with adapted_to(scenes[0], grafted, EntropyConfig(moved=part, steps=4, **SURE)) as verdict:  # type: ignore[arg-type]
        assert verdict.kept and verdict.after.objective < 0.98 * verdict.before.objective
        after = grafted.graft_state()
        changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
        added = set(after) - set(before)
        if part == "adapter":
            assert not added and changed and changed == {key for key in changed if before[key].ndim == 1}
        else:
            assert not changed and added and all(after[key].ndim == 1 for key in added)
            assert all("layer_norm" in key for key in added) == (part == "norms")


def test_what_the_guard_refuses_is_not_used(scenes: list[Scene]) -> None:
    grafted = windowed()
    before = state_of(grafted)
    wild = EntropyConfig(steps=5, lr=3.0, inputs=4, change=1.01)
    with adapted_to(scenes[0], grafted, wild) as verdict:
        assert not verdict.kept and state_of(grafted) == before
    said = describe(wild, verdict)["test_time"]
    assert said.startswith("entropy, not kept: the adapter was used as it is; ") and verdict.reason in said


def test_an_error_inside_the_block_leaves_nothing_either(scenes: list[Scene]) -> None:
    grafted = windowed()
    before = state_of(grafted)
    with pytest.raises(KeyError), adapted_to(scenes[0], grafted, EntropyConfig(steps=1, **SURE)):
        raise KeyError
    assert state_of(grafted) == before


def test_statistics_need_a_header_that_remembers(scenes: list[Scene]) -> None:
    grafted = windowed()
    with pytest.raises(CheckpointError, match="says nothing about the features"):
        with adapted_to(scenes[0], grafted, StatisticsConfig()):
            pass
    with_features(grafted, scenes)
    meta = adapter_meta(grafted)
    meta.extra["features"]["backbone"] = "0" * 64
    with pytest.raises(CheckpointError, match="features of another backbone"):
        with adapted_to(scenes[0], grafted, StatisticsConfig()):
            pass


def test_an_adapter_without_vectors_says_so() -> None:
    grafted = attach(toy_backbone(), LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"none of the adapter's parts \(lora\) has a norm, a scale or a bias"):
        moved(grafted, EntropyConfig(moved="adapter"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entropy", {"steps": 0}, "steps is 0"),
        ("entropy", {"moved": "neks"}, "did you mean 'neck'"),
        ("entropy", {"inputs": 0}, "inputs is 0"),
        ("entropy", {"change": 1.0}, "change is 1.0; expected a factor above 1"),
        ("statistics", {"prior": -1}, "prior is -1"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHODS.get(name)(**options)  # type: ignore[arg-type]


def test_verdict_is_told_in_words() -> None:
    some = Answers(entropy=0.2, objective=0.2, shares=(0.9, 0.1))
    verdict = Verdict(kept=True, reason="the entropy fell", before=some, after=some)
    assert describe(EntropyConfig(), verdict) == {"test_time": "entropy; the entropy fell"}
