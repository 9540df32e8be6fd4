"""attach: names, refusals, the table, and parameter counts of the published sizes on the meta device."""

import pytest
import torch
from transformers import SamConfig, SamModel, SamVisionConfig

import samgraft.adapters as adapters
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import GRAFTS, BottleneckConfig, DecoderLoraConfig, GraftConfig, LoraConfig
from samgraft.adapters.grafts.base import select_blocks
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import logits, perturb, tree

SAM = {"B": (768, 12, 12, (2, 5, 8, 11)), "L": (1024, 24, 16, (5, 11, 17, 23)), "H": (1280, 32, 16, (7, 15, 23, 31))}


@pytest.fixture(scope="module")
def sams() -> dict[str, HFSamBackbone]:
    """SAM B, L and H without memory."""
    built = {}
    with torch.device("meta"):
        for name, (width, depth, heads, global_blocks) in SAM.items():
            vision = SamVisionConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                global_attn_indexes=list(global_blocks),
                mlp_dim=4 * width,
            )
            built[name] = HFSamBackbone(SamModel(SamConfig(vision_config=vision)), name=name)
    return built


def count(backbone: HFSamBackbone, config: GraftConfig) -> int:
    with torch.device("meta"):
        grafted = attach(backbone, config)
    number = sum(parameter.numel() for parameter in grafted.trainable_parameters())
    grafted.detach()
    return number


@pytest.mark.parametrize("size", SAM)
def test_published_parameter_counts(sams: dict[str, HFSamBackbone], size: str) -> None:
    """adapters.md 0.3."""
    backbone, (d, blocks, _, _) = sams[size], SAM[size]
    assert count(backbone, LoraConfig(rank=4)) == 4 * 4 * d * blocks == {"B": 147456, "L": 393216, "H": 655360}[size]
    assert count(backbone, LoraConfig(rank=4, targets=("qkv",))) == 4 * 4 * d * blocks
    assert count(backbone, LoraConfig(rank=2, targets=("lin1", "lin2"))) == 2 * 2 * 5 * d * blocks
    per_block = {"B": 295872, "L": 525568, "H": 820800}[size]
    assert count(backbone, BottleneckConfig(sites=("parallel_mlp",))) == per_block * blocks
    assert per_block == d * d // 2 + 5 * d // 4
    assert count(backbone, BottleneckConfig(blocks="last:4")) == 2 * per_block * 4
    rank, width, half = 4, 256, 128
    attention = 2 * 2 * rank * 2 * width + 5 * 2 * rank * (width + half)  # q and v of 2 self and 5 cross attentions
    assert count(backbone, DecoderLoraConfig(rank=rank)) == attention


def test_registries() -> None:
    published = {"adaptformer", "bottleneck", "channel_spatial", "conv_lora", "decoder_bottleneck", "decoder_lora"}
    published |= {"dora", "fact", "high_frequency", "ia3", "learnable_prompt", "lora", "ssf", "vera", "vpt"}
    volumetric = {"adapter_3dsam", "ma_sam", "sd_trans"}
    assert set(GRAFTS.names()) == published | volumetric | {"bias", "full", "full_decoder", "layer_norm", "neck_affine"}
    assert adapters.GRAFTS is GRAFTS
    assert {"autosam", "grid", "manual"} <= set(adapters.PROMPTERS.names())
    assert {"class_tokens", "conv_head", "mask"} <= set(adapters.DECODERS.names())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adapters.nothing  # noqa: B018


def test_names_of_grafts() -> None:
    grafted = attach(toy_backbone(), [LoraConfig(), LoraConfig(targets=("lin1",)), BottleneckConfig()])
    assert tuple(grafted.grafts) == ("lora", "lora_2", "bottleneck")
    assert tuple(attach(toy_backbone(), {"mine": LoraConfig()}).grafts) == ("mine",)


def test_conflicts_are_refused_before_anything_changes() -> None:
    backbone = toy_backbone()
    names = tree(backbone)
    with pytest.raises(ConfigError, match=r"grafts 'lora' and 'lora_2' both want layer .*lin1"):
        attach(backbone, [LoraConfig(targets=("lin1",)), LoraConfig(targets=("lin2", "lin1"))])
    with pytest.raises(ConfigError, match="graft name 'a.b'"):
        attach(backbone, {"a.b": LoraConfig()})
    with pytest.raises(ConfigError, match="graft 'lora' is a str; expected a configuration"):
        attach(backbone, {"lora": "lora"})  # type: ignore[dict-item]
    assert tree(backbone) == names
    grafted = attach(backbone, LoraConfig())
    with pytest.raises(ConfigError, match="already carries grafts; detach"):
        attach(backbone, BottleneckConfig())
    grafted.detach()
    attach(backbone, BottleneckConfig())


def test_a_failing_install_is_undone() -> None:
    backbone = toy_backbone()
    names = tree(backbone)

    class Broken(LoraConfig):
        def build(self, backbone):  # type: ignore[no-untyped-def]
            graft = super().build(backbone)
            graft.install = lambda backbone: (_ for _ in ()).throw(RuntimeError("no room"))  # type: ignore[method-assign]
            return graft

    with pytest.raises(RuntimeError, match="no room"):
        attach(backbone, [BottleneckConfig(), LoraConfig(targets=("lin1",)), Broken()])
    assert tree(backbone) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ()}, "name at least one of q, k, v"),
        ({"targets": ("q", "q")}, "each once"),
        ({"targets": ("qv",)}, "target is 'qv'.*[Cc]hoose from q, k, v, qkv"),
        ({"targets": ("qkv", "v")}, r"adapt \['v'\] twice"),
        ({"rank": 0}, "rank is 0; expected at least 1"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a number above 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_lora_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"sites": ("mlp",)}, "site is 'mlp'"), ({"ratio": 0.0}, "ratio is 0.0"), ({"sites": ()}, "name at least one")],
)
def test_bad_bottleneck_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**arguments)  # type: ignore[arg-type]


def test_blocks() -> None:
    assert select_blocks("all", 3) == (0, 1, 2)
    assert select_blocks("last:2", 12) == (10, 11)
    assert select_blocks("first:2", 12) == (0, 1)
    assert select_blocks([5, 2], 6) == (2, 5)
    for blocks in ("last", "late:2", "last:-1", "last:x"):
        with pytest.raises(ConfigError, match="expected 'all', 'last:N'"):
            select_blocks(blocks, 6)
    with pytest.raises(ConfigError, match="name a block twice"):
        select_blocks([1, 1], 6)
    for bad in ([], [-1], [6]):
        with pytest.raises(NoMatchError, match="nothing was changed"):
            select_blocks(bad, 6)
    with pytest.raises(NoMatchError, match="asks for 0 blocks"):
        select_blocks("last:0", 6)


def test_published_initialisation_perturbs() -> None:
    backbone, image = toy_backbone(), toy_image()
    before = logits(backbone, image)
    with torch.no_grad():
        after = logits(attach(backbone, BottleneckConfig(init="published")), image)
    assert (after - before).abs().max() > 1e-3


def test_lora_slices_equal_the_formula() -> None:
    """q gets x + s B A x with s = alpha / rank, seen as a change of the fused weight."""
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, LoraConfig(targets=("q",), rank=2, alpha=6.0, blocks=(1,)))
    perturb(grafted, 0.3)
    expected = logits(grafted, image)
    state = grafted.graft_state()
    a, b = (state[f"grafts.lora.blocks.1.qkv.slices.q.lora_{part}.graft.weight"] for part in "AB")
    grafted.detach()
    weight = backbone.sam.vision_encoder.layers[1].attn.qkv.weight
    with torch.no_grad():
        weight[:32] += 3.0 * b @ a
    torch.testing.assert_close(logits(backbone, image), expected, atol=1e-4, rtol=1e-4)


def test_mixed_merge_names_the_graft_that_cannot() -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, [LoraConfig(), BottleneckConfig()])
    perturb(grafted)
    names, before = tree(backbone), logits(grafted, image)
    with pytest.raises(ConfigError, match=r"graft 'bottleneck' \(bottleneck\) cannot be merged: a GELU"):
        grafted.merge()
    assert tree(backbone) == names
    assert torch.equal(logits(grafted, image), before)


def test_table() -> None:
    backbone = toy_backbone()
    own = sum(p.numel() for p in backbone.parameters())
    grafted = attach(
        backbone, LoraConfig(rank=2), prompter=AutoSamConfig(channels=16), decoder=ClassTokensConfig(num_classes=2)
    )
    total = sum(p.numel() for p in grafted.trainable_parameters())
    lines = grafted.trainable_table().splitlines()
    assert lines[0].split() == ["part", "method", "insertion", "point", "parameters", "%", "of", "backbone"]
    assert lines[2].split()[:2] == ["lora", "lora"] and "I2 q/v slices" in lines[2]
    assert lines[2].split()[-2:] == ["768", f"{100 * 768 / own:.3f}"]
    assert [line.split()[0] for line in lines[2:]] == ["lora", "prompter", "decoder", "total", "backbone"]
    assert lines[-2].split()[-2] == f"{total:,}"
    assert lines[-1].split()[-2:] == [f"{own:,}", "100.000"]


def test_modes_and_devices_of_parts() -> None:
    backbone = toy_backbone().double()
    grafted = attach(backbone, LoraConfig(dropout=0.3, targets=("q", "lin1")), decoder=ClassTokensConfig(dropout=0.5))
    assert {p.dtype for p in grafted.trainable_parameters()} == {torch.float64}
    assert not any(module.training for module in grafted.grafts.modules())
    grafted.train()
    assert all(m.training for m in grafted.grafts.modules()) and not backbone.sam.training
    assert any(isinstance(m, torch.nn.Dropout) and m.training for m in backbone.modules())
    grafted.eval()
    assert not any(module.training for module in grafted.modules())
