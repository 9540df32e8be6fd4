"""Feature aggregator, pyramid, sine tokens and positions."""

import math
from typing import Literal

import pytest
import torch
from torch import nn

from samgraft.adapters.prompts.aggregator import (
    FeatureAggregator,
    SimpleFpn,
    sine_positions,
    sine_tokens,
    taps_for,
)
from samgraft.errors import ConfigError, ShapeError
from tests.adapters.sam_shapes import SIZES


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(("size", "maps", "count"), [("b", 6, 1_449_408), ("l", 12, 1_807_488), ("h", 16, 2_144_512)])
def test_parameters_are_the_published_number(size: str, maps: int, count: int, norm: Literal["group", "batch"]) -> None:
    width, blocks, _, _ = SIZES[size]
    assert len(taps_for(blocks)) == maps
    with torch.device("meta"):
        aggregator = FeatureAggregator(width, maps, norm=norm)
    assert sum(p.numel() for p in aggregator.parameters()) == count


def test_taps_are_every_other_block_or_all_of_a_small_encoder() -> None:
    assert taps_for(12) == (0, 2, 4, 6, 8, 10)
    assert taps_for(6) == (0, 1, 2, 3, 4, 5)


def _plain(module: nn.Module) -> None:
    """Convolutions that hand on the sum of channels, no norms."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.Conv2d):
            nn.init.zeros_(child.weight)
            child.weight.data[:, :, child.kernel_size[0] // 2, child.kernel_size[1] // 2] = 1.0
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        else:
            _plain(child)


def test_taps_are_added_up_one_after_the_other() -> None:
    aggregator = FeatureAggregator(1, 2, hidden=1, out=1)
    _plain(aggregator)
    tap = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])[None, :, :, None]  # (1, 2, 3, 1)
    found = aggregator([tap, 10 * tap])
    # x = 1; 1 + 1 = 2; 2 + 10 = 12; 12 + 12 = 24, times the tap; place and orientation are kept
    assert torch.equal(found, 24 * tap.permute(0, 3, 1, 2))


def test_another_number_of_taps_or_norm_is_refused() -> None:
    with pytest.raises(ShapeError, match="1 taps were given; this aggregator joins 2"):
        FeatureAggregator(4, 2, hidden=8, out=8)([torch.zeros(1, 2, 2, 4)])
    with pytest.raises(ConfigError, match="norm is 'instance'"):
        FeatureAggregator(4, 2, norm="instance")  # type: ignore[arg-type]


def test_levels_of_the_pyramid_cover_the_whole_map_in_place() -> None:
    torch.manual_seed(0)
    fpn = SimpleFpn(8, 12).double()
    x = torch.rand(1, 8, 3, 5, dtype=torch.float64)
    levels = fpn(x)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (12, 12, 20),
        (12, 6, 10),
        (12, 3, 5),
        (12, 2, 3),
        (12, 1, 2),
    ]
    changed = x.clone()
    changed[0, :, 0, 4] += 9.0  # upper right cell
    touched = [(a != b).any(dim=1)[0].nonzero() for a, b in zip(levels, fpn(changed), strict=True)]
    boxes = [(t.min(dim=0).values.tolist(), t.max(dim=0).values.tolist()) for t in touched]
    # its own cells and one more on each side, from the 3 x 3 convolution
    assert boxes == [([0, 15], [4, 19]), ([0, 7], [2, 9]), ([0, 3], [1, 4]), ([0, 1], [1, 2]), ([0, 0], [0, 1])]


def test_sine_tokens_add_a_bounded_and_a_free_part() -> None:
    x = torch.tensor([[math.pi / 2, 3.0, -math.pi / 2, -1.0]])
    assert torch.allclose(sine_tokens(x), torch.tensor([[4.0, -2.0]]))
    free = torch.randn(3, 2, 8) * 50
    free[..., 1::2] = 0
    assert sine_tokens(free).shape == (3, 2, 4)
    assert float(sine_tokens(free).abs().max()) <= 1


def test_positions_are_angles_of_cell_centres() -> None:
    code = sine_positions((2, 3), 4, like=torch.zeros(1, dtype=torch.float64))
    rows = torch.tensor([math.pi / 2, 3 * math.pi / 2], dtype=torch.float64)
    columns = torch.tensor([math.pi / 3, math.pi, 5 * math.pi / 3], dtype=torch.float64)
    assert torch.allclose(code[0], rows.sin()[:, None].expand(2, 3))
    assert torch.allclose(code[1], rows.cos()[:, None].expand(2, 3))
    assert torch.allclose(code[2], columns.sin()[None].expand(2, 3))
    assert torch.allclose(code[3], columns.cos()[None].expand(2, 3))
    slow = sine_positions((2, 3), 8, like=torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(slow[2], (rows / 100).sin()[:, None].expand(2, 3))  # 10000 ** (1 / 2)
    with pytest.raises(ShapeError, match="multiple of 4"):
        sine_positions((2, 3), 6, like=torch.zeros(1))
