"""What the training images look like, measured while they are read: for the header of the adapter.

Cases pass through :class:`Seen` on their way to the training set; a few slices or windows of each are kept as bytes,
and what they have in common is computed when the adapter is written (``samgraft.recipes.alignment`` uses it).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.statistics import ImageStatistics, image_statistics
from samgraft.recipes.alignment import BLOCK, SMALL, evenly
from samgraft.recipes.data.cases import CaseArrays, CaseRef
from samgraft.recipes.data.fit import windows

SLICES = 8
"""Slices of each volume, or blocks of each raster, that are kept."""
KEPT_BYTES = 32 * 2**20
"""Most bytes that are kept; beyond, every second picture is let go of."""
WHOLE = 2**22
"""Pixels up to which a picture is kept as a whole."""


class Seen:
    """A sample of training images, and their pixel sizes.

    Args:
        window: Side of the network's windows in native pixels, or None for whole slices and pictures.
        rasters: Images are rasters: looked at block by block, and pixels that are 0 in all channels are missing.
    """

    def __init__(self, *, window: int | None, rasters: bool) -> None:
        """Nothing is known yet."""
        self.window, self.rasters = window, rasters
        self._kept: list[tuple[NDArray[np.uint8], tuple[float, float] | None]] = []
        self._step, self._offered = 1, 0
        self._views: list[float] = []
        self._found: ImageStatistics | None = None

    def watching(self, refs: Sequence[CaseRef]) -> tuple[CaseRef, ...]:
        """The same cases; this sample takes a part of each when it is read for the first time."""
        return tuple(CaseRef(id=ref.id, read=partial(self._read, ref)) for ref in refs)

    def add(self, case: CaseArrays) -> None:
        """Take a part of one case."""
        spacing = _spacing(case)
        if spacing is not None:
            side = max(case.plane) if self.window is None else min(self.window, *case.plane)
            self._views.append(side * (spacing[0] + spacing[1]) / 2)
        for index in evenly(case.num_slices, SLICES):
            picture = case.picture(index)
            for rows, cols in self._places(case.plane):
                self._keep(picture[:, rows, cols], spacing)

    def statistics(self) -> ImageStatistics | None:
        """What the images have in common; None where none was read, or none has a valid pixel."""
        if self._found is None and self._kept:
            kept = [one for one in self._kept if one[0].any() or not self.rasters]
            if kept:
                images, sizes = (self._seen(one) for one, _ in kept), (size for _, size in kept)
                self._found = image_statistics(images, sizes, stained=False if self.rasters else None)
            self._kept = []  # not needed any more
        return self._found

    def network_spacing(self, size: int) -> float | None:
        """Median millimetres per pixel of a network input of ``size``; None where no case is in mm."""
        return round(float(np.median(self._views)) / size, 6) if self._views and not self.rasters else None

    def _read(self, ref: CaseRef) -> CaseArrays:
        case = ref.read()
        self.add(case)
        return case

    def _places(self, plane: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        if plane[0] * plane[1] <= (SMALL if self.rasters else WHOLE):
            yield slice(0, plane[0]), slice(0, plane[1])
            return
        found = windows(plane, self.window or BLOCK, 0.0)
        yield from (found[i] for i in evenly(len(found), SLICES))

    def _keep(self, picture: NDArray[np.uint8], spacing: tuple[float, float] | None) -> None:
        if self._offered % self._step == 0:
            gray = (picture == picture[:1]).all()
            self._kept.append((picture[:1].copy() if gray else picture.copy(), spacing))
        self._offered += 1
        while sum(one.nbytes for one, _ in self._kept) > KEPT_BYTES and len(self._kept) > 1:
            self._kept, self._step = self._kept[::2], 2 * self._step

    def _seen(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(3, h, w) in [0, 1], NaN where missing."""
        image = np.repeat(picture, 3 // len(picture), axis=0).astype(np.float32) / 255
        if self.rasters:
            image[:, (picture == 0).all(axis=0)] = np.nan
        return image


def _spacing(case: CaseArrays) -> tuple[float, float] | None:
    """Size of a pixel in mm (volumes) or metres (rasters); None where it is not known."""
    if case.spacing is not None:
        return float(case.spacing[1]), float(case.spacing[2])
    if case.axis is None and case.grid.world != "pixel":
        from samgraft.domains.remote_sensing.georeference import ground_step

        return ground_step(case.grid)
    return None
