"""One block: windows, attention variants, insertion points, gradients."""

import pytest
import torch
from torch import Tensor, nn

from samgraft.adapters.backbones import HFSamBackbone, attention, blocks
from samgraft.adapters.backbones.attention import absolute_table, attend, relative_table
from samgraft.adapters.backbones.blocks import block_forward
from samgraft.adapters.backbones.sites import BLOCK_SITES, ENCODER_SITES, BlockSites, SiteContext, WindowInfo
from samgraft.adapters.backbones.windowing import partition, unpartition, window_layout
from tests.adapters.toy import toy_backbone
from tests.data.checkpoints import toy_sam


class Probe(nn.Module):
    """Remembers what it was called with; returns a delta of ``value``."""

    def __init__(self, value: float = 0.0, *, qkv: bool = False) -> None:
        super().__init__()
        self.value, self.qkv = nn.Parameter(torch.tensor(value)), qkv
        self.shape: tuple[int, ...] = ()
        self.context: SiteContext | None = None

    def forward(self, x: Tensor, context: SiteContext) -> object:
        self.shape, self.context = tuple(x.shape), context
        delta = torch.ones_like(x) * self.value
        return (delta, None, delta) if self.qkv else delta


def image(height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_partition_values_and_round_trip() -> None:
    x = torch.arange(2 * 5 * 4.0).reshape(2, 5, 4, 1)
    windows = window_layout((5, 4), 3)
    assert windows == WindowInfo(size=3, counts=(2, 2), padded=(6, 6))
    cut = partition(x, windows)
    assert cut.shape == (8, 3, 3, 1)
    assert cut[1, :, :, 0].tolist() == [[3, 0, 0], [7, 0, 0], [11, 0, 0]]  # image 0, top right: one column, then zeros
    assert cut[6, :, :, 0].tolist() == [[32, 33, 34], [36, 37, 38], [0, 0, 0]]  # image 1, bottom left
    assert torch.equal(unpartition(cut, windows, (5, 4)), x)


def test_relative_table_holds_distance_i_minus_j() -> None:
    table = torch.arange(5.0)[:, None]  # distances -2 .. 2 at a side of 3
    assert relative_table(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert relative_table(table, 5).shape == (5, 5, 1)
    assert relative_table(table, 5)[2, 2, 0] == 2  # the middle stays the middle
    assert relative_table(table, 1)[0, 0, 0] == 2


def test_absolute_table_is_itself_at_its_own_size() -> None:
    table = torch.randn(1, 4, 4, 3)
    assert absolute_table(table, (4, 4)) is table
    assert absolute_table(torch.ones(1, 4, 4, 3), (7, 2)).sub(1).abs().max() < 1e-6


def test_attention_equals_its_formula() -> None:
    query, key, value = (torch.randn(2, 3, 20, 8, dtype=torch.float64) for _ in range(3))
    rel = (torch.randn(4, 4, 8, dtype=torch.float64), torch.randn(5, 5, 8, dtype=torch.float64))
    whole = attend(query, key, value, rel)

    logits = torch.empty(2, 3, 20, 20, dtype=torch.float64)
    for i in range(20):
        for j in range(20):
            q = query[:, :, i]
            logits[:, :, i, j] = (q * key[:, :, j]).sum(-1) / 8**0.5
            logits[:, :, i, j] += (q * rel[0][i // 5, j // 5]).sum(-1) + (q * rel[1][i % 5, j % 5]).sum(-1)
    torch.testing.assert_close(whole, logits.softmax(-1) @ value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 10**9])
def test_attention_has_the_gradient_of_its_formula(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Heads in turn and all at once, to the queries, keys, values and both tables."""
    monkeypatch.setattr(attention, "CHUNK", limit)
    inputs = [torch.randn(2, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    inputs += [torch.randn(n, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 3)]

    def run(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
        return attend(q, k, v, (down, across))

    assert torch.autograd.gradcheck(run, inputs)


def test_heads_in_turn_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [torch.randn(2, 3, 20, 8) for _ in range(3)]
    rel = (torch.randn(4, 4, 8), torch.randn(5, 5, 8))
    whole = attend(*inputs, rel)
    monkeypatch.setattr(attention, "CHUNK", 1)
    torch.testing.assert_close(attend(*inputs, rel), whole, rtol=0, atol=1e-6)


@torch.no_grad()
def test_rows_of_windows_and_parts_of_an_mlp_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = HFSamBackbone(toy_sam())
    whole = backbone.encode(image(72, 56)).neck  # 9 x 7 tokens: three rows of windows, one column padded
    monkeypatch.setattr(blocks, "STRIP_TOKENS", 8)
    monkeypatch.setattr(blocks, "MLP_TOKENS", 8)
    torch.testing.assert_close(backbone.encode(image(72, 56)).neck, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("site", BLOCK_SITES)
def test_site_is_called_in_place_and_zero_delta_is_bit_equal(site: str, block: int) -> None:
    backbone = HFSamBackbone(toy_sam())
    frozen = backbone.encode(image(40, 64)).neck
    probe = Probe(qkv=site == "qkv")
    getattr(backbone.block_sites[block], site).append(probe)
    assert torch.equal(backbone.encode(image(40, 64)).neck, frozen)

    windowed = block == 0 and site in ("qkv", "attention_output")
    assert probe.shape == ((2 * 2 * 3, 3, 3, 32) if windowed else (2, 5, 8, 32))
    assert probe.context is not None
    assert probe.context.grid_size == (5, 8)
    assert probe.context.windows == (WindowInfo(size=3, counts=(2, 3), padded=(6, 9)) if windowed else None)
    mean = torch.tensor(backbone.spec.mean)[:, None, None]
    std = torch.tensor(backbone.spec.std)[:, None, None]
    torch.testing.assert_close(probe.context.image, (image(40, 64) - mean) / std)

    with torch.no_grad():
        probe.value.fill_(0.5)
    changed = backbone.encode(image(40, 64)).neck
    assert (changed - frozen).abs().max() > 1e-3
    changed.sum().backward()
    assert probe.value.grad is not None and probe.value.grad != 0
    assert all(p.grad is None for p in backbone.sam.parameters())


@pytest.mark.parametrize("site", ENCODER_SITES)
def test_encoder_sites(site: str) -> None:
    backbone = HFSamBackbone(toy_sam())
    frozen = backbone.encode(image()).neck
    probe = Probe()
    getattr(backbone.encoder_sites, site).append(probe)
    assert torch.equal(backbone.encode(image()).neck, frozen)
    assert probe.shape == ((2, 8, 8, 32) if site == "patch_embed" else (2, 32, 8, 8))
    assert probe.context is not None
    with torch.no_grad():
        probe.value.fill_(0.25)
    difference = backbone.encode(image()).neck - frozen
    assert difference.abs().max() > 1e-4 if site == "patch_embed" else torch.allclose(difference, torch.tensor(0.25))


def test_deltas_mean_what_they_say() -> None:
    """Each point against the block written out by hand."""
    layer = toy_sam().vision_encoder.layers[1]
    x = torch.randn(1, 4, 4, 32)
    picture = torch.zeros(1, 3, 32, 32)

    def run(site: str | None = None, value: float = 0.3) -> Tensor:
        sites = BlockSites()
        if site:
            getattr(sites, site).extend([Probe(value / 2, qkv=site == "qkv"), Probe(value / 2, qkv=site == "qkv")])
        with torch.no_grad():
            return block_forward(layer, sites, x, picture)[0]

    with torch.no_grad():
        plain = run()
        middle = x + (block_forward(_without_mlp(layer), BlockSites(), x, picture)[0] - x)
        torch.testing.assert_close(plain, middle + layer.mlp(layer.layer_norm2(middle)), rtol=0, atol=1e-5)
        torch.testing.assert_close(run("parallel_mlp"), plain + 0.3)
        torch.testing.assert_close(run("parallel_mlp_raw"), plain + 0.3)
        lifted = middle + 0.3
        expected = lifted + layer.mlp(layer.layer_norm2(lifted))
        torch.testing.assert_close(run("after_attention"), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(run("attention_output"), expected, rtol=0, atol=1e-5)
        shifted = toy_sam().vision_encoder.layers[1]
        shifted.attn.qkv.bias[:32] += 0.3
        shifted.attn.qkv.bias[64:] += 0.3
        expected = block_forward(shifted, BlockSites(), x, picture)[0]
        torch.testing.assert_close(run("qkv"), expected, rtol=0, atol=1e-5)
        expected = block_forward(layer, BlockSites(), x + 0.3, picture)[0]
        torch.testing.assert_close(run("block_input"), expected, rtol=0, atol=1e-5)


def _without_mlp(layer: nn.Module) -> nn.Module:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    copy = toy_sam().vision_encoder.layers[1]
    copy.load_state_dict(layer.state_dict())
    copy.mlp = Silent()
    return copy


@pytest.mark.parametrize("block", [0, 1])
def test_gradcheck_of_a_block_with_sites(block: int) -> None:
    layer = toy_sam(num_blocks=2).vision_encoder.layers[block].double()
    sites = BlockSites()
    for site in BLOCK_SITES:
        getattr(sites, site).append(Probe(0.1, qkv=site == "qkv").double())
    x = torch.randn(1, 4, 2, 32, dtype=torch.float64, requires_grad=True)
    picture = torch.zeros(1, 3, 32, 16, dtype=torch.float64)
    values = [getattr(sites, site)[0].value for site in BLOCK_SITES]

    def run(tokens: Tensor, *_: Tensor) -> Tensor:
        return block_forward(layer, sites, tokens, picture)[0][..., ::7]

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def test_gradient_reaches_the_image() -> None:
    backbone = HFSamBackbone(toy_sam())
    picture = image().requires_grad_()
    backbone.encode(picture).neck.square().sum().backward()
    assert picture.grad is not None
    assert (picture.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    backbone = HFSamBackbone(toy_sam())
    both = image()
    changed = both.clone()
    changed[1] = 1 - changed[1]
    assert torch.equal(backbone.encode(both).neck[0], backbone.encode(changed).neck[0])


def test_twelve_blocks_compile_within_dynamos_limit() -> None:
    """It gives up after eight versions of one function; a number that differs from block to block would make twelve."""
    torch.compiler.reset()
    backbone = toy_backbone(num_blocks=12)
    with torch.no_grad():
        expected = backbone.encode(image()).neck
        backbone.compile_blocks(backend="eager", fullgraph=True)
        torch.testing.assert_close(backbone.encode(image()).neck, expected, atol=1e-4, rtol=1e-4)


def test_tokens_stay_wide_under_autocast() -> None:
    """Without a gradient sums are in place, which must not round the tokens to what autocast gives a layer."""
    backbone = toy_backbone()
    found = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found[grad] = backbone.encode(image(), taps=(0, 1, 2)).taps
    for block in range(3):
        assert found[False][block].dtype == found[True][block].dtype == torch.float32
        torch.testing.assert_close(found[False][block], found[True][block], rtol=0, atol=0.02)
