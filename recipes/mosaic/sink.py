"""Where the results of a mosaic go: the protocol of a sink.

A sink takes complete objects or painted parts as they come, holds a batch of them at most, and puts one complete file
at its path when it is told to commit; before that nothing is there. ``outputs.py`` makes the sinks of a run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import ConfigError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.objects import MosaicObject
from samgraft.recipes.mosaic.plan import Part

Takes = Literal["objects", "rows", "nothing"]


class Sink(Protocol):
    """One output file in the making."""

    @property
    def path(self) -> Path:
        """Where the file will be."""
        ...

    @property
    def takes(self) -> Takes:
        """With "objects" :meth:`add` is called, with "rows" :meth:`rows` or :meth:`paint`, with "nothing" neither."""
        ...

    def start(
        self, grid: Grid, classes: Mapping[int, str], provenance: Mapping[str, object], *, count: int | None = None
    ) -> None:
        """Begin.

        Args:
            grid: Grid of the raster.
            classes: Class label -> name.
            provenance: What the result is made from, JSON types; see ``samgraft.recipes.mosaic.provenance``.
            count: Number of objects, if known; ids are then stored in the smallest dtype that holds them.

        Raises:
            OutputError: the temporary file cannot be made.
        """
        ...

    def add(self, found: MosaicObject) -> None:
        """Take one complete object.

        Raises:
            OutputError: the disk is full, or the like; call :meth:`abort`.
        """
        ...

    def paint(
        self,
        part: Part,
        labels: NDArray[np.integer] | None,
        scores: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take decided pixels of a part, in any order, each pixel at most once.

        Args:
            part: Rows and columns of the raster. Parts that never come are nodata.
            labels: (h, w) classes or ids; None is 0 everywhere.
            scores: (h, w) 0 to 255 for 0 to 1.
            valid: (h, w); where it is False the raster has no data, and nodata is stored.

        Raises:
            OutputError: as :meth:`add`.
        """
        ...

    def rows(self, rows: slice, labels: NDArray[np.integer] | None, scores: NDArray[np.uint8] | None = None) -> None:
        """The same for rows over the whole width."""
        ...

    def commit(self, further: Mapping[str, object] | None = None) -> Path:
        """Complete the file and give it its name; ``further`` is added to the provenance.

        Raises:
            OutputError: the file cannot be completed; nothing is left behind.
        """
        ...

    def abort(self) -> None:
        """Delete what was written; does nothing before :meth:`start` and after :meth:`commit`."""
        ...


class RefusingSink:
    """What a sink does with what it does not take."""

    path: Path
    takes: Takes
    width: int = 0
    """Columns of the raster; set by ``start``."""

    def add(self, found: MosaicObject) -> None:
        """Refuse an object.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.path.name}: takes {self.takes}, no objects; ask sink.takes first")

    def paint(
        self,
        part: Part,
        labels: NDArray[np.integer] | None,
        scores: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Refuse pixels.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.path.name}: takes {self.takes}, no pixels; ask sink.takes first")

    def rows(self, rows: slice, labels: NDArray[np.integer] | None, scores: NDArray[np.uint8] | None = None) -> None:
        """Paint rows over the whole width."""
        self.paint((rows, slice(0, self.width)), labels, scores)
