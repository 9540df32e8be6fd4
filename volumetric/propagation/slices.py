"""What a propagation asks of a volume: a mask on one slice, its pixels, its features.

A volume is (D, H, W) with the cut axis first, whatever axis of the file that is; spacing is in the same order, in mm.
Points and boxes are (x, y) pixels of a slice.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samgraft.errors import PromptError, ShapeError

Mask = NDArray[np.bool_]
Float = NDArray[np.float32]
Box = tuple[float, float, float, float]

CERTAIN = float(np.float32(np.log(0.999 / 0.001)))
"""Logit of what is certain: 6.9."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlicePrompt:
    """What is said about one object on one slice."""

    box: Box | None = None
    """(x0, y0, x1, y1), first and last pixel inside."""
    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, label): 1 on the object, 0 off it."""
    mask: Mask | None = None
    """(H, W): an earlier mask, or that of a neighbouring slice."""
    tight: bool = False
    """The box ends where the object ends on this very slice."""

    def __post_init__(self) -> None:
        """Something has to say where the object is.

        Raises:
            PromptError: nothing does.
        """
        masked = self.mask is not None and bool(self.mask.any())
        if self.box is None and not masked and not any(label for _, _, label in self.points):
            raise PromptError(
                "a prompt on a slice has neither a box, nor a mask with a pixel, nor a point with label 1; give one"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceAnswer:
    """A mask on one slice, on the pixels of a rectangle; nothing lies outside it."""

    shape: tuple[int, int]
    """(H, W) of the slice."""
    top: int
    left: int
    logits: Float
    """(h, w); above 0 is the object."""
    iou: float
    """Predicted IoU in [0, 1]; 1 for a mask that was given."""

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the rectangle."""
        height, width = self.logits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def mask(self) -> Mask:
        """(H, W)."""
        full = np.zeros(self.shape, dtype=np.bool_)
        full[self.place] = self.logits > 0
        return full

    def probability(self) -> Float:
        """(H, W) in [0, 1]; 0 outside the rectangle."""
        full = np.zeros(self.shape, dtype=np.float32)
        full[self.place] = 1 / (1 + np.exp(-np.clip(self.logits, -30, 30)))
        return full


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionFeatures:
    """Frozen features of a rectangle of a slice."""

    top: int
    left: int
    height: int
    width: int
    """The rectangle in pixels; it may reach beyond the slice."""
    neck: Tensor
    """(C, h, w) over the rectangle."""


class Slices(Protocol):
    """A volume and a promptable network, one slice at a time."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W), the cut axis first."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the same axes, mm."""

    def ask(self, index: int, prompt: SlicePrompt) -> SliceAnswer:
        """What the network answers on slice ``index``; equal prompts get equal answers, whatever was asked before."""

    def picture(self, index: int) -> Float:
        """(H, W) in [0, 1]."""

    def features(self, index: int, around: Box) -> RegionFeatures:
        """Features of a region around a box, for the memory."""


def answer_of(mask: Mask, iou: float = 1.0) -> SliceAnswer:
    """A given mask (H, W) as an answer.

    Raises:
        ShapeError: not two-dimensional and bool.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ShapeError(f"mask is {mask.shape} {mask.dtype}; expected (H, W) bool")
    box = box_of(mask)
    shape = (mask.shape[0], mask.shape[1])
    if box is None:
        return SliceAnswer(shape=shape, top=0, left=0, logits=np.zeros((0, 0), dtype=np.float32), iou=iou)
    x0, y0, x1, y1 = (int(v) for v in box)
    part = mask[y0 : y1 + 1, x0 : x1 + 1]
    return SliceAnswer(
        shape=shape, top=y0, left=x0, logits=np.where(part, CERTAIN, -CERTAIN).astype(np.float32), iou=iou
    )


def from_probability(probability: Float, iou: float) -> SliceAnswer:
    """A probability map (H, W) as an answer, on the rectangle where it is above 0.001."""
    shape = (probability.shape[0], probability.shape[1])
    box = box_of(probability > 0.001)
    if box is None:
        return answer_of(np.zeros(shape, dtype=np.bool_), iou)
    x0, y0, x1, y1 = (int(v) for v in box)
    part = probability[y0 : y1 + 1, x0 : x1 + 1].astype(np.float64)
    clipped = np.clip(part, 0.001, 0.999)
    return SliceAnswer(shape=shape, top=y0, left=x0, logits=np.log(clipped / (1 - clipped)).astype(np.float32), iou=iou)


def box_of(mask: Mask) -> Box | None:
    """Tight (x0, y0, x1, y1) of a mask, first and last pixel inside; None if it is empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(cols[0]), float(rows[0]), float(cols[-1]), float(rows[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounded:
    """Slices whose answers end at a box, such as the in-plane part of a 3D box."""

    inner: Slices
    box: Box
    """(x0, y0, x1, y1): first and last pixel that may belong to the object."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.inner.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the same axes, mm."""
        return self.inner.spacing

    def ask(self, index: int, prompt: SlicePrompt) -> SliceAnswer:
        """The answer, without what lies outside the box."""
        answer = self.inner.ask(index, prompt)
        x0, y0, x1, y1 = self.box
        rows, cols = (np.arange(part.start, part.stop) for part in answer.place)
        inside = ((rows >= y0) & (rows <= y1))[:, None] & ((cols >= x0) & (cols <= x1))[None, :]
        logits = np.where(inside, answer.logits, np.minimum(answer.logits, -CERTAIN))
        return replace(answer, logits=logits.astype(np.float32))

    def picture(self, index: int) -> Float:
        """(H, W) in [0, 1]."""
        return self.inner.picture(index)

    def features(self, index: int, around: Box) -> RegionFeatures:
        """Features of a region."""
        return self.inner.features(index, around)
