"""The sinks that a list of output files needs, and all that can be found out about them before a run.

What can be wrong with an output (its suffix, its folder, a CRS or labels that the format cannot hold, a missing
package) is said by :func:`plan_sinks`, before the first tile is computed.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from samgraft.domains.atomic import full_suffix, require_folder
from samgraft.domains.remote_sensing.cog import SUFFIXES as RASTER_SUFFIXES
from samgraft.domains.remote_sensing.cog import Content
from samgraft.domains.remote_sensing.resample import ResampledScene
from samgraft.domains.remote_sensing.stream_vector import FORMATS
from samgraft.errors import ConfigError, OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.raster_sink import RasterSink
from samgraft.recipes.mosaic.sink import Sink
from samgraft.recipes.mosaic.style import StyleSink
from samgraft.recipes.mosaic.vector_sink import VectorSink

Kind = Literal["semantic", "instance"]


def plan_sinks(
    outputs: Sequence[Path | str],
    grid: Grid,
    classes: Mapping[int, str],
    *,
    kind: Kind,
    scores: Path | str | None = None,
    simplify: float = 0.0,
    style: bool = True,
    view: ResampledScene | None = None,
) -> tuple[Sink, ...]:
    """Make the sinks for some output files, and check all that can be checked beforehand.

    Args:
        outputs: Vector files (``.gpkg``, ``.fgb``, ``.parquet``, ``.geojson``) and label rasters (``.tif``).
        grid: Grid of what is segmented: the raster's, or that of ``view``.
        classes: Class label -> name.
        kind: A raster of a "semantic" result holds classes, one of an "instance" result ids.
        scores: Where a raster of scores goes, or None.
        simplify: Tolerance for polygons in map units; 0 keeps the outlines of the pixels.
        style: Whether a ``.qml`` goes beside the files, with which QGIS shows classes at once. Files that differ in
            their suffix only share it.
        view: The raster at another pixel size, if that is what is segmented; rasters come back to its source's pixels,
            polygons are the outlines of the view's.

    Raises:
        ConfigError: no output, the same one twice, an unknown suffix, labels or a tolerance that cannot be.
        GeometryError: a format cannot hold the grid.
        MissingDependencyError: GeoParquet without pyarrow.
        OutputError: a folder is missing or not writable.
    """
    files = [Path(output) for output in outputs]
    every = files + ([] if scores is None else [Path(scores)])
    if not every:
        raise ConfigError("no output; name at least one file")
    places = [path.absolute() for path in every]
    twice = sorted({str(path) for path in every if places.count(path.absolute()) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)}: named twice as output; give each result a file of its own")
    content: Content = "classes" if kind == "semantic" else "ids"
    sinks = [_sink(path, content, simplify, view) for path in files]
    if scores is not None:
        sinks.append(RasterSink(scores, "scores", view=view))
    for sink in sinks:
        sink.check(grid, classes)
        require_writable(sink.path)
    return (*sinks, *(StyleSink.beside(sinks) if style else ()))


def _sink(path: Path, content: Content, simplify: float, view: ResampledScene | None) -> VectorSink | RasterSink:
    """The sink of one file."""
    suffix = full_suffix(path)
    if suffix in FORMATS:
        return VectorSink(path, simplify=simplify)
    if suffix in RASTER_SUFFIXES:
        return RasterSink(path, content, view=view)
    known = ", ".join(sorted((*FORMATS, *RASTER_SUFFIXES)))
    raise ConfigError(f"{path.name}: unknown suffix {suffix!r}; a mosaic is written as {known}")


def require_writable(path: Path) -> None:
    """Raise if no file can be made beside ``path``.

    Raises:
        OutputError: the folder is missing, or files cannot be made in it.
    """
    require_folder(path)
    trial = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        trial.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that is writable") from error
