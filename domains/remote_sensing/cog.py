"""One-band Cloud Optimized GeoTIFFs of rasters larger than memory, painted part by part.

A :class:`CogFile` takes rectangles in any order, puts them together to whole blocks of a sparse temporary GeoTIFF, and
makes the final file of it in one pass of GDAL's COG driver, with overviews. Until then nothing is at the final path.
Blocks that are not complete yet wait in memory: the newest as they are, older ones packed, so that a row of them over
the whole width costs little. Places that were never painted hold the nodata value and take no space.
"""

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from samgraft.domains.atomic import atomic_path, drop, full_suffix, work_folder
from samgraft.domains.remote_sensing.georeference import PIXEL
from samgraft.domains.remote_sensing.label_raster import (
    class_tags,
    created,
    label_profile,
    named,
    quietly,
    reopened,
    require_same_place,
    require_storable,
)
from samgraft.domains.remote_sensing.palette import class_colors
from samgraft.domains.remote_sensing.provenance import TAG, canonical_json
from samgraft.domains.scene import Array, label_dtype
from samgraft.errors import ConfigError, OutputError, ShapeError
from samgraft.grid import Grid

SUFFIXES = (".tif", ".tiff")
BLOCK = 512
"""Side of a stored block."""
CACHE_BYTES = 64 << 20
"""What GDAL may keep in memory while a file is written."""
_UNPACKED = 32
Content = Literal["classes", "ids", "scores"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How values are stored."""

    dtype: np.dtype[Any]
    """uint8, uint16 or uint32."""
    nodata: int
    """Value of places that were never painted; no label uses it."""
    resampling: str = "NEAREST"
    """How overviews are made."""
    scale: float = 1.0
    """Stored value times this is the real value."""


def layout_of(content: Content, classes: Mapping[int, str], count: int | None = None) -> Layout:
    """Choose dtype and nodata before anything is computed.

    Class maps are uint8 with nodata 255 where the labels allow it, else uint16 with 65535; 0 is background, which is
    not nodata. Ids are of the smallest dtype that holds ``count`` of them, uint32 when that is unknown; 0 is nodata.
    Scores are uint8, 0 to 255 for 0 to 1; 0 is nodata.

    Args:
        content: What is painted.
        classes: Class label -> name.
        count: Largest id, if known.

    Raises:
        ConfigError: unknown content, or labels that no dtype holds.
    """
    if content == "scores":
        return Layout(dtype=np.dtype(np.uint8), nodata=0, resampling="AVERAGE", scale=1.0 / 255.0)
    if content == "ids":
        return Layout(dtype=np.dtype(np.uint32) if count is None else label_dtype(count), nodata=0)
    if content != "classes":
        raise ConfigError(f"a raster of {content!r}; expected 'classes', 'ids' or 'scores'")
    top = max(classes, default=0)
    for kind in (np.uint8, np.uint16):
        if 0 <= top < np.iinfo(kind).max:
            return Layout(dtype=np.dtype(kind), nodata=int(np.iinfo(kind).max))
    raise ConfigError(f"class label {top} cannot be stored; expected 1 to {np.iinfo(np.uint16).max - 1}")


def small_cache() -> Any:
    """Context in which GDAL keeps at most ``CACHE_BYTES`` of blocks; its default is a share of the machine's memory."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES)


class CogFile:
    """A Cloud Optimized GeoTIFF in the making."""

    def __init__(
        self, path: Path | str, grid: Grid, layout: Layout, *, name: str = "", classes: Mapping[int, str] | None = None
    ) -> None:
        """Check that the file can be written; nothing is made yet.

        Args:
            path: ``.tif`` or ``.tiff``.
            grid: Grid of the raster; the file lies exactly there.
            layout: From :func:`layout_of`.
            name: Name of the band.
            classes: For class maps: names, and a colour table where the dtype allows one.

        Raises:
            ConfigError: another suffix.
            GeometryError: a GeoTIFF cannot hold the grid as it is.
        """
        self.path = Path(path)
        if full_suffix(self.path) not in SUFFIXES:
            raise ConfigError(f"{self.path.name}: label rasters go to {' or '.join(SUFFIXES)}; rename the output")
        require_storable(grid)
        self.grid, self.layout, self.name, self.classes = grid, layout, name, dict(classes or {})
        self._stack = ExitStack()
        self._target: Any = None
        self._temp, self._work = Path(), Path()
        self._blocks = _Blocks((grid.shape[0], grid.shape[1]), layout)

    def start(self) -> None:
        """Make the temporary files.

        Raises:
            OutputError: the folder is missing or not writable.
        """
        with named(self.path), ExitStack() as opening:
            self._temp = opening.enter_context(atomic_path(self.path))
            self._work = opening.enter_context(work_folder(self.path))
            profile = label_profile(self.grid, self.layout.dtype) | {
                "nodata": self.layout.nodata,
                "tiled": True,
                "blockxsize": BLOCK,
                "blockysize": BLOCK,
                "compress": "deflate",
                "zlevel": 1,
                "sparse_ok": True,
                "bigtiff": "if_safer",
            }
            with small_cache():  # a dataset that is opened in a context of its own would end others when it closes
                self._target = opening.enter_context(created(self._work / "blocks.tif", **profile))
            self._stack = opening.pop_all()

    def paint(self, part: tuple[slice, slice], values: Array | None, valid: NDArray[np.bool_] | None = None) -> None:
        """Set a rectangle that was not set before.

        Args:
            part: Rows and columns of the raster.
            values: (h, w) integers; None is 0 everywhere.
            valid: (h, w); where it is False, nodata is stored.

        Raises:
            ShapeError: values of another shape than the part, or a part outside the raster.
            OutputError: a value that the dtype of the file cannot hold, or the disk is full; call :meth:`abort`.
        """
        if self._target is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() before paint()")
        with named(self.path), small_cache():
            for place, block in self._blocks.paint(part, values, valid):
                self._write(place, block)

    def commit(self, provenance: Mapping[str, object] | None = None) -> Path:
        """Make the final file.

        Args:
            provenance: What the file was made from, JSON types.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        if self._target is None:
            raise OutputError(f"{self.path} was not started, or is finished; call start() before commit()")
        try:
            with named(self.path), small_cache():
                for place, block in self._blocks.rest():
                    self._write(place, block)
                self._describe(provenance or {})
                self._target.close()
                self._convert()
                self._verify()
                self._stack.close()
        except BaseException:
            self.abort()
            raise
        self._target = None
        return self.path

    def abort(self) -> None:
        """Delete what was written; does nothing after :meth:`commit`."""
        self._target = None
        stack, self._stack = self._stack, ExitStack()
        drop(stack)

    def _write(self, place: tuple[int, int], block: Array) -> None:
        row, col = place[0] * BLOCK, place[1] * BLOCK
        self._target.write(block, 1, window=GdalWindow(col, row, block.shape[1], block.shape[0]))

    def _describe(self, provenance: Mapping[str, object]) -> None:
        """Header fields that do not depend on pixels."""
        target = self._target
        target.update_tags(**class_tags(self.classes), **{TAG: canonical_json(provenance)})
        if self.name:
            target.set_band_description(1, self.name)
        if self.layout.scale != 1.0:
            target.scales = (self.layout.scale,)
        if self.classes and self.layout.dtype == np.uint8:
            target.write_colormap(1, class_colors(max(self.classes)))

    def _convert(self) -> None:
        """The one pass that sorts blocks and makes overviews."""
        options = {"BLOCKSIZE": BLOCK, "COMPRESS": "DEFLATE", "SPARSE_OK": "YES", "BIGTIFF": "IF_SAFER"}
        options |= {"OVERVIEWS": "IGNORE_EXISTING", "OVERVIEW_RESAMPLING": self.layout.resampling}
        with quietly() if self.grid.world == PIXEL else nullcontext():  # no lock for the minutes that this may take
            rasterio.shutil.copy(self._work / "blocks.tif", self._temp, driver="COG", **options)

    def _verify(self) -> None:
        """Header and last rows, which lie at the end of the file; a full disk does not always show while writing."""
        with reopened(self._temp) as source:
            require_same_place(source, self.grid)
            stored = (source.dtypes[0], source.nodata)
            if stored != (self.layout.dtype.name, self.layout.nodata):
                raise OutputError(f"{self.path.name}: dtype and nodata came back as {stored}")
            height, width = source.shape
            rows = min(BLOCK, height)
            for left in range(0, width, 8 * BLOCK):
                source.read(window=GdalWindow(left, height - rows, min(8 * BLOCK, width - left), rows))


class _Blocks:
    """Puts painted rectangles together to blocks."""

    def __init__(self, shape: tuple[int, int], layout: Layout) -> None:
        self._shape, self._layout = shape, layout
        self._left: dict[tuple[int, int], int] = {}
        self._open: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._packed: dict[tuple[int, int], bytes] = {}

    def paint(
        self, part: tuple[slice, slice], values: Array | None, valid: NDArray[np.bool_] | None
    ) -> Iterator[tuple[tuple[int, int], Array]]:
        """Blocks that are complete now, with something in them."""
        rows, cols = part
        height, width = rows.stop - rows.start, cols.stop - cols.start
        inside = 0 <= rows.start < rows.stop <= self._shape[0] and 0 <= cols.start < cols.stop <= self._shape[1]
        if not inside or (values is not None and values.shape != (height, width)):
            got = "nothing" if values is None else str(values.shape)
            raise ShapeError(f"painting {got} at rows {rows}, columns {cols} of a raster of {self._shape}")
        stored = self._stored(values, valid, (height, width))
        for i in range(rows.start // BLOCK, (rows.stop - 1) // BLOCK + 1):
            for j in range(cols.start // BLOCK, (cols.stop - 1) // BLOCK + 1):
                yield from self._into((i, j), rows, cols, stored)

    def rest(self) -> Iterator[tuple[tuple[int, int], Array]]:
        """Blocks that were painted in part."""
        for place in sorted({*self._open, *self._packed}):
            yield place, self._take(place)
        self._left.clear()

    def _stored(self, values: Array | None, valid: NDArray[np.bool_] | None, shape: tuple[int, int]) -> Array | None:
        """Values as they lie in the file; None where all is nodata."""
        layout = self._layout
        if (values is None or not values.any()) and layout.nodata == 0:
            return None
        if values is None:
            values = np.zeros(shape, dtype=layout.dtype)
        top = int(values.max())
        if top > np.iinfo(layout.dtype).max or (layout.nodata and top >= layout.nodata) or int(values.min()) < 0:
            raise OutputError(
                f"value {top} does not fit {layout.dtype} with nodata {layout.nodata}; give all classes, or the count "
                "of ids, when the file is planned"
            )
        found = values.astype(layout.dtype, copy=False)
        return found if valid is None else np.where(valid, found, layout.dtype.type(layout.nodata))

    def _into(
        self, place: tuple[int, int], rows: slice, cols: slice, stored: Array | None
    ) -> Iterator[tuple[tuple[int, int], Array]]:
        """Paint one block; give it if it is complete."""
        top, left = place[0] * BLOCK, place[1] * BLOCK
        size = (min(BLOCK, self._shape[0] - top), min(BLOCK, self._shape[1] - left))
        a = slice(max(rows.start, top), min(rows.stop, top + size[0]))
        b = slice(max(cols.start, left), min(cols.stop, left + size[1]))
        remaining = self._left.pop(place, size[0] * size[1]) - (a.stop - a.start) * (b.stop - b.start)
        if remaining:
            self._left[place] = remaining
        if stored is not None:
            piece = stored[a.start - rows.start : a.stop - rows.start, b.start - cols.start : b.stop - cols.start]
            if piece.shape == size:
                yield place, piece
                return
            block = self._take(place, size)
            block[a.start - top : a.stop - top, b.start - left : b.stop - left] = piece
            self._open[place] = block
        if not remaining and (place in self._open or place in self._packed):
            yield place, self._take(place)
        self._pack()

    def _take(self, place: tuple[int, int], size: tuple[int, int] = (0, 0)) -> Array:
        """A waiting block, which waits no longer; a new one of ``size`` if there is none."""
        if place in self._open:
            return self._open.pop(place)
        packed = self._packed.pop(place, None)
        if packed is None:
            return np.full(size, self._layout.nodata, dtype=self._layout.dtype)
        top, left = place[0] * BLOCK, place[1] * BLOCK
        size = (min(BLOCK, self._shape[0] - top), min(BLOCK, self._shape[1] - left))
        return np.frombuffer(bytearray(zlib.decompress(packed)), dtype=self._layout.dtype).reshape(size)

    def _pack(self) -> None:
        while len(self._open) > _UNPACKED:
            place, block = self._open.popitem(last=False)
            self._packed[place] = zlib.compress(block.tobytes(), level=1)
