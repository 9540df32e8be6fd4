"""The contract of a frozen backbone: freezing, hash, errors, chunks, dtypes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from samgraft.adapters.backbones import Features, HFSamBackbone, MaskDecoderState
from samgraft.adapters.backbones.hf import hash_tensors
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import CheckpointError, InputError, NoMatchError, PromptError, ShapeError
from tests.data.checkpoints import toy_config, toy_sam


@pytest.fixture
def backbone() -> HFSamBackbone:
    return HFSamBackbone(toy_sam())


@pytest.fixture
def features(backbone: HFSamBackbone) -> Features:
    return backbone.encode(torch.rand(2, 3, 64, 48))


def boxes(number: int) -> Prompts:
    generator = torch.Generator().manual_seed(number)
    low = torch.rand(number, 2, generator=generator) * 20
    return Prompts(image_index=torch.arange(number) % 2, boxes=torch.cat([low, low + 20], dim=1))


def test_spec_is_read_from_the_model(backbone: HFSamBackbone) -> None:
    spec = backbone.spec
    assert (spec.patch_size, spec.native_size, spec.embed_dim, spec.num_blocks) == (8, 64, 32, 3)
    assert (spec.num_heads, spec.window_size, spec.global_blocks, spec.neck_channels) == (4, 3, (1,), 32)
    assert spec.mean == (0.485, 0.456, 0.406)


def test_normalisation_happens_once(backbone: HFSamBackbone) -> None:
    image = torch.rand(1, 3, 64, 64)
    plain = HFSamBackbone(toy_sam(), mean=(0, 0, 0), std=(1, 1, 1))
    scaled = (image - torch.tensor(backbone.spec.mean)[:, None, None]) / torch.tensor(backbone.spec.std)[:, None, None]
    torch.testing.assert_close(backbone.encode(image).neck, plain.encode(scaled).neck, atol=1e-5, rtol=1e-5)


def test_stays_frozen_and_in_eval_mode(backbone: HFSamBackbone) -> None:
    graft = nn.Dropout(0.5)
    backbone.block_sites[0].parallel_mlp.append(graft)
    backbone.train()
    assert not any(module.training for module in backbone.modules() if module is not graft)
    assert graft.training  # grafts follow the mode, the backbone does not
    backbone.eval()
    assert not graft.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    other = copy.deepcopy(backbone).train()
    assert not any(module.training for module in other.sam.modules())


def test_hash_is_of_the_frozen_tensors_as_loaded(backbone: HFSamBackbone) -> None:
    first = backbone.weights_hash()
    assert len(first) == 64
    assert HFSamBackbone(toy_sam(), name="other", mean=(0, 0, 0), std=(1, 1, 1)).weights_hash() == first
    backbone.block_sites[1].after_attention.append(nn.Linear(32, 32))
    attn = backbone.sam.vision_encoder.layers[0].attn
    attn.qkv = nn.Sequential(attn.qkv)  # a wrapper renames keys
    backbone.double()
    assert backbone.weights_hash() == first
    changed = toy_sam()
    with torch.no_grad():
        changed.mask_decoder.iou_token.weight[0, 0] += 1e-6
    assert HFSamBackbone(changed).weights_hash() != first


def test_hash_depends_on_name_dtype_shape_and_bytes() -> None:
    base = hash_tensors({"a": torch.zeros(2, 3), "b": torch.ones(1)})
    assert hash_tensors({"b": torch.ones(1), "a": torch.zeros(2, 3)}) == base
    for other in (
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": -torch.ones(1)},
    ):
        assert hash_tensors(other) != base
    assert hash_tensors({"a": torch.tensor(1.0, dtype=torch.bfloat16)})  # no axis, no numpy dtype


def test_meta_device_counts_but_has_no_hash() -> None:
    with torch.device("meta"):
        model = SamModel(SamConfig(**toy_config()))
    backbone = HFSamBackbone(model)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in toy_sam().parameters())
    with pytest.raises(CheckpointError, match="meta device"):
        backbone.weights_hash()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 64, 64), r"shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        ((1, 1, 64, 64), "repeat gray to 3 channels"),
        ((1, 3, 60, 65), "60 x 65 .* multiples of 8; pad it at the bottom and right to 64 x 72"),
        ((1, 3, 0, 64), "to 8 x 64"),
    ],
)
def test_wrong_shapes_are_refused(backbone: HFSamBackbone, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        backbone.encode(torch.zeros(shape))


def test_wrong_dtype_tap_and_index_are_refused(backbone: HFSamBackbone, features: Features) -> None:
    with pytest.raises(InputError, match=r"torch.uint8; expected floating point in \[0, 1\]"):
        backbone.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(NoMatchError, match=r"taps \[3\] .* expected 0\.\.2"):
        backbone.encode(torch.zeros(1, 3, 64, 64), taps=(0, 3))
    with pytest.raises(PromptError, match=r"spans 0\.\.2; there are 2 images"):
        backbone.decode(features, Prompts(image_index=torch.tensor([0, 2])))
    with pytest.raises(PromptError, match="NaN or Inf"):
        backbone.decode(features, Prompts(image_index=torch.tensor([0]), boxes=torch.full((1, 4), torch.nan)))
    with pytest.raises(PromptError, match=r"labels are \[2\]"):
        prompts = Prompts(image_index=torch.tensor([0]), points=torch.zeros(1, 1, 2), labels=torch.tensor([[2]]))
        backbone.decode(features, prompts)
    with pytest.raises(ShapeError, match=r"prompts.masks has shape \(1, 1, 32, 32\); expected \(1, 1, 32, 24\)"):
        backbone.decode(features, Prompts(image_index=torch.tensor([0]), masks=torch.zeros(1, 1, 32, 32)))
    with pytest.raises(ShapeError, match=r"prompts.dense has shape .* expected \(1, 32, 8, 6\)"):
        backbone.decode(features, Prompts(image_index=torch.tensor([0]), dense=torch.zeros(1, 32, 8, 8)))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(backbone: HFSamBackbone, features: Features, chunk: int) -> None:
    backbone.double()  # in single precision matrix products of other sizes round otherwise, by processor
    exact = Features(neck=features.neck.double())
    whole, scores = backbone.decode(exact, boxes(7), multimask=True)
    logits, iou = backbone.decode(exact, boxes(7), multimask=True, chunk=chunk)
    torch.testing.assert_close(logits, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(iou, scores, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("multimask", "masks"), [(False, 1), (True, 3)])
def test_no_prompts_give_no_masks(backbone: HFSamBackbone, features: Features, multimask: bool, masks: int) -> None:
    none = Prompts(image_index=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    logits, iou = backbone.decode(features, none, multimask=multimask)
    assert logits.shape == (0, masks, 32, 24)
    assert iou.shape == (0, masks)


def test_prefix_and_resume_equal_encode(backbone: HFSamBackbone) -> None:
    image = torch.rand(2, 3, 64, 40)
    whole = backbone.encode(image, taps=(2,))
    for stop in range(4):
        early = (2,) if stop > 2 else ()
        rest = backbone.resume(backbone.prefix(image, stop, early), image, taps=(2,))
        assert torch.equal(rest.neck, whole.neck)
        assert torch.equal(rest.taps[2], whole.taps[2])
    with pytest.raises(NoMatchError, match=r"taps \[0\]"):
        backbone.resume(backbone.prefix(image, 1), image, taps=(0,))
    with pytest.raises(NoMatchError, match=r"taps \[1\]"):
        backbone.prefix(image, 1, taps=(1,))


def test_untouched_blocks_end_where_something_is_attached_or_trained(backbone: HFSamBackbone) -> None:
    assert backbone.untouched() == (3, True)
    backbone.block_sites[1].after_attention.append(nn.Identity())
    assert backbone.untouched() == (1, False)
    backbone.block_sites[1].after_attention.pop(0)
    backbone.encoder_sites.neck.append(nn.Identity())
    assert backbone.untouched() == (3, False)
    backbone.encoder_sites.neck.pop(0)
    backbone.sam.vision_encoder.layers[2].mlp.lin1.weight.requires_grad_(True)
    assert backbone.untouched() == (2, False)
    backbone.encoder_sites.patch_embed.append(nn.Identity())
    assert backbone.untouched() == (0, False)


@pytest.mark.parametrize("trained", [0, 2])
def test_checkpointed_blocks_give_the_same_gradients(trained: int) -> None:
    image = torch.rand(1, 3, 64, 40)
    found = []
    for again in (False, True):
        backbone = HFSamBackbone(toy_sam())
        weights = [p.requires_grad_(True) for p in backbone.sam.vision_encoder.layers[trained].parameters()]
        backbone.checkpointing = again
        features = backbone.encode(image, taps=(1,))
        (features.neck.square().mean() + features.taps[1].square().mean()).backward()
        found.append([p.grad for p in weights])
        assert torch.equal(features.neck, HFSamBackbone(toy_sam()).encode(image).neck)
    for plain, other in zip(*found, strict=True):
        assert plain is not None and other is not None
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-8)


class TwoTokens(nn.Module):
    """A patch: two more tokens; their dot product with the upscaled map is the logit."""

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        self.apart = apart
        self.weight = nn.Parameter(torch.randn(2, 32))
        self.state: MaskDecoderState | None = None

    def tokens(self) -> Tensor:
        return self.weight

    def finish(self, state: MaskDecoderState) -> tuple[Tensor, Tensor]:
        self.state = state
        return torch.einsum("ntc,nchw->nthw", state.extra_tokens[..., :4], state.upscaled), state.iou.expand(-1, 2)


def test_decoder_patch_adds_tokens_and_gets_gradients(backbone: HFSamBackbone, features: Features) -> None:
    patch = TwoTokens()
    logits, iou = backbone.decode(features, boxes(5), patch=patch, chunk=2)
    assert logits.shape == (5, 2, 32, 24)
    assert iou.shape == (5, 2)
    assert patch.state is not None
    assert patch.state.extra_tokens.shape == (1, 2, 32)
    assert patch.state.mask_tokens.shape == (1, 4, 32)
    assert patch.state.image_index.tolist() == [0]
    logits.sum().backward()
    assert patch.weight.grad is not None and patch.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in backbone.parameters())


def test_tokens_that_stand_apart_change_nothing_else(backbone: HFSamBackbone, features: Features) -> None:
    """SAM's logits, tokens and image are bit-equal to those without a patch; a joined token changes them."""
    torch.manual_seed(0)
    expected, quality = backbone.decode(features, boxes(5))
    seen = {}
    for apart in (False, True):
        patch = TwoTokens(apart=apart)
        backbone.decode(features, boxes(5), patch=patch)
        assert patch.state is not None
        seen[apart] = patch.state
    assert torch.equal(seen[True].logits, expected) and torch.equal(seen[True].iou, quality)
    assert not torch.allclose(seen[False].logits, expected, atol=1e-4)


def test_a_token_apart_is_a_masked_attention(
    backbone: HFSamBackbone, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as SAM's own forward with all tokens, where nothing but the token itself may attend to it."""
    torch.manual_seed(0)
    patch, other = TwoTokens(apart=True), TwoTokens(apart=False)
    other.weight = patch.weight
    prompts = boxes(2)
    backbone.decode(features, prompts, patch=patch)
    for layer in backbone.sam.mask_decoder.transformer.layers:
        for attention in (layer.self_attn, layer.cross_attn_image_to_token):
            monkeypatch.setattr(attention, "forward", _hiding(attention, slice(5, 7)))
    backbone.decode(features, prompts, patch=other)
    assert patch.state is not None and other.state is not None
    for name in ("extra_tokens", "mask_tokens", "image", "logits"):
        torch.testing.assert_close(getattr(patch.state, name), getattr(other.state, name), atol=1e-5, rtol=1e-4)


def _hiding(attention: nn.Module, hidden: slice) -> Any:
    """``attention.forward`` in which keys ``hidden`` are seen by queries ``hidden`` of self attention only."""
    forward = attention.forward

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Any:
        mask = torch.zeros(query.shape[2], key.shape[2])
        mask[:, hidden] = -torch.inf
        if query.shape[2] == key.shape[2]:
            mask[hidden, hidden] = 0
        return forward(query=query, key=key, value=value, attention_similarity=mask[None, None])

    return masked


def test_float64_agrees_with_float32(backbone: HFSamBackbone) -> None:
    image = torch.rand(1, 3, 64, 64)
    prompts = Prompts(image_index=torch.tensor([0]), boxes=torch.tensor([[4.0, 5.0, 40.0, 33.0]]))
    single, _ = backbone.decode(backbone.encode(image), prompts)
    double, _ = backbone.double().decode(backbone.encode(image.double()), prompts)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_bfloat16_is_close(backbone: HFSamBackbone, how: str) -> None:
    image = torch.rand(1, 3, 64, 64)
    prompts = Prompts(image_index=torch.tensor([0]), boxes=torch.tensor([[4.0, 5.0, 40.0, 33.0]]))
    exact, _ = backbone.decode(backbone.encode(image), prompts)
    position, _ = backbone.embed(prompts, (64, 64))
    if how == "cast":
        backbone.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        logits, _ = backbone.decode(backbone.encode(image), prompts)
        coarse, _ = backbone.embed(prompts, (64, 64))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
    # positions are coded in float32 under autocast: half precision would blur neighbouring pixels
    torch.testing.assert_close(coarse.float(), position, atol=0 if how == "autocast" else 0.1, rtol=0)


def test_only_square_rgb_models_are_taken() -> None:
    config = toy_config()
    config["vision_config"]["num_channels"] = 1
    with pytest.raises(CheckpointError, match="num_channels 1; expected"):
        HFSamBackbone(SamModel(SamConfig(**config)))
