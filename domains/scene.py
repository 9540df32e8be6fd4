"""The one interface of everything that can be opened: a volume, a raster or a picture.

A :class:`Scene` knows its header (shape, place, dtype, channels) when it is made and reads pixels only when asked, by
window. Arrays are (C, H, W) or (C, D, H, W), channel first, in real-world values; the Grid has no channel axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import InputError, ShapeError
from samgraft.grid import Grid

Kind = Literal["volume", "raster", "picture"]
NanPolicy = Literal["raise", "fill"]
Resampling = Literal["nearest", "bilinear", "cubic", "average"]
Window = tuple[slice, ...]
Array = NDArray[Any]

FILL_VALUE = 0.0
"""What ``nan="fill"`` puts in place of NaN and Inf; ``valid`` is False there."""


class Scene(ABC):
    """A file with pixels and a place in the world. Subclasses implement ``_read`` and may override ``_valid``."""

    def __init__(
        self,
        *,
        path: Path,
        kind: Kind,
        grid: Grid,
        channels: int,
        dtype: np.dtype[Any],
        format: str,
        modality: str | None = None,
        value_range: tuple[float, float] | None = None,
        channel_names: Sequence[str] = (),
        frame_known: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        """Keep what the header says; no pixel is read."""
        self.path = path
        """File or folder that was opened."""
        self.kind: Kind = kind
        """What it is: "volume" (D, H, W), "raster" (H, W with a CRS) or "picture" (H, W)."""
        self.grid = grid
        """Spatial shape and place; results must carry this very grid."""
        self.channels = channels
        """Number of channels of ``read``."""
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        """dtype of ``read``: the file's own, or float32 where the header asks for scaling."""
        self.format = format
        """File format in words, such as "NIfTI" or "DICOM series"."""
        self.modality = modality
        """"CT", "MR", ... when the header says so, else None."""
        self.value_range = value_range
        """Smallest and largest value that header and dtype allow, or None for floats."""
        self.channel_names = tuple(channel_names) or tuple(str(i) for i in range(channels))
        """One name per channel."""
        self.frame_known = frame_known
        """False when the file does not say where it lies, so that the affine is a convention and not a fact."""
        self.notes = tuple(notes)
        """Remarks of the reader: ignored files, filled slices, doubtful headers."""
        self.trusted = False
        """True after :meth:`trust_values`: no check of the intensity scale refuses this file."""

    @property
    def is_loaded(self) -> bool:
        """True once the pixels of the whole scene are held in memory."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``read()``: (C, H, W) or (C, D, H, W)."""
        return (self.channels, *self.grid.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that ``read()`` of everything takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, window: Window | None = None, channels: Sequence[int] | None = None) -> Array:
        """Read pixels in real-world values (slopes and intercepts applied).

        Args:
            window: one slice per spatial axis, step 1, inside the scene; None reads everything.
            channels: channel indices to read, in this order; None reads all.

        Returns:
            Array (C, *window shape) of ``dtype``.

        Raises:
            InputError: the file is damaged, or holds NaN or Inf (see ``nan=`` of ``samgraft.open``).
            ShapeError: the window or a channel lies outside the scene.
        """
        return self._read(explicit_window(window, self.grid.shape), self._chosen(channels))

    def valid(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Where the scene has data: bool of the window's shape, read-only; False at nodata, alpha 0, filled places."""
        return self._valid(explicit_window(window, self.grid.shape))

    def read_valid(
        self, window: Window | None = None, channels: Sequence[int] | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """``read`` and ``valid`` of one window; a raster unpacks its blocks once for both."""
        return self.read(window, channels), self.valid(window)

    def nonfinite(self, window: Window | None = None) -> tuple[int, int]:
        """How many NaN and how many Inf the file holds in a window, whatever ``nan=`` it was opened with."""
        return self._nonfinite(explicit_window(window, self.grid.shape))

    @property
    def kept_bytes(self) -> int:
        """Bytes of pixels that stay in memory after the first read, such as those of an unpacked file."""
        return 0

    @property
    def reading_bytes(self) -> int:
        """Bytes of pixels that are held at once while everything is read, what is returned included."""
        return self.nbytes

    @property
    def may_hide(self) -> bool:
        """Whether ``valid()`` may be False somewhere; where it never is, it takes next to no memory."""
        return True

    @property
    def cheap_slabs(self) -> bool:
        """Whether reading slab after slab along the first axis costs about as much as reading everything at once."""
        return True

    def read_labels(self) -> Array:
        """Read a label file: one channel of whole numbers, not negative.

        Returns:
            Integer array on ``grid.shape``.

        Raises:
            InputError: several channels, fractions, negative values, NaN.
        """
        if self.channels != 1:
            raise InputError(f"{self.path} has {self.channels} channels; a label file has one")
        return as_labels(self.read()[0], str(self.path))

    def _chosen(self, channels: Sequence[int] | None) -> tuple[int, ...]:
        """Checked channel indices; None means all."""
        chosen = tuple(range(self.channels)) if channels is None else tuple(int(c) for c in channels)
        wrong = [c for c in chosen if not 0 <= c < self.channels]
        if wrong or not chosen:
            raise ShapeError(f"{self.path.name}: channels {list(chosen)} asked; it has 0 to {self.channels - 1}")
        return chosen

    @abstractmethod
    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Read an explicit, checked window and channel choice."""

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Validity of an explicit, checked window; everything by default, in one byte of memory."""
        return np.broadcast_to(np.True_, tuple(s.stop - s.start for s in window))

    def _nonfinite(self, window: Window) -> tuple[int, int]:
        """NaN and Inf of an explicit window; none by default, as in files of whole numbers."""
        return 0, 0

    def trust_values(self) -> "Scene":
        """Say that the values are what an adapter expects, although they do not look like it; gives this scene."""
        self.trusted = True
        return self

    def __repr__(self) -> str:
        """One line: what, format, shape, spacing, dtype, channels, world, loaded or lazy, remarks."""
        axes = "DHW" if self.grid.ndim == 3 else "HW"
        sides = ", ".join(f"{axis}={side}" for axis, side in zip(axes, self.grid.shape, strict=True))
        spacing = " x ".join(f"{v:.6g}" for v in self.grid.spacing)
        medical = self.grid.world in ("LPS", "RAS")
        place = f"spacing {spacing}{' mm' if medical else ''}, world {_short_world(self.grid.world)}"
        frame = "" if self.frame_known else " (frame unknown)"
        what = f"{self.modality} {self.kind}" if self.modality else self.kind
        state = "loaded" if self.is_loaded else "lazy"
        remarks = f"; {'; '.join(self.notes)}" if self.notes else ""
        return (
            f"<{what} {self.path.name!r}: {self.format}, {sides}, {self.channels} channel"
            f"{'' if self.channels == 1 else 's'} {self.dtype}, {place}{frame}, {state}{remarks}>"
        )


def explicit_window(window: Window | None, shape: tuple[int, ...]) -> Window:
    """Give every slice explicit bounds; None means everything.

    Raises:
        ShapeError: wrong number of slices, a step other than 1, an empty slice, or bounds outside ``shape``.
    """
    if window is None:
        return tuple(slice(0, side) for side in shape)
    if len(window) != len(shape):
        raise ShapeError(f"window has {len(window)} slices; the scene has {len(shape)} spatial axes {shape}")
    explicit = []
    for axis, (part, side) in enumerate(zip(window, shape, strict=True)):
        start = 0 if part.start is None else int(part.start)
        stop = side if part.stop is None else int(part.stop)
        if part.step not in (None, 1) or not 0 <= start < stop <= side:
            raise ShapeError(f"window {part} of axis {axis}: expected 0 <= start < stop <= {side} and step 1")
        explicit.append(slice(start, stop))
    return tuple(explicit)


def label_dtype(maximum: int) -> np.dtype[Any]:
    """Smallest unsigned dtype that holds labels up to ``maximum``: uint8, uint16 or uint32.

    Raises:
        InputError: a negative maximum, or one above 2**32 - 1.
    """
    for candidate in (np.uint8, np.uint16, np.uint32):
        if 0 <= maximum <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    raise InputError(f"label {maximum} cannot be stored; expected 0 to {np.iinfo(np.uint32).max}")


def as_labels(array: Array, where: str, *, copy: bool = True) -> Array:
    """Check that an array holds labels, and give it an unsigned dtype that fits its largest value.

    Args:
        array: any shape, any real dtype.
        where: file or name for messages.
        copy: False gives back the array itself where its dtype fits already.

    Raises:
        InputError: NaN, fractions or negative values, with count and one example.
    """
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{where}: labels have dtype {array.dtype}; expected whole numbers")
    if array.dtype.kind == "f":
        wrong = ~np.isfinite(array) | (array != np.round(array))
        if wrong.any():
            raise InputError(
                f"{where}: {int(wrong.sum())} of {array.size} values are no whole numbers, such as "
                f"{array[wrong].flat[0]}; expected a label map, not an image or a probability"
            )
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0:
        raise InputError(f"{where}: smallest label is {low}; labels start at 0 (background)")
    return array.astype(label_dtype(high), copy=copy)


def guard_finite(array: Array, *, nan: NanPolicy, where: str, grid: Grid, window: Window) -> Array:
    """Refuse or fill NaN and Inf, naming how many and where the first lies.

    Args:
        array: (*any, *window shape); channels may lead.
        nan: "raise", or "fill" to put FILL_VALUE there.
        where: file name for the message.
        grid: grid of the whole scene, for world coordinates.
        window: explicit window that ``array`` covers.

    Raises:
        InputError: with ``nan="raise"``.
    """
    if array.dtype.kind not in "fc":
        return array
    bad = np.isfinite(array)
    np.logical_not(bad, out=bad)
    count = int(bad.sum())
    if not count:
        return array
    if nan == "fill":
        return np.where(bad, array.dtype.type(FILL_VALUE), array)
    spatial = np.argwhere(bad)[0][-grid.ndim :]
    index = tuple(int(i + s.start) for i, s in zip(spatial, window, strict=True))
    place = tuple(round(float(v), 2) for v in grid.to_world(np.array(index, dtype=np.float64)))
    nans = int(np.isnan(array).sum())
    raise InputError(
        f"{where}: {nans} NaN and {count - nans} Inf of {array.size} values read, the first at index {index} "
        f'(world {place}); repair the file, or open it with nan="fill" to set them to {FILL_VALUE:g}'
    )


def count_nonfinite(array: Array) -> tuple[int, int]:
    """Number of NaN and of Inf in an array of any shape."""
    nans = int(np.isnan(array).sum())
    return nans, int(array.size - np.isfinite(array).sum()) - nans


def dtype_range(dtype: np.dtype[Any], slope: float = 1.0, intercept: float = 0.0) -> tuple[float, float] | None:
    """Values that an integer dtype of at most 16 bits can take after scaling; None for wider ones and floats."""
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return None
    info = np.iinfo(dtype)
    ends = sorted((info.min * slope + intercept, info.max * slope + intercept))
    return float(ends[0]), float(ends[1])


def _short_world(world: str) -> str:
    """The world's name for one line: of a WKT only the quoted name."""
    parts = world.split('"')
    return parts[1] if "[" in world and len(parts) > 1 else world
