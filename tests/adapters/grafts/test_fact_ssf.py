"""FacT and SSF: counts, formulas written out, what is shared, what is wrapped, and both merged together."""

import copy
import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.quantize import Int8Linear, exact_product, quantize
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import ConvLoraConfig, FactConfig, GraftConfig, LayerNormConfig, LoraConfig, SsfConfig
from samgraft.adapters.grafts.fact import FactSlices
from samgraft.adapters.grafts.ssf import PATHS, Rescaled, ScaleShift, merged_tensors
from samgraft.adapters.grafts.swapped import SwappedParameters
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import SIZES, meta_backbone
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import logits, perturb, tree


def count(size: Literal["b", "l", "h"], config: GraftConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in attach(meta_backbone(size), config).trainable_parameters())


@pytest.mark.parametrize(("size", "published"), [("b", 73_728), ("l", 114_688), ("h", 147_456)])
def test_counts_of_fact(size: Literal["b", "l", "h"], published: int) -> None:
    """adapters.md 0.3, and the Tucker form."""
    d, blocks = SIZES[size][:2]
    assert count(size, FactConfig()) == published == 2 * d * 32 + 2 * 32**2 * blocks
    assert count(size, FactConfig(targets=("q", "k", "v"), rank=8, blocks="last:4")) == 2 * d * 8 + 3 * 64 * 4
    assert count(size, FactConfig(form="tk", rank=16)) == 2 * d * 16 + 16**3 + 2 * blocks * 16


@pytest.mark.parametrize(("size", "expected"), [("b", 202_752), ("l", 540_672), ("h", 901_120)])
def test_counts_of_ssf(size: Literal["b", "l", "h"], expected: int) -> None:
    d, blocks = SIZES[size][:2]
    assert count(size, SsfConfig()) == expected == 22 * d * blocks
    assert count(size, SsfConfig(targets=("norm1", "lin1"), blocks="last:2")) == 2 * (d + 4 * d) * 2


def slice_weight(grafted: Grafted, config: FactConfig, block: int, name: str) -> Tensor:
    """s V S U from the stored tensors, with S of the Tucker form summed term by term."""
    state = {key.removeprefix("grafts.fact."): value for key, value in grafted.graft_state().items()}
    own = state[f"blocks.{block}.qkv.own.{name}"]
    if config.form == "tk":
        own = sum((own[k] * state["shared.core"][:, :, k] for k in range(config.rank)), torch.zeros(1))
    return config.scale * state["shared.v.weight"] @ own @ state["shared.u.weight"]


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_fact_equals_its_formula(form: Literal["tt", "tk"]) -> None:
    backbone, image = toy_backbone(), toy_image()
    config = FactConfig(form=form, targets=("q", "v"), rank=3, scale=2.5, blocks=(0, 2))
    grafted = attach(backbone, config)
    perturb(grafted, 0.3)
    expected = logits(grafted, image)
    changes = {block: [slice_weight(grafted, config, block, name) for name in "qv"] for block in (0, 2)}
    grafted.detach()
    with torch.no_grad():
        for block, (q, v) in changes.items():
            weight = backbone.sam.vision_encoder.layers[block].attn.qkv.weight
            weight[:32] += q
            weight[64:] += v
    torch.testing.assert_close(logits(backbone, image), expected, atol=1e-4, rtol=1e-4)


def test_shared_factors_are_stored_once_and_stay_shared() -> None:
    grafted = attach(toy_backbone(), FactConfig(form="tk", rank=4, blocks="last:2"))
    own = {f"grafts.fact.blocks.{block}.qkv.own.{name}" for block in (1, 2) for name in "qv"}
    shared = {f"grafts.fact.shared.{name}" for name in ("u.weight", "v.weight", "core")}
    assert set(grafted.graft_state()) == own | shared
    twin = copy.deepcopy(grafted)
    with torch.no_grad():
        twin.graft_state()["grafts.fact.shared.v.weight"].fill_(1.0)
    modules = [site for sites in twin.backbone.block_sites for site in sites.qkv]  # type: ignore[operator, union-attr]
    assert len(modules) == 2
    x = torch.randn(1, 2, 2, 32)
    for module in modules:
        assert isinstance(module, FactSlices)
        assert module(x, None)[0].abs().sum() > 0 and module(x, None)[1] is None
    assert grafted.graft_state()["grafts.fact.shared.v.weight"].abs().sum() == 0


def test_fact_starts_as_published_and_drops_in_training_only() -> None:
    torch.manual_seed(0)
    grafted = attach(toy_backbone(), FactConfig(form="tk", rank=16, init="published"))
    state = {key.removeprefix("grafts.fact."): value for key, value in grafted.graft_state().items()}
    assert (state["shared.v.weight"] == 0).all()
    assert 0.9 < state["shared.core"].abs().max() / (3**0.5 / 16) <= 1  # Xavier: sqrt(6 / (r^2 + r^2))
    vectors = torch.stack([state[f"blocks.{block}.qkv.own.{name}"] for block in range(3) for name in "qv"])
    assert 0.9 < vectors.abs().max() / (6 / (16 + 6)) ** 0.5 <= 1  # Xavier over (r, number of vectors)
    perturb(grafted)
    image = toy_image()
    assert torch.equal(logits(grafted, image), logits(grafted, image))
    grafted.train()
    assert not torch.equal(logits(grafted, image), logits(grafted, image))


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (FactConfig, {"form": "tucker"}, "form is 'tucker'"),
        (FactConfig, {"targets": ("qkv",)}, "target is 'qkv'.*[Cc]hoose from q, k, v"),
        (FactConfig, {"rank": 0}, "fact: rank is 0"),
        (FactConfig, {"scale": 0.0}, "fact: scale is 0.0"),
        (SsfConfig, {"targets": ()}, "ssf: targets are .*name at least one of norm1, qkv"),
        (SsfConfig, {"targets": ("lin3",)}, "target is 'lin3'; did you mean 'lin[12]'"),
    ],
)
def test_bad_options(config: type[GraftConfig], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**arguments)


@pytest.mark.parametrize("target", PATHS)
def test_ssf_equals_changed_weights(target: str) -> None:
    """Written into the weights by hand; windows of 3 on 8 x 8 tokens, so padded tokens are part of it."""
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, SsfConfig(targets=(target,), blocks=(1,)))
    perturb(grafted, 0.4)
    expected = logits(grafted, image)
    state = grafted.graft_state()
    gamma, beta = (state[f"grafts.ssf.linears.parts.1_{target}.change.{name}"] for name in ("gamma", "beta"))
    grafted.detach()
    module = backbone.sam.vision_encoder.layers[1].get_submodule(PATHS[target])
    with torch.no_grad():
        for channel in range(len(gamma)):
            module.weight[channel] *= gamma[channel]
            module.bias[channel] = gamma[channel] * module.bias[channel] + beta[channel]
    torch.testing.assert_close(logits(backbone, image), expected, atol=1e-4, rtol=1e-4)


def test_ssf_wraps_named_modules_and_puts_the_same_objects_back() -> None:
    backbone = toy_backbone()
    before = {path: backbone.get_submodule(f"sam.vision_encoder.layers.2.{path}") for path in PATHS.values()}
    names = tree(backbone)
    grafted = attach(backbone, SsfConfig(blocks="last:1"))
    graft = grafted.grafts["ssf"]
    assert graft.claims() == {f"sam.vision_encoder.layers.2.{path}" for path in PATHS.values()}  # type: ignore[operator]
    assert set(grafted.graft_state()) == {
        f"grafts.ssf.linears.parts.2_{target}.change.{name}" for target in PATHS for name in ("gamma", "beta")
    }
    for path, frozen in before.items():
        wrapper = backbone.get_submodule(f"sam.vision_encoder.layers.2.{path}")
        assert isinstance(wrapper, Rescaled) and wrapper.base_layer is frozen
    assert grafted.frozen_blocks() == 2
    grafted.detach()
    assert tree(backbone) == names
    with pytest.raises(ConfigError, match=r"grafts 'layer_norm' and 'ssf' both want layer .*layer_norm1"):
        attach(backbone, [LayerNormConfig(blocks="last:1"), SsfConfig(targets=("norm1",), blocks="last:1")])


def test_ssf_starts_as_published() -> None:
    torch.manual_seed(0)
    backbone, image = toy_backbone(), toy_image()
    before = logits(backbone, image)
    grafted = attach(backbone, SsfConfig(init="published"))
    state = grafted.graft_state()
    gamma = torch.cat([value for key, value in state.items() if key.endswith("gamma")])
    beta = torch.cat([value for key, value in state.items() if key.endswith("beta")])
    assert len(gamma) == 11 * 32 * 3
    assert float(gamma.mean()) == pytest.approx(1, abs=0.003) and float(gamma.std()) == pytest.approx(0.02, rel=0.1)
    assert float(beta.mean()) == pytest.approx(0, abs=0.003) and float(beta.std()) == pytest.approx(0.02, rel=0.1)
    assert not torch.allclose(logits(grafted, image), before, atol=1e-4)


def test_ssf_rounds_once() -> None:
    """255 * 1.0038 = 255.97 is 256 in bfloat16; 1.0038 alone would have been rounded to 1."""
    part = ScaleShift(1, torch.zeros(1), identity=True)
    with torch.no_grad():
        part.gamma.fill_(1.0038)
    found = part(torch.tensor([[255.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16 and found.item() == 256


def test_a_bias_that_was_not_there_comes_and_goes() -> None:
    linear, part = nn.Linear(3, 2, bias=False), ScaleShift(2, torch.zeros(1), identity=False)
    x = torch.randn(4, 3)
    plain, expected, swapped = linear(x), part(linear(x)), SwappedParameters()
    for name, value in merged_tensors(linear, part).items():
        swapped.swap(linear, name, nn.Parameter(value))
    torch.testing.assert_close(linear(x), expected)
    swapped.restore()
    assert linear.bias is None and torch.equal(linear(x), plain)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_what_adds_to_a_weight_is_merged_after_what_scales_it(order: tuple[int, ...]) -> None:
    grafts: list[GraftConfig] = [
        FactConfig(rank=3),
        SsfConfig(targets=("qkv", "proj")),
        LoraConfig(rank=2, targets=("k", "lin1")),
    ]
    backbone, image = toy_backbone().double(), toy_image()
    names, before = tree(backbone), logits(backbone, image)
    grafted = attach(backbone, [grafts[index] for index in order])
    perturb(grafted, 0.2)
    expected = logits(grafted, image)
    grafted.merge()
    assert (logits(grafted, image) - expected).abs().max() < 1e-10 * expected.std()
    grafted.unmerge()
    torch.testing.assert_close(logits(grafted, image), expected, rtol=1e-12, atol=1e-12)  # order of sums at a site
    assert tree(grafted.detach()) == names
    assert torch.equal(logits(backbone, image), before)


@pytest.mark.skipif(not exact_product(), reason="int8 products saturate on this processor")
def test_ssf_and_int8() -> None:
    backbone, image = toy_backbone(), toy_image()
    with torch.no_grad():
        grafted = attach(backbone, SsfConfig())
        perturb(grafted, 0.2)
        exact = logits(grafted, image)
        quantize(backbone)
        assert (logits(grafted, image) - exact).abs().mean() < 0.1 * exact.std()
        grafted.detach()
    assert isinstance(backbone.sam.vision_encoder.layers[0].attn.qkv, Int8Linear)
    with pytest.raises(ConfigError, match="quantised to int8"):
        attach(backbone, SsfConfig())


@pytest.mark.parametrize(
    "config",
    [FactConfig(), FactConfig(form="tk", rank=4), SsfConfig(), ConvLoraConfig()],
    ids=["tt", "tk", "ssf", "conv_lora"],
)
def test_blocks_compile_without_a_break(config: GraftConfig) -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, config)
    perturb(grafted)
    torch._dynamo.reset()
    with torch.no_grad():
        plain = grafted.encode(image).neck
        backbone.compile_blocks(backend="eager", fullgraph=True)
        torch.testing.assert_close(grafted.encode(image).neck, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
