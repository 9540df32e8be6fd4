"""Tiny rasters and vector files with awkward headers; everything is made from numbers here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.rpc
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

UTM = "EPSG:32618"
NORTH_UP = Affine(0.5, 0.0, 399000.25, 0.0, -0.5, 4500000.75)
DEGREES = Affine(1.0, 0.0, 10.0, 0.0, -1.0, 50.0)
TRANSFORMS = {
    "north_up": NORTH_UP,
    "south_up": Affine(0.5, 0.0, 399000.25, 0.0, 0.5, 4500000.75),
    "rotated": Affine.translation(399000.25, 4500000.75) @ Affine.rotation(23.0) @ Affine.scale(0.7, -0.3),
    "sheared": Affine(0.5, 0.11, 399000.25, -0.07, -0.45, 4500000.75),
    "not_square": Affine(0.1, 0.0, 399000.1, 0.0, -1.0 / 3.0, 4500000.7),
}
"""Named transforms for metre coordinates."""


def pixels(shape: tuple[int, int, int] = (3, 20, 30), dtype: str = "uint8") -> NDArray[Any]:
    """Array (C, H, W) in which neighbours differ."""
    values = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    return (values * 7 % 251 + 1).astype(dtype)


def write_raster(
    path: Path,
    array: NDArray[Any],
    *,
    transform: Affine = NORTH_UP,
    crs: str | None = UTM,
    nodata: float | None = None,
    mask: NDArray[Any] | None = None,
    colors: Sequence[ColorInterp] | None = None,
    names: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
    **profile: Any,
) -> Path:
    """Write (C, H, W) as a GeoTIFF; further keywords go to GDAL."""
    count, height, width = array.shape
    options: dict[str, Any] = {"driver": "GTiff", "dtype": array.dtype.name, "crs": crs, "nodata": nodata} | profile
    if colors:
        options["photometric"] = "RGB" if colors[0] == ColorInterp.red else "MINISBLACK"
    with rasterio.open(path, "w", height=height, width=width, count=count, transform=transform, **options) as target:
        if colors:
            target.colorinterp = tuple(colors)
        target.write(array)
        for band, name in enumerate(names, start=1):
            target.set_band_description(band, name)
        if scale:
            target.scales, target.offsets = (scale[0],) * count, (scale[1],) * count
        if mask is not None:
            target.write_mask(mask)
    return path


def write_gcp_raster(
    path: Path,
    transform: Affine = DEGREES,
    shape: tuple[int, int] = (10, 10),
    *,
    bend: float = 0.0,
    array: NDArray[Any] | None = None,
) -> Path:
    """A file that is placed by nine ground control points only; ``bend`` moves the middle row by so many pixels."""
    height, width = shape
    points = []
    for row in (0, height / 2, height):
        for col in (0, width / 2, width):
            x, y = transform @ (col + bend * (row == height / 2), row)
            points.append(GroundControlPoint(row=row, col=col, x=x, y=y))
    values = np.ones((1, *shape), dtype=np.uint8) if array is None else array
    profile = {"height": height, "width": width, "count": len(values), "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **profile) as target:
        target.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        target.write(values)
    return path


def write_rpc_raster(path: Path) -> Path:
    """A file that is placed by RPCs only."""
    rpc = rasterio.rpc.RPC(
        height_off=0.0, height_scale=1.0, lat_off=50.0, lat_scale=1.0, line_den_coeff=[1.0] + [0.0] * 19,
        line_num_coeff=[0.0, 1.0] + [0.0] * 18, line_off=5.0, line_scale=5.0, long_off=10.0, long_scale=1.0,
        samp_den_coeff=[1.0] + [0.0] * 19, samp_num_coeff=[0.0, 0.0, 1.0] + [0.0] * 17, samp_off=5.0, samp_scale=5.0,
    )  # fmt: skip
    with rasterio.open(path, "w", driver="GTiff", height=10, width=10, count=1, dtype="uint8") as target:
        target.rpcs = rpc
        target.write(np.ones((1, 10, 10), dtype=np.uint8))
    return path


def truncate(path: Path, keep: float) -> Path:
    """Cut a file off after a share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write_geojson(
    path: Path,
    geometries: Sequence[dict[str, Any] | None],
    properties: Sequence[dict[str, Any]] = (),
    crs: str | None = UTM,
) -> Path:
    """Write GeoJSON geometries with properties and a crs member."""
    rows = list(properties) or [{} for _ in geometries]
    features = [
        {"type": "Feature", "properties": row, "geometry": shape} for shape, row in zip(geometries, rows, strict=True)
    ]
    content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs:
        content["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{crs.replace(':', '::')}"}}
    path.write_text(json.dumps(content))
    return path


def ring(transform: Affine, corners: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Closed ring of map coordinates from (col, row) corners."""
    return [list(transform @ corner) for corner in [*corners, corners[0]]]
