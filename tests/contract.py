"""What DESIGN.md section 3 demands of every graft, run over the registry: a new method is tested by existing.

Collected through tests/adapters/test_contract.py. A method with options that change its structure adds variants below.
"""

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.bundle import load_bundle, save_bundle
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import (
    GRAFTS,
    AdaptFormerConfig,
    BottleneckConfig,
    ChannelSpatialConfig,
    ConvLoraConfig,
    DecoderBottleneckConfig,
    DecoderLoraConfig,
    DoraConfig,
    FactConfig,
    GraftConfig,
    HighFrequencyConfig,
    Ia3Config,
    LearnablePromptConfig,
    LoraConfig,
    SsfConfig,
    VeraConfig,
    VptConfig,
)
from samgraft.errors import CheckpointError, ConfigError, NoMatchError
from samgraft.volumetric.grafts import Adapter3dsamConfig, MaSamConfig, SdTransConfig
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts

MERGE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Largest difference of merged and unmerged logits, in their standard deviations. The only table of the kind."""

VARIANTS: list[GraftConfig] = [
    LoraConfig(targets=("q", "k", "v"), rank=2, alpha=8.0, rslora=True, blocks=(0, 2)),
    LoraConfig(targets=("qkv",), rank=3, blocks="last:1"),
    LoraConfig(targets=("proj", "lin1", "lin2"), rank=2),
    LoraConfig(targets=("q", "lin2"), dropout=0.5),
    BottleneckConfig(sites=("attention_output",), blocks="first:2"),
    BottleneckConfig(sites=("parallel_mlp",), ratio=0.5, scale=1.0),
    ConvLoraConfig(targets=("q", "v"), scales=(2,), blocks="last:2"),
    DecoderLoraConfig(targets=("q_proj", "k_proj", "v_proj", "out_proj"), rank=2),
    FactConfig(form="tk", targets=("q", "k", "v"), rank=4, scale=2.0),
    SsfConfig(targets=("norm1", "qkv"), blocks=(1,)),
    SsfConfig(targets=("proj", "norm2", "lin1", "lin2"), blocks="last:2"),
    DecoderLoraConfig(targets=("lin1", "lin2", "upscale"), rank=3, alpha=6.0, dropout=0.2),
    DecoderBottleneckConfig(hyper=False, targets=("token_to_image", "mlp")),
    DecoderBottleneckConfig(targets=("token_to_image", "image_to_token"), width=4, ratio=0.5),
    DoraConfig(targets=("proj", "lin1", "lin2"), rank=2, alpha=8.0, rslora=True, blocks=(0, 2)),
    DoraConfig(rank=3, dropout=0.5, blocks="last:1"),
    Ia3Config(targets=("q", "proj", "lin1"), blocks="first:2"),
    VeraConfig(targets=("qkv", "proj", "lin1", "lin2"), rank=16, seed=7),
    VeraConfig(targets=("k", "lin1"), rank=8, dropout=0.5, d_initial=1.0, blocks="last:2"),
    VptConfig(deep=False, tokens=3),
    VptConfig(deep=False, blocks="last:2"),
    AdaptFormerConfig(hidden=5, dropout=0.0, learned_scale=True, scale=1.0),
    ChannelSpatialConfig(depthwise=False, blocks=(0, 2)),
    LearnablePromptConfig(reduction=2, blocks="last:2"),
    HighFrequencyConfig(scale_factor=8, removed=0.1, blocks=(0, 2)),
    MaSamConfig(hidden=8, sites=("after_attention",), form="tk", blocks="last:2"),
    SdTransConfig(sites=("parallel_mlp",), ratio=0.5, blocks=(0, 2)),
    Adapter3dsamConfig(window=4, ratio=0.25, embedding=False, blocks="last:2"),
    Adapter3dsamConfig(depth_kernel=2, planes=2),
]


def _label(config: GraftConfig) -> str:
    plain = {key: value for key, value in config.to_dict().items() if value != type(config)().to_dict().get(key)}
    return "-".join([config.method, *(f"{key}={value}" for key, value in plain.items())])


CONFIGS = [GRAFTS.get(name)() for name in GRAFTS.names()] + VARIANTS
each_graft = pytest.mark.parametrize("config", CONFIGS, ids=_label)
each_method = pytest.mark.parametrize("name", GRAFTS.names())


def encode(grafted: Any, image: Tensor) -> Features:
    """Features of the images; where a graft looks across slices, they are the slices of one volume."""
    volume = isinstance(grafted, Grafted) and any(config.volumetric for config in grafted.configs.values())
    found: Features = grafted.encode(image.to(next(grafted.parameters()).dtype), depth=len(image) if volume else 1)
    return found


def logits(grafted: Any, image: Tensor) -> Tensor:
    """Mask logits for the toy prompts (two images, one and two instances), through a backbone or a Grafted."""
    result: Tensor = grafted.decode(encode(grafted, image), toy_prompts())[0]
    return result


def everything(grafted: Any, image: Tensor) -> Tensor:
    """All that the decoder gives for the toy prompts in one vector: single masks, all masks, predicted IoU."""
    features = encode(grafted, image)
    found = [out for many in (False, True) for out in grafted.decode(features, toy_prompts(), multimask=many)]
    return torch.cat([out.flatten() for out in found])


def tree(backbone: nn.Module) -> dict[str, int]:
    """Module path -> identity, and parameter path -> identity."""
    return {n: id(m) for n, m in backbone.named_modules()} | {n: id(p) for n, p in backbone.named_parameters()}


def perturb(grafted: Grafted, scale: float = 0.05) -> None:
    """Move every attached parameter, so that the graft does something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def train_steps(grafted: Grafted, image: Tensor, steps: int) -> None:
    """Optimise the attached parameters towards zero; all masks and their predicted IoU count."""
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        everything(grafted, image).square().mean().backward()
        optimizer.step()


@each_graft
@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_identity_at_step_zero(config: GraftConfig, size: tuple[int, int]) -> None:
    """Bit-equal, with and without autograd. PyTorch picks other kernels when gradients flow, so like meets like."""
    backbone, image = toy_backbone(), toy_image(*size)
    tracked = image.clone().requires_grad_(True)
    before, before_tracked = logits(backbone, image), logits(backbone, tracked)
    assert before.std() > 1e-3, "the toy backbone must not be degenerate"
    grafted = attach(backbone, config)
    with torch.no_grad():
        assert torch.equal(logits(grafted, image), before)
    assert torch.equal(logits(grafted.train(), tracked), before_tracked)
    perturb(grafted)
    assert not torch.allclose(logits(grafted.eval(), image), before, atol=1e-4), (
        "the graft must be able to do something"
    )


@each_graft
def test_only_the_graft_trains(config: GraftConfig) -> None:
    backbone, image = toy_backbone(), toy_image()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    ids = {name: id(parameter) for name, parameter in backbone.named_parameters()}
    grafted = attach(backbone, config).train()
    train_steps(grafted, image, 2)
    graft_set = {id(p) for p in grafted.grafts.parameters()}
    assert graft_set == {id(p) for p in grafted.parameters() if p.requires_grad}
    assert graft_set == {id(p) for p in grafted.parameters() if p.grad is not None}
    assert all((p.grad != 0).any() for p in grafted.grafts.parameters() if p.grad is not None), (
        "by step 2 everything moves"
    )
    assert not any(m.training for m in backbone.modules() if not _is_attached(m, grafted)), "the backbone stays in eval"
    grafted.detach()
    assert {name: id(parameter) for name, parameter in backbone.named_parameters()} == ids
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, frozen[name]), name


def _is_attached(module: nn.Module, grafted: Grafted) -> bool:
    return isinstance(module, LoraLayer) or any(module is part for part in grafted.grafts.modules())


@each_graft
def test_detach_restores(config: GraftConfig) -> None:
    backbone, image = toy_backbone(), toy_image()
    names, before, weights = tree(backbone), logits(backbone, image), backbone.weights_hash()
    grafted = attach(backbone, config)
    assert grafted.base_hash == weights
    perturb(grafted)
    assert grafted.detach() is backbone
    assert tree(backbone) == names
    assert torch.equal(logits(backbone, image), before)
    assert backbone.weights_hash() == weights
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    grafted.detach()
    assert tree(backbone) == names
    attach(backbone, config).detach()


@each_graft
def test_save_load(config: GraftConfig, tmp_path: Any) -> None:
    image = toy_image()
    grafted = attach(toy_backbone(), config)
    perturb(grafted)
    expected = logits(grafted, image)
    state = grafted.graft_state()
    assert state and all(key.startswith(f"grafts.{config.method}.") for key in state)
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in grafted.grafts.parameters())
    assert set(grafted.state_dict()) == set(state)
    file = save_bundle(tmp_path / "a.graft", grafted)
    loaded = load_bundle(file, toy_backbone())
    assert torch.equal(logits(loaded, image), expected)
    assert loaded.configs == {config.method: config}
    nested, fresh = nn.ModuleDict({"model": grafted}), nn.ModuleDict({"model": attach(toy_backbone(), config)})
    fresh.load_state_dict(nested.state_dict(), strict=True)
    assert torch.equal(logits(fresh["model"], image), expected)


@each_method
@pytest.mark.parametrize("size", [(256, 256), (320, 192), (1024, 1024)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_side(name: str, size: tuple[int, int]) -> None:
    """Identity and an effect at the sides that users ask for; 1024 px are 64 x 64 tokens, as in SAM."""
    backbone, image = toy_backbone(num_blocks=2, patch_size=16), toy_image(*size, batch=1)
    with torch.no_grad():
        before = backbone.encode(image).neck
        grafted = attach(backbone, GRAFTS.get(name)())
        assert torch.equal(grafted.encode(image).neck, before)
        assert before.shape[-2:] == (size[0] // 16, size[1] // 16)
        perturb(grafted)
        after = grafted.encode(image).neck
    assert torch.isfinite(after).all()
    assert torch.equal(after, before) == grafted.frozen_encoder() == (GRAFTS.get(name).part == "decoder")


@each_method
def test_file_that_does_not_fit_is_refused(name: str, tmp_path: Any) -> None:
    """Another backbone, cut off, one bit changed, not a number, a tensor too many: named; nothing stays attached."""
    config = GRAFTS.get(name)()
    grafted = attach(toy_backbone(), config)
    file = save_bundle(tmp_path / "a.graft", grafted)
    state, backbone = grafted.graft_state(), toy_backbone()
    names = tree(backbone)
    with pytest.raises(CheckpointError, match="was trained on backbone .* load the backbone that it names"):
        load_bundle(file, toy_backbone(seed=1))
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_bundle(file, backbone)
    key = next(iter(state))
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        grafted.load_graft_state(state | {key: torch.full_like(state[key], torch.nan)})
    with pytest.raises(CheckpointError, match=r"unknown \['grafts.other'\]"):
        grafted.load_graft_state(state | {"grafts.other": torch.zeros(1)})
    assert tree(backbone) == names and not backbone.occupied


@each_graft
def test_blocks_compile_whole_or_say_why_not(config: GraftConfig) -> None:
    """One graph per block, traced without a break; the code generator itself is not under test."""
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, config)
    perturb(grafted)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = grafted.encode(image).neck
        backbone.compile_blocks(backend="eager", fullgraph=True)
        if next(iter(grafted.grafts.values())).compile_refusal:
            with pytest.raises(torch._dynamo.exc.Unsupported):
                grafted.encode(image)
            return
        torch.testing.assert_close(grafted.encode(image).neck, expected, atol=1e-4, rtol=1e-4)


@each_graft
@pytest.mark.parametrize("dtype", list(MERGE_TOLERANCE), ids=str)
def test_merge_equals_unmerged_or_is_refused(config: GraftConfig, dtype: torch.dtype) -> None:
    backbone, image = toy_backbone().to(dtype), toy_image()
    names, before = tree(backbone), logits(backbone, image)
    grafted = attach(backbone, config)
    perturb(grafted)
    expected = logits(grafted, image)
    if next(iter(grafted.grafts.values())).merge_refusal:
        with pytest.raises(ConfigError, match=f"'{config.method}'.*cannot be merged.*nothing was changed"):
            grafted.merge()
        assert torch.equal(logits(grafted, image), expected)
        return
    grafted.merge()
    merged = logits(grafted, image)
    assert not torch.allclose(merged.double(), before.double(), atol=1e-3)
    assert (merged - expected).abs().max() <= MERGE_TOLERANCE[dtype] * expected.std()
    assert set(tree(backbone)) == set(names), "a merged backbone has the plain module tree"
    grafted.unmerge()
    assert torch.equal(logits(grafted, image), expected)
    grafted.merge()
    grafted.detach()
    assert tree(backbone) == names
    assert torch.equal(logits(backbone, image), before)


@each_method
def test_no_match_changes_nothing(name: str) -> None:
    backbone = toy_backbone(num_blocks=3)
    names = tree(backbone)
    if GRAFTS.get(name).part == "decoder":
        backbone.sam.mask_decoder = nn.Module()
        names = tree(backbone)
        with pytest.raises(NoMatchError, match="nothing was changed"):
            attach(backbone, [LoraConfig(targets=("lin1",)), GRAFTS.get(name)()])
    else:
        with pytest.raises(NoMatchError, match=r"name \[9\]; the backbone has 0..2; nothing was changed"):
            attach(backbone, [LoraConfig(targets=("lin1",)), GRAFTS.get(name)(blocks=(1, 9))])
        with pytest.raises(NoMatchError, match="asks for 7 blocks; the backbone has 3"):
            attach(backbone, GRAFTS.get(name)(blocks="last:7"))
    assert tree(backbone) == names


@each_graft
def test_prompts_of_two_images_do_not_mix(config: GraftConfig) -> None:
    image, prompts = toy_image(), toy_prompts()
    grafted = attach(toy_backbone(), config)
    perturb(grafted)
    together = grafted.decode(grafted.encode(image), prompts)[0]
    for row in range(len(prompts)):
        single = prompts.select(torch.tensor([row]))
        index = int(single.image_index)
        alone = copy.copy(single)
        object.__setattr__(alone, "image_index", torch.tensor([0]))
        result = grafted.decode(grafted.encode(image[index : index + 1]), alone)[0]
        torch.testing.assert_close(result[0], together[row], atol=1e-4, rtol=1e-4)


@each_graft
def test_gradients_in_float64(config: GraftConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directional derivative of the whole network along all attached parameters against central differences.

    DoRA holds the length of rows constant in the backward pass, on purpose; peft's cache holds it in the forward pass.
    """
    monkeypatch.setattr("peft.tuners.lora.dora.ENABLE_DORA_CACHING", True)
    backbone, image = toy_backbone().double(), toy_image().double()
    grafted = attach(backbone, config)
    perturb(grafted)
    parameters = grafted.trainable_parameters()
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(len(everything(grafted, image)), generator=generator, dtype=torch.float64)

    def value() -> Tensor:
        return (everything(grafted, image) * weights).mean()

    gradients = torch.autograd.grad(value(), parameters)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    step = 1e-6

    def moved(sign: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
            result = float(value())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(sign * step * direction)
        return result

    numeric = (moved(1.0) - moved(-1.0)) / (2 * step)
    assert abs(analytic) > 1e-9
    assert analytic == pytest.approx(numeric, rel=1e-4)


@each_graft
def test_autocast_bf16(config: GraftConfig) -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, config)
    perturb(grafted)
    exact = logits(grafted, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = logits(grafted, image)
        everything(grafted, image).float().mean().backward()
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.std()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in grafted.trainable_parameters())


@each_graft
def test_config_survives_json(config: GraftConfig) -> None:
    assert config_from_dict(GRAFTS, config.to_dict()) == config


@each_method
def test_bad_options_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"init is 'identty'; did you mean 'identity'\?"):
        GRAFTS.get(name)(init="identty")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"graft '{name}' has no option 'block'; did you mean 'blocks'"):
        config_from_dict(GRAFTS, {"method": name, "block": "all"})
