"""Label rasters: GeoTIFFs of labels that are in memory, and what all label rasters have in common.

Takes labels and the Grid of the raster; the file carries the very same transform and CRS, and is read back to be sure.
``cog.py`` writes those that are larger than memory.
"""

import json
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError  # rasterio.shutil passes GDAL's errors on as they are
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as GdalWindow

from samgraft.domains.atomic import atomic_path
from samgraft.domains.remote_sensing.georeference import crs_of, transform_of
from samgraft.domains.remote_sensing.palette import class_colors
from samgraft.domains.remote_sensing.provenance import TAG
from samgraft.domains.scene import Array, label_dtype
from samgraft.errors import GeometryError, InputError, OutputError, ShapeError
from samgraft.grid import Grid

_WARNINGS_LOCK = threading.Lock()
_BLOCK = 256
_ROWS_PER_CHUNK = 1024


def write_label_geotiff(
    path: Path | str,
    labels: Array,
    grid: Grid,
    classes: Mapping[int, str] | None = None,
    *,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write labels as a tiled, deflate-compressed GeoTIFF on exactly the grid given, and read it back to be sure.

    No nodata value is set, since 0 is background. uint8 maps with at most 255 classes get a colour table.

    Args:
        path: File to write; replaced only when the new one is complete.
        labels: Integers >= 0, (H, W). The dtype of the file is the smallest of uint8, uint16, uint32 that fits.
        grid: Grid of the labels: a raster or a picture.
        classes: Label value -> name, for semantic maps: stored as a tag and used for the colour table.
        tags: More text to store in the header.

    Raises:
        ShapeError: labels and grid have different shapes.
        GeometryError: the grid cannot be stored in a GeoTIFF without changing it.
        OutputError: the file cannot be written; nothing is left behind.
    """
    if labels.shape != grid.shape:
        raise ShapeError(f"labels are {labels.shape}; the grid is {grid.shape}")
    values = labels.astype(label_dtype(int(labels.max(initial=0))))
    profile = label_profile(grid, values.dtype) | {"compress": "deflate", "predictor": 2, "bigtiff": "if_safer"}
    if min(grid.shape) >= _BLOCK:
        profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    text = {f"{TAG}_{key.upper()}": value for key, value in (tags or {}).items()} | class_tags(classes)
    with atomic_path(path) as temp, named(path):
        with created(temp, **profile) as target:
            target.write(values, 1)
            if text:
                target.update_tags(**text)
            if classes and values.dtype == np.uint8:
                target.write_colormap(1, class_colors(len(classes)))
        _verify(temp, values, grid)


def label_profile(grid: Grid, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What rasterio needs to create a one-band GeoTIFF on exactly this grid.

    Raises:
        GeometryError: the grid is a volume's, or its world is no CRS.
    """
    transform, crs = transform_of(grid), crs_of(grid)
    height, width = grid.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": np.dtype(dtype).name,
        "crs": crs,
    }
    if transform != Affine.identity() or crs:
        profile["transform"] = transform
    return profile


def class_tags(classes: Mapping[int, str] | None) -> dict[str, str]:
    """Names of classes as a tag."""
    if not classes:
        return {}
    return {f"{TAG}_CLASSES": json.dumps({str(k): v for k, v in classes.items()}, ensure_ascii=False)}


def require_storable(grid: Grid) -> None:
    """Raise if a GeoTIFF would not give this grid back as it is; costs a file of one pixel in memory.

    Raises:
        GeometryError: names what would change, and what to write instead.
    """
    profile = label_profile(grid, np.dtype(np.uint8)) | {"height": 1, "width": 1}
    with quietly(), MemoryFile() as memory:
        with memory.open(**profile):
            pass
        with memory.open() as stored:
            require_same_place(stored, grid)


def require_same_place(source: Any, grid: Grid) -> None:
    """Raise if an open dataset does not lie exactly where the grid does.

    Raises:
        GeometryError: transform or CRS differ.
    """
    affine_differs = source.transform != transform_of(grid)
    if affine_differs or (source.crs or None) != crs_of(grid):
        got = source.transform if affine_differs else str(source.crs)[:80]
        raise GeometryError(
            f"a GeoTIFF cannot hold this {'transform' if affine_differs else 'CRS'}: {grid.world[:80]!r} came back "
            f"as {got!r}; write .gpkg instead"
        )


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Errors of rasterio and of the disk become one that names the file.

    Raises:
        OutputError: as said; errors of samgraft pass.
    """
    try:
        yield
    except (OutputError, GeometryError):
        raise
    except (RasterioError, CPLE_BaseError, OSError, InputError) as error:
        raise OutputError(f"cannot write {path}: {error}; nothing was left behind, check space and rights") from error


@contextmanager
def created(path: Path, **profile: Any) -> Iterator[Any]:
    """A new dataset, without rasterio's remark where it has no georeference."""
    with quietly():
        dataset = rasterio.open(path, "w", **profile)
    with dataset:
        yield dataset


@contextmanager
def quietly() -> Iterator[None]:
    """No remark that a picture has no georeference."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def reopened(path: Path) -> Iterator[Any]:
    """A file that was just written."""
    with quietly():
        dataset = rasterio.open(path)
    with dataset:
        yield dataset


def _verify(path: Path, values: Array, grid: Grid) -> None:
    """Read a written file back; a full disk does not always show while writing."""
    with reopened(path) as source:
        require_same_place(source, grid)
        for start in range(0, grid.shape[0], _ROWS_PER_CHUNK):
            part = values[start : start + _ROWS_PER_CHUNK]
            if not np.array_equal(source.read(1, window=GdalWindow(0, start, grid.shape[1], len(part))), part):
                raise OutputError(f"{path.name}: rows from {start} did not arrive on the disk; is it full?")
