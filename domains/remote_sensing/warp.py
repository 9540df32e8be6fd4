"""A raster on another grid than its own: reprojected, moved onto the pixels of a mosaic, or placed by GCPs or RPCs.

A :class:`WarpedScene` is a RasterScene whose windows come out of GDAL's warper (``WarpedVRT``). An alpha band carries
the validity, so missing pixels never mix with others. Windows are put together from chunks that lie on the grid, so a
pixel's value does not depend on the window that is read.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling as GdalResampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from samgraft.domains.remote_sensing.geo_scene import GeoScene, Sample, reduced_shape
from samgraft.domains.remote_sensing.georeference import (
    PointMap,
    crs_of,
    grid_of,
    ground_step,
    point_map,
    transform_of,
    transformed,
)
from samgraft.domains.remote_sensing.header import RasterChoice, RasterHeader
from samgraft.domains.remote_sensing.raster import RasterScene, gdal_window, header_of, opened
from samgraft.domains.scene import Array, Resampling, Window
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid

_TOLERANCE = 0.01
"""Pixels by which GDAL may miss a place; it interpolates places along the rows of what is read at once."""
_CHUNK = (128, 512)
"""Rows and columns that are warped at once, counted from the grid's corner: what GDAL interpolates does not depend on
the window then."""
_MOST_SIDE = 2**31 - 1
_SHRINKS = 0.6
"""Pixels that become larger than 1 / 0.6 of the file's are means of several. Below that plain interpolation is better:
GDAL's stretched kernels move values by up to a twelfth of a pixel (measured on a ramp at 1.15)."""
_GREENWICH = re.compile(r'PRIMEM\["Greenwich",0(,AUTHORITY\["EPSG","\d+"\])?\]')


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
        x, y = _shrinking(header, grid, self._warp.shift)
        frame, place = _turned(header, self._warp.shift)
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


def default_grid(header: RasterHeader, crs: CRS | None, *, shift: float = 0.0, gsd: float | None = None) -> Grid:
    """North-up grid in another CRS that holds a whole raster, with pixels of the same area at its centre.

    Across the antimeridian, longitudes run on beyond 180 degrees.

    Args:
        header: The raster; it has a transform.
        crs: Target, or None for the raster's own CRS.
        shift: Added to the raster's x coordinates first.
        gsd: Pixel size in metres on the ground; None keeps the area of the raster's pixels.

    Raises:
        GeometryError: a part of the raster has no place in the target CRS, or would take more pixels than GDAL allows.
    """
    target = crs or header.crs
    place = _to_target(header, target, shift)
    height, width = header.shape
    rows, cols = np.meshgrid(np.linspace(0, height, 65), np.linspace(0, width, 65), indexing="ij")
    spots = place(np.stack([cols.ravel(), rows.ravel()], axis=1))
    if not np.isfinite(spots).all():
        raise GeometryError(
            f"parts of the raster have no place in {_short(target)}; choose a CRS that holds all of it, or cut it first"
        )
    (left, bottom), (right, top) = spots.min(axis=0), spots.max(axis=0)
    middle = np.array([[width / 2, height / 2]])
    ends = place(middle + np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]))
    size = float(np.sqrt(abs(np.linalg.det(ends[1::2] - ends[::2]))))
    down = across = size
    if gsd is not None:
        x, y = place(middle)[0].tolist()
        one = grid_of(Affine(size, 0.0, x - size / 2, 0.0, -size, y + size / 2), target, (1, 1))
        step = ground_step(one)
        if step is None:
            raise GeometryError(f"the CRS {_short(target)} has no known unit, so gsd={gsd} m has no meaning in it")
        down, across = (size * gsd / metres for metres in step)
    sides = ((top - bottom) / down, (right - left) / across)
    shape = tuple(max(1, int(np.ceil(side - 1e-6))) for side in sides)
    if max(shape) > _MOST_SIDE:
        raise GeometryError(f"the raster would have {shape} pixels in {_short(target)}; choose another CRS")
    return grid_of(Affine(across, 0.0, left, 0.0, -down, top), target, (shape[0], shape[1]))


def scaled(grid: Grid, shape: tuple[int, int]) -> Grid:
    """The same place divided into another number of rows and columns."""
    affine = grid.affine.copy()
    affine[:2, :2] *= np.array(grid.shape, dtype=np.float64) / np.array(shape, dtype=np.float64)
    return Grid(shape=shape, affine=affine, world=grid.world, nodata=grid.nodata, anchor=grid.anchor)


def _to_target(header: RasterHeader, target: CRS | None, shift: float) -> PointMap:
    """From (col, row) of a raster to coordinates of a CRS; longitudes stay together across the antimeridian."""
    own = point_map(Affine.translation(shift, 0.0) @ header.transform)
    source = header.crs
    if source is None or target is None or source == target:
        return own
    middle = own(np.array([[header.shape[1] / 2, header.shape[0] / 2]]))

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        before = own(points)
        moved = transformed(before, source, target)
        near = before[:, 0] if source.is_geographic else transformed(middle, source, target)[0, 0]
        if target.is_geographic:
            moved[:, 0] += 360.0 * np.round((near - moved[:, 0]) / 360.0)
        return moved

    return place


def _shrinking(header: RasterHeader, grid: Grid, shift: float) -> tuple[float, float]:
    """Pixels of ``grid`` per pixel of the file along x and y, at the file's centre.

    GDAL would estimate them for every window anew, and pixels would depend on windows.
    """
    place = _to_target(header, crs_of(grid), shift)
    middle = np.array([[header.shape[1] / 2, header.shape[0] / 2]])
    ends = place(middle + np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]))
    pixels = point_map(~transform_of(grid))(ends)
    if not np.isfinite(pixels).all():
        return 1.0, 1.0
    steps = np.linalg.inv((pixels[1::2] - pixels[::2]).T)  # columns: (col, row) of the file per col and row of the grid
    x, y = (1.0 / max(float(np.linalg.norm(steps[:, axis])), 1e-12) for axis in (0, 1))
    return (x, y) if min(x, y) < _SHRINKS else (1.0, 1.0)


def _turned(header: RasterHeader, shift: float) -> tuple[CRS | None, Affine]:
    """CRS and transform of a raster for GDAL, which looks for longitudes between -180 and 180 degrees only.

    A raster of degrees that runs beyond them is given the meridian of 180 degrees to count from.
    """
    place, crs = Affine.translation(shift, 0.0) @ header.transform, header.crs
    if crs is None or not crs.is_geographic:
        return crs, place
    height, width = header.shape
    ends = point_map(place)(np.array([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]]))[:, 0]
    if -180.0 - 1e-9 <= ends.min() and ends.max() <= 180.0 + 1e-9:
        return crs, place
    wkt, count = _GREENWICH.subn('PRIMEM["antimeridian",180]', str(crs.to_wkt(version="WKT1_GDAL")))
    if count != 1:
        return crs, place  # counts from another meridian already
    wkt = re.sub(r',AUTHORITY\["EPSG","\d+"\]\]$', "]", wkt)
    return CRS.from_wkt(wkt), Affine.translation(-180.0 if ends.max() > 180.0 else 180.0, 0.0) @ place


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


def target_crs(crs: str | None) -> CRS | None:
    """The CRS that a caller names.

    Raises:
        ConfigError: PROJ does not know it.
    """
    if crs is None:
        return None
    try:
        return CRS.from_user_input(crs)
    except ValueError as error:  # CRSError is one, and "EPSG:" without a number another
        raise ConfigError(
            f"crs={crs!r} is not a coordinate reference system ({error}); expected one such as EPSG:32633"
        ) from error


def _short(crs: CRS | None) -> str:
    return "no CRS" if crs is None else str(crs.to_string())[:60]
