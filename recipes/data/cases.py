"""A case: the unit of splits and metrics (a volume, a picture, a raster), as a stack of 2D slices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.errors import InputError, ShapeError
from samgraft.grid import Grid
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.weak_labels.labels import WeakLabels

if TYPE_CHECKING:
    from samgraft.recipes.data.raster_windows import RasterWindows


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseArrays:
    """Pixels and labels of a case in native in-plane resolution, slices first."""

    id: str
    """Name of the case."""
    image: NDArray[np.uint8]
    """(n, C, h, w), C = 1 or 3, intensities already mapped to 0..255."""
    labels: NDArray[np.integer]
    """(n, h, w): classes, or instance numbers; -1 where unknown (nodata)."""
    grid: Grid
    """Grid of the file; a volume's slices run along ``axis``."""
    axis: int | None = None
    """Array axis that became n; None for a picture or raster (n = 1)."""
    group: str = ""
    """Patient or site; figures are averaged within a group first. Defaults to the id."""
    neighbours: bool = False
    """2.5D: channels are the slices before, at and after."""
    weak: WeakLabels | None = None
    """What is known where there is no mask; ``labels`` are then pseudo-labels."""
    annotated: frozenset[int] | None = None
    """Classes that were annotated; None for all. Pixels of others count as background in ``labels``."""

    def __post_init__(self) -> None:
        """Check shapes."""
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if self.image.ndim != 4 or self.image.shape[1] not in (1, 3) or self.image.dtype != np.uint8:
            raise ShapeError(
                f"{self.id}: image is {self.image.shape} {self.image.dtype}; expected (n, 1 or 3, h, w) uint8"
            )
        if self.labels.shape != (self.image.shape[0], *self.image.shape[2:]):
            raise ShapeError(
                f"{self.id}: labels are {self.labels.shape}; the image is {self.image.shape}; give one label per pixel"
            )

    @property
    def num_slices(self) -> int:
        """Number of slices n."""
        return len(self.image)

    @property
    def plane(self) -> tuple[int, int]:
        """(h, w) of a slice."""
        return self.labels.shape[1], self.labels.shape[2]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Spacing in mm per axis of ``labels`` (slices first); None where there is no volume in a patient."""
        if self.axis is None or self.grid.world not in ("LPS", "RAS"):
            return None
        along = self.grid.spacing
        return (along[self.axis], *(v for axis, v in enumerate(along) if axis != self.axis))

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Slice ``index`` as (3, h, w): copies of one channel, or its neighbours (edge slices repeat)."""
        if self.image.shape[1] == 3:
            whole: NDArray[np.uint8] = self.image[index]
            return whole
        if not self.neighbours:
            return np.repeat(self.image[index], 3, axis=0)
        around = [min(max(index + step, 0), self.num_slices - 1) for step in (-1, 0, 1)]
        return self.image[around, 0]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Slices as (B, 3, h, w) float in [0, 1]."""
        return torch.from_numpy(np.stack([self.picture(i) for i in indices])).float() / 255

    def on_grid(self, stack: NDArray[Any]) -> NDArray[Any]:
        """Bring (n, h, w) back to the file's axes: (D, H, W), or (H, W) for a picture."""
        return stack[0] if self.axis is None else np.moveaxis(stack, 0, self.axis)

    def foreground(self) -> NDArray[np.bool_]:
        """(n,): which slices have a label above 0."""
        return np.asarray((self.labels > 0).any(axis=(1, 2)), dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseRef:
    """A case that has not been read yet; the result is kept in memory after the first read."""

    id: str
    read: Callable[[], CaseArrays]
    _cache: dict[str, CaseArrays] = field(default_factory=dict)

    def load(self) -> CaseArrays:
        """Read once, then from memory."""
        if "case" not in self._cache:
            self._cache["case"] = self.read()
        return self._cache["case"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataIndex:
    """What a data set offers, before any pixel is read."""

    train: tuple[CaseRef, ...]
    val: tuple[CaseRef, ...]
    classes: Mapping[int, str]
    """Label value -> name, without background."""
    values: tuple[int, ...] = ()
    """Values of the classes in label files, in the same order."""
    modality: str | None = None
    intensity: Mapping[str, Any] | None = None
    """How intensities become [0, 1], for the adapter's header."""
    gsd: tuple[float, float] | None = None
    """Metres on the ground from row to row and from column to column of the rasters that train; None where they differ
    by more than a tenth, have no place, or are no rasters."""
    band_names: tuple[str, ...] | None = None
    """Common names of the channels that the network sees, in order, where all rasters that train have the same ones."""
    bands: tuple[int, ...] | None = None
    """Channels that are shown, for the adapter's header; None leaves it to ``data.bands``."""
    windows: "RasterWindows | None" = None
    """Windows that are read when they are drawn, in the place of ``train``."""


def choose_cases(refs: Sequence[CaseRef], count: int | None, seed: int) -> tuple[CaseRef, ...]:
    """Draw ``count`` cases by ``seed``: the same for the same sorted ids, and a larger count contains a smaller one.

    Raises:
        InputError: fewer cases than asked.
    """
    ordered = sorted(refs, key=lambda ref: ref.id)
    if count is None:
        return tuple(ordered)
    if count > len(ordered):
        raise InputError(f"{count} training cases asked; there are {len(ordered)}; lower data.cases")
    picked = np.random.default_rng(seed).permutation(len(ordered))[:count]
    return tuple(ordered[i] for i in sorted(picked))


def small_labels(labels: NDArray[np.integer], known: NDArray[np.bool_] | None = None) -> NDArray[np.integer]:
    """Labels in the smallest signed dtype that holds them, ``IGNORE`` where not ``known``."""
    top = int(labels.max(initial=0))
    dtype = np.int8 if top < 128 else np.int16 if top < 2**15 else np.int32
    small: NDArray[np.integer] = labels.astype(dtype)
    if known is not None:
        small[~known] = IGNORE
    return small


def to_bytes(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[0, 1] floats to 0..255, rounded."""
    scaled: NDArray[np.uint8] = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return scaled
