"""Made-up rasters with labels for training from mosaics; every writer gives the words that ``samgraft fit`` takes."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from affine import Affine

from tests.data.rasters import write_raster

CRS = "EPSG:32645"
CORNER = (300_000.0, 3_000_000.0)


def place(gsd: float, col: int = 0, row: int = 0) -> Affine:
    """North-up transform of a raster whose first pixel is (row, col) of the mosaic."""
    return Affine(gsd, 0.0, CORNER[0] + gsd * col, 0.0, -gsd, CORNER[1] - gsd * row)


def boxes_on(
    shape: tuple[int, int], *, step: int = 32, side: tuple[int, int] = (14, 18)
) -> list[tuple[int, int, int, int]]:
    """Boxes (x0, y0, x1, y1) of outer edges, one in each square of ``step``, not all at the same place in it."""
    found = []
    for number, (row, col) in enumerate(np.ndindex(shape[0] // step, shape[1] // step)):
        y, x = row * step + 3 + 5 * (number % 3), col * step + 2 + 4 * (number % 4)
        found.append((x, y, x + side[1], y + side[0]))
    return found


def painted(
    shape: tuple[int, int], boxes: list[tuple[int, int, int, int]], *, bands: int = 3, seed: int = 0
) -> np.ndarray:
    """(bands, H, W) uint8 noise, brighter by 120 inside the boxes."""
    image = np.random.default_rng(seed).integers(40, 90, (bands, *shape)).astype(np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[:, y0:y1, x0:x1] += 120
    return image


def frame(boxes: list[tuple[int, int, int, int]], gsd: float, **columns: Any) -> geopandas.GeoDataFrame:
    """Boxes of pixels as polygons on the map."""
    shapes = [
        shapely.box(CORNER[0] + gsd * x0, CORNER[1] - gsd * y1, CORNER[0] + gsd * x1, CORNER[1] - gsd * y0)
        for x0, y0, x1, y1 in boxes
    ]
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=CRS)


def buildings(root: Path, *, shape: tuple[int, int] = (320, 384), gsd: float = 0.5) -> list[str]:
    """Two files side by side, roofs as a GeoPackage in longitude and latitude."""
    root.mkdir()
    boxes = boxes_on(shape)
    image = painted(shape, boxes)
    half = shape[1] // 2
    for name, left in (("west", 0), ("east", half)):
        write_raster(root / f"{name}.tif", image[:, :, left : left + half], transform=place(gsd, left), crs=CRS)
    frame(boxes, gsd).to_crs("EPSG:4326").to_file(root / "roofs.gpkg", driver="GPKG")
    return ["--data", str(root), "--data.rasters", '["west.tif", "east.tif"]', "--data.labels", "roofs.gpkg"]


def crowns(root: Path) -> list[str]:
    """One file, boxes around round crowns as FlatGeobuf."""
    root.mkdir()
    shape = (192, 192)
    boxes = boxes_on(shape, step=24, side=(14, 14))
    image = np.random.default_rng(1).integers(40, 90, (3, *shape)).astype(np.uint8)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for x0, y0, x1, y1 in boxes:
        inside = ((y + 0.5 - (y0 + y1) / 2) / 7) ** 2 + ((x + 0.5 - (x0 + x1) / 2) / 7) ** 2 <= 1
        image[1] += (100 * inside).astype(np.uint8)
    write_raster(root / "plot.tif", image, transform=place(0.1), crs=CRS)
    frame(boxes, 0.1).to_file(root / "crowns.fgb", driver="FlatGeobuf")
    return ["--data", str(root / "plot.tif"), "--data.labels", str(root / "crowns.fgb")]


def fields(root: Path) -> list[str]:
    """uint16 with four named bands, touching parcels as GeoParquet, and the area that was surveyed."""
    root.mkdir()
    shape, step = (200, 200), 20
    rng = np.random.default_rng(2)
    levels = rng.integers(600, 3000, (4, shape[0] // step, shape[1] // step))
    image = levels.repeat(step, axis=1).repeat(step, axis=2) + rng.integers(0, 90, (4, *shape))
    image[:, ::step] = image[:, :, ::step] = 300  # a dark line between two
    names = ("blue", "green", "red", "nir")
    write_raster(root / "scene.tif", image.astype(np.uint16), transform=place(10.0), crs=CRS, names=names)
    parcels = [(c + 1, r + 1, c + step, r + step) for r in range(0, 200, step) for c in range(0, 200, step)]
    frame([p for p in parcels if p[0] < 180], 10.0).to_parquet(root / "parcels.parquet")
    frame([(0, 0, 180, 200)], 10.0).to_file(root / "surveyed.geojson", driver="GeoJSON")
    words = ["--data", str(root / "scene.tif"), "--data.labels", str(root / "parcels.parquet")]
    words += ["--data.labelled_area", str(root / "surveyed.geojson")]
    return [*words, "--data.band_names", "[nir, red, green]"]


def ships(root: Path) -> list[str]:
    """Six chips that are one mosaic, COCO boxes of ships and buoys, most chips empty at one side."""
    root.mkdir()
    images, notes = [], []
    for number, (row, col) in enumerate(np.ndindex(2, 3)):
        boxes = boxes_on((64, 32), step=32, side=(8, 16))
        image = painted((64, 64), boxes, seed=number)
        name = f"chip_{number}.tif"
        write_raster(root / name, image, transform=place(3.0, 64 * col, 64 * row), crs=CRS)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        for x0, y0, x1, y1 in boxes:
            note = {"id": len(notes), "image_id": number, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            notes.append(note)
        notes.append({"id": len(notes), "image_id": number, "category_id": 2, "bbox": [50, 50, 3, 3]})
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "buoy"}]
    content = {"images": images, "categories": categories, "annotations": notes}
    (root / "ships.json").write_text(json.dumps(content))
    return ["--data", str(root), "--data.labels", "ships.json", "--data.label_classes", "[ship]"]


def water(root: Path) -> list[str]:
    """Radar in decibels and optical reflectance in one float32 stack, labels as a raster with unknown pixels."""
    root.mkdir()
    shape = (192, 192)
    rng = np.random.default_rng(3)
    y, x = np.mgrid[: shape[0], : shape[1]]
    wet = np.sin(x / 23.0) + np.cos(y / 31.0) > 0.5
    radar = np.where(wet, -21.0, -9.0) + rng.normal(0, 1.5, (2, *shape))
    optical = np.where(wet, 0.03, 0.3) + rng.normal(0, 0.02, (2, *shape))
    stack = np.concatenate([radar, optical]).astype(np.float32)
    names = ("vv", "vh", "red", "nir")
    write_raster(root / "stack.tif", stack, transform=place(10.0), crs=CRS, names=names, nodata=-9999.0)
    labels = wet.astype(np.uint8)[None]
    labels[:, :, 180:] = 255
    write_raster(root / "water.tif", labels, transform=place(10.0), crs=CRS, nodata=255)
    words = ["--data", str(root / "stack.tif"), "--data.labels", str(root / "water.tif")]
    return [*words, "--data.band_names", "[vv, vh, nir]"]


def inputs(words: list[str]) -> list[str]:
    """The rasters of such words, for ``samgraft segment``."""
    root = Path(words[1])
    if root.is_file():
        return [str(root)]
    if "--data.rasters" in words:
        return [str(root / name) for name in json.loads(words[words.index("--data.rasters") + 1])]
    return [str(path) for path in sorted(root.glob("*.tif"))]
