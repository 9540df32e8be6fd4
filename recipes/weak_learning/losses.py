"""Losses of weak labels: the lines of a box, marks that someone drew, and neighbours that look alike.

All of them take probabilities (B, C, H, W) of foreground classes, in [0, 1], and are means, so that their weights do
not depend on how much was annotated.

Source:
    Bags of rows and columns of a box: Hsu et al., Weakly supervised instance segmentation using the bounding box
    tightness prior, NeurIPS 2019, section 3.1; the smooth maximum (alpha-softmax): Wang & Xia, Bounding box tightness
    prior for weakly supervised image segmentation, arXiv:2110.00934, section 2.3. Neighbours that look alike: Obukhov
    et al., Gated CRF loss for weakly supervised semantic image segmentation, arXiv:1906.04651, section 3.
Deviations:
    Bags are those of the image as it was annotated, also when the network sees it turned and bent: a pixel that an
    augmentation shows keeps the place that it came from. Nothing outside all boxes is a pixel-wise label of background
    and no bag. The kernel of the neighbours is written as shifts over half of the disc, since it is symmetric; pixels
    outside the picture are gated out, others are not weighed by the prediction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samgraft.errors import ShapeError

_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Bags:
    """Segments of rows or columns of N images, each of which holds a pixel of its class."""

    image: Tensor
    """(m,) int64: which image."""
    label: Tensor
    """(m,) int64: channel of the class, from 0."""
    line: Tensor
    """(m,) int64: row, or column."""
    first: Tensor
    """(m,) int64: first pixel on the line."""
    last: Tensor
    """(m,) int64: last pixel on the line."""

    def __len__(self) -> int:
        """Number of segments."""
        return len(self.image)

    def to(self, device: torch.device) -> "Bags":
        """The same on another device."""
        return Bags(**{name: value.to(device) for name, value in vars(self).items()})


def smooth_maximum(values: Tensor, weights: Tensor, bags: Bags, sharpness: float) -> Tensor:
    """(m,): between mean and maximum of every bag: sum(v e^(a v)) / sum(e^(a v)), with a the sharpness.

    Args:
        values: (B, C, L, n) in [0, 1], lines last but one.
        weights: (B, L, n) 1 where a pixel counts, else 0.
        bags: On these lines.
        sharpness: 0 is the mean; at most 20, since bags are differences of running sums.
    """
    raised = torch.exp(sharpness * values.double()) * weights.double()[:, None]
    sums = []
    for part in (raised * values.double(), raised):
        running = torch.nn.functional.pad(part.cumsum(dim=-1), (1, 0))
        lines = (bags.image, bags.label, bags.line)
        sums.append(running[(*lines, bags.last + 1)] - running[(*lines, bags.first)])
    return (sums[0] / sums[1].clamp_min(1e-12)).to(values.dtype)


def seen_share(seen: Tensor, bags: Bags) -> Tensor:
    """(m,): share of the pixels of every bag that ``seen`` (B, L, n) shows."""
    running = torch.nn.functional.pad(seen.double().cumsum(dim=-1), (1, 0))
    lines = (bags.image, bags.line)
    shown = running[(*lines, bags.last + 1)] - running[(*lines, bags.first)]
    return shown / (bags.last - bags.first + 1)


def tightness_loss(
    probabilities: Tensor, rows: Bags, columns: Bags, *, seen: Tensor | None = None, sharpness: float = 8.0
) -> Tensor:
    """Mean of -log of the smooth maximum over all rows and columns of boxes; 0 if there is no box.

    Args:
        probabilities: (B, C, H, W) in [0, 1].
        rows: Of boxes.
        columns: Of boxes.
        seen: (B, H, W) bool: pixels that count. A line that is not shown nearly whole says nothing, since the object
            may lie where it is not shown.
        sharpness: Of the maximum.

    Raises:
        ShapeError: ``seen`` has another shape.
    """
    shown = torch.ones_like(probabilities[:, 0], dtype=torch.bool) if seen is None else seen
    if shown.shape != (len(probabilities), *probabilities.shape[2:]):
        raise ShapeError(f"seen is {tuple(shown.shape)}; probabilities are {tuple(probabilities.shape)}")
    around = torch.nn.functional.max_pool2d(shown[:, None].float(), 3, stride=1, padding=1)[:, 0]
    terms = []
    for bags, values, near, own in (
        (rows, probabilities, around, shown),
        (columns, probabilities.transpose(2, 3), around.transpose(1, 2), shown.transpose(1, 2)),
    ):
        if len(bags):
            told = (seen_share(near, bags) > 0.95) & (seen_share(own, bags) > 0)
            peaks = smooth_maximum(values, own, bags, sharpness)
            terms.append(-peaks[told].clamp_min(_EPSILON).log())
    joined = torch.cat(terms) if terms else probabilities.new_zeros(0)
    return joined.mean() if len(joined) else probabilities.sum() * 0


def marks_loss(probabilities: Tensor, marks: Tensor) -> Tensor:
    """Cross-entropy of marked pixels, a mean per class and then over the classes that are marked; 0 without marks.

    Args:
        probabilities: (B, C, H, W) of the foreground classes; background is what they leave.
        marks: (B, H, W) int64: 0 background, 1 .. C, or below 0 where nothing was marked.
    """
    background = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(0, 1)
    whole = torch.cat([background, probabilities], dim=1)
    picked = whole.gather(1, marks.clamp_min(0)[:, None])[:, 0].clamp_min(_EPSILON)
    cost = -picked.log()
    terms = [cost[marks == label].mean() for label in torch.unique(marks[marks >= 0]).tolist()]
    return torch.stack(terms).mean() if terms else probabilities.sum() * 0


def alike_loss(probabilities: Tensor, image: Tensor, shown: Tensor, *, radius: int = 3, colour: float = 0.1) -> Tensor:
    """Mean chance that two neighbours are of different classes, weighed by how near and how alike they are.

    Args:
        probabilities: (B, C, H, W) of the foreground classes.
        image: (B, 3, H, W) in [0, 1].
        shown: (B, H, W) bool: pixels inside the picture.
        radius: Largest distance of neighbours in pixels; the standard deviation of nearness is half of it.
        colour: Standard deviation of likeness: of the mean squared difference over the channels.
    """
    background = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(0, 1)
    whole = torch.cat([background, probabilities], dim=1)
    height, width = image.shape[2:]
    total, mass = whole.new_zeros(()), whole.new_zeros(())
    for dy in range(radius + 1):
        for dx in range(-radius, radius + 1):
            if (dy == 0 and dx <= 0) or dy * dy + dx * dx > radius * radius:
                continue
            here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
            there = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
            a, b = ((..., *place) for place in (here, there))
            off = ((image[a] - image[b]) ** 2).mean(dim=1)
            kernel = torch.exp(-off / (2 * colour**2) - (dy * dy + dx * dx) / (2 * (radius / 2) ** 2))
            kernel = kernel * (shown[a] & shown[b])
            total = total + (kernel * (1 - (whole[a] * whole[b]).sum(dim=1))).sum()
            mass = mass + kernel.sum()
    return total / mass.clamp_min(_EPSILON)
