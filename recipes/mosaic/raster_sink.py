"""Labels or scores of a mosaic as a Cloud Optimized GeoTIFF on exactly the grid of the input."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.cog import CogFile, Content, layout_of
from samgraft.errors import OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.plan import Part
from samgraft.recipes.mosaic.sink import RefusingSink, Takes

_BANDS: Mapping[Content, str] = {"classes": "class", "ids": "id", "scores": "score"}


class RasterSink(RefusingSink):
    """A raster of classes, ids or scores."""

    takes: Takes = "rows"

    def __init__(self, path: Path | str, content: Content) -> None:
        """Say what is wanted.

        Args:
            path: ``.tif``.
            content: "classes" or "ids" are painted from labels, "scores" from scores; dtypes and nodata as in
                ``samgraft.domains.remote_sensing.cog.layout_of``.
        """
        self.path = Path(path)
        self.content: Content = content
        self._file: CogFile | None = None
        self._provenance: dict[str, object] = {}

    def check(self, grid: Grid, classes: Mapping[int, str]) -> None:
        """Find out what would go wrong, without making a file.

        Raises:
            ConfigError: the suffix, or labels that no dtype holds.
            GeometryError: a GeoTIFF cannot hold the grid as it is.
        """
        self._made(grid, classes, None)

    def _made(self, grid: Grid, classes: Mapping[int, str], count: int | None) -> CogFile:
        layout = layout_of(self.content, classes, count)
        named = classes if self.content == "classes" else None
        return CogFile(self.path, grid, layout, name=_BANDS[self.content], classes=named)

    def start(
        self, grid: Grid, classes: Mapping[int, str], provenance: Mapping[str, object], *, count: int | None = None
    ) -> None:
        """Make the temporary file; see :class:`Sink`."""
        self.width, self._provenance = grid.shape[1], dict(provenance)
        self._file = self._made(grid, classes, count)
        self._file.start()

    def paint(
        self,
        part: Part,
        labels: NDArray[np.integer] | None,
        scores: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take decided pixels; see :class:`Sink`."""
        if self._file is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() first")
        self._file.paint(part, scores if self.content == "scores" else labels, valid)

    def commit(self, further: Mapping[str, object] | None = None) -> Path:
        """Complete the file; see :class:`Sink`."""
        if self._file is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() first")
        file, self._file = self._file, None
        return file.commit({**self._provenance, **(further or {})})

    def abort(self) -> None:
        """Delete what was written; see :class:`Sink`."""
        file, self._file = self._file, None
        if file is not None:
            file.abort()
