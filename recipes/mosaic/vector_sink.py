"""Objects of a mosaic as polygons in a GeoPackage, FlatGeobuf, GeoParquet or GeoJSON, batch by batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.georeference import crs_of
from samgraft.domains.remote_sensing.outline import outlines
from samgraft.domains.remote_sensing.pixel_runs import runs_of_masks
from samgraft.domains.remote_sensing.polygon import COLUMNS, require_tolerance, simplified, square_metres, world_map
from samgraft.domains.remote_sensing.stream_vector import Batch, VectorFile
from samgraft.errors import OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.objects import MosaicObject
from samgraft.recipes.mosaic.sink import RefusingSink, Takes

BATCH = 8192
"""Objects that are outlined and written together."""
BATCH_PIXELS = 16_000_000
"""Object pixels after which a batch is written although it has fewer objects."""
TILE_COLUMNS: Mapping[str, type] = {**COLUMNS, "tiles": np.int32}
"""Columns of the file: id, class, class_name, score, area (m2), area_px, and in how many tiles the object was seen."""


class VectorSink(RefusingSink):
    """A vector file of objects."""

    takes: Takes = "objects"

    def __init__(self, path: Path | str, *, simplify: float = 0.0) -> None:
        """Say what is wanted.

        Args:
            path: Suffix as in ``FORMATS`` of ``samgraft.domains.remote_sensing.stream_vector``.
            simplify: Tolerance in map units; 0 keeps outlines along pixel edges.
        """
        self.path = Path(path)
        self.simplify = simplify
        self._file: VectorFile | None = None
        self._grid: Grid | None = None
        self._classes: dict[int, str] = {}
        self._provenance: dict[str, object] = {}
        self._waiting: list[MosaicObject] = []
        self._pixels = 0

    def check(self, grid: Grid, classes: Mapping[int, str]) -> None:
        """Find out what would go wrong, without making a file.

        Raises:
            ConfigError: the suffix, or the tolerance.
            GeometryError: the format cannot name the CRS, or the grid is a volume's.
            MissingDependencyError: a package is absent.
        """
        require_tolerance(self.simplify)
        world_map(grid)
        VectorFile(self.path, grid, TILE_COLUMNS)

    def start(
        self, grid: Grid, classes: Mapping[int, str], provenance: Mapping[str, object], *, count: int | None = None
    ) -> None:
        """Make the temporary file; see :class:`Sink`."""
        self._grid, self._classes, self._provenance = grid, dict(classes), dict(provenance)
        self._file = VectorFile(self.path, grid, TILE_COLUMNS)
        self._file.start()

    def add(self, found: MosaicObject) -> None:
        """Take an object; see :class:`Sink`."""
        self._waiting.append(found)
        self._pixels += found.area_px
        if len(self._waiting) >= BATCH or self._pixels >= BATCH_PIXELS:
            self._flush()

    def commit(self, further: Mapping[str, object] | None = None) -> Path:
        """Complete the file; see :class:`Sink`."""
        file = self._begun()
        self._flush()
        self._file = None
        return file.commit({**self._provenance, **(further or {})})

    def abort(self) -> None:
        """Delete what was written; see :class:`Sink`."""
        file, self._file = self._file, None
        self._waiting, self._pixels = [], 0
        if file is not None:
            file.abort()

    def _begun(self) -> VectorFile:
        if self._file is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() first")
        return self._file

    def _flush(self) -> None:
        """Outline and write what waits."""
        file, waiting, grid = self._begun(), self._waiting, self._grid
        if not waiting or grid is None:
            return
        self._waiting, self._pixels = [], 0
        move, turn = world_map(grid)
        masks = (
            (number, rows.start, cols.start, mask)
            for number, found in enumerate(waiting)
            for (rows, cols), mask in found.pieces
        )
        owners, geometries = outlines(runs_of_masks(masks), move=move, turn=turn)
        seen = [waiting[number] for number in owners.tolist()]
        columns = {
            "id": [one.id for one in seen],
            "class": [one.class_id for one in seen],
            "class_name": [self._classes.get(one.class_id, f"class {one.class_id}") for one in seen],
            "score": np.round([float(one.score) for one in seen], 6),
            "area": square_metres(geometries, crs_of(grid)),
            "area_px": [one.area_px for one in seen],
            "tiles": [one.tiles for one in seen],
        }
        typed: dict[str, NDArray[Any]] = {n: np.asarray(columns[n], dtype=kind) for n, kind in TILE_COLUMNS.items()}
        file.write(Batch(geometry=simplified(geometries, self.simplify), columns=typed))
