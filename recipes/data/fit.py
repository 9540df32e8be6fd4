"""How a slice or picture of any size becomes a square network input, and how logits go back.

The picture is centred in the smallest square that holds it, its edge pixels are repeated into the rest, and the square
is scaled: the same convention as ``samgraft.recipes.engine.windows``, so training and use agree. Images are
interpolated (averaging when shrinking), labels are picked nearest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ShapeError
from samgraft.recipes.losses import IGNORE


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Placement of a source of (height, width) in a square of ``size``."""

    source: tuple[int, int]
    """(height, width) of the slice, picture or window."""
    size: int
    """Side of the network input in pixels."""

    @property
    def side(self) -> int:
        """Side of the square in source pixels."""
        return max(self.source)

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the source in the square, in source pixels."""
        return (self.side - self.source[0]) // 2, (self.side - self.source[1]) // 2

    def image(self, image: Tensor) -> Tensor:
        """Square and scale images (..., C, h, w) float in [0, 1] to (..., C, size, size)."""
        self._check(image)
        flat = self._square(image).reshape(-1, *image.shape[-3:-2], self.side, self.side)
        if self.side != self.size:
            options = {"mode": "bilinear", "align_corners": False, "antialias": self.side > self.size}
            flat = functional.interpolate(flat, size=(self.size, self.size), **options)  # type: ignore[arg-type]
        return flat.reshape(*image.shape[:-2], self.size, self.size)

    def labels(self, labels: Tensor, *, outside: int = IGNORE) -> Tensor:
        """Square and scale integer labels (..., h, w) to (..., size, size), nearest; ``outside`` beyond the source."""
        self._check(labels)
        flat = labels.reshape(-1, 1, *labels.shape[-2:])
        (top, left), (height, width) = self.corner, self.source
        flat = functional.pad(flat, (left, self.side - width - left, top, self.side - height - top), value=outside)
        if self.side != self.size:
            flat = functional.interpolate(flat.double(), size=(self.size, self.size), mode="nearest-exact").to(
                labels.dtype
            )
        return flat.reshape(*labels.shape[:-2], self.size, self.size)

    def back(self, logits: Tensor) -> Tensor:
        """Bring logits (B, K, s, s) of any side s, covering the square, onto the source: (B, K, h, w)."""
        if logits.ndim != 4 or logits.shape[2] != logits.shape[3]:
            raise ShapeError(f"logits are {tuple(logits.shape)}; expected (B, K, s, s) over the square network input")
        if logits.shape[-1] != self.side:
            options = {"mode": "bilinear", "align_corners": False, "antialias": logits.shape[-1] > self.side}
            logits = functional.interpolate(logits, size=(self.side, self.side), **options)  # type: ignore[arg-type]
        (top, left), (height, width) = self.corner, self.source
        return logits[..., top : top + height, left : left + width]

    def _square(self, image: Tensor) -> Tensor:
        (top, left), (height, width) = self.corner, self.source
        if height == width:
            return image
        rows = torch.arange(-top, self.side - top).clamp(0, height - 1)
        cols = torch.arange(-left, self.side - left).clamp(0, width - 1)
        return image[..., rows, :][..., cols]

    def _check(self, tensor: Tensor) -> None:
        if tuple(tensor.shape[-2:]) != self.source:
            raise ShapeError(f"tensor is {tuple(tensor.shape)}; this fit is for {self.source}")


def round_up(size: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``size``."""
    return -(-size // multiple) * multiple


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of windows that cover ``length`` pixels, evenly spaced, overlapping by at least that share."""
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def windows(shape: tuple[int, int], window: int | None, overlap: float) -> list[tuple[slice, slice]]:
    """Windows over (height, width); one over everything without ``window``. A window never leaves the picture."""
    height, width = shape
    if window is None:
        return [(slice(0, height), slice(0, width))]
    return [
        (slice(top, min(top + window, height)), slice(left, min(left + window, width)))
        for top in window_starts(height, window, overlap)
        for left in window_starts(width, window, overlap)
    ]


def blend_weight(height: int, width: int) -> Tensor:
    """(height, width) weight of a window's pixels: 1 in the middle, falling towards the rim, never 0."""
    sides = [1 - ((torch.arange(n) + 0.5) * 2 / n - 1).abs() for n in (height, width)]
    return (sides[0][:, None] * sides[1][None, :]).clamp_min(1e-3)
