"""A raster on another grid than its own: reprojected, moved onto the pixels of a mosaic, or placed by GCPs or RPCs.

A :class:`WarpedScene` is a RasterScene whose windows come out of GDAL's warper (``WarpedVRT``). An alpha band carries
the validity, so missing pixels never mix with others. Windows are put together from chunks that lie on the grid, so a
pixel's value does not depend on the window that is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling as GdalResampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from samgraft.domains.remote_sensing.geo_scene import GeoScene, Sample, reduced_shape
from samgraft.domains.remote_sensing.georeference import crs_of, grid_of, transform_of
from samgraft.domains.remote_sensing.header import RasterChoice, RasterHeader
from samgraft.domains.remote_sensing.raster import RasterScene, gdal_window, header_of, opened
from samgraft.domains.remote_sensing.warp_grid import default_grid, scaled, shrinking, target_crs, turned
from samgraft.domains.scene import Array, Resampling, Window
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid

_TOLERANCE = 0.01
"""Pixels by which GDAL may miss a place; it interpolates places along the rows of what is read at once. 0 would leave
rasterio's WarpedVRT without a transformer."""
_CHUNK = (128, 512)
"""Rows and columns that are warped at once, counted from the grid's corner: what GDAL interpolates does not depend on
the window then."""


@dataclass(frozen=True, kw_only=True)
class Warp:
    """How a raster gets onto its new grid."""

    resampling: Resampling = "bilinear"
    """Interpolation; "nearest" keeps stored values."""
    crs: str | None = None
    """Target coordinate reference system (anything that PROJ reads); None keeps that of the file, GCPs or RPCs."""
    gsd: float | None = None
    """Pixel size in metres on the ground at the centre; None keeps the file's. Not for GCPs and RPCs."""
    rpc_height: float | None = None
    """RPCs: height of the ground above the ellipsoid in metres."""
    shift: float = 0.0
    """Added to the file's x coordinates: 360 moves a file to the other side of the antimeridian."""

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.resampling not in get_args(Resampling):
            raise ConfigError(f"resampling is {self.resampling!r}; expected one of {', '.join(get_args(Resampling))}")
        if self.gsd is not None and not (np.isfinite(self.gsd) and self.gsd > 0):
            raise ConfigError(f"gsd is {self.gsd}; expected metres per pixel, above 0")


class WarpedScene(RasterScene):
    """A raster file seen on another grid."""

    def __init__(
        self, path: Path | str, *, warp: Warp, choice: RasterChoice | None = None, grid: Grid | None = None
    ) -> None:
        """Read the header and choose the grid.

        Args:
            path: Any raster that GDAL opens.
            warp: Target and interpolation.
            choice: Bands, sensor, nodata, as for :class:`RasterScene`.
            grid: Grid to appear on; None takes a north-up one that holds the whole file, with pixels of the same area.

        Raises:
            InputError: as :class:`RasterScene`; RPCs without a height.
            GeometryError: the file has no CRS, or does not lie where the target CRS can hold it.
            ConfigError: an unknown sensor or CRS.
        """
        path = Path(path)
        header = header_of(path, choice or RasterChoice())
        _check(path, header, warp)
        self._warp, self._source = warp, header
        self._free = header.warped_by is not None
        if self._free and grid is not None:
            raise GeometryError(
                f"{path} is placed by {header.warped_by} and cannot be laid on the grid of other files; "
                f"orthorectify it first: gdalwarp {path.name} out.tif"
            )
        if self._free:
            found = self._automatic_grid(path)
        else:
            found = grid or default_grid(header, target_crs(warp.crs), shift=warp.shift, gsd=warp.gsd)
        own = f"{header.warped_by or 'warped'} on a new grid, {warp.resampling}"
        seen = replace(
            header,
            crs=crs_of(found),
            transform=transform_of(found),
            nodata=(None,) * len(header.bands),
            mask_band=-1,
            block_shape=_CHUNK,
            notes=(*header.notes, own),
        )
        self._adopt(path, seen, found)

    @property
    def resampling(self) -> Resampling:
        """How pixels are interpolated."""
        return self._warp.resampling

    def stored(self) -> RasterScene:
        """The file's own pixels, on the grid that they are stored on; that of GCPs and RPCs has no place."""
        scene = RasterScene.__new__(RasterScene)
        header = self._source
        scene._adopt(self.path, header, grid_of(header.transform, header.crs, header.shape, header.nodata[0]))
        return scene

    def sample(self, limit: int = 1_000_000) -> Sample:
        """Valid pixels of the file itself, not of what was interpolated; see :class:`GeoScene`."""
        return self.stored().sample(limit)

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """The whole raster at reduced size; see :class:`GeoScene`."""
        if self._free:
            return super().overview(max_pixels)
        shape = reduced_shape(self.grid.shape, max_pixels)
        if shape == self.grid.shape:
            return self.read_valid()
        small = WarpedScene.__new__(WarpedScene)
        small.__dict__.update(self.__dict__)
        small.grid = scaled(self.grid, shape)
        return small.read_valid()

    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window, chunk by chunk; bands and alpha come out of one warp."""
        numbers = self.bands if self._needs_pixels() else tuple(self.bands[c] for c in channels)
        rows, cols = window
        array = np.zeros((len(numbers), rows.stop - rows.start, cols.stop - cols.start), dtype=self._header.dtype)
        alpha = np.zeros(array.shape[1:], dtype=np.bool_)
        with self._reading(window) as source:
            together = (*numbers, self._source.alpha or source.count)
            for chunk, there, here in _chunks(window, self.grid.shape):
                found = self._pixels(source, together, window=gdal_window(chunk))
                array[(slice(None), *here)] = found[(slice(0, -1), *there)]
                alpha[here] = self._opaque(found[-1][there])
        valid = self._combine(array, alpha, alpha.shape)
        chosen = array[list(channels)] if self._needs_pixels() else array
        return self._scale(chosen, channels), valid

    _read = GeoScene._read
    _valid = GeoScene._valid

    def _mask(self, source: Any, **where: Any) -> NDArray[np.bool_] | None:
        """What the alpha band says."""
        return self._opaque(np.abs(source.read(self._source.alpha or source.count, **where)))

    def _opaque(self, alpha: Array) -> NDArray[np.bool_]:
        """Alpha of at least a half: most of the pixel comes from valid ones."""
        return np.asarray(2.0 * alpha >= self._alpha_max)

    @property
    def _alpha_max(self) -> int:
        return 127 if self._source.dtype == np.int8 else 255

    @contextmanager
    def _dataset(self) -> Iterator[Any]:
        """The warped data set."""
        with opened(self.path, quiet=True) as source, self._warped(source) as vrt:
            yield vrt

    def _warped(self, source: Any) -> Any:
        """GDAL's warper on an open file."""
        header, options = self._source, self._options()
        if self._free:
            return WarpedVRT(source, src_crs=header.crs, crs=target_crs(self._warp.crs) or header.crs, **options)
        grid = self.grid
        x, y = shrinking(header, grid, self._warp.shift)
        frame, place = turned(header, self._warp.shift)
        return WarpedVRT(
            source,
            src_crs=frame,
            src_transform=place,
            crs=crs_of(grid),
            transform=transform_of(grid),
            height=grid.shape[0],
            width=grid.shape[1],
            XSCALE=x,
            YSCALE=y,
            **options,
        )

    def _options(self) -> dict[str, Any]:
        """What all warps have in common."""
        header = self._source
        options: dict[str, Any] = {
            "src_nodata": header.nodata[0],
            "nodata": None,
            "resampling": GdalResampling[self._warp.resampling],
            "tolerance": _TOLERANCE,
            "add_alpha": header.alpha is None,
            "DST_ALPHA_MAX": self._alpha_max,
        }
        if header.warped_by == "rpcs":
            options["RPC_HEIGHT"] = float(self._warp.rpc_height or 0.0)
        return options

    def _automatic_grid(self, path: Path) -> Grid:
        """Grid that GDAL suggests for ground control points or RPCs."""
        self.path = path
        try:
            with rasterio.Env(), self._dataset() as vrt:
                return grid_of(vrt.transform, vrt.crs or None, (vrt.height, vrt.width))
        except RasterioError as error:
            raise GeometryError(
                f"{path}: its {self._source.warped_by} cannot be used ({error}); orthorectify it with gdalwarp"
            ) from error


def _chunks(
    window: Window, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], tuple[slice, slice]]]:
    """Chunks that a window touches: where they lie, which part of each belongs to the window, and where in it."""
    spans = []
    for part, size, side in zip(window, _CHUNK, shape, strict=True):
        starts = range(part.start // size * size, part.stop, size)
        spans.append([(slice(s, min(side, s + size)), max(s, part.start), min(s + size, part.stop)) for s in starts])
    for rows, top, bottom in spans[0]:
        for cols, left, right in spans[1]:
            there = (slice(top - rows.start, bottom - rows.start), slice(left - cols.start, right - cols.start))
            here = (
                slice(top - window[0].start, bottom - window[0].start),
                slice(left - window[1].start, right - window[1].start),
            )
            yield (rows, cols), there, here


def placed(path: Path, choice: RasterChoice, warp: Warp) -> RasterScene:
    """Open one file: warped where it has no grid of its own or lies in another CRS than asked for, else as it is.

    Raises:
        InputError, GeometryError, ConfigError: as :class:`WarpedScene`.
    """
    header = header_of(path, choice)
    if header.warped_by or (warp.crs is not None and header.crs != target_crs(warp.crs)):
        return WarpedScene(path, warp=warp, choice=choice)
    return RasterScene.of_header(path, header)


def _check(path: Path, header: RasterHeader, warp: Warp) -> None:
    """Refuse what cannot be warped."""
    if header.alpha in header.bands:
        raise InputError(
            f"{path}: band {header.alpha} is marked as alpha and cannot be warped as data; unmark it first"
        )
    if header.crs is None and warp.crs is not None:
        raise GeometryError(
            f"{path} has no CRS, so it cannot be reprojected; give it one: gdal_edit.py -a_srs EPSG:... {path.name}"
        )
    if header.warped_by == "rpcs" and warp.rpc_height is None:
        raise InputError(
            f"{path} is placed by RPCs (raw satellite geometry); give rpc_height=<metres above the ellipsoid> for flat "
            f"ground, or orthorectify it over a terrain model: gdalwarp -rpc -to RPC_DEM=dem.tif {path.name} out.tif"
        )
