"""``samgraft.open``: find the reader for a file or folder.

Takes a path, gives a lazy Scene. The suffix decides; a folder is a DICOM series; a file without a known suffix is
looked at for the DICOM mark; a TIFF with a place in the world is a raster, any other a picture. Several paths are
rasters of one mosaic.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import rasterio

from samgraft.domains.atomic import full_suffix
from samgraft.domains.medical import dicom, dicom_seg, itk, nifti
from samgraft.domains.picture import picture, wide
from samgraft.domains.scene import NanPolicy, Resampling, Scene
from samgraft.errors import ConfigError, InputError

RASTER_SUFFIXES = (".vrt", ".img", ".jp2")
TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".nii", ".nii.gz", *itk.SUFFIXES, *picture.SUFFIXES, *RASTER_SUFFIXES)
"""Suffixes of files that :func:`open_scene` takes for images; DICOM files are known by their content."""

_Reader = Literal["nifti", "dicom", "itk", "raster", "picture"]
_ARGUMENTS: dict[_Reader, frozenset[str]] = {
    "nifti": frozenset({"frame", "nan"}),
    "dicom": frozenset({"series", "nan", "allow_gaps"}),
    "itk": frozenset({"frame", "nan"}),
    "raster": frozenset(
        {"nan", "bands", "sensor", "nodata", "gsd", "crs", "resampling", "rpc_height", "magnitude", "dtypes", "aoi"}
    ),
    "picture": frozenset({"frame", "nan"}),
}


def open_scene(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    series: str | None = None,
    frame: int | None = None,
    nan: NanPolicy = "raise",
    allow_gaps: bool = False,
    bands: Sequence[int | str] | str | None = None,
    sensor: str | None = None,
    nodata: float | None = None,
    gsd: float | None = None,
    crs: str | None = None,
    resampling: Resampling | None = None,
    rpc_height: float | None = None,
    magnitude: bool = False,
    dtypes: Literal["refuse", "promote"] | None = None,
    aoi: str | os.PathLike[str] | None = None,
) -> Scene:
    """Open an image lazily: only the header is read.

    Args:
        path: NIfTI, DICOM folder or file, MHA / NRRD, PNG / JPEG / TIFF, GeoTIFF / COG / VRT; or several rasters, which
            become one mosaic (where they overlap, the first one with data wins).
        series: DICOM: SeriesInstanceUID or SeriesDescription, if the folder holds several.
        frame: 4D volumes and multi-page pictures: which one, from 0.
        nan: "raise" when NaN or Inf is read, or "fill" with 0 (``valid`` is False there). Rasters have a nodata value
            instead and take no notice.
        allow_gaps: DICOM: leave missing slices empty instead of refusing.
        bands: rasters: band numbers from 1, or names ("red", "B08", "vv", "rgb"), in the order wanted.
        sensor: rasters: "sentinel2", "landsat8", "naip", "planetscope", "worldview", "rgb", "pan" or "sentinel1", which
            names the bands of files that do not.
        nodata: rasters: value that marks missing pixels, for files that do not say so.
        gsd: rasters: metres on the ground per pixel, such as an adapter was trained at; results can go back to the
            file's own pixels (``ResampledScene.to_source``).
        crs: rasters: coordinate reference system to bring them to, such as "EPSG:32633".
        resampling: rasters: how pixels on a new grid are computed: "nearest", "bilinear" (default), "cubic", "average".
        rpc_height: rasters placed by RPCs: height of flat ground above the ellipsoid in metres.
        magnitude: rasters: read complex numbers as absolute values.
        dtypes: mosaics of files with different dtypes: "refuse" (default) or "promote" to one that holds all values.
        aoi: rasters: GeoJSON, GeoPackage or shapefile; pixels outside its polygons are not valid.

    Returns:
        A Scene; its repr says what the file is.

    Raises:
        InputError: missing, empty, damaged or unsupported input; the message says what to do.
        GeometryError: the header has no usable affine, or files of a mosaic lie in different CRS.
        ConfigError: an option that this kind of file does not have.
    """
    if nan not in ("raise", "fill"):
        raise ConfigError(f'nan={nan!r}; expected "raise" or "fill"')
    several = not isinstance(path, str | os.PathLike)
    given_paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    paths = [Path(one).expanduser() for one in given_paths]
    for one in paths if several else ():
        _choose(one)  # a missing or empty file is named before any is opened
    reader: _Reader = "raster" if several else _choose(paths[0])
    for_rasters = {
        "bands": bands, "sensor": sensor, "nodata": nodata, "gsd": gsd, "crs": crs, "resampling": resampling,
        "rpc_height": rpc_height, "magnitude": magnitude or None, "dtypes": dtypes, "aoi": aoi,
    }  # fmt: skip
    options = {name: value for name, value in for_rasters.items() if value is not None}
    given = {"series": series, "frame": frame, "allow_gaps": allow_gaps or None, **options}
    extra = [name for name, value in given.items() if value is not None and name not in _ARGUMENTS[reader]]
    if extra:
        where = "several files" if several else str(paths[0])
        raise ConfigError(f"{where}: is read as {reader}, which has no option {', '.join(extra)}; leave it out")
    if reader == "raster":
        return _raster(paths, options)
    return _other(paths[0], reader, series=series, frame=frame, nan=nan, allow_gaps=allow_gaps)


def _other(
    path: Path, reader: _Reader, *, series: str | None, frame: int | None, nan: NanPolicy, allow_gaps: bool
) -> Scene:
    """Make the scene of a file that is no raster."""
    if reader == "nifti":
        return nifti.NiftiScene(path, frame=frame, nan=nan)
    if reader == "dicom":
        return _dicom(path, series=series, nan=nan, allow_gaps=allow_gaps)
    if reader == "itk":
        return itk.ItkScene(path, frame=frame, nan=nan)
    if frame is None and wide.is_wide(path):
        return wide.WidePictureScene(path, nan=nan)
    return picture.PictureScene(path, frame=frame, nan=nan)


def _dicom(path: Path, *, series: str | None, nan: NanPolicy, allow_gaps: bool) -> Scene:
    """A series, or the labels of a segmentation object."""
    if path.is_file() and dicom_seg.is_dicom_seg(path):
        return dicom_seg.DicomSegScene(path)
    return dicom.DicomScene(path, series=series, nan=nan, allow_gaps=allow_gaps)


def _choose(path: Path) -> _Reader:
    """Reader by suffix, folder or content."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder (looked in {path.parent.absolute()})")
    if path.is_dir():
        return "dicom"
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    suffix = full_suffix(path)
    if suffix in (".nii", ".nii.gz"):
        return "nifti"
    if suffix in itk.SUFFIXES:
        return "itk"
    if suffix in RASTER_SUFFIXES or (suffix in picture.SUFFIXES and _has_place(path)):
        return "raster"
    if suffix in picture.SUFFIXES:
        return "picture"
    if suffix in (".dcm", ".dicom", ".ima") or dicom.is_dicom(path):
        return "dicom"
    raise InputError(
        f"{path}: suffix {suffix!r} is unknown; expected .nii .nii.gz, a DICOM folder, .mha .nrrd, .png .jpg .tif .vrt"
    )


def _has_place(path: Path) -> bool:
    """True if GDAL finds a CRS, a transform, ground control points or RPCs in a TIFF, or beside a JPEG or PNG."""
    sidecars = (".aux.xml", ".ovr", ".msk")
    world_files = {path.with_suffix(s) for s in (".wld", ".jgw", ".pgw", ".tfw", ".jpgw", ".pngw")}
    beside = any(path.with_name(path.name + s).exists() for s in sidecars) or any(f.exists() for f in world_files)
    if full_suffix(path) not in TIFF_SUFFIXES and not beside:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with rasterio.open(path) as source:
                placed = source.crs is not None or not source.transform.is_identity
                return placed or bool(source.gcps[0]) or source.rpcs is not None
        except rasterio.errors.RasterioError:
            return False  # the picture reader names the damage


def _raster(paths: Sequence[Path], options: Mapping[str, Any]) -> Scene:
    """Make the raster scene; imported here so that the medical user never waits for GDAL."""
    module = import_module("samgraft.domains.remote_sensing.opener")
    scene = module.open_raster(paths, module.RasterOptions(**options))
    if not isinstance(scene, Scene):
        raise TypeError(f"open_raster gave {type(scene).__name__}; expected a Scene")
    return scene
