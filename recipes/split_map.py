"""Which part of a raster trains and which validates, to be looked at: a vector file for a GIS, and a picture."""

from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path
from samgraft.domains.remote_sensing.georeference import point_map, transform_of
from samgraft.domains.remote_sensing.stream_vector import Batch, VectorFile
from samgraft.recipes.data.raster_windows import RasterWindows
from samgraft.recipes.report import SPLIT, png

BLOCKS = "split.gpkg"
"""Name of the file in a run folder."""
_SIDE = 1200
_VAL = np.array([40, 120, 255], dtype=np.float32)
_DARK = 0.35


def write_split(windows: RasterWindows, run: Path) -> tuple[Path, Path]:
    """Write ``split.gpkg`` (blocks: side, labelled share) and ``split.png`` into a run folder.

    In the picture blocks that validate are blue, and what no training window shows is dark: the strip between them, and
    what has no data or was not labelled.

    Raises:
        OutputError: a file cannot be written.
    """
    with atomic_path(run / SPLIT) as temporary:
        temporary.write_bytes(png(shade(windows)))
    return _write_blocks(windows, run / BLOCKS), run / SPLIT


def _write_blocks(windows: RasterWindows, path: Path) -> Path:
    scene, parts = windows.source.scene, windows.blocks.parts()
    corners = shapely.box(parts[:, 2], parts[:, 0], parts[:, 3], parts[:, 1])
    pixels = (parts[:, 1] - parts[:, 0]) * (parts[:, 3] - parts[:, 2])
    validates = windows.blocks.val.ravel()
    shown = np.where(validates, 0, _windows_inside(windows))
    sides = np.where(validates, "val", np.where(shown > 0, "train", "none")).astype(object)
    file = VectorFile(path, scene.grid, {"side": object, "labelled": np.float64, "windows": np.int64})
    file.start()
    try:
        file.write(
            Batch(
                geometry=shapely.transform(corners, point_map(transform_of(scene.grid))),
                columns={
                    "side": sides,
                    "labelled": windows.source.labels.area(parts).sum(axis=1) / pixels,
                    "windows": shown.astype(np.int64),
                },
            )
        )
        return file.commit()
    except BaseException:
        file.abort()
        raise


def _windows_inside(windows: RasterWindows) -> NDArray[np.int64]:
    """How many training windows have their middle in each block."""
    side = windows.blocks.side
    middle = (windows.windows[:, ::2] + windows.windows[:, 1::2]) // 2 // side
    counts = np.zeros(windows.blocks.val.shape, dtype=np.int64)
    np.add.at(counts, (middle[:, 0], middle[:, 1]), 1)
    return counts.ravel()


def shade(windows: RasterWindows, *, side: int = _SIDE) -> NDArray[np.uint8]:
    """The raster at reduced size (h, w, 3), with what validates in blue and what is never seen in the dark.

    Args:
        windows: What trains.
        side: Longer side of the picture, about.
    """
    scene, look = windows.source.scene, windows.source.look
    height, width = scene.grid.shape
    values, _ = scene.overview(max_pixels=max(1, int(side * side * min(height, width) / max(height, width))))
    picture = np.moveaxis(look.apply(values[list(look.channels)]), 0, -1) * 255
    rows, cols = (
        ((2 * np.arange(n) + 1) * full) // (2 * n) for n, full in zip(picture.shape, (height, width), strict=False)
    )
    val = windows.blocks.val[np.ix_(rows // windows.blocks.side[0], cols // windows.blocks.side[1])]
    picture[val] = 0.6 * picture[val] + 0.4 * _VAL
    picture[~val & ~_seen(windows, rows, cols)] *= _DARK
    factor = max(1, side // (2 * max(picture.shape[:2])))
    whole = (picture + 0.5).clip(0, 255).astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
    return np.ascontiguousarray(whole)


def _seen(windows: RasterWindows, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(h, w): whether the raster's pixel at these rows and columns lies in a training window."""
    top, bottom = (np.searchsorted(rows, windows.windows[:, k]) for k in (0, 1))
    left, right = (np.searchsorted(cols, windows.windows[:, k]) for k in (2, 3))
    steps = np.zeros((len(rows) + 1, len(cols) + 1), dtype=np.int64)
    for y, x, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(steps, (y, x), sign)
    return np.asarray(steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)
