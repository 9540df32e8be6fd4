"""Volumetric grafts: true order of slices, which slice sees which, planes made of several slices, counts.

Identity, frozen weights, files and detaching are those of every graft (tests/contract.py), which runs over these too.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GRAFTS, BottleneckConfig, GraftConfig, LoraConfig
from samgraft.errors import ConfigError, ShapeError
from samgraft.volumetric.grafts import Adapter3dsamConfig, MaSamConfig, SdTransConfig
from samgraft.volumetric.grafts.adapter_3dsam import SliceEmbedding
from samgraft.volumetric.grafts.ma_sam import DepthAdapter
from samgraft.volumetric.grafts.sd_trans import attention_over_slices
from samgraft.volumetric.heads import Detail3dConfig
from samgraft.volumetric.stack import as_slices, as_volumes, channels_first, channels_last, depth_conv
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone
from tests.volumetric._stacks import move, sees, volume

ACROSS = [MaSamConfig(), SdTransConfig(), Adapter3dsamConfig()]
each = pytest.mark.parametrize("config", ACROSS, ids=lambda config: config.method)


def grafted_with(config: GraftConfig, **options: Any) -> Grafted:
    grafted = attach(toy_backbone(**options), config)
    move(grafted)
    return grafted


def test_registered_by_name() -> None:
    assert {"ma_sam", "sd_trans", "adapter_3dsam"} <= set(GRAFTS.names())
    assert [name for name in GRAFTS.names() if GRAFTS.get(name).volumetric] == ["adapter_3dsam", "ma_sam", "sd_trans"]


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_attached_the_encoder_is_bit_equal_to_slice_by_slice(
    config: GraftConfig, depth: int, dtype: torch.dtype
) -> None:
    backbone, image = toy_backbone().to(dtype), volume(depth, volumes=2).to(dtype)
    before = backbone.encode(image, taps=(1,))
    grafted = attach(backbone, config)
    after = grafted.encode(image, taps=(1,), depth=depth)
    assert torch.equal(after.neck, before.neck) and torch.equal(after.taps[1], before.taps[1])
    assert after.depth == depth and after.neck.dtype == dtype


@each
def test_order_of_slices_matters(config: GraftConfig) -> None:
    """Shuffled slices give another answer, also brought back into their order; slice-wise they commute."""
    grafted, order = grafted_with(config), torch.tensor([2, 0, 4, 1, 3])
    image = volume(5)
    with torch.no_grad():
        straight = grafted.encode(image, depth=5).neck
        shuffled = grafted.encode(image[order], depth=5).neck
        plain = grafted.encode(image).neck
    assert (shuffled - straight).abs().max() > 1e-2
    assert (shuffled - straight[order]).abs().max() > 1e-2
    assert (plain - straight).abs().max() > 1e-2, "slices alone are not a volume"
    one = grafted_with(LoraConfig())
    with torch.no_grad():
        torch.testing.assert_close(
            one.encode(image[order], depth=5).neck, one.encode(image, depth=5).neck[order], atol=1e-5, rtol=1e-5
        )


@each
def test_volumes_of_a_batch_do_not_mix(config: GraftConfig) -> None:
    grafted, image = grafted_with(config), volume(3, volumes=2)
    with torch.no_grad():
        both = grafted.encode(image, depth=3).neck
        alone = grafted.encode(image[3:], depth=3).neck
    torch.testing.assert_close(both[3:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoraConfig(blocks=(1,)), lambda z: [z]),
        (BottleneckConfig(blocks=(1,)), lambda z: [z]),
        (MaSamConfig(blocks=(1,), sites=("block_input",)), lambda z: range(z - 1, z + 2)),
        (MaSamConfig(blocks=(1,)), lambda z: range(z - 2, z + 3)),
        (MaSamConfig(blocks=(0, 2)), lambda z: range(z - 4, z + 5)),
        (SdTransConfig(blocks=(1,)), lambda z: range(8)),
        # a cube of slices 0..3 or 4..7, after a convolution that reaches one slice further
        (
            Adapter3dsamConfig(blocks=(1,), window=4, embedding=False),
            lambda z: range(z // 4 * 4 - 1, z // 4 * 4 + 5),
        ),
        # shifted by half a cube: 0..1, 2..5, 6..7
        (
            Adapter3dsamConfig(blocks=(0,), window=4, embedding=False),
            lambda z: range((z + 2) // 4 * 4 - 3, (z + 2) // 4 * 4 + 3),
        ),
        # and one slice more through the patch embedding
        (Adapter3dsamConfig(blocks=(1,), window=4), lambda z: range(z // 4 * 4 - 2, z // 4 * 4 + 6)),
    ],
    ids=lambda value: value.method if isinstance(value, GraftConfig) else "",
)
def test_receptive_field(config: GraftConfig, expected: Callable[[int], Any]) -> None:
    grafted, image = grafted_with(config), volume(8, 24, 40).requires_grad_(True)
    neck = grafted.encode(image, depth=8).neck
    for z in range(8):
        assert sees(neck[z], image) == [s for s in expected(z) if 0 <= s < 8], z


def test_all_slices_are_seen_with_the_defaults() -> None:
    for config in (SdTransConfig(), Adapter3dsamConfig()):
        image = volume(6, 24, 24).requires_grad_(True)
        assert sees(grafted_with(config).encode(image, depth=6).neck[0], image) == list(range(6))


def test_planes_of_several_slices() -> None:
    """7 slices, 3 per plane: the planes pass slices 1, 4 and 6 (the middle of 6, 7, 8, where 6 repeats)."""
    backbone, image = toy_backbone(), volume(7, volumes=2)
    picked = torch.tensor([1, 4, 6, 8, 11, 13])
    expected = backbone.encode(image[picked]).neck
    grafted = attach(backbone, [Adapter3dsamConfig(depth_patch=3)])
    features = grafted.encode(image, depth=7)
    assert features.depth == 3 and torch.equal(features.neck, expected)
    middle = grafted.backbone.prefix(image, 1, depth=7)
    assert middle.depth == 3
    assert torch.equal(grafted.backbone.resume(middle, image).neck, expected)
    grafted.detach()
    for head, message in ((ClassTokensConfig(), "14 slices became 6 token planes"), (Detail3dConfig(), "")):
        other = attach(backbone, [Adapter3dsamConfig(depth_patch=3)], decoder=head)
        features = other.encode(image, depth=7)
        if message:
            with pytest.raises(ConfigError, match=message):
                other.predict(image, features=features)
        else:
            assert other.predict(image, features=features).logits.shape[0] == 14
        other.detach()


def test_slice_embedding_is_a_strided_convolution() -> None:
    part = SliceEmbedding(4, 3, 2, identity=False)
    x = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = [[0, 1, 2], [2, 3, 4], [4, 4, 4]]  # from the first slice of every plane on; the ends repeat
    expected = torch.stack([sum(x[i] * part.weight[k] for k, i in enumerate(row)) + part.bias for row in rows])
    assert part.count(5) == 3 and part.centres(5) == [1, 3, 4]
    torch.testing.assert_close(part(x, 5), expected)


def test_depth_convolution_is_that_of_torch() -> None:
    x = torch.randn(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv = nn.Conv3d(6, 7, (3, 1, 1), padding=(1, 0, 0)).double()
    expected = conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(depth_conv(x, conv.weight[..., 0, 0], conv.bias), expected)


def test_depth_adapter_of_one_slice_sees_zeros_on_either_side() -> None:
    part = DepthAdapter(6, 4, identity=False)
    x = torch.randn(1, 2, 2, 6, generator=torch.Generator().manual_seed(0))
    context = SiteContext(grid_size=(2, 2), image=x)
    inner = part.down(part.norm(x)) @ part.conv.weight[:, :, 1].T + part.conv.bias
    torch.testing.assert_close(part(x, context), part.up(nn.functional.gelu(inner)))


def test_attention_over_slices_by_hand() -> None:
    depth, heads, width = 3, 2, 4

    class Attention:
        num_attention_heads, use_rel_pos = heads, True
        rel_pos_h = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        rel_pos_w = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    qkv = torch.randn(1, depth, 2, 3, 3 * width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = (Attention.rel_pos_h + Attention.rel_pos_w) / 2  # distances -2 to 2
    query, key, value = qkv[0, :, 1, 2].unflatten(-1, (3, heads, 2)).unbind(1)  # at one place, (D, heads, c)
    expected = torch.zeros(depth, heads, 2, dtype=torch.float64)
    for z in range(depth):
        for head in range(heads):
            q = query[z, head]
            scores = torch.stack([q @ key[s, head] / math.sqrt(2) + q @ table[z - s + 2] for s in range(depth)])
            expected[z, head] = scores.softmax(0) @ value[:, head]
    found = attention_over_slices(Attention, qkv)
    torch.testing.assert_close(found[:, 1, 2], expected.flatten(1))


def test_stacks_go_there_and_back() -> None:
    x = torch.arange(24.0).reshape(6, 2, 2, 1)
    assert as_volumes(x, 3)[1, 0, 0, 0] == x[3, 0, 0]  # row b D + z
    assert torch.equal(as_slices(as_volumes(x, 3)), x)
    assert torch.equal(channels_last(channels_first(x, 2)), x)
    assert channels_first(x, 2)[2, 0, 1, 0, 1] == x[5, 0, 1, 0]
    with pytest.raises(ShapeError, match="6 rows are no volumes of 4 slices"):
        as_volumes(x, 4)


def test_images_that_are_no_volumes_are_refused() -> None:
    with pytest.raises(ShapeError, match="5 images are no volumes of 2 slices"):
        toy_backbone().encode(volume(5), depth=2)


FACT = {"b": 73_728, "l": 114_688, "h": 147_456}
SHAPES = {"b": (768, 12, 64), "l": (1024, 24, 64), "h": (1280, 32, 80)}
"""Width, blocks, channels per head."""


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_parameters_follow_the_formulas(size: Any) -> None:
    """specs/adapters.md 0.3; tables of relative positions have 127 entries in four global blocks, else 27."""
    width, blocks, channels = SHAPES[size]
    counted = {config.method: count(config.build(meta_backbone(size))) for config in ACROSS}
    adapter = 2 * 384 * width + 384**2 * 3 + 384 + 2 * width
    assert counted["ma_sam"] == FACT[size] + 2 * blocks * adapter
    assert counted["sd_trans"] == 3 * blocks * (width**2 // 2 + 5 * width // 4)
    hidden = width // 2
    spatial = 2 * hidden * width + 27 * hidden + 2 * hidden + width
    tables = (4 * 127 + (blocks - 4) * 27) * channels
    embedding = 3 * width + width + 32 * width
    assert counted["adapter_3dsam"] == blocks * (spatial + 1) + tables + embedding
    if size == "b":
        assert adapter == 1_034_112 and spatial == 601_728
        assert count(SliceEmbedding(768, 16, 16, identity=True)) == 13_056


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@each
def test_published_start_changes_the_output(config: GraftConfig) -> None:
    image, backbone = volume(3), toy_backbone()
    before = backbone.encode(image).neck
    with torch.no_grad():
        after = attach(backbone, type(config)(init="published")).encode(image, depth=3).neck
    assert torch.isfinite(after).all() and (after - before).abs().max() > 1e-2


def test_published_cubes_replace_attention_within_slices() -> None:
    """One cube that holds a whole slice, on one slice: the same as global attention, which then changes nothing."""
    backbone, image = toy_backbone(), volume(1, 64, 64)
    config = Adapter3dsamConfig(init="published", embedding=False, blocks=(2,))  # block 2 attends globally
    part = config.build(backbone)
    nn.init.zeros_(part.blocks["2"]["block_input"].up.weight)  # type: ignore[index, union-attr, arg-type]
    nn.init.zeros_(part.blocks["2"]["block_input"].up.bias)  # type: ignore[index, union-attr, arg-type]
    before = backbone.encode(image).neck
    part.install(backbone)
    torch.testing.assert_close(backbone.encode(image).neck, before, atol=1e-5, rtol=1e-5)
    deep = volume(4, 64, 64)
    assert (backbone.encode(deep, depth=4).neck - backbone.encode(deep).neck).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaSamConfig(hidden=0), "hidden is 0; expected at least 1"),
        (lambda: MaSamConfig(sites=()), "name at least one of block_input, after_attention"),
        (lambda: Adapter3dsamConfig(window=0), "window is 0; expected at least 1"),
        (lambda: Adapter3dsamConfig(depth_patch=4, depth_kernel=2), "slices would be skipped"),
        (lambda: Adapter3dsamConfig(depth_patch=2, embedding=False), "leave embedding=True"),
    ],
)
def test_wrong_options_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_late_blocks_leave_the_prefix_frozen() -> None:
    assert attach(toy_backbone(), MaSamConfig(blocks="last:1")).frozen_blocks() == 2
    assert attach(toy_backbone(), Adapter3dsamConfig(blocks="last:1")).frozen_blocks() == 0
    assert attach(toy_backbone(), Adapter3dsamConfig(blocks="last:1", embedding=False)).frozen_blocks() == 2


@each
def test_checkpointed_blocks_know_the_depth(config: GraftConfig) -> None:
    """Gradients are those without checkpointing, so the second forward pass saw the same volume."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        grafted = attach(toy_backbone().double(), config)
        move(grafted)
        grafted.backbone.checkpointing = checkpointing
        grafted.encode(volume(3).double(), depth=3).neck.pow(3).sum().backward()  # the sum of squares is constant
        found.append([p.grad.clone() for p in grafted.trainable_parameters() if p.grad is not None])
    assert max(float(slope.abs().max()) for slope in found[0]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
