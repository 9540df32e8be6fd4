"""Volumes whose objects are known, and slices that answer with bright pixels, so that what a propagation adds shows."""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage

from samgraft.volumetric.propagation.slices import (
    CERTAIN,
    RegionFeatures,
    SliceAnswer,
    SlicePrompt,
    from_probability,
)

BRIGHT, DARK = 0.9, 0.1


def disc(shape, row, col, radius):
    """Boolean (H, W) disc; a pixel belongs to it if its centre is at most ``radius`` away."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - col) ** 2 <= radius**2 + 1e-9


def tilted_cylinder(shape=(20, 32, 64), *, first=3, last=16, radius=5, tilt=1):
    """Discs whose centre moves by ``tilt`` pixels in x per slice; rows 14."""
    volume = np.zeros(shape, dtype=bool)
    for z in range(first, last + 1):
        volume[z] = disc(shape[1:], 14, 12 + tilt * (z - first), radius)
    return volume


def sphere(shape, centre, radius):
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2


def pictured(truth):
    """float32 pixels of a truth."""
    return np.where(truth, BRIGHT, DARK).astype(np.float32)


@dataclass
class OracleSlices:
    """Answers with bright components that meet the box (cut at it), the mask or a point with label 1.

    With ``stubborn`` it never says nothing: where no bright pixel is meant, it answers with the prompt's own mask, or
    with the whole box, as decoders do.
    """

    pixels: np.ndarray
    spacing: tuple = (1.0, 1.0, 1.0)
    stubborn: bool = False
    iou: float = 0.9
    asked: list = field(default_factory=list)

    @property
    def shape(self):
        return self.pixels.shape

    def ask(self, index: int, prompt: SlicePrompt) -> SliceAnswer:
        self.asked.append((index, prompt))
        bright = self.pixels[index] > 0.5
        parts, _ = ndimage.label(bright)
        chosen = np.zeros_like(bright)
        inside = self._inside(prompt.box, bright.shape)
        if prompt.box is not None:
            chosen |= bright & inside
        elif prompt.mask is not None:
            chosen |= np.isin(parts, np.unique(parts[prompt.mask & bright])) & bright
        for x, y, label in prompt.points:
            part = parts[round(y), round(x)]
            piece = (parts == part) & (part > 0)
            chosen = chosen | piece if label == 1 else chosen & ~piece
        if self.stubborn and not chosen.any():
            chosen = prompt.mask if prompt.mask is not None else inside
        return from_probability(np.where(chosen, 0.999, 0.001 + 1e-4).astype(np.float32), self.iou)

    def picture(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def features(self, index: int, around) -> RegionFeatures:
        """Two channels, bright and dark, in cells of 2 x 2 pixels of the whole slice."""
        plane = torch.from_numpy(self.pixels[index])[None, None]
        mean = torch.nn.functional.avg_pool2d(plane, 2)[0]
        height, width = self.pixels.shape[1:]
        return RegionFeatures(top=0, left=0, height=height, width=width, neck=torch.cat([mean, 1 - mean]))

    @staticmethod
    def _inside(box, shape):
        if box is None:
            return np.zeros(shape, dtype=bool)
        x0, y0, x1, y1 = box
        y, x = np.ogrid[: shape[0], : shape[1]]
        return (x >= x0 - 1e-9) & (x <= x1 + 1e-9) & (y >= y0 - 1e-9) & (y <= y1 + 1e-9)


def given(mask):
    """A mask (H, W) as an annotated answer."""
    from samgraft.volumetric.propagation.slices import answer_of

    answer = answer_of(mask)
    assert answer.logits.size == 0 or answer.logits.max() == np.float32(CERTAIN)
    return answer
