"""AdaptFormer, SAM-Med2D's adapter, the learnable prompt layer and SAM-Adapter: counts, formulas by hand, any shape."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import (
    AdaptFormerConfig,
    ChannelSpatialConfig,
    GraftConfig,
    HighFrequencyConfig,
    LearnablePromptConfig,
)
from samgraft.adapters.grafts.adaptformer import ParallelBranch
from samgraft.adapters.grafts.channel_spatial import ChannelSpatial
from samgraft.adapters.grafts.learnable_prompt import PromptLayer
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import SIZES, meta_backbone
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import perturb

CONFIGS: list[GraftConfig] = [
    AdaptFormerConfig(),
    ChannelSpatialConfig(),
    LearnablePromptConfig(),
    HighFrequencyConfig(scale_factor=8),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)


def count(grafted: Grafted) -> int:
    return sum(parameter.numel() for parameter in grafted.trainable_parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size: Any) -> None:
    """adapters.md 0.3, and the figures that it prints."""
    backbone, (d, blocks, _, _) = meta_backbone(size), SIZES[size]
    r = d // 32
    expected = [
        (AdaptFormerConfig(), blocks * (128 * d + 64 + d), {"b": 12 * 99_136, "l": 3_171_840, "h": 5_285_888}),
        (ChannelSpatialConfig(), blocks * (d * d // 2 + 27 * d), {"b": 12 * 315_648}),
        (
            ChannelSpatialConfig(depthwise=False),
            blocks * (d * d // 2 + 25 * d * d + 2 * d),
            {"b": 12 * 15_042_048, "l": 641_777_664},
        ),
        (LearnablePromptConfig(), blocks * (d * d // 2 + 13 * d // 2), {"b": 12 * 299_904}),
        (
            HighFrequencyConfig(),
            769 * r + 2 * d * r + r + d + blocks * (r * r + r),
            {"b": 63_312, "l": 116_544, "h": 186_960},
        ),
    ]
    for config, formula, figures in expected:
        with torch.device("meta"):
            grafted = attach(backbone, config)
        assert count(grafted) == formula == figures.get(size, formula), config
        assert all(parameter.is_meta for parameter in grafted.trainable_parameters())
        grafted.detach()


@each_config
def test_odd_grid_with_and_without_checkpointing(config: GraftConfig) -> None:
    """9 x 7 tokens: no multiple of the stride 2, nor of the windows of 3."""
    backbone, image = toy_backbone(), toy_image(72, 56)
    grafted = attach(backbone, config).eval()
    perturb(grafted)
    plain = grafted.encode(image).neck
    assert plain.shape[-2:] == (9, 7)
    plain.square().mean().backward()
    gradients = [parameter.grad for parameter in grafted.trainable_parameters()]
    grafted.zero_grad()
    backbone.checkpointing = True
    grafted.encode(image).neck.square().mean().backward()
    for parameter, gradient in zip(grafted.trainable_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_compiled_blocks_agree() -> None:
    """All methods at once, in windowed and global blocks, without a break; 9 x 7 tokens."""
    backbone, image = toy_backbone(), toy_image(72, 56)
    grafted = attach(backbone, CONFIGS).eval()
    perturb(grafted)
    assert not any(graft.compile_refusal for graft in grafted.grafts.values())
    torch.compiler.reset()
    with torch.no_grad():
        plain = grafted.encode(image).neck
        compiled = backbone.compile_blocks(backend="eager", fullgraph=True).encode(image).neck
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


@each_config
def test_published_start_is_not_the_frozen_model_except_for_adaptformer(config: GraftConfig) -> None:
    image = toy_image()
    with torch.no_grad():
        frozen = toy_backbone().encode(image).neck
        published = attach(toy_backbone(), replace(config, init="published"))
        moved = not torch.equal(published.encode(image).neck, frozen)
    assert moved == (config.method != "adaptformer")


@each_config
def test_a_copy_is_independent(config: GraftConfig) -> None:
    image = toy_image()
    grafted = attach(toy_backbone(), config).eval()
    perturb(grafted)
    with torch.no_grad():
        before = grafted.encode(image).neck
        twin = copy.deepcopy(grafted)
        for parameter in grafted.parameters():
            parameter.zero_()
        assert torch.equal(twin.encode(image).neck, before)


def test_adaptformer_by_hand() -> None:
    branch = ParallelBranch(2, AdaptFormerConfig(hidden=1, scale=0.5)).eval()
    with torch.no_grad():
        branch.down.weight.copy_(torch.tensor([[1.0, -2.0]]))
        branch.down.bias.fill_(0.5)
        branch.up.weight.copy_(torch.tensor([[2.0], [-4.0]]))
        branch.up.bias.copy_(torch.tensor([1.0, 0.0]))
    # relu(3 - 2 + 0.5) = 1.5 -> (3 + 1, -6) / 2; relu(1 - 4 + 0.5) = 0 -> (1, 0) / 2
    found = branch(torch.tensor([[3.0, 1.0], [1.0, 2.0]]))
    assert found.tolist() == [[2.0, -3.0], [0.5, 0.0]]


def test_adaptformer_reads_tokens_that_are_not_normed_and_adds_them_once() -> None:
    """It gets the very tensor that norm2 gets, and the block's output moves by what it gives, no more."""
    backbone, image = toy_backbone(), toy_image()
    with torch.no_grad():
        frozen = backbone.encode(image, taps=(1,)).taps[1]
    grafted = attach(backbone, AdaptFormerConfig(blocks=(1,))).eval()
    perturb(grafted)
    inputs: list[Tensor] = []
    deltas: list[Tensor] = []

    def remember(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0])
        deltas.append(output)

    backbone.sam.vision_encoder.layers[1].layer_norm2.register_forward_hook(remember)
    backbone.block_sites[1].parallel_mlp_raw[0].register_forward_hook(remember)
    with torch.no_grad():
        moved = grafted.encode(image, taps=(1,)).taps[1]
    assert inputs[0] is inputs[1]
    assert deltas[1].abs().max() > 1e-3
    torch.testing.assert_close(moved - frozen, deltas[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_adaptformer_scale_and_dropout(learned: bool) -> None:
    torch.manual_seed(0)
    branch = ParallelBranch(8, AdaptFormerConfig(scale=0.25, learned_scale=learned, dropout=0.5))
    assert isinstance(branch.scale, nn.Parameter) == learned == ("scale" in dict(branch.named_parameters()))
    assert torch.as_tensor(branch.scale).item() == 0.25
    assert not branch.down.bias.any() and not branch.up.weight.any() and not branch.up.bias.any()
    assert branch.down.weight.abs().max() <= 1 / math.sqrt(8)
    nn.init.ones_(branch.up.weight)
    x = torch.ones(64, 8)
    assert len(branch.eval()(x).unique(dim=0)) == 1
    assert len(branch.train()(x).unique(dim=0)) > 1


def naive_channel_spatial(part: ChannelSpatial, x: Tensor) -> Tensor:
    """The same with loops over output cells, for x (h, w, d) and depthwise kernels."""
    height, width, dim = x.shape
    gate = torch.sigmoid(part.expand.weight @ torch.relu(part.squeeze.weight @ x.mean(dim=(0, 1))))
    padded = functional.pad(gate * x, (0, 0, 1, 1, 1, 1))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    kernel = part.shrink.weight[:, 0].permute(1, 2, 0)
    coarse = torch.zeros(rows, columns, dim, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            coarse[i, j] = torch.relu((padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel).sum(dim=(0, 1)))
    kernel = part.grow.weight[:, 0].permute(1, 2, 0)
    fine = torch.zeros(2 * rows + 2, 2 * columns + 2, dim, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            fine[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += coarse[i, j] * kernel
    total = x + torch.relu(fine[1 : height + 1, 1 : width + 1])
    normed = (total - total.mean(-1, keepdim=True)) / torch.sqrt(total.var(-1, unbiased=False, keepdim=True) + 1e-5)
    return normed * part.norm.weight + part.norm.bias


@pytest.mark.parametrize("grid", [(4, 6), (5, 4), (3, 7), (1, 1)])
def test_channel_spatial_by_loops_and_on_odd_grids(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    part = ChannelSpatial(8, identity=False).double()
    x = noise(2, *grid, 8)
    with torch.no_grad():
        found = part(x)
        expected = torch.stack([naive_channel_spatial(part, single) for single in x])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("depthwise", [True, False])
def test_channel_spatial_starts_from_fan_out(depthwise: bool) -> None:
    """Full convolutions as torch's ``kaiming_normal_(mode="fan_out")``; depthwise, a channel feeds only itself."""
    torch.manual_seed(0)
    part, dim = ChannelSpatial(256, depthwise=depthwise, identity=False), 256
    feeds = 1 if depthwise else dim
    for tensor, fan_out in [
        (part.squeeze.weight, dim // 4),
        (part.expand.weight, dim),
        (part.shrink.weight, 9 * feeds),
        (part.grow.weight, 16 * feeds),
    ]:
        assert float(tensor.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert bool((part.norm.weight == 1).all())


def test_learnable_prompt_equals_convolutions() -> None:
    """Linear layers and LayerNorms on channel-last tokens against 1x1 convolutions and norms over channels."""
    torch.manual_seed(0)
    layer = PromptLayer(8, 4, identity=False).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6)
        return functional.gelu(scaled * module.weight[:, None, None] + module.bias[:, None, None])

    x = noise(2, 5, 3, 8)
    y = norm(
        functional.conv2d(x.permute(0, 3, 1, 2), layer.down.weight[..., None, None], layer.down.bias), layer.down_norm
    )
    y = norm(functional.conv2d(y, layer.mix.weight, padding=1, groups=4), layer.mix_norm)
    y = norm(functional.conv2d(y, layer.up.weight[..., None, None], layer.up.bias), layer.up_norm)
    torch.testing.assert_close(layer(x).permute(0, 3, 1, 2), y, atol=1e-10, rtol=0)


def test_published_perturbations_have_the_size_that_the_docs_say() -> None:
    """Unit-scale norms at the end: SAM-Med2D adds unit variance, the prompt layer what GELU leaves of it."""
    torch.manual_seed(0)
    x = noise(1, 8, 8, 64).float()
    with torch.no_grad():
        assert float(ChannelSpatial(64, identity=False)(x).std()) == pytest.approx(1, abs=0.02)
        assert float(PromptLayer(64, 16, identity=False)(x).square().mean()) == pytest.approx(0.425, abs=0.05)
        assert not ChannelSpatial(64)(x).any() and not PromptLayer(64, 16)(x).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdaptFormerConfig(hidden=0), "hidden is 0; expected at least 1"),
        (lambda: AdaptFormerConfig(dropout=1.0), "dropout is 1.0; expected a probability"),
        (lambda: AdaptFormerConfig(scale=0.0), "scale is 0.0; expected a number above 0"),
        (lambda: LearnablePromptConfig(reduction=0), "reduction is 0; expected at least 1"),
        (lambda: HighFrequencyConfig(scale_factor=0), "scale_factor is 0; expected at least 1"),
        (lambda: HighFrequencyConfig(removed=0.0), "removed is 0.0; expected a number above 0"),
        (lambda: HighFrequencyConfig(removed=1.0), "removed is 1.0; expected a share below 1"),
    ],
)
def test_bad_numbers(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
