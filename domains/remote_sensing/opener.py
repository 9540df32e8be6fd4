"""From paths and options to one raster scene: file or mosaic, new CRS, pixel size, area of interest, in this order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samgraft.domains.remote_sensing.area import AreaScene, read_area
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.remote_sensing.header import RasterChoice
from samgraft.domains.remote_sensing.mosaic import MixedDtypes, MosaicScene
from samgraft.domains.remote_sensing.resample import Kernel, at_gsd
from samgraft.domains.remote_sensing.sensor import BandChoice
from samgraft.domains.remote_sensing.warp import Warp, placed
from samgraft.domains.scene import Resampling
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RasterOptions:
    """What may be asked of a raster when it is opened."""

    bands: Sequence[BandChoice] | str | None = None
    """Band numbers (from 1) or names, in the order wanted; None takes all but alpha."""
    sensor: str | None = None
    """Sensor that names the bands, such as "sentinel2" (see ``sensor.SENSORS``)."""
    nodata: float | None = None
    """Value that marks missing pixels, for files that do not say so."""
    gsd: float | None = None
    """Metres on the ground per pixel; None keeps the file's."""
    crs: str | None = None
    """Coordinate reference system to bring the raster to; None keeps the file's."""
    resampling: Resampling = "bilinear"
    """How pixels on a new grid are computed; "nearest" keeps stored values."""
    rpc_height: float | None = None
    """For files placed by RPCs: height of flat ground above the ellipsoid in metres."""
    magnitude: bool = False
    """Read complex numbers as their absolute values."""
    dtypes: MixedDtypes = "refuse"
    """Several files of different dtypes: refuse them, or promote all to one that holds every value."""
    aoi: Path | str | None = None
    """Vector file whose polygons say where pixels count."""


def open_raster(paths: Path | str | Sequence[Path | str], options: RasterOptions | None = None) -> GeoScene:
    """Open one raster, or several as one mosaic; no pixel is read.

    Args:
        paths: A file, or files; where they overlap, the first one with data wins.
        options: What is wanted; None takes the file as it is.

    Returns:
        A scene on the file's own grid unless ``crs``, ``gsd``, ground control points, RPCs or several files ask for
        another one.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others; see the message.
        GeometryError: a file cannot be placed.
        ConfigError: an unknown sensor, CRS or resampling.
    """
    options = options or RasterOptions()
    files = [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]
    if not files:
        raise InputError("no raster named; give at least one path")
    choice = RasterChoice(
        bands=options.bands, sensor=options.sensor, nodata=options.nodata, magnitude=options.magnitude
    )
    warp = Warp(resampling=options.resampling, crs=options.crs, rpc_height=options.rpc_height, gsd=options.gsd)
    scene: GeoScene
    if len(files) == 1:
        scene = placed(files[0], choice, warp)
    else:
        scene = MosaicScene(files, choice=choice, warp=replace(warp, gsd=None), dtypes=options.dtypes)
    if options.gsd is not None:
        kernel: Kernel = "nearest" if options.resampling == "nearest" else "linear"
        scene = at_gsd(scene, options.gsd, kernel=kernel)
    return scene if options.aoi is None else AreaScene(scene, read_area(options.aoi, scene.grid))
