"""DoRA, VeRA and (IA)^3: formulas by hand, parameter counts of the published sizes, merging together, int8."""

from pathlib import Path
from typing import cast

import pytest
import torch
from peft.tuners.vera.model import _kaiming_init
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.quantize import quantize
from samgraft.adapters.bundle import load_bundle, save_bundle
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import GRAFTS, DoraConfig, GraftConfig, Ia3Config, LoraConfig, VeraConfig
from samgraft.adapters.grafts.ia3 import ScaledSlices
from samgraft.adapters.grafts.lora import lora_options
from samgraft.adapters.grafts.peft_linear import merged_tensors
from samgraft.adapters.grafts.vera import random_matrices
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import SIZES, meta_backbone
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import logits, perturb


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_parameter_counts(size: str) -> None:
    """As the docstrings of the methods say."""
    d, blocks, _, _ = SIZES[size]
    per_block = {
        LoraConfig(rank=4): 4 * 4 * d,
        DoraConfig(rank=4): 4 * 4 * d + 3 * d,
        DoraConfig(rank=2, targets=("lin1", "lin2")): 2 * 2 * 5 * d + 5 * d,
        VeraConfig(): 2 * (128 + d),
        VeraConfig(rank=256, targets=("qkv", "lin2")): 2 * 256 + 3 * d + d,
        Ia3Config(): 6 * d,
        Ia3Config(targets=("q", "proj", "lin1")): 6 * d,
    }
    backbone = meta_backbone(size)  # type: ignore[arg-type]
    for config, expected in per_block.items():
        grafted = attach(backbone, config)
        assert sum(p.numel() for p in grafted.trainable_parameters()) == expected * blocks, config
        assert all(p.is_meta for p in grafted.trainable_parameters())
        grafted.detach()


def linear(inputs: int = 5, outputs: int = 6) -> nn.Linear:
    return nn.Linear(inputs, outputs).double().requires_grad_(False)


def scramble(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_dora_by_hand() -> None:
    base, x = linear(), torch.randn(7, 5, dtype=torch.float64)
    layer = lora_options(2, 6.0, 0.0, False, dora=True).wrap(base)
    magnitude = layer.lora_magnitude_vector["graft"].weight
    torch.testing.assert_close(magnitude, base.weight.square().sum(1).sqrt(), rtol=1e-12, atol=0)
    assert torch.equal(layer(x), base(x))
    scramble(layer)
    moved = base.weight + 3.0 * layer.lora_B["graft"].weight @ layer.lora_A["graft"].weight
    weight = magnitude[:, None] * moved / moved.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(layer(x), functional.linear(x, weight, base.bias), rtol=1e-10, atol=1e-10)
    before = base.weight.clone()
    merged = merged_tensors(layer)
    torch.testing.assert_close(merged["weight"], weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(merged["bias"], base.bias) and torch.equal(base.weight, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(48, 32), (96, 128)], ids=["small", "wide"])
def test_dora_scales_by_exactly_one_at_the_start(dtype: torch.dtype, size: tuple[int, int]) -> None:
    base = nn.Linear(*size).to(dtype)
    layer = lora_options(4, None, 0.0, False, dora=True).wrap(base)
    dora = layer.lora_magnitude_vector["graft"]
    delta = dora.get_lora_weight(layer.lora_A["graft"], layer.lora_B["graft"])
    assert torch.equal(dora.get_weight_norm(base.weight, delta, 1.0), dora.weight)
    x = torch.randn(3, 9, size[0]).to(dtype)
    assert torch.equal(layer(x), base(x))


def test_dora_drops_inputs_only_while_training() -> None:
    grafted = attach(toy_backbone(), DoraConfig(targets=("proj",), dropout=0.5))
    perturb(grafted, 0.2)
    image = toy_image()
    still = grafted.encode(image).neck
    assert torch.equal(grafted.encode(image).neck, still)
    grafted.train()
    assert not torch.equal(grafted.encode(image).neck, grafted.encode(image).neck)
    assert torch.equal(grafted.eval().encode(image).neck, still)


def test_dora_refuses_slices_and_int8() -> None:
    with pytest.raises(ConfigError, match=r"targets name \['v'\]; DoRA rescales .* name 'qkv', or use lora"):
        DoraConfig(targets=("v", "proj"))
    backbone = toy_backbone()
    grafted, image = attach(backbone, DoraConfig()), toy_image()
    before = grafted.encode(image).neck
    with pytest.raises(ConfigError, match="computes with the weights of frozen layers"):
        quantize(backbone)
    assert torch.equal(grafted.encode(image).neck, before)


@pytest.mark.parametrize("config", [Ia3Config(), VeraConfig(rank=8, targets=("qkv", "lin2"))], ids=lambda c: c.method)
def test_others_go_on_over_int8(config: GraftConfig) -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, config)
    perturb(grafted)
    exact = grafted.encode(image).neck
    quantize(backbone)
    with torch.no_grad():
        found = grafted.encode(image).neck
    assert 0 < (found - exact).abs().mean() < 0.05 * exact.std()


def test_vera_by_hand() -> None:
    config = VeraConfig(rank=3, seed=11)
    backbone = toy_backbone().double()
    grafted = attach(backbone, VeraConfig(rank=3, seed=11, targets=("lin1", "lin2"), blocks=(1,)))
    down, up = (
        matrix.double() for matrix in random_matrices(128, 128, config)
    )  # mlp_dim of the toy in both directions
    layer = backbone.sam.vision_encoder.layers[1].mlp.lin1
    torch.testing.assert_close(layer.vera_lambda_d["graft"].detach(), torch.full((3,), 0.1).double())
    assert torch.all(layer.vera_lambda_b["graft"] == 0)
    scramble(grafted)
    d, b, base = layer.vera_lambda_d["graft"], layer.vera_lambda_b["graft"], layer.get_base_layer()
    assert (base.in_features, base.out_features) == (32, 128)
    weight = base.weight + b[:, None] * up[:128] @ (d[:, None] * down[:, :32])
    x = torch.randn(4, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, base.bias), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged_tensors(layer)["weight"], weight, rtol=1e-10, atol=1e-10)


def test_vera_draws_the_same_matrices_anywhere() -> None:
    """Files hold a seed instead of matrices, so what a seed gives must never change."""
    config = VeraConfig(rank=5, seed=4)
    first, second = random_matrices(7, 9, config)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(99)
        with torch.device("meta"):
            again = random_matrices(7, 9, config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(_kaiming_init((5, 7), generator), first)
    assert torch.equal(_kaiming_init((9, 5), generator), second)
    pinned = random_matrices(2, 2, VeraConfig(rank=1))[0][0]
    torch.testing.assert_close(pinned, torch.tensor(PINNED), rtol=0, atol=1e-6)


PINNED = [-0.01296755, 0.9291475]
"""A of seed 0, rank 1 and two channels, as PyTorch 2.13 draws it."""


def test_vera_loads_without_matrices(tmp_path: Path) -> None:
    image, config = toy_image(), VeraConfig(rank=8, seed=3, targets=("q", "v", "lin1"))
    grafted = attach(toy_backbone(), config)
    perturb(grafted)
    expected = logits(grafted, image)
    file = save_bundle(tmp_path / "a.graft", grafted)
    assert all(value.ndim == 1 for value in grafted.graft_state().values())
    torch.manual_seed(1234)
    loaded = load_bundle(file, toy_backbone())
    assert torch.equal(logits(loaded, image), expected)
    other = attach(toy_backbone(), VeraConfig(rank=8, seed=4, targets=("q", "v", "lin1")))
    other.load_graft_state(grafted.graft_state())
    assert not torch.allclose(logits(other, image), expected, atol=1e-3)


def test_vera_shares_one_pair() -> None:
    grafted = attach(toy_backbone(), VeraConfig(rank=8, targets=("qkv", "lin1")))
    layers = grafted.backbone.sam.vision_encoder.layers  # type: ignore[union-attr]
    pointers = {layer.attn.qkv.vera_A["graft"].data_ptr() for layer in layers}  # type: ignore[union-attr]
    assert pointers == {layer.mlp.lin1.vera_A["graft"].data_ptr() for layer in layers}  # type: ignore[union-attr]
    assert len(pointers) == 1
    with pytest.raises(ConfigError, match="seed is -1"):
        VeraConfig(seed=-1)


def test_ia3_leaves_queries_alone() -> None:
    base, x = linear(4, 12), torch.randn(2, 3, 4, dtype=torch.float64)
    wrapper = ScaledSlices(base, ("k", "v"))
    assert torch.equal(wrapper(x), base(x))
    scramble(wrapper)
    rows = torch.cat([torch.ones(4).double(), *(wrapper.slices[n].ia3_l["graft"].flatten() for n in ("k", "v"))])  # type: ignore[union-attr,index]
    assert torch.equal(wrapper(x), base(x) * rows)
    assert torch.equal(wrapper(x)[..., :4], base(x)[..., :4])
    merged = wrapper.merged()
    torch.testing.assert_close(functional.linear(x, merged["weight"], merged["bias"]), wrapper(x), rtol=1e-12, atol=0)


def test_ia3_scales_what_lin2_gets() -> None:
    backbone = toy_backbone()
    grafted = attach(backbone, Ia3Config(targets=("lin2",), blocks=(0,)))
    perturb(grafted)
    (factor,) = grafted.graft_state().values()
    assert factor.shape == (1, 128)
    layer, x = backbone.sam.vision_encoder.layers[0].mlp.lin2, torch.randn(5, 128)
    assert torch.equal(layer(x), layer.get_base_layer()(x * factor[0]))


@pytest.mark.parametrize("first", [Ia3Config(), DoraConfig()], ids=lambda c: c.method)
@pytest.mark.parametrize("swap", [False, True])
def test_rescaling_is_merged_before_adding(first: GraftConfig, swap: bool) -> None:
    """Slices of the fused qkv add to what a wrapper around it gives, whatever the order of the configurations."""
    configs: list[GraftConfig] = [first, LoraConfig(targets=("q", "k", "v")), VeraConfig(rank=8, targets=("k",))]
    grafted, image = attach(toy_backbone().double(), configs[::-1] if swap else configs), toy_image().double()
    perturb(grafted, 0.2)
    expected = grafted.encode(image).neck
    grafted.merge()
    torch.testing.assert_close(grafted.encode(image).neck, expected, rtol=0, atol=1e-10)
    grafted.unmerge()
    assert torch.equal(grafted.encode(image).neck, expected)


def test_keys_of_files_do_not_change() -> None:
    state = attach(toy_backbone(num_blocks=1), LoraConfig(targets=("q", "proj"))).graft_state()
    assert set(state) == {
        "grafts.lora.blocks.0.qkv.slices.q.lora_A.graft.weight",
        "grafts.lora.blocks.0.qkv.slices.q.lora_B.graft.weight",
        "grafts.lora.linears.parts.0_proj.lora_A.graft.weight",
        "grafts.lora.linears.parts.0_proj.lora_B.graft.weight",
    }


COMPILED = [
    LoraConfig(targets=("q", "v", "lin2")),
    DoraConfig(targets=("qkv", "lin2")),
    VeraConfig(rank=8, targets=("q", "v", "lin1")),
    Ia3Config(),
]


@pytest.mark.parametrize("config", COMPILED, ids=lambda c: c.method)
def test_compiled_blocks(config: GraftConfig) -> None:
    """In one graph, or with breaks where the method says why."""
    backbone, image = toy_backbone(num_blocks=1), toy_image(32, 32)
    grafted = attach(backbone, config)
    perturb(grafted)
    expected = grafted.encode(image).neck
    refused = bool(next(iter(grafted.grafts.values())).compile_refusal)
    assert refused == (config.method == "dora")
    torch._dynamo.reset()
    backbone.compile_blocks(backend="eager", fullgraph=not refused)
    torch.testing.assert_close(grafted.encode(image).neck, expected, rtol=0, atol=1e-5)


def test_every_method_of_the_family_starts_the_same_either_way() -> None:
    """Their published start is the frozen model already."""
    image = toy_image()
    before = cast(Tensor, logits(toy_backbone(), image))
    for name in ("dora", "ia3", "lora", "vera"):
        with torch.no_grad():
            assert torch.equal(logits(attach(toy_backbone(), GRAFTS.get(name)(init="published")), image), before), name
