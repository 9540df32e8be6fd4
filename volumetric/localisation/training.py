"""Self-supervised training of the position network: two views of one volume must agree about where they are.

Each step draws two random crops of a volume, each turned, scaled and re-lit at random. Codes at places of one view and
of the other must differ by the true way in mm (relative position regression); features at equal places must be more
alike than those of other places, at each scale (similarity). No label is read.

Source:
    MedLSAM / MedLAM, arXiv:2306.14752, section 3.1 (both losses, summed 1:1; cosine times 15; augmentation of a view).
Deviations:
    Many pairs of places per pair of views instead of one; smooth L1 of the way in units of ``reach`` instead of a mean
    square; similarity against the other drawn places only (cross entropy), with those nearer than two cells left out;
    both views are augmented; no elastic deformation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ConfigError
from samgraft.volumetric.localisation.network import (
    CODE_SCALE,
    STRIDES,
    PositionConfig,
    PositionNet,
    contrast_cells,
    sample,
)

SHARPNESS = 15.0
"""Factor on cosines in the similarity loss."""


@dataclass(frozen=True, kw_only=True)
class PositionTraining:
    """How the network is trained."""

    steps: int = 1500
    minutes: float | None = None
    """Ends earlier after this time; the rate falls by what ends first."""
    crop: int = 48
    """Side of a view in voxels of ``PositionConfig.spacing``."""
    batch: int = 2
    """Volumes per step, two views each."""
    places: int = 192
    """Places per view."""
    lr: float = 2e-3
    weight_decay: float = 1e-2
    turn: float = 10.0
    """Degrees about each axis, at most."""
    stretch: float = 0.1
    """A view is larger or smaller by at most this share."""
    light: float = 0.3
    """Strength of changes of gamma and contrast, and (by a tenth) of noise."""
    least_contrast: float = 0.05
    """Cells that are flatter than this are not places."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.steps < 1 or self.batch < 1 or self.places < 8 or self.crop < 16 or self.crop % 8:
            raise ConfigError(
                f"position training: steps {self.steps}, batch {self.batch}, places {self.places}, crop {self.crop}; "
                "expected at least 1, 1, 8, and a crop of at least 16 that is a multiple of 8"
            )


@dataclass(frozen=True, eq=False)
class _View:
    """A crop of a volume, and how it lies in it."""

    image: Tensor
    """(c, c, c)."""
    clean: Tensor
    """The same without noise, which has contrast everywhere."""
    matrix: Tensor
    """(3, 3): mm in the view from its middle -> mm in the volume."""
    origin: Tensor
    """(3,): the middle of the view in the volume, mm."""

    def places(self, stride: int, count: int, least: float, spacing: float, random: torch.Generator) -> Tensor:
        """(n, 3) places with contrast, mm from the view's first voxel."""
        cells = contrast_cells(self.clean, stride, least).nonzero()
        if not len(cells):
            return torch.zeros(0, 3)
        rows = torch.randint(len(cells), (count,), generator=random)
        inner = torch.rand(count, 3, generator=random)
        voxels = (cells[rows] + inner) * stride - 0.5
        return voxels.clamp(0, self.image.shape[0] - 1) * spacing

    def in_volume(self, places: Tensor, spacing: float) -> Tensor:
        """Places of the view as places of the volume, mm."""
        middle = 0.5 * (self.image.shape[0] - 1) * spacing
        return (places - middle) @ self.matrix.T + self.origin

    def of_volume(self, places: Tensor, spacing: float) -> Tensor:
        """Inverse of :meth:`in_volume`."""
        middle = 0.5 * (self.image.shape[0] - 1) * spacing
        found: Tensor = torch.linalg.solve(self.matrix, (places - self.origin).T).T + middle
        return found


def train_positions(
    volumes: Sequence[Tensor],
    config: PositionConfig,
    training: PositionTraining,
    *,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[PositionNet, dict[str, float]]:
    """Train on unlabelled volumes.

    Args:
        volumes: (D, H, W) each, in [0, 1], at ``config.spacing``.
        config: Of the network.
        training: How.
        report: Called now and then with the step and running means.

    Returns:
        The network in evaluation mode; steps, seconds, and the last running means.

    Raises:
        ConfigError: no volume.
    """
    if not volumes:
        raise ConfigError("no volume to train on; give at least one, better thirty")
    random = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = PositionNet(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    began, means, step = time.monotonic(), {"way_mm": float("nan"), "alike": float("nan")}, 0
    network.train()
    while step < training.steps:
        spent = (time.monotonic() - began) / 60
        progress = max(step / training.steps, spent / training.minutes if training.minutes else 0.0)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = training.lr * min(1.0, (step + 1) / 30) * max(0.02, 1 - progress)
        loss, figures = _step(network, volumes, training, random)
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        for name, value in figures.items():
            means[name] = value if means[name] != means[name] else 0.98 * means[name] + 0.02 * value
        step += 1
        if report is not None and step % 100 == 0:
            report(step, dict(means))
    network.eval()
    network.requires_grad_(False)
    return network, {"steps": float(step), "seconds": time.monotonic() - began, **means}


def _step(
    network: PositionNet, volumes: Sequence[Tensor], training: PositionTraining, random: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch, and figures: mean error of ways in mm, share of places that were recognised."""
    spacing = network.config.spacing
    pairs = []
    for _ in range(training.batch):
        volume = volumes[int(torch.randint(len(volumes), (), generator=random))]
        pairs.append((_view(volume, training, spacing, random), _view(volume, training, spacing, random)))
    images = torch.stack([view.image for pair in pairs for view in pair])[:, None]
    codes, features = network(images)
    total, ways, alike, count = codes.new_zeros(()), 0.0, 0.0, 0
    for number, pair in enumerate(pairs):
        rows = (2 * number, 2 * number + 1)
        options = (training.places, training.least_contrast, spacing, random)
        places = [view.places(STRIDES[CODE_SCALE], *options) for view in pair]
        if not all(len(some) for some in places):
            continue
        loss, error = _ways(network, codes, pair, places, rows)
        likeness, hits = _likeness(features, pair, places[0], rows, spacing)
        total = total + loss + likeness
        ways, alike, count = ways + error, alike + hits, count + 1
    if not count:
        return total, {}
    return total / count, {"way_mm": ways / count, "alike": alike / count}


def _ways(
    network: PositionNet, codes: Tensor, pair: tuple[_View, _View], places: Sequence[Tensor], rows: tuple[int, int]
) -> tuple[Tensor, float]:
    """Loss of the ways from places of one view to those of the other, and their mean error in mm."""
    spacing, reach = network.config.spacing, network.config.reach
    found = [sample(codes[row], some, STRIDES[CODE_SCALE], spacing) for row, some in zip(rows, places, strict=True)]
    true = [view.in_volume(some, spacing) for view, some in zip(pair, places, strict=True)]
    wrong = (found[0] - true[0])[:, None] - (found[1] - true[1])[None]
    loss = functional.smooth_l1_loss(wrong / reach, torch.zeros_like(wrong), beta=0.1) * 10
    return loss, float(wrong.detach().norm(dim=-1).mean())


def _likeness(
    features: Sequence[Tensor], pair: tuple[_View, _View], places: Tensor, rows: tuple[int, int], spacing: float
) -> tuple[Tensor, float]:
    """Loss of equal places of two views at every scale, and the share that is recognised at the finest."""
    there = pair[1].of_volume(pair[0].in_volume(places, spacing), spacing)
    side = (pair[1].image.shape[0] - 1) * spacing
    seen = ((there >= 0) & (there <= side)).all(dim=1)
    if int(seen.sum()) < 8:
        return features[0].new_zeros(()), 0.0
    here, there = places[seen], there[seen]
    apart = torch.cdist(there, there)
    loss, hits = features[0].new_zeros(()), 0.0
    for level, stride in enumerate(STRIDES):
        one = sample(features[level][rows[0]], here, stride, spacing)
        two = sample(features[level][rows[1]], there, stride, spacing)
        logits = SHARPNESS * one @ two.T
        near = (apart < 2 * stride * spacing) & ~torch.eye(len(here), dtype=torch.bool)
        logits = logits.masked_fill(near, -1e4)
        target = torch.arange(len(here))
        loss = loss + functional.cross_entropy(logits, target) / len(STRIDES)
        if level == 0:
            hits = float((logits.detach().argmax(dim=1) == target).float().mean())
    return loss, hits


def _view(volume: Tensor, training: PositionTraining, spacing: float, random: torch.Generator) -> _View:
    """A random crop, turned, stretched and re-lit. It may reach beyond the volume, where there are zeros."""

    def uniform(low: float, high: float, count: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    angles = torch.deg2rad(uniform(-training.turn, training.turn, 3))
    matrix = _rotation(angles) * (1 + uniform(-training.stretch, training.stretch))
    extent = (torch.tensor(volume.shape, dtype=torch.float32) - 1) * spacing
    origin = extent * uniform(0.25, 0.75, 3)
    side = training.crop
    axis = (torch.arange(side, dtype=torch.float32) - 0.5 * (side - 1)) * spacing
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    places = grid @ matrix.T + origin
    unit = (2 * places / spacing + 1) / torch.tensor(volume.shape) - 1
    image = functional.grid_sample(
        volume[None, None].float(), unit.flip(-1)[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0, 0]
    light = training.light
    gamma, gain = torch.exp(uniform(-light, light)), 1 + uniform(-light, light)
    lit = image.clamp(0, 1) ** gamma * gain + (image > 0) * uniform(-0.1 * light, 0.1 * light)
    noise = 0.1 * light * float(uniform(0, 1)) * torch.randn(image.shape, generator=random)
    return _View((lit + noise).clamp(0, 1), lit.clamp(0, 1), matrix, origin)


def _rotation(angles: Tensor) -> Tensor:
    """(3, 3): turns about the three axes, one after the other."""
    turned = torch.eye(3)
    for axis in range(3):
        c, s = torch.cos(angles[axis]), torch.sin(angles[axis])
        one = torch.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turned = one @ turned
    return turned
