"""Labels or scores of a mosaic as a Cloud Optimized GeoTIFF on exactly the grid of the input.

Where the input was seen with other pixels than its own, values come back to its own while they are painted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.cog import CogFile, Content, layout_of
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.errors import OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.plan import Part, within
from samgraft.recipes.mosaic.sink import RefusingSink, Takes

_BANDS: Mapping[Content, str] = {"classes": "class", "ids": "id", "scores": "score"}


class RasterSink(RefusingSink):
    """A raster of classes, ids or scores."""

    takes: Takes = "rows"

    def __init__(self, path: Path | str, content: Content, *, view: ResampledScene | None = None) -> None:
        """Say what is wanted.

        Args:
            path: ``.tif``.
            content: "classes" or "ids" are painted from labels, "scores" from scores; dtypes and nodata as in
                ``samgraft.domains.remote_sensing.cog.layout_of``.
            view: What was segmented, if that is a raster at another pixel size: parts are counted on its grid, and the
                file lies on that of its source, where each pixel takes the label of the pixel that holds its centre.
        """
        self.path = Path(path)
        self.content: Content = content
        self.view = view
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
        own = grid if self.view is None else self.view.source.grid
        layout = layout_of(self.content, classes, count)
        named = classes if self.content == "classes" else None
        return CogFile(self.path, own, layout, name=_BANDS[self.content], classes=named)

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
        values: NDArray[np.integer] | None = scores if self.content == "scores" else labels
        if self.view is not None:
            own = self.view.source_window(part)
            if not all(side.stop > side.start for side in own):
                return
            known = self.view.source.valid(own)
            values = None if values is None else self._taken(values, part, own)
            valid = known if valid is None else known & self._taken(valid, part, own)
            part = own
        self._file.paint(part, values, valid)

    def _taken(self, values: NDArray[Any], part: Part, own: Part) -> NDArray[Any]:
        """Values (h, w) over ``part`` of the view on pixels ``own`` of its source."""
        view = self.view
        if view is None:
            return values
        return view.to_source(values[within(view.covering(own), part)], own)

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
