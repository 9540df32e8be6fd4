"""The anatomy position network: for every place of a volume a position code in mm, and features at three scales.

Two places of one volume have codes whose difference is the way between them in mm. Since the code is made from what is
seen around a place, the same anatomy gets about the same code in another person.

    volume (B, 1, D, H, W) -> strides 2, 4, 8 -> features of each scale; code at stride 4

Source:
    MedLSAM / MedLAM, arXiv:2306.14752, section 3.1: relative distance regression and multi-scale similarity on one
    shared encoder and decoder.
Deviations:
    MedLAM codes a whole 64^3 crop by fully connected layers; here the code is dense, so that one pass over a volume
    gives a vote at every place. Codes are in mm and their difference is not squeezed by a tanh, so that ways add up.
    Norms are over channels at each voxel, not over space: a place has the same code in a crop and in the whole.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.errors import ConfigError, ShapeError

STRIDES = (2, 4, 8)
"""Voxels per feature at the three scales."""
CODE_SCALE = 1
"""The scale whose features carry the code."""


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Size of the network, and what it is shown."""

    spacing: float = 2.0
    """mm; volumes are resampled to cubes of this side."""
    width: int = 12
    """Channels at stride 2; twice as many at 4, four times at 8."""
    reach: float = 50.0
    """mm that one unit of the last layer stands for."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if not self.spacing > 0 or not self.reach > 0 or self.width < 4:
            raise ConfigError(
                f"position network: spacing {self.spacing}, reach {self.reach}, width {self.width}; expected mm above "
                "0 and at least 4 channels"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class VoxelNorm(nn.Module):
    """Layer norm over the channels of each voxel of (B, C, D, H, W)."""

    def __init__(self, channels: int) -> None:
        """Scale 1 and shift 0."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W)."""
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-5)
        return scaled * self.weight[:, None, None, None] + self.bias[:, None, None, None]


class PositionNet(nn.Module):
    """See the module's text.

    Attributes:
        config: As it was built.
    """

    def __init__(self, config: PositionConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        one, two, four = (config.width * factor for factor in (1, 2, 4))
        self.down = nn.ModuleList(
            [
                nn.Sequential(_conv(1, one, 2), _conv(one, one)),
                nn.Sequential(_conv(one, two, 2), _conv(two, two)),
                nn.Sequential(_conv(two, four, 2), _conv(four, four), _conv(four, four)),
            ]
        )
        self.lateral = nn.ModuleList([nn.Conv3d(four, two, 1), nn.Conv3d(two, one, 1)])
        self.up = nn.ModuleList([_conv(two, two), _conv(one, one)])
        self.code = nn.Sequential(nn.Conv3d(two, two, 1), nn.GELU(), nn.Conv3d(two, 3, 1))

    def forward(self, volume: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Codes and features.

        Args:
            volume: (B, 1, D, H, W) in [0, 1] at ``config.spacing``; sides of at least 8 voxels, any number.

        Returns:
            Codes (B, 3, d, h, w) in mm along D, H, W, at stride 4; features (B, C, d, h, w) of length 1 at strides
            2, 4 and 8. Feature i lies at voxel ``stride * (i + 0.5) - 0.5``.

        Raises:
            ShapeError: another rank, or a side under 8.
        """
        if volume.ndim != 5 or volume.shape[1] != 1 or min(volume.shape[2:]) < STRIDES[-1]:
            raise ShapeError(f"volume is {tuple(volume.shape)}; expected (B, 1, D, H, W) with sides of at least 8")
        sides = volume.shape[2:]
        padded = [-side % STRIDES[-1] for side in sides]
        x = functional.pad(volume, [v for side in reversed(padded) for v in (0, side)], mode="replicate")
        levels = []
        for step in self.down:
            x = step(x)
            levels.append(x)
        fine = [levels[2]]
        for lateral, smooth, level in zip(self.lateral, self.up, reversed(levels[:2]), strict=True):
            larger = functional.interpolate(lateral(fine[-1]), scale_factor=2, mode="trilinear", align_corners=False)
            fine.append(smooth(level + larger))
        features = list(reversed(fine))
        code = self.code(features[CODE_SCALE]) * self.config.reach
        kept = [[-(-side // stride) for side in sides] for stride in STRIDES]
        cut = [f[:, :, :d, :h, :w] for f, (d, h, w) in zip(features, kept, strict=True)]
        d, h, w = kept[CODE_SCALE]
        return code[:, :, :d, :h, :w], [functional.normalize(f, dim=1) for f in cut]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3^3 convolution with edges repeated, norm, GELU; with a stride of 2 the cells of 2^3 voxels are centred."""
    if stride == 1:
        convolution: nn.Module = nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode="replicate")
    else:
        convolution = nn.Conv3d(inputs, outputs, 4, stride=2, padding=1, padding_mode="replicate")
    return nn.Sequential(convolution, VoxelNorm(outputs), nn.GELU())


def cell_centres(shape: tuple[int, ...], stride: int, spacing: float) -> Tensor:
    """(d, h, w, 3): where the features of a map of ``shape`` lie, mm along D, H, W from the first voxel's centre."""
    axes = [(stride * (torch.arange(n) + 0.5) - 0.5) * spacing for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(features: Tensor, places: Tensor, stride: int, spacing: float) -> Tensor:
    """Features (C, d, h, w) at ``places`` (n, 3) in mm: (n, C), trilinear, edges repeated."""
    sides = torch.tensor(features.shape[1:], dtype=places.dtype)
    index = (places / spacing + 0.5) / stride - 0.5
    unit = (2 * index + 1) / sides - 1
    grid = unit.flip(-1)[None, :, None, None]
    found = functional.grid_sample(
        features[None], grid.to(features.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, :, 0, 0].T


def contrast_cells(volume: Tensor, stride: int, least: float) -> Tensor:
    """(d, h, w) bool: cells whose voxels differ by more than ``least``; nothing can be told where all is alike.

    Args:
        volume: (D, H, W) in [0, 1].
        stride: Voxels per cell side.
        least: Difference of largest and smallest value in and around the cell.
    """
    padded = functional.pad(
        volume[None, None], [v for n in reversed(volume.shape) for v in (0, -n % stride)], mode="replicate"
    )
    high = functional.max_pool3d(padded, 2 * stride, stride, padding=stride // 2)[0, 0]
    low = -functional.max_pool3d(-padded, 2 * stride, stride, padding=stride // 2)[0, 0]
    return (high - low) > least
