"""What heads for volumes share: taps as volumes, norms, and changing the size of a volume."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.volumetric.stack import channels_first


class VolumeNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, D, h, w), at each place."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as ``input``."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def conv_block(inputs: int, outputs: int, *, stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    """3 x 3 x 3 convolution, instance norm with scale and shift, leaky ReLU."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.01),
    )


def quarters(num_blocks: int) -> tuple[int, ...]:
    """Blocks after a quarter, half, three quarters and all of an encoder; fewer where it has fewer than four."""
    return tuple(sorted({math.ceil(num_blocks * part / 4) - 1 for part in (1, 2, 3, 4)}))


def tap_volumes(taps: Sequence[Tensor], features: Features) -> list[Tensor]:
    """Taps (B * D, h, w, C) as volumes (B, C, D, h, w)."""
    return [channels_first(tap, features.depth) for tap in taps]


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, D, h, w) at another (D, h, w): trilinear, centres of voxels; as it is where nothing changes."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
