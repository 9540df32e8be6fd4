"""Rasters (GeoTIFF, COG, VRT, JPEG with a sidecar, ...): a lazy :class:`RasterScene`.

Takes any file that GDAL opens and that has a transform; gives arrays (C, H, W) by window and a Grid whose world is the
CRS. Only the header is read when a scene is made. Every read opens the file anew, so scenes can be shared between
threads and sent to other processes.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as GdalWindow

from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.domains.scene import Array, Scene, Window, dtype_range, explicit_window
from samgraft.errors import InputError

_WARNINGS_LOCK = threading.Lock()
_READ_OPTIONS = {"GDAL_ERROR_ON_LIBJPEG_WARNING": True}  # a cut-off JPEG is otherwise filled with gray
_FORMATS = {"GTiff": "GeoTIFF", "COG": "COG", "VRT": "VRT", "JPEG": "JPEG", "PNG": "PNG", "JP2OpenJPEG": "JPEG 2000"}


class RasterScene(Scene):
    """A georeferenced raster, read by window.

    The alpha band is no channel: it speaks through :meth:`valid`, as do nodata values, mask bands and NaN.
    """

    def __init__(self, path: Path | str, *, bands: Sequence[int] | None = None, nodata: float | None = None) -> None:
        """Read the header.

        Args:
            path: Any raster that GDAL opens.
            bands: GDAL band numbers (from 1) to use as channels, in this order; None takes all but alpha.
            nodata: Value that marks missing pixels, for files that do not say so; it replaces the file's own.

        Raises:
            InputError: no such file, not a raster, several rasters in one file, complex numbers, an unknown band, or a
                georeference that is only ground control points or RPCs; the message says how to repair it.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path")
        with _opened(path, quiet=True) as source:
            _refuse_unusable(path, source)
            numbers = _chosen_bands(path, source, bands)
            file_dtype = np.result_type(*(np.dtype(source.dtypes[b - 1]) for b in numbers))
            scales = np.array([source.scales[b - 1] for b in numbers], dtype=np.float64)
            offsets = np.array([source.offsets[b - 1] for b in numbers], dtype=np.float64)
            scaled = bool((scales != 1.0).any() or (offsets != 0.0).any())
            own = source.nodatavals[numbers[0] - 1] if nodata is None else nodata
            self.bands = numbers
            """GDAL band numbers of the channels."""
            self.color = tuple(source.colorinterp[b - 1].name for b in numbers)
            """Colour interpretation of each channel ("red", "gray", "undefined", ...)."""
            self.block_shape: tuple[int, int] = tuple(source.block_shapes[0])
            """(rows, columns) of one stored block; reading whole blocks is fastest."""
            self._mask_band = _mask_band(source)
            self._file_dtype = file_dtype
            self._quiet = source.transform == Affine.identity()
            self._scaling = (scales, offsets) if scaled else None
            grid = grid_of(source.transform, source.crs, (source.height, source.width), own)
            super().__init__(
                path=path,
                kind="raster",
                grid=grid,
                channels=len(numbers),
                dtype=np.dtype(np.float32) if scaled else file_dtype,
                format=_FORMATS.get(source.driver, source.driver),
                value_range=None if scaled else _value_range(source, numbers, file_dtype),
                channel_names=_names(source, numbers),
                frame_known=bool(source.crs),
                notes=() if source.crs else ("no CRS",),
            )

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Read a checked window; see :meth:`Scene.read`."""
        numbers = [self.bands[c] for c in channels]
        with self._reading(window) as source:
            array = self._pixels(source, numbers, window=_gdal_window(window))
        return self._scale(array, channels)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Validity of a checked window, from alpha or mask band, nodata and NaN; see :meth:`Scene.valid`."""
        with self._reading(window) as source:
            part = _gdal_window(window)
            wanted = self._needs_pixels()
            pixels = self._pixels(source, self.bands, window=part) if wanted else None
            mask = source.read_masks(self._mask_band, window=part) if self._mask_band else None
        shape = tuple(s.stop - s.start for s in window)
        return self._combine(pixels, mask, shape)

    def read_valid(
        self, window: Window | None = None, channels: Sequence[int] | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window with the file opened once; see :meth:`Scene.read_valid`."""
        place, chosen = explicit_window(window, self.grid.shape), self._chosen(channels)
        every = self._needs_pixels()
        with self._reading(place) as source:
            part = _gdal_window(place)
            pixels = self._pixels(source, self.bands if every else [self.bands[c] for c in chosen], window=part)
            mask = source.read_masks(self._mask_band, window=part) if self._mask_band else None
        valid = self._combine(pixels if every else None, mask, tuple(s.stop - s.start for s in place))
        return self._scale(pixels[list(chosen)] if every else pixels, chosen), valid

    @property
    def cheap_slabs(self) -> bool:
        """True for files with an index of their blocks; PNG, JPEG and the like are unpacked from the start."""
        return self.format in ("GeoTIFF", "COG", "VRT")

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """Read the whole raster at reduced size, from overviews where the file has them.

        Args:
            max_pixels: Upper bound of rows times columns.

        Returns:
            Values (C, h, w) of ``dtype`` and validity (h, w).

        Raises:
            InputError: the file is damaged.
        """
        height, width = self.grid.shape
        factor = max(1.0, float(np.sqrt(height * width / max(1, max_pixels))))
        shape = (max(1, int(height / factor)), max(1, int(width / factor)))
        whole = tuple(slice(0, side) for side in self.grid.shape)
        with self._reading(whole) as source:
            pixels = self._pixels(source, self.bands, out_shape=shape)
            mask = source.read_masks(self._mask_band, out_shape=shape) if self._mask_band else None
        valid = self._combine(pixels, mask, shape)
        return self._scale(pixels, tuple(range(self.channels))), valid

    def _pixels(self, source: Any, bands: Sequence[int], **where: Any) -> Array:
        """Read bands in the common dtype; bands of different dtypes are read one by one."""
        if len({source.dtypes[b - 1] for b in bands}) > 1:
            return np.stack([source.read(b, **where).astype(self._file_dtype) for b in bands])
        if "out_shape" in where:
            where["out_shape"] = (len(bands), *where["out_shape"])
        return np.asarray(source.read(list(bands), **where)).astype(self._file_dtype, copy=False)

    def _needs_pixels(self) -> bool:
        """Whether validity depends on pixel values."""
        return self.grid.nodata is not None or self.dtype.kind == "f"

    def _combine(self, pixels: Array | None, mask: Array | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Join the signs of missing data: a mask band, nodata in every channel, NaN in any."""
        valid = np.ones(shape, dtype=np.bool_) if mask is None else mask > 0
        if pixels is None:
            return valid
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        nodata = self.grid.nodata
        if nodata is not None and np.isfinite(nodata):
            same = pixels.dtype.type(nodata) if pixels.dtype.kind == "f" else nodata
            valid &= (pixels != same).any(axis=0)
        return valid

    def _scale(self, array: Array, channels: tuple[int, ...]) -> Array:
        """Apply the header's scale and offset per band, in float32."""
        if self._scaling is None:
            return array.astype(self.dtype, copy=False)
        scales, offsets = (part[list(channels), None, None] for part in self._scaling)
        return (array * scales + offsets).astype(np.float32)

    @contextmanager
    def _reading(self, window: Window) -> Iterator[Any]:
        """Open the file for one read; name file and window when GDAL fails."""
        rows, cols = window
        try:
            with rasterio.Env(**_READ_OPTIONS), _opened(self.path, quiet=self._quiet) as source:
                if (source.height, source.width) != self.grid.shape:
                    raise InputError(
                        f"{self.path} changed on disk: it is now {source.height} x {source.width}; open it again"
                    )
                yield source
        except (RasterioError, OSError) as error:
            reason = error.__cause__ or error
            raise InputError(
                f"{self.path}: rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop} cannot be read "
                f"({reason}); the file is truncated or damaged, copy it again"
            ) from error


@contextmanager
def _opened(path: Path, *, mode: str = "r", quiet: bool = False, **profile: Any) -> Iterator[Any]:
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


def _refuse_unusable(path: Path, source: Any) -> None:
    """Raise for rasters whose pixels or place cannot be used as they are."""
    if source.count == 0:
        inside = ", ".join(source.subdatasets[:5]) or "nothing"
        raise InputError(
            f"{path} has no bands of its own; it holds {inside}; name one of these or convert it to GeoTIFF"
        )
    complex_bands = [b for b, d in zip(source.indexes, source.dtypes, strict=True) if "complex" in d or "cint" in d]
    if complex_bands:
        raise InputError(
            f"{path}: bands {complex_bands} hold complex numbers; store the magnitude (abs) as float32 first"
        )
    if source.transform != Affine.identity():
        return
    points, _ = source.gcps
    if points:
        raise InputError(
            f"{path} is placed by {len(points)} ground control points and has no transform, so its pixels have "
            f"no exact place; warp it first: gdalwarp -r bilinear {path.name} out.tif"
        )
    if source.rpcs:
        raise InputError(
            f"{path} is placed by RPCs (raw satellite geometry) and has no transform; orthorectify it first: "
            f"gdalwarp -rpc -to RPC_DEM=dem.tif {path.name} out.tif"
        )


def _chosen_bands(path: Path, source: Any, bands: Sequence[int] | None) -> tuple[int, ...]:
    """Band numbers to use as channels."""
    if bands is None:
        colors = zip(source.indexes, source.colorinterp, strict=True)
        return tuple(b for b, color in colors if color != ColorInterp.alpha) or tuple(source.indexes)
    chosen = tuple(int(b) for b in bands)
    wrong = [b for b in chosen if b not in source.indexes]
    if wrong or not chosen:
        raise InputError(f"{path}: bands {list(chosen)} asked; it has bands 1 to {source.count} (counted from 1)")
    return chosen


def _mask_band(source: Any) -> int | None:
    """Band whose GDAL mask comes from an alpha band or a mask band, or None."""
    flags = zip(source.indexes, source.mask_flag_enums, strict=True)
    return next((band for band, flag in flags if MaskFlags.per_dataset in flag), None)


def _names(source: Any, bands: tuple[int, ...]) -> tuple[str, ...]:
    """One name per channel: the band's description, else its colour, else its number."""
    names = []
    for band in bands:
        color = source.colorinterp[band - 1].name
        fallback = color if color in ("red", "green", "blue", "nir", "gray", "palette") else f"band {band}"
        names.append(source.descriptions[band - 1] or fallback)
    return tuple(names)


def _value_range(source: Any, bands: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Range of values that the header allows; NBITS narrows it (11-bit data in uint16)."""
    bits = [source.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in bands]
    if dtype.kind == "u" and all(bits):
        return 0.0, float(2 ** max(int(b) for b in bits) - 1)
    return dtype_range(dtype)


def _gdal_window(window: Window) -> GdalWindow:
    """Row and column slices as a GDAL window."""
    rows, cols = window
    return GdalWindow(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
