"""Grafts for a while: what they add is there inside the block, and every tensor, object and answer is back after it."""

import pytest
import torch

from samgraft.adapters.bundle import load_bundle, save_bundle, tensors_hash
from samgraft.adapters.extending import extended
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import BiasConfig, LayerNormConfig, LoraConfig, NeckAffineConfig
from samgraft.errors import ConfigError
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import logits, perturb, tree

FURTHER = {"scene": NeckAffineConfig(), "norms": LayerNormConfig()}


def test_nothing_is_left_after_the_block_even_after_an_error(tmp_path) -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, LoraConfig(rank=2))
    perturb(grafted)
    before, names, answer = tensors_hash(grafted.graft_state()), tree(backbone), logits(grafted, image)
    with pytest.raises(KeyError), extended(grafted, FURTHER) as wider:
        with torch.no_grad():
            assert torch.equal(logits(wider, image), answer)  # what was added changes nothing yet
        perturb(wider, 0.2)
        changed = logits(wider, image)
        assert not torch.allclose(changed, answer, atol=1e-3)
        file = save_bundle(tmp_path / "wider.graft", wider)
        assert list(wider.configs) == ["lora", "scene", "norms"]
        raise KeyError
    assert list(grafted.configs) == ["lora"] and list(grafted.grafts) == ["lora"]
    assert tensors_hash(grafted.graft_state()) == before and tree(backbone) == names
    assert torch.equal(logits(grafted, image), answer)
    grafted.detach()
    assert not backbone.occupied
    assert torch.equal(logits(load_bundle(file, toy_backbone()), image), changed)  # a bundle like any other


def test_an_adapter_without_grafts_leaves_the_backbone_free() -> None:
    grafted = attach(toy_backbone())
    with extended(grafted, {"scene": NeckAffineConfig()}):
        assert grafted.backbone.occupied
    assert not grafted.backbone.occupied


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"bias": NeckAffineConfig()}, "graft name 'bias' is taken"),
        ({"norms": LayerNormConfig()}, "grafts 'bias' and 'norms' both want layer"),
    ],
)
def test_what_is_taken_is_refused(further, message: str) -> None:
    grafted = attach(toy_backbone(), BiasConfig())
    names = tree(grafted.backbone)
    with pytest.raises(ConfigError, match=message), extended(grafted, further):
        pass
    assert tree(grafted.backbone) == names and list(grafted.configs) == ["bias"]


def test_a_detached_or_merged_adapter_is_refused() -> None:
    grafted = attach(toy_backbone(), LoraConfig(rank=2))
    grafted.merge()
    with pytest.raises(ConfigError, match="the adapter is merged"), extended(grafted, FURTHER):
        pass
    grafted.detach()
    with pytest.raises(ConfigError, match="the adapter is detached"), extended(grafted, FURTHER):
        pass
