"""The int8 encoder: close to float32, bound to the same weights, in its place, and clear about what it refuses."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from samgraft.adapters.backbones.hf import HFSamBackbone, hash_tensors
from samgraft.adapters.backbones.quantize import Int8Linear, exact_product, quantize, to_int8
from samgraft.adapters.bundle import load_bundle, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import BiasConfig, BottleneckConfig, LoraConfig
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.cache.features import feature_key
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts
from tests.contract import perturb

CLOSE = 0.03
"""Largest norm of the difference over the norm: rounding to 255 levels of random weights costs about 1 % per layer."""


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_rows_are_rounded_to_their_own_step() -> None:
    x = torch.tensor([[127.0, -63.6, 0.4], [0.0, 0.0, 0.0], [0.5, -1.0, 0.25]])
    levels, step = to_int8(x)
    assert levels.tolist() == [[127, -64, 0], [0, 0, 0], [64, -127, 32]]
    assert step[:, 0].tolist() == pytest.approx([1.0, 0.0, 1 / 127])


@pytest.mark.parametrize("bias", [True, False])
def test_layer_equals_the_written_out_formula(bias: bool) -> None:
    linear = nn.Linear(24, 10, bias=bias).double()
    x = torch.randn(2, 700, 24, dtype=torch.float64) * torch.logspace(-3, 3, 700, dtype=torch.float64)[:, None]
    (weight, steps), (tokens, own) = to_int8(linear.weight.detach().float()), to_int8(x.float().reshape(-1, 24))
    expected = (tokens.double() @ weight.double().T) * own.double() * steps.double()[:, 0]
    expected = expected + (linear.bias.detach() if linear.bias is not None else 0)
    found = Int8Linear(linear)(x.float())
    assert found.shape == (2, 700, 10) and exact_product()
    torch.testing.assert_close(found.double().reshape(-1, 10), expected, rtol=1e-5, atol=1e-6)
    assert far(found.double(), linear(x).detach()) < 0.02
    alone = Int8Linear(linear)(x[0, 5].float())  # as the padding is projected
    torch.testing.assert_close(alone, found[0, 5], rtol=1e-6, atol=0)


@torch.no_grad()
def test_encoder_is_close_and_does_not_depend_on_the_batch() -> None:
    backbone, image = toy_backbone(), toy_image(64, 80)
    expected, floats = backbone.encode(image, taps=[1]), sum(p.numel() for p in backbone.parameters())
    before = backbone.weights_hash()
    assert quantize(backbone) is backbone
    found = backbone.encode(image, taps=[1])
    assert 1e-4 < far(found.neck, expected.neck) < CLOSE
    assert 1e-4 < far(found.taps[1], expected.taps[1]) < CLOSE
    assert far(backbone.encode(image[1:]).neck, found.neck[1:]) < 1e-3, "a token's steps are its own"
    assert backbone.weights_hash() == before and backbone.untouched() == (3, True)
    assert sum(p.numel() for p in backbone.parameters()) == floats
    assert [type(m) for m in backbone.sam.vision_encoder.layers.modules() if isinstance(m, nn.Linear)] == []
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.train().modules())


@torch.no_grad()
def test_state_goes_into_another_quantised_backbone() -> None:
    first, second = quantize(toy_backbone(seed=0)), quantize(toy_backbone(seed=1))
    assert far(second.encode(toy_image()).neck, first.encode(toy_image()).neck) > 0.1
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.encode(toy_image()).neck, first.encode(toy_image()).neck)
    assert hash_tensors(second.state_dict()) == hash_tensors(first.state_dict())
    assert torch.equal(copy.deepcopy(first).encode(toy_image()).neck, first.encode(toy_image()).neck)


def test_cached_features_are_kept_apart() -> None:
    backbone = toy_backbone()
    plain = feature_key(backbone, toy_image()[0], "neck", ())
    assert feature_key(quantize(backbone), toy_image()[0], "neck", ()) != plain


@pytest.mark.parametrize(
    "graft",
    [LoraConfig(targets=("q", "v")), LoraConfig(targets=("qkv", "proj", "lin1", "lin2")), BottleneckConfig()],
    ids=["slices", "wrapped", "bottleneck"],
)
def test_attached_first_then_quantised(graft: LoraConfig | BottleneckConfig, tmp_path: Path) -> None:
    source, image = toy_backbone(), toy_image()
    trained = attach(source, graft, decoder=ClassTokensConfig(num_classes=2))
    perturb(trained, scale=0.3)
    path = save_bundle(tmp_path / "a.graft", trained)
    grafted = load_bundle(path, toy_backbone())
    quantize(grafted.backbone)
    with torch.no_grad():
        plain = toy_backbone().encode(image).neck
        expected, found = trained.encode(image).neck, grafted.encode(image).neck
        assert far(found, expected) < CLOSE < far(plain, expected)
        assert far(grafted.predict(image).logits, trained.predict(image).logits) < 2 * CLOSE
    assert set(grafted.graft_state()) == set(trained.graft_state())
    with pytest.raises(ConfigError, match="no weight is left to merge into"):
        grafted.merge()
    backbone = grafted.detach()
    with torch.no_grad():
        assert far(backbone.encode(image).neck, plain) < CLOSE
    assert backbone.weights_hash() == source.weights_hash()


def test_lora_after_quantising_says_what_to_do() -> None:
    backbone = quantize(toy_backbone())
    for targets in (("q", "v"), ("lin1",)):
        with pytest.raises(ConfigError, match="attach or load the adapter, and quantise after that"):
            attach(backbone, LoraConfig(targets=targets))
    assert attach(backbone, BottleneckConfig()).grafts


def test_heads_train_behind_it_and_gradients_through_it_are_refused() -> None:
    grafted = attach(quantize(toy_backbone()), decoder=ClassTokensConfig(num_classes=1)).train()
    grafted.predict(toy_image()).logits.square().mean().backward()
    assert all(p.grad is not None for p in grafted.trainable_parameters())
    backbone = toy_backbone()
    trained = attach(backbone, BottleneckConfig(blocks="first:1")).train()
    quantize(backbone)
    with pytest.raises(ConfigError, match="train on the backbone in float32"):
        trained.encode(toy_image())


def test_refusals_change_nothing() -> None:
    backbone = toy_backbone()
    with pytest.raises(ConfigError, match="precision is 'int4'; expected one of int8"):
        quantize(backbone, "int4")
    grafted = attach(backbone, LoraConfig())
    grafted.merge()
    with pytest.raises(ConfigError, match=r"unmerge\(\) first"):
        quantize(backbone)
    grafted.detach()
    biases = attach(backbone, BiasConfig(blocks="last:1"))
    with pytest.raises(ConfigError, match=r"trains copies of 4 linear layers"):
        quantize(backbone)
    biases.detach()
    with pytest.raises(ConfigError, match=r"is in torch.bfloat16 on cpu; int8 needs torch.float32"):
        quantize(toy_backbone().to(torch.bfloat16))
    assert not any(isinstance(m, Int8Linear) for m in backbone.modules()) and backbone.quantized == ""
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(quantize(backbone))


def test_another_backbone_is_still_refused(tmp_path: Path) -> None:
    path = save_bundle(tmp_path / "a.graft", attach(toy_backbone(seed=0), BottleneckConfig()))
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        load_bundle(path, quantize(toy_backbone(seed=1)))


def test_prompts_are_answered() -> None:
    backbone, image = toy_backbone(), toy_image()
    with torch.no_grad():
        expected = backbone.decode(backbone.encode(image), toy_prompts())[0]
        quantized: HFSamBackbone = quantize(backbone)
        found = quantized.decode(quantized.encode(image), toy_prompts())[0]
    assert far(found, expected) < 2 * CLOSE
