"""A bounded memory of past slices: frozen features, what was object there, and a read-out by similarity. Untrained.

Every remembered slice gives one key per feature (its direction, seen from the mean feature of the first annotated
slice) and one value (the share of object in its cell). A new feature asks for its nearest keys; the weighted mean of
their values says how much it looks like the object. Annotated slices are never forgotten; of the others the last few
are kept.

Source:
    Annotated frames kept and the last six others: SAM 2, facebookresearch/sam2 (memory of 7 maps). Read-out by nearest
    neighbours in feature space: Hummingbird, arXiv:2306.01667, section 3 (temperature 0.02, 30 neighbours).
Deviations:
    SAM 2 reads its memory by attention layers that were trained for it; nothing is trained here, so that it serves any
    frozen backbone. Slices that the decoder itself doubts are not remembered (Medical-SAM2 keeps by predicted IoU too).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ShapeError
from samgraft.volumetric.propagation.slices import Mask, RegionFeatures

NEIGHBOURS = 30
TEMPERATURE = 0.05
LEAST_IOU = 0.5
"""Slices with a lower predicted IoU are not remembered."""


@dataclass
class FeatureMemory:
    """Keys and values of annotated and of recent slices."""

    size: int
    """Recent slices that are kept."""
    annotated: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys (n, C) of length 1, values (n,) in [0, 1]."""
    recent: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    centre: Tensor | None = None
    """(C,) mean feature of the first slice: what all features share says nothing."""

    def copy(self) -> "FeatureMemory":
        """The same content; what is added to one is not in the other."""
        return FeatureMemory(self.size, list(self.annotated), list(self.recent), self.centre)

    def add(self, features: RegionFeatures, mask: Mask, *, iou: float = 1.0, annotated: bool = False) -> None:
        """Remember a slice.

        Args:
            features: Of a region around the object.
            mask: (H, W) of the slice.
            iou: Predicted; a doubtful slice is not remembered.
            annotated: Never forget it.
        """
        if self.centre is None:
            self.centre = _flat(features.neck).mean(dim=0)
        entry = (self._keys(features.neck), cell_shares(features, mask).flatten())
        if annotated:
            self.annotated.append(entry)
        elif iou >= LEAST_IOU and self.size:
            self.recent = [*self.recent, entry][-self.size :]

    def read(self, features: RegionFeatures) -> Tensor:
        """(h, w) in [0, 1]: how much each feature looks like the object.

        Raises:
            ShapeError: nothing is remembered yet.
        """
        entries = [*self.annotated, *self.recent]
        if not entries:
            raise ShapeError("the memory is empty; add an annotated slice first")
        keys, values = torch.cat([key for key, _ in entries]), torch.cat([value for _, value in entries])
        similar = self._keys(features.neck) @ keys.T
        near = similar.topk(min(NEIGHBOURS, len(keys)), dim=1)
        weights = (near.values / TEMPERATURE).softmax(dim=1)
        return (weights * values[near.indices]).sum(dim=1).reshape(features.neck.shape[1:])

    def _keys(self, neck: Tensor) -> Tensor:
        """(h * w, C) directions from the centre."""
        flat = _flat(neck)
        return functional.normalize(flat if self.centre is None else flat - self.centre, dim=1)


def cell_shares(features: RegionFeatures, mask: Mask) -> Tensor:
    """(h, w): share of object in each feature's cell; outside the slice there is none."""
    square = torch.zeros(features.height, features.width)
    top, left = features.top, features.left
    rows = slice(max(0, top), min(mask.shape[0], top + features.height))
    cols = slice(max(0, left), min(mask.shape[1], left + features.width))
    if rows.start < rows.stop and cols.start < cols.stop:
        square[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = torch.from_numpy(
            mask[rows, cols].astype("float32")
        )
    size = (features.neck.shape[1], features.neck.shape[2])
    return functional.interpolate(square[None, None], size=size, mode="area")[0, 0]


def on_slice(read: Tensor, features: RegionFeatures, shape: tuple[int, int]) -> Tensor:
    """A read-out (h, w) on the pixels of a slice (H, W); 0 outside its region."""
    size = (features.height, features.width)
    square = functional.interpolate(read[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    full = torch.zeros(shape)
    rows = slice(max(0, features.top), min(shape[0], features.top + features.height))
    cols = slice(max(0, features.left), min(shape[1], features.left + features.width))
    full[rows, cols] = square[
        rows.start - features.top : rows.stop - features.top, cols.start - features.left : cols.stop - features.left
    ]
    return full


def _flat(neck: Tensor) -> Tensor:
    """(C, h, w) as (h * w, C) on the CPU."""
    return neck.detach().float().cpu().flatten(1).T
