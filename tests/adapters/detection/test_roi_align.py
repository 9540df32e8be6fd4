"""RoIAlign on maps whose value at any place is known, masks in boxes, and masks pasted back."""

import pytest
import torch
from torch import Tensor

from samgraft.adapters.detection.roi_align import level_of, mask_targets, paste, roi_align
from samgraft.errors import ShapeError


def ramp(height: int, width: int, stride: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(1, 2, h, w): x and y in pixels of every cell's centre."""
    y = (torch.arange(height, dtype=dtype) + 0.5) * stride
    x = (torch.arange(width, dtype=dtype) + 0.5) * stride
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize(
    ("edges", "level"),
    [((5.0, 9.5, 17.0, 20.0), 0), ((31.0, 6.0, 64.5, 41.0), 2), ((3.0, 4.0, 50.0, 11.0), 1)],
    ids=["small", "large", "flat"],
)
def test_features_on_a_linear_ramp_are_the_ramp_at_bin_centres(
    edges: tuple[float, ...], level: int, samples: int
) -> None:
    strides = (2.0, 4.0, 8.0)
    levels = []
    for number, stride in enumerate(strides):  # an image of 48 x 80 pixels; the second one lies 1000 higher
        own = ramp(int(48 / stride), int(80 / stride), stride) + 100 * number
        levels.append(torch.cat([own, own + 1000]))
    found = roi_align(levels, torch.tensor([edges] * 2), torch.tensor([1, 0]), strides, out=3, samples=samples, cells=4)
    x0, y0, x1, y1 = edges
    steps = (torch.arange(3, dtype=torch.float64) + 0.5) / 3
    x, y = x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)
    expected = torch.stack([x.expand(3, 3), y[:, None].expand(3, 3)]) + 100 * level
    torch.testing.assert_close(found, torch.stack([expected + 1000, expected]), atol=1e-4, rtol=0)


def test_a_level_for_every_doubling_of_the_side() -> None:
    sides = torch.tensor([6.0, 111.9, 112.0, 223.9, 224.0, 9999.0])
    edges = torch.stack([torch.zeros(6), torch.zeros(6), sides * 2, sides / 2], dim=1)  # flat boxes of the same area
    assert level_of(edges, (4.0, 8.0, 16.0)).tolist() == [0, 0, 1, 1, 2, 2]


def test_beyond_the_outermost_centres_the_map_goes_on() -> None:
    found = roi_align([ramp(4, 6, 8.0)], torch.tensor([[0.0, 0, 48, 32]]), torch.tensor([0]), (8.0,), out=24, samples=1)
    assert found[0, 0, 0].tolist()[:3] == pytest.approx([4, 4, 5])  # bins at 1, 3, 5; the first centre is at 4
    assert found[0, 1, :, 0].tolist()[-2:] == pytest.approx([28, 28])


def test_gradients_and_kinds_of_numbers() -> None:
    level = torch.rand(2, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    edges, index = torch.tensor([[3.0, 2, 21, 17], [1, 1, 9, 30]]).double(), torch.tensor([0, 1])

    def read(x: Tensor) -> Tensor:
        return roi_align([x], edges, index, (4.0,), out=2)

    assert torch.autograd.gradcheck(read, (level,))
    half = roi_align([level.detach().bfloat16()], edges, index, (4.0,), out=2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), read(level).detach(), atol=0.01, rtol=0)


def test_no_boxes_and_wrong_numbers() -> None:
    level = torch.zeros(1, 3, 4, 4)
    assert roi_align([level], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (4.0,), out=2).shape == (0, 3, 2, 2)
    with pytest.raises(ShapeError, match="1 levels with 2 strides"):
        roi_align([level], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (4.0, 8.0), out=2)


def test_a_mask_in_a_box_and_back() -> None:
    masks = torch.zeros(2, 16, 24, dtype=torch.bool)
    masks[1, 4:12, 8:12] = True  # rows 4 to 11, columns 8 to 11
    edges = torch.tensor([[4.0, 4, 20, 12]])
    found = mask_targets(masks, torch.tensor([1]), edges, 8)
    assert found[0, 1:-1, 2:4].eq(1).all()  # bins of 2 x 1 pixels: columns 8 to 11 are bins 2 and 3
    assert found[0, [0, -1], 2:4].eq(0.875).all()  # points a quarter of a pixel from the border read 0.75, others 1
    assert found[0, :, [0, 1, 4, 5, 6, 7]].eq(0).all()
    whole = paste(found * 8 - 4, edges, (16, 24), 1.0)
    assert torch.equal(whole[0] > 0, masks[1])
    assert whole[0, 3, 9] == -10 and whole[0, 12, 9] == -10 and whole[0, 5, 3] == -10


@pytest.mark.parametrize("stride", [2, 4])
def test_pasting_on_coarser_cells_takes_their_centres(stride: int) -> None:
    edges = torch.tensor([[8.0, 4, 24, 12]])
    whole = paste(torch.ones(1, 4, 4), edges, (16 // stride, 32 // stride), stride)
    expected = torch.zeros(16, 32, dtype=torch.bool)
    expected[4:12, 8:24] = True
    assert torch.equal(whole[0] > 0, expected[::stride, ::stride])
    assert paste(torch.ones(0, 4, 4), edges[:0], (4, 8), 4.0).shape == (0, 4, 8)
