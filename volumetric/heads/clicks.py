"""Clicks in a volume: what they are, how training simulates them, and an encoder that reads the features under them.

A click takes the feature vector at its place (trilinear) and adds a learned vector that says whether it lies in the
object or outside. With learned global tokens the clicks go through two blocks, in which the feature map reads what they
have gathered:

    tokens = [globals, clicks]: self-attention -> MLP of the globals -> map <- map + attention(map, globals)

Source:
    3DSAM-adapter, arXiv:2306.13465, section 3.2 (visual sampler); two blocks, ten globals and that only those are read
    by the map from its code (med-air/3DSAM-adapter, modeling/Med_SAM/prompt_encoder.py).
Deviations:
    The released encoder cannot tell a click in the object from one outside, and draws the latter anywhere, inside
    included; here clicks have a polarity, and negative ones lie outside. A volume without clicks is left as it is.
    Coordinates are (x, y, z); the released code swaps two axes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.errors import PromptError, ShapeError

GLOBALS = 10
"""Learned tokens that gather what clicks say."""
BLOCKS = 2
INSIDE, OUTSIDE, NONE = 1, 0, -1
"""Labels of clicks; the last one fills up volumes that have fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeClicks:
    """Clicks of B volumes."""

    points: Tensor
    """(B, P, 3): (x, y, z), pixels of the network input and slices, centres at whole numbers."""
    labels: Tensor
    """(B, P) int64: 1 in the object, 0 outside, -1 no click."""

    def __post_init__(self) -> None:
        """Check shapes and labels."""
        if self.points.ndim != 3 or self.points.shape[-1] != 3 or self.labels.shape != self.points.shape[:2]:
            raise ShapeError(
                f"clicks are {tuple(self.points.shape)} with labels {tuple(self.labels.shape)}; expected (B, P, 3) "
                "and (B, P)"
            )
        odd = sorted(set(self.labels.unique().tolist()) - {INSIDE, OUTSIDE, NONE})
        if odd:
            raise PromptError(f"labels of clicks are {odd}; expected 1 in the object, 0 outside, -1 for none")

    def to(self, device: torch.device) -> "VolumeClicks":
        """The same on a device."""
        return VolumeClicks(points=self.points.to(device), labels=self.labels.to(device))

    def within(self, size: tuple[int, int, int]) -> "PlacedClicks":
        """The same with places in [-1, 1] of a volume of ``size`` (D, H, W).

        Raises:
            PromptError: a click lies outside the volume.
        """
        extent = self.points.new_tensor(size[::-1])
        real = self.labels != NONE
        outside = ((self.points < -0.5) | (self.points > extent - 0.5)).any(dim=-1) & real
        if bool(outside.any()):
            first = self.points[outside][0].tolist()
            raise PromptError(f"click at (x, y, z) = {first} lies outside a volume of (D, H, W) = {size}")
        return PlacedClicks(places=(self.points + 0.5) / extent * 2 - 1, labels=self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedClicks:
    """Clicks in units of the volume."""

    places: Tensor
    """(B, P, 3): (x, y, z) in [-1, 1], from edge to edge."""
    labels: Tensor
    """(B, P)."""


class ClickEncoder(nn.Module):
    """Changes a feature map where there are clicks.

    Args:
        channels: Of the map.
        heads: Of attention; as many as divide ``channels``.
        hidden: Inner width of the MLPs; published 2048 for 256 channels.

    Attributes:
        polarity: (2, channels): outside, inside.
    """

    def __init__(self, channels: int, *, heads: int = 8, hidden: int | None = None) -> None:
        """Create tokens and blocks."""
        super().__init__()
        heads = next(number for number in range(min(heads, channels), 0, -1) if channels % number == 0)
        self.globals = nn.Parameter(0.1 * torch.randn(GLOBALS, channels))
        self.polarity = nn.Parameter(0.1 * torch.randn(2, channels))
        self.blocks = nn.ModuleList(_ClickBlock(channels, heads, hidden or 8 * channels) for _ in range(BLOCKS))

    def forward(self, volume: Tensor, clicks: PlacedClicks) -> Tensor:
        """(B, C, D, h, w) to the same."""
        places = clicks.places.to(volume.dtype)[:, :, None, None]  # (B, P, 1, 1, 3)
        sampled = functional.grid_sample(volume, places, mode="bilinear", padding_mode="border", align_corners=False)
        points = sampled[..., 0, 0].transpose(1, 2) + self.polarity[clicks.labels.clamp_min(0)]  # (B, P, C)
        tokens = torch.cat([self.globals.expand(len(volume), -1, -1), points], dim=1)
        absent = functional.pad(clicks.labels == NONE, (GLOBALS, 0), value=False)
        cells = volume.flatten(2).transpose(1, 2)  # (B, D h w, C)
        for block in self.blocks:
            tokens, cells = block(tokens, cells, absent)
        changed = cells.transpose(1, 2).unflatten(2, volume.shape[2:])
        asked = (clicks.labels != NONE).any(dim=1)[:, None, None, None, None]
        return torch.where(asked, changed, volume)


class _ClickBlock(nn.Module):
    """Self-attention of tokens, MLP of the globals, and what the map reads from those."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.reading = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, tokens: Tensor, cells: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        seen, _ = self.among(tokens, tokens, tokens, key_padding_mask=absent, need_weights=False)
        tokens = self.norms[0](tokens + seen)
        gathered = tokens[:, :GLOBALS]
        gathered = self.norms[1](gathered + self.mlp(gathered))
        read, _ = self.reading(cells, gathered, gathered, need_weights=False)
        return torch.cat([gathered, tokens[:, GLOBALS:]], dim=1), self.norms[2](cells + read)


def simulate_clicks(labels: Tensor, most: int, *, generator: torch.Generator | None = None) -> VolumeClicks:
    """Clicks for training: 1 to ``most`` per volume, the first in the object, each later one in it or outside.

    Args:
        labels: (B, D, H, W): above 0 in the object, 0 outside, below 0 unknown. A volume without object has none.
        most: Most clicks of a volume.
        generator: Source of randomness; torch's own if None.
    """
    points = torch.zeros(len(labels), most, 3)
    signs = torch.full((len(labels), most), NONE)
    for row, volume in enumerate(labels.cpu()):
        inside = (volume > 0).nonzero()
        outside = (volume == 0).nonzero()
        if not len(inside):
            continue
        count = int(torch.randint(1, most + 1, (), generator=generator))
        for number in range(count):
            positive = number == 0 or not len(outside) or bool(torch.rand((), generator=generator) < 0.5)
            candidates = inside if positive else outside
            index = int(torch.randint(len(candidates), (), generator=generator))
            points[row, number] = candidates[index].flip(0).float()
            signs[row, number] = INSIDE if positive else OUTSIDE
    return VolumeClicks(points=points.to(labels.device), labels=signs.to(labels.device))
