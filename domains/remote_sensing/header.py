"""The header of a raster file: which bands are channels, where they lie, what marks missing pixels.

Takes an open rasterio data set and the caller's choices; gives a :class:`RasterHeader`, or a named error before any
pixel is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags

from samgraft.domains.remote_sensing.georeference import affine_of_gcps
from samgraft.domains.remote_sensing.sensor import BandChoice, band_names, band_numbers, sensor_named
from samgraft.domains.scene import Array, dtype_range
from samgraft.errors import GeometryError, InputError

GCP_PIXELS = 0.01
"""Ground control points that an affine transform meets this closely, in pixels, are taken for that transform."""

_SHOWN_COLORS = ("red", "green", "blue", "nir", "gray", "palette")


@dataclass(frozen=True, kw_only=True)
class RasterChoice:
    """What a caller may say about a raster file that the file does not say."""

    bands: Sequence[BandChoice] | str | None = None
    """Band numbers (from 1) or names, in the order wanted; None takes all but alpha."""
    sensor: str | None = None
    """Name of the sensor, which names the bands."""
    nodata: float | None = None
    """Value that marks missing pixels; it replaces the file's own."""
    magnitude: bool = False
    """Whether complex numbers are read as their magnitude; else they are refused."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RasterHeader:
    """What is known of a raster file without its pixels."""

    bands: tuple[int, ...]
    """GDAL band numbers of the channels."""
    names: tuple[str, ...]
    """One name per channel."""
    color: tuple[str, ...]
    """Colour interpretation per channel."""
    dtype: np.dtype[Any]
    """dtype that holds the stored values of all channels; float32 for magnitudes."""
    magnitude: bool
    """Whether stored values are complex."""
    scaling: tuple[Array, Array] | None
    """Scale and offset per channel, or None where all are 1 and 0."""
    nodata: tuple[float | None, ...]
    """Value per channel that marks missing pixels."""
    mask_band: int | None
    """Band whose GDAL mask holds for the data set: from a mask band or an alpha band."""
    alpha: int | None
    """Alpha band, if it is no channel."""
    value_range: tuple[float, float] | None
    """Smallest and largest value that the header allows."""
    block_shape: tuple[int, int]
    """(rows, columns) of a stored block."""
    shape: tuple[int, int]
    """(H, W)."""
    transform: Affine
    """From (col, row) of a pixel corner to (x, y); the identity for files that nothing places."""
    crs: CRS | None
    """Coordinate reference system."""
    warped_by: str | None
    """"gcps" or "rpcs" where the file is placed by these and no affine transform does it justice."""
    driver: str
    """GDAL's name of the format."""
    files: tuple[Path, ...]
    """The file and those beside it that GDAL reads with it."""
    notes: tuple[str, ...]
    """Remarks."""


def read_header(path: Path, source: Any, choice: RasterChoice) -> RasterHeader:
    """Read everything that is known before the pixels.

    Raises:
        InputError: several rasters in one file, complex numbers without ``magnitude``, an unknown band, a nodata value
            that the pixels cannot have.
        ConfigError: an unknown sensor.
    """
    _require_bands(path, source)
    sensor = None if choice.sensor is None else sensor_named(choice.sensor)
    colors = tuple(c.name for c in source.colorinterp)
    try:
        known = band_names(source.descriptions, colors, sensor)
        numbers = _channels(source, choice, known)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    dtype, magnitude = _dtype(path, source, numbers, choice.magnitude)
    scales = np.array([source.scales[b - 1] for b in numbers], dtype=np.float64)
    offsets = np.array([source.offsets[b - 1] for b in numbers], dtype=np.float64)
    scaled = bool((scales != 1.0).any() or (offsets != 0.0).any())
    nodata, remarks = _nodata(path, source, numbers, dtype, choice.nodata)
    transform, crs, warped_by, placed = _place(source)
    alpha = next((b for b, c in zip(source.indexes, source.colorinterp, strict=True) if c == ColorInterp.alpha), None)
    return RasterHeader(
        bands=numbers,
        names=_names(source, numbers, known if sensor else (None,) * source.count),
        color=tuple(colors[b - 1] for b in numbers),
        dtype=dtype,
        magnitude=magnitude,
        scaling=(scales, offsets) if scaled else None,
        nodata=nodata,
        mask_band=_mask_band(source, numbers, None if sensor is None else alpha),
        alpha=alpha,
        value_range=None if scaled or magnitude else _value_range(source, numbers, dtype),
        block_shape=tuple(source.block_shapes[0]),
        shape=(source.height, source.width),
        transform=transform,
        crs=crs,
        warped_by=warped_by,
        driver=str(source.driver),
        files=tuple(Path(name) for name in source.files) or (path,),
        notes=(*remarks, *placed),
    )


def fitting_nodata(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """``value`` if pixels of ``dtype`` can have it, else None: NaN, fractions and numbers out of range of integers."""
    if value is None or dtype.kind not in "iu":
        return value
    info = np.iinfo(dtype)
    fits = np.isfinite(value) and value == round(value) and info.min <= value <= info.max
    return value if fits else None


def _require_bands(path: Path, source: Any) -> None:
    """Refuse containers of other rasters."""
    if source.count == 0:
        inside = ", ".join(source.subdatasets[:5]) or "nothing"
        raise InputError(
            f"{path} has no bands of its own; it holds {inside}; name one of these or convert it to GeoTIFF"
        )


def _channels(source: Any, choice: RasterChoice, known: tuple[str | None, ...]) -> tuple[int, ...]:
    """Band numbers to use as channels."""
    if choice.bands is not None:
        chosen = band_numbers(choice.bands, known, source.descriptions)
        if not chosen:
            raise InputError("no bands asked; name at least one, or leave bands out for all")
        return chosen
    colors = zip(source.indexes, source.colorinterp, known, strict=True)
    meant = tuple(b for b, color, name in colors if color != ColorInterp.alpha or (choice.sensor and name))
    return meant or tuple(source.indexes)


def _dtype(path: Path, source: Any, bands: tuple[int, ...], magnitude: bool) -> tuple[np.dtype[Any], bool]:
    """Common dtype of the channels, and whether they are complex."""
    stored = [str(source.dtypes[b - 1]) for b in bands]
    complex_bands = [b for b, name in zip(bands, stored, strict=True) if name.startswith("complex")]
    if not complex_bands:
        return np.result_type(*(np.dtype(name) for name in stored)), False
    if not magnitude:
        raise InputError(
            f"{path}: bands {complex_bands} hold complex numbers; open it with magnitude=True to read their absolute "
            "values, or store those as float32 first"
        )
    return np.dtype(np.float32), True


def _nodata(
    path: Path, source: Any, bands: tuple[int, ...], dtype: np.dtype[Any], given: float | None
) -> tuple[tuple[float | None, ...], tuple[str, ...]]:
    """Nodata value per channel, checked against the pixels, and remarks."""
    if given is not None:
        if fitting_nodata(given, dtype) is None:
            raise InputError(f"{path}: nodata {given:g} cannot occur in {dtype} pixels; give a value that can")
        return (float(given),) * len(bands), ()
    own = [source.nodatavals[b - 1] for b in bands]
    stored = [str(source.dtypes[b - 1]) for b in bands]
    kinds = [dtype if name.startswith("complex") else np.dtype(name) for name in stored]
    kept = tuple(fitting_nodata(value, kind) for value, kind in zip(own, kinds, strict=True))
    lost = sorted({f"{value:g}" for value, keep in zip(own, kept, strict=True) if value is not None and keep is None})
    return kept, tuple(f"nodata {value} cannot occur in {dtype} pixels and is left out" for value in lost)


def _place(source: Any) -> tuple[Affine, CRS | None, str | None, tuple[str, ...]]:
    """Transform, CRS, what else places the file, and remarks."""
    if source.transform != Affine.identity():
        return source.transform, source.crs or None, None, () if source.crs else ("no CRS",)
    points, point_crs = source.gcps
    if points:
        crs = point_crs or source.crs or None
        try:
            fitted, error = affine_of_gcps(points)
        except GeometryError:
            fitted, error = Affine.identity(), float("inf")
        if error <= GCP_PIXELS:
            return fitted, crs, None, (f"placed by {len(points)} ground control points (affine within {error:.2g} px)",)
        return Affine.identity(), crs, "gcps", (f"placed by {len(points)} ground control points",)
    if source.rpcs:
        return Affine.identity(), CRS.from_epsg(4326), "rpcs", ("placed by RPCs",)
    return source.transform, source.crs or None, None, () if source.crs else ("no CRS",)


def _mask_band(source: Any, bands: tuple[int, ...], alpha: int | None) -> int | None:
    """Band whose GDAL mask comes from a mask band, or from an alpha band that is no channel; None if there is none.

    ``alpha`` is given where a sensor's name says that every band is data.
    """
    for band, flags in zip(source.indexes, source.mask_flag_enums, strict=True):
        if MaskFlags.per_dataset in flags and not (MaskFlags.alpha in flags and alpha in bands):
            return int(band)
    return None


def _names(source: Any, bands: tuple[int, ...], known: tuple[str | None, ...]) -> tuple[str, ...]:
    """One name per channel: the sensor's, the band's description, its colour, or its number."""
    names = []
    for band in bands:
        color = source.colorinterp[band - 1].name
        fallback = color if color in _SHOWN_COLORS else f"band {band}"
        names.append(known[band - 1] or source.descriptions[band - 1] or fallback)
    return tuple(names)


def _value_range(source: Any, bands: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Range of values that the header allows; NBITS narrows it (11-bit data in uint16)."""
    bits = [source.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in bands]
    if dtype.kind == "u" and all(bits):
        return 0.0, float(2 ** max(int(b) for b in bits) - 1)
    return dtype_range(dtype)
