"""Rasters (GeoTIFF, COG, VRT, JPEG with a sidecar, ...): a lazy :class:`RasterScene`.

Takes any file that GDAL opens and that has a transform; gives arrays (C, H, W) by window and a Grid whose world is the
CRS. Only the header is read when a scene is made. Every read opens the file anew, so scenes can be shared between
threads and sent to other processes.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as GdalWindow

from samgraft.domains.remote_sensing.damage import damage
from samgraft.domains.remote_sensing.geo_scene import WHOLE_PIXELS, GeoScene, Sample, reduced_shape
from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.domains.remote_sensing.header import RasterChoice, RasterHeader, read_header
from samgraft.domains.remote_sensing.sensor import BandChoice
from samgraft.domains.remote_sensing.vrt import in_squares, resamples
from samgraft.domains.scene import Array, Window
from samgraft.errors import InputError
from samgraft.grid import Grid

_WARNINGS_LOCK = threading.Lock()
_READ_OPTIONS = {"GDAL_ERROR_ON_LIBJPEG_WARNING": True}  # a cut-off JPEG is otherwise filled with gray
_FORMATS = {"GTiff": "GeoTIFF", "COG": "COG", "VRT": "VRT", "JPEG": "JPEG", "PNG": "PNG", "JP2OpenJPEG": "JPEG 2000"}


class RasterScene(GeoScene):
    """A georeferenced raster, read by window.

    The alpha band is no channel: it speaks through :meth:`valid`, as do nodata values, mask bands and NaN.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        bands: Sequence[BandChoice] | str | None = None,
        nodata: float | None = None,
        sensor: str | None = None,
        magnitude: bool = False,
    ) -> None:
        """Read the header.

        Args:
            path: Any raster that GDAL opens.
            bands: GDAL band numbers (from 1) or band names to use as channels, in this order; None takes all but alpha.
            nodata: Value that marks missing pixels, for files that do not say so; it replaces the file's own.
            sensor: Name of the sensor (see ``sensor.SENSORS``), which names the bands.
            magnitude: Read complex numbers as their absolute values.

        Raises:
            InputError: no such file, not a raster, several rasters in one file, complex numbers, an unknown band, a
                nodata value that the pixels cannot have, or a georeference that is only RPCs or ground control points
                which no affine transform fits; the message says how to repair it.
            ConfigError: an unknown sensor.
        """
        path = Path(path)
        choice = RasterChoice(bands=bands, nodata=nodata, sensor=sensor, magnitude=magnitude)
        self._take(path, header_of(path, choice))

    @classmethod
    def of_header(cls, path: Path, header: RasterHeader) -> "RasterScene":
        """Make a scene of a header that was just read, without opening the file again; errors as for the class."""
        scene = RasterScene.__new__(RasterScene)
        scene._take(path, header)
        return scene

    def _take(self, path: Path, header: RasterHeader) -> None:
        """Check that the pixels form a grid, and become that raster."""
        if header.warped_by:
            how = "rpc_height=<metres above the ellipsoid>" if header.warped_by == "rpcs" else "no other option"
            raise InputError(
                f"{path} is {header.notes[-1]} and has no transform, so its pixels form no grid; open it with "
                f"samgraft.open and {how}, or orthorectify it first: gdalwarp {path.name} out.tif"
            )
        self._adopt(path, header, grid_of(header.transform, header.crs, header.shape, header.nodata[0]))

    def _adopt(self, path: Path, header: RasterHeader, grid: Grid) -> None:
        """Become the raster that a header describes, on ``grid``."""
        self._header = header
        self.bands = header.bands
        """GDAL band numbers of the channels."""
        self.color = header.color
        self.block_shape = header.block_shape
        self._quiet = header.transform == Affine.identity()
        scaled = header.scaling is not None
        super().__init__(
            path=path,
            kind="raster",
            grid=grid,
            channels=len(header.bands),
            dtype=np.dtype(np.float32) if scaled else header.dtype,
            format=_FORMATS.get(header.driver, header.driver),
            value_range=header.value_range,
            channel_names=header.names,
            frame_known=header.crs is not None,
            notes=header.notes,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that GDAL reads with it: sidecars, overviews, the sources of a VRT."""
        return self._header.files

    @property
    def cheap_slabs(self) -> bool:
        """True for files with an index of their blocks; PNG, JPEG and the like are unpacked from the start."""
        return self.format in ("GeoTIFF", "COG", "VRT")

    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window with the file opened once."""
        every = self._needs_pixels()
        numbers = self.bands if every else tuple(self.bands[c] for c in channels)
        with self._reading(window) as source:
            pixels = self._part(source, numbers, window)
            mask = self._mask_part(source, window)
        valid = self._combine(pixels if every else None, mask, tuple(s.stop - s.start for s in window))
        return self._scale(pixels[list(channels)] if every else pixels, channels), valid

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Pixels of a window, without looking at its validity."""
        with self._reading(window) as source:
            array = self._part(source, tuple(self.bands[c] for c in channels), window)
        return self._scale(array, channels)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Validity of a checked window, from alpha or mask band, nodata and NaN; see :meth:`Scene.valid`."""
        with self._reading(window) as source:
            pixels = self._part(source, self.bands, window) if self._needs_pixels() else None
            mask = self._mask_part(source, window)
        return self._combine(pixels, mask, tuple(s.stop - s.start for s in window))

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """Read the whole raster at reduced size, from overviews where the file has them; see :class:`GeoScene`."""
        shape = reduced_shape(self.grid.shape, max_pixels)
        whole = tuple(slice(0, side) for side in self.grid.shape)
        with self._reading(whole) as source:
            pixels = self._pixels(source, self.bands, out_shape=shape)
            mask = self._mask(source, out_shape=shape)
        valid = self._combine(pixels, mask, shape)
        return self._scale(pixels, tuple(range(self.channels))), valid

    def sample(self, limit: int = 1_000_000) -> Sample:
        """Valid pixels of a small raster or of an overview, else of evenly spread blocks; see :class:`GeoScene`."""
        with self._dataset() as source:
            factors = source.overviews(1)
        size = float(np.prod(self.grid.shape, dtype=np.float64))
        if size / max([1, *factors]) ** 2 > WHOLE_PIXELS and self.cheap_slabs:
            return super().sample(limit)
        array, valid = self.overview(limit)
        if not valid.any() and valid.size < size:
            return super().sample(limit)
        factor = self.grid.shape[0] / valid.shape[0]
        how = "every pixel" if valid.size == size else f"the whole raster at 1/{factor:.3g}"
        return Sample(values=array[:, valid], how=how)

    @cached_property
    def _in_squares(self) -> bool:
        """Whether windows have to be put together from squares, for one value per pixel."""
        return self.format == "VRT" and resamples(self.path)

    def _part(self, source: Any, bands: tuple[int, ...], window: Window) -> Array:
        """Pixels of a window, (bands, h, w)."""
        if not self._in_squares:
            return self._pixels(source, bands, window=gdal_window(window))
        return in_squares(
            lambda square: self._pixels(source, bands, window=gdal_window(square)), window, self.grid.shape
        )

    def _mask_part(self, source: Any, window: Window) -> NDArray[np.bool_] | None:
        """What mask or alpha band say about a window."""
        if not self._in_squares or self._header.mask_band is None:
            return self._mask(source, window=gdal_window(window))
        band = self._header.mask_band
        return in_squares(
            lambda square: np.asarray(source.read_masks(band, window=gdal_window(square)) > 0), window, self.grid.shape
        )

    def _pixels(self, source: Any, bands: tuple[int, ...], **where: Any) -> Array:
        """Read bands in the common dtype; bands of different dtypes are read one by one."""
        dtype = self._header.dtype
        if self._header.magnitude:
            return np.stack([np.abs(source.read(b, **where)).astype(dtype) for b in bands])
        if len({source.dtypes[b - 1] for b in bands}) > 1:
            return np.stack([source.read(b, **where).astype(dtype) for b in bands])
        if "out_shape" in where:
            where["out_shape"] = (len(bands), *where["out_shape"])
        return np.asarray(source.read(list(bands), **where)).astype(dtype, copy=False)

    def _mask(self, source: Any, **where: Any) -> NDArray[np.bool_] | None:
        """What the mask or alpha band says, or None where there is none."""
        band = self._header.mask_band
        return None if band is None else np.asarray(source.read_masks(band, **where) > 0)

    def _needs_pixels(self) -> bool:
        """Whether validity depends on pixel values."""
        return any(v is not None for v in self._header.nodata) or self._header.dtype.kind == "f"

    def _combine(
        self, pixels: Array | None, mask: NDArray[np.bool_] | None, shape: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """Join the signs of missing data: a mask band, nodata in every channel, NaN in any."""
        valid = np.ones(shape, dtype=np.bool_) if mask is None else mask
        if pixels is None:
            return valid
        if pixels.dtype.kind == "f":
            valid = valid & np.isfinite(pixels).all(axis=0)
        marks = self._header.nodata
        if any(v is None or not np.isfinite(v) for v in marks):
            return valid
        with np.errstate(over="ignore"):  # the lowest double as nodata of single precision becomes -inf, never met
            same = np.array(marks, dtype=pixels.dtype)[:, None, None]
        return np.asarray(valid & (pixels != same).any(axis=0))

    def _scale(self, array: Array, channels: tuple[int, ...]) -> Array:
        """Apply the header's scale and offset per band, in float32."""
        if self._header.scaling is None:
            return array.astype(self.dtype, copy=False)
        scales, offsets = (part[list(channels), None, None] for part in self._header.scaling)
        return (array * scales + offsets).astype(np.float32)

    @contextmanager
    def _dataset(self) -> Iterator[Any]:
        """The open data set that windows are read from."""
        with opened(self.path, quiet=self._quiet) as source:
            yield source

    @contextmanager
    def _reading(self, window: Window) -> Iterator[Any]:
        """Open the file for one read; name file, window and block when GDAL fails."""
        rows, cols = window
        place = ""
        try:
            with rasterio.Env(**_READ_OPTIONS), self._dataset() as source:
                if (source.height, source.width) != self.grid.shape:
                    raise InputError(
                        f"{self.path} changed on disk: it is now {source.height} x {source.width}; open it again"
                    )
                try:
                    yield source
                except (RasterioError, OSError):
                    place = damage(source, self.bands, window)
                    raise
        except (RasterioError, OSError) as error:
            reason = error.__cause__ or error
            raise InputError(
                f"{self.path}: rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop} cannot be read "
                f"({place}{reason}); the file is truncated or damaged, copy it again"
            ) from error


def header_of(path: Path, choice: RasterChoice) -> RasterHeader:
    """Open a raster file and read its header.

    Raises:
        InputError: as :class:`RasterScene`, but for the georeference.
        ConfigError: an unknown sensor.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    with opened(path, quiet=True) as source:
        return read_header(path, source, choice)


@contextmanager
def opened(path: Path, *, mode: str = "r", quiet: bool = False, **profile: Any) -> Iterator[Any]:
    """Open with rasterio; ``quiet`` silences its remark on missing georeferences; a failure to open names the file."""
    try:
        if quiet:
            with _WARNINGS_LOCK, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                dataset = rasterio.open(path, mode, **profile)
        else:
            dataset = rasterio.open(path, mode, **profile)
    except RasterioError as error:
        if mode != "r":
            raise
        raise InputError(f"{path} cannot be opened as a raster: {error}; is it complete, and an image?") from error
    with dataset:
        yield dataset


def gdal_window(window: Window) -> GdalWindow:
    """Row and column slices as a GDAL window."""
    rows, cols = window
    return GdalWindow(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
