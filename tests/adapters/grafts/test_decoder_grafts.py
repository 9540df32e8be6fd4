"""Grafts in the mask decoder: formulas by hand, many prompts on one image, wrappers inside wrappers, mixtures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones import hf
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.shared_decoding import can_share
from samgraft.adapters.bundle import load_bundle, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import (
    GRAFTS,
    DecoderBottleneckConfig,
    DecoderLoraConfig,
    FullDecoderConfig,
    GraftConfig,
    LoraConfig,
)
from samgraft.adapters.grafts.decoder_bottleneck import HyperBottleneck, PromptedAttention
from samgraft.adapters.grafts.decoder_lora import UpscaleLora
from samgraft.adapters.grafts.lora import lora_options
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts
from tests.contract import everything, logits, perturb, train_steps, tree

DECODER = [name for name in GRAFTS.names() if GRAFTS.get(name).part == "decoder"]
MLP_AND_IMAGE = DecoderBottleneckConfig(targets=("mlp", "image_to_token"))


def boxes(number: int = 20) -> Prompts:
    """Boxes on one image."""
    corner = torch.rand(number, 2, generator=torch.Generator().manual_seed(3)) * 30
    return Prompts(image_index=torch.zeros(number, dtype=torch.int64), boxes=torch.cat([corner, corner + 25], dim=1))


def test_parameter_counts() -> None:
    """On SAM B; the decoder is the same in L and H. Widths 256, 64 and 32, MLP 2048, two layers."""
    plain, inner = 2 * 256 * 64 + 64 + 256, 2048
    expected = {
        DecoderBottleneckConfig(): 280_928,
        DecoderBottleneckConfig(width=64, targets=("token_to_image",)): 2 * (plain + 2 * 64 + 257 * 64**2),
        DecoderBottleneckConfig(hyper=False): 2 * 3 * plain,
        DecoderLoraConfig(targets=("upscale",)): 4 * (256 + 64 * 4) + 4 * (64 + 32 * 4),
        DecoderLoraConfig(targets=("lin1", "lin2"), rank=2): 2 * 2 * 2 * (256 + inner),
    }
    backbone = meta_backbone("b")
    for config, count in expected.items():
        grafted = attach(backbone, config)
        assert sum(p.numel() for p in grafted.trainable_parameters()) == count, config
        grafted.detach()


@pytest.mark.parametrize("rslora", [False, True])
def test_upscaling_by_hand(rslora: bool) -> None:
    base = torch.nn.ConvTranspose2d(6, 3, 2, stride=2).double().requires_grad_(False)
    wrapper = UpscaleLora(base, lora_options(4, 8.0, 0.0, rslora)).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    assert torch.equal(wrapper(x), base(x))
    assert wrapper.lora_A.weight.abs().max() <= 6**-0.5  # Kaiming-uniform of 6 inputs with a slope of sqrt(5)
    torch.nn.init.normal_(wrapper.lora_B.weight)
    down = functional.conv2d(x, wrapper.lora_A.weight)
    scale = 4.0 if rslora else 2.0
    expected = base(x) + scale * functional.conv_transpose2d(down, wrapper.lora_B.weight, stride=2)
    torch.testing.assert_close(wrapper(x), expected, rtol=1e-12, atol=1e-12)
    merged = functional.conv_transpose2d(x, wrapper.merged()["weight"], base.bias, stride=2)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


def test_hyper_adapter_by_hand() -> None:
    adapter = HyperBottleneck(4, 3, identity=False).double()
    x, prompt = torch.randn(2, 1, 5, 4, dtype=torch.float64), torch.randn(2, 1, 4, dtype=torch.float64)
    for sample in range(2):
        weight = (adapter.hyper.weight @ prompt[sample, 0] + adapter.hyper.bias).reshape(3, 3)
        down = (x[sample, 0] @ adapter.down.weight.T + adapter.down.bias) @ weight
        centred = down - down.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        expected = normed.clamp_min(0) @ adapter.up.weight.T + adapter.up.bias
        torch.testing.assert_close(adapter(x, prompt)[sample, 0], expected, rtol=1e-10, atol=1e-10)


def test_the_prompt_embedding_is_the_mean_of_the_queries() -> None:
    """With attention held constant, other queries change what the adapter does to the same tokens."""

    class Constant(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: object) -> tuple[Tensor, None]:
            assert set(options) == {"attention_similarity"}
            return torch.ones_like(query), None

    adapter = HyperBottleneck(4, 3, identity=False)
    attention = PromptedAttention(Constant(), adapter)
    query, image = torch.randn(2, 1, 5, 4), torch.randn(2, 1, 9, 4)
    found, weights = attention(query=query, key=image, value=image, attention_similarity=None)
    torch.testing.assert_close(found, 1 + adapter(torch.ones(2, 1, 5, 4), query.mean(dim=2)))
    assert weights is None and not torch.allclose(found[0], found[1])


SHARED = [
    (DecoderBottleneckConfig(), False),
    (DecoderBottleneckConfig(hyper=False, targets=("token_to_image",)), False),
    (MLP_AND_IMAGE, True),
    (DecoderLoraConfig(targets=("upscale",)), False),
    (DecoderLoraConfig(targets=("lin1", "lin2")), True),
    (DecoderLoraConfig(), False),
]


@pytest.mark.parametrize(("config", "shares"), SHARED, ids=lambda value: str(getattr(value, "targets", value)))
@pytest.mark.parametrize("multimask", [False, True])
def test_many_prompts_equal_one_by_one(config: GraftConfig, shares: bool, multimask: bool) -> None:
    """Twenty are enough for shared decoding, which one prompt alone never takes."""
    grafted, given = attach(toy_backbone().double(), config), boxes()
    perturb(grafted)
    decoder = grafted.backbone.sam.mask_decoder  # type: ignore[union-attr]
    assert can_share(decoder) is shares and len(given) >= hf.SHARED_FROM
    with torch.no_grad():
        features = grafted.encode(toy_image(batch=1).double())
        together = grafted.decode(features, given, multimask=multimask)
        rows = [grafted.decode(features, given.select(torch.tensor([i])), multimask=multimask) for i in range(20)]
    for found, alone in zip(together, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-10)
        assert found.std() > 1e-4


def test_class_tokens_read_the_adapted_decoder() -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, DecoderBottleneckConfig(), decoder=ClassTokensConfig(num_classes=2)).train()
    before = grafted.predict(image).logits
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        grafted.predict(image).logits.square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and (p.grad != 0).any() for p in grafted.grafts.parameters())
    with torch.no_grad():
        adapted = grafted.predict(image).logits
        for name, parameter in grafted.grafts.named_parameters():
            if ".up." in name:
                parameter.zero_()
        assert not torch.allclose(grafted.predict(image).logits, adapted, atol=1e-4)
    assert adapted.shape == before.shape


@pytest.mark.parametrize("method", DECODER)
def test_decoder_grafts_leave_the_encoder_frozen(method: str) -> None:
    grafted = attach(toy_backbone(), GRAFTS.get(method)())
    assert grafted.frozen_encoder() and grafted.frozen_blocks() == 3
    perturb(grafted)
    image = toy_image()
    assert torch.equal(grafted.encode(image).neck, toy_backbone().encode(image).neck)


def test_published_start_perturbs() -> None:
    image = toy_image()
    before = logits(toy_backbone(), image)
    config = DecoderBottleneckConfig(init="published")
    grafted = attach(toy_backbone(), config)
    assert (logits(grafted, image) - before).abs().max() > 1e-3
    assert all((p != 0).any() for p in grafted.trainable_parameters() if p.ndim == 2)
    adapter = grafted.grafts["decoder_bottleneck"].linears.parts["0_mlp"]["adapter"]  # type: ignore[index,union-attr]
    assert adapter.up.weight.abs().max() <= 8**-0.5 and adapter.scale == 0.5


INSIDE = DecoderLoraConfig(targets=("q_proj", "v_proj", "lin1", "upscale"))


@pytest.mark.parametrize("inside", [INSIDE, FullDecoderConfig()], ids=lambda c: c.method)
def test_wrappers_inside_wrapped_modules(inside: GraftConfig) -> None:
    """A graft on linear layers of an MLP and one around the MLP itself, in any order."""
    around = DecoderBottleneckConfig(targets=("token_to_image", "mlp"))
    image, found = toy_image(), []
    state: dict[str, Tensor] = {}
    for order in (["inside", "around"], ["around", "inside"]):
        backbone = toy_backbone()
        names, before = tree(backbone), everything(backbone, image)
        grafted = attach(backbone, {name: inside if name == "inside" else around for name in order})
        if not state:
            perturb(grafted)
            state = {key: value.clone() for key, value in grafted.graft_state().items()}
        grafted.load_graft_state(state)
        found.append(everything(grafted, image))
        only = attach(toy_backbone(), {"around": around})
        only.load_graft_state({k: v for k, v in grafted.graft_state().items() if k.startswith("grafts.around")})
        assert not torch.allclose(everything(only, image), found[-1], atol=1e-4), "what is inside must take part"
        grafted.detach()
        assert tree(backbone) == names
        assert torch.equal(everything(backbone, image), before)
    assert torch.equal(found[0], found[1])


def test_full_decoder_refuses_a_wrapped_norm() -> None:
    with pytest.raises(ConfigError, match="both want layer .*layer_norm4"):
        attach(toy_backbone(), [FullDecoderConfig(), MLP_AND_IMAGE])


def test_mixture_trains_saves_and_loads(tmp_path: Path) -> None:
    """LoRA in the encoder, bottlenecks in the decoder."""
    image, target = toy_image(), logits(toy_backbone(seed=5), toy_image()).detach()

    def loss(grafted: Grafted) -> float:
        return float((logits(grafted, image) - target).square().mean().detach())

    grafted = attach(toy_backbone(), [LoraConfig(rank=2), DecoderBottleneckConfig()]).train()
    before, blocks = loss(grafted), grafted.frozen_blocks()
    assert blocks == 0 and not grafted.frozen_encoder()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-2)
    for _ in range(12):
        optimizer.zero_grad(set_to_none=True)
        (logits(grafted, image) - target).square().mean().backward()
        optimizer.step()
    assert loss(grafted.eval()) < 0.8 * before
    with pytest.raises(ConfigError, match="'decoder_bottleneck' .*cannot be merged.*nothing was changed"):
        grafted.merge()
    loaded = load_bundle(save_bundle(tmp_path / "both.graft", grafted), toy_backbone())
    assert loaded.configs == grafted.configs
    assert torch.equal(logits(loaded, image), logits(grafted, image))
    assert {key.split(".")[1] for key in loaded.graft_state()} == {"lora", "decoder_bottleneck"}


def test_nothing_is_kept_between_calls() -> None:
    grafted, image = attach(toy_backbone(), DecoderBottleneckConfig()), toy_image()
    train_steps(grafted, image, 1)
    features, prompts = grafted.encode(image), toy_prompts()
    first = grafted.decode(features, prompts)[0]
    grafted.decode(features, boxes(3))
    assert torch.equal(grafted.decode(features, prompts)[0], first)
    kept = [v for m in grafted.backbone.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    assert kept == []


def test_bad_options_and_other_decoders() -> None:
    with pytest.raises(ConfigError, match="width is 1; expected at least 2"):
        DecoderBottleneckConfig(width=1)
    with pytest.raises(ConfigError, match="target is 'image'"):
        DecoderBottleneckConfig(targets=("image",))
    with pytest.raises(ConfigError, match=r"target is 'upscaling'; did you mean 'upscale'\?"):
        DecoderLoraConfig(targets=("upscaling",))
    backbone: HFSamBackbone = toy_backbone()
    backbone.sam.mask_decoder = torch.nn.Module()
    with pytest.raises(NoMatchError, match="no transposed convolution upscale_conv1; nothing was changed"):
        attach(backbone, DecoderLoraConfig(targets=("upscale",)))
