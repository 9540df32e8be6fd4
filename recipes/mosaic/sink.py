"""Where the results of a mosaic go: the protocol of a sink, and the sinks that a list of output files needs.

A sink takes complete objects or painted parts as they come, holds a batch of them at most, and puts one complete file
at its path when it is told to commit; before that nothing is there. Everything that can be wrong with an output (its
suffix, its folder, a CRS or labels that the format cannot hold, a missing package) is found out by :func:`plan_sinks`,
before the first tile is computed.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.atomic import full_suffix
from samgraft.domains.remote_sensing.cog import SUFFIXES as RASTER_SUFFIXES
from samgraft.domains.remote_sensing.cog import Content
from samgraft.domains.remote_sensing.stream_vector import FORMATS
from samgraft.errors import ConfigError, OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.objects import MosaicObject
from samgraft.recipes.mosaic.plan import Part

Takes = Literal["objects", "rows", "nothing"]
Kind = Literal["semantic", "instance"]


class Sink(Protocol):
    """One output file in the making."""

    @property
    def path(self) -> Path:
        """Where the file will be."""
        ...

    @property
    def takes(self) -> Takes:
        """"objects": :meth:`add` is called; "rows": :meth:`rows` or :meth:`paint`; "nothing": neither."""
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


def plan_sinks(
    outputs: Sequence[Path | str],
    grid: Grid,
    classes: Mapping[int, str],
    *,
    kind: Kind,
    scores: Path | str | None = None,
    simplify: float = 0.0,
    style: bool = True,
) -> tuple[Sink, ...]:
    """Make the sinks for some output files, and check all that can be checked beforehand.

    Args:
        outputs: Vector files (``.gpkg``, ``.fgb``, ``.parquet``, ``.geojson``) and label rasters (``.tif``).
        grid: Grid of the raster.
        classes: Class label -> name.
        kind: A raster of a "semantic" result holds classes, one of an "instance" result ids.
        scores: Where a raster of scores goes, or None.
        simplify: Tolerance for polygons in map units; 0 keeps the outlines of the pixels.
        style: Whether a ``.qml`` goes beside the files, with which QGIS shows classes at once. Files that differ in
            their suffix only share it.

    Raises:
        ConfigError: no output, the same one twice, an unknown suffix, labels or a tolerance that cannot be.
        GeometryError: a format cannot hold the grid.
        MissingDependencyError: GeoParquet without pyarrow.
        OutputError: a folder is missing or not writable.
    """
    from samgraft.recipes.mosaic.raster_sink import RasterSink
    from samgraft.recipes.mosaic.style import StyleSink
    from samgraft.recipes.mosaic.vector_sink import VectorSink

    files = [Path(output) for output in outputs]
    every = files + ([] if scores is None else [Path(scores)])
    if not every:
        raise ConfigError("no output; name at least one file")
    twice = sorted({str(path) for path in every if [p.absolute() for p in every].count(path.absolute()) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)}: named twice as output; give each result a file of its own")
    sinks: list[Sink] = []
    content: Content = "classes" if kind == "semantic" else "ids"
    for path in files:
        suffix = full_suffix(path)
        if suffix in FORMATS:
            sinks.append(VectorSink(path, simplify=simplify))
        elif suffix in RASTER_SUFFIXES:
            sinks.append(RasterSink(path, content))
        else:
            known = ", ".join(sorted((*FORMATS, *RASTER_SUFFIXES)))
            raise ConfigError(f"{path.name}: unknown suffix {suffix!r}; a mosaic is written as {known}")
    if scores is not None:
        sinks.append(RasterSink(scores, "scores"))
    for sink in sinks:
        if isinstance(sink, (VectorSink, RasterSink)):
            sink.check(grid, classes)
        require_writable(sink.path)
    if style:
        sinks += StyleSink.beside([s for s in sinks if isinstance(s, (VectorSink, RasterSink))])
    return tuple(sinks)


def require_writable(path: Path) -> None:
    """Raise if no file can be made beside ``path``.

    Raises:
        OutputError: the folder is missing, or files cannot be made in it.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write to")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist; create it first")
    trial = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        trial.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that is writable") from error
