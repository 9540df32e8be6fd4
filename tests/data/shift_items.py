"""Little pictures with masks and a raster with polygons, as items of the benchmark of domain shift."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from tests.benchmarks._shift_folders import Item


def picture(folder: Path, name: str, mask: np.ndarray, *, labels: str = "masks") -> Item:
    for part in ("images", labels):
        (folder / part).mkdir(parents=True, exist_ok=True)
    shade = (40 + 10 * np.arange(mask.size) % 200).reshape(mask.shape).astype(np.uint8)
    Image.fromarray(np.stack([shade, shade // 2, shade // 3], axis=-1)).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask.astype(np.uint16)).save(folder / labels / f"{name}.png")
    image, label = folder / "images" / f"{name}.png", folder / labels / f"{name}.png"
    return Item(id=name, patient=name[:-1], image=image, label=label, layout="image_mask", labels=labels)


def square(shape: tuple[int, int] = (40, 56), value: int = 1) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.int32)
    mask[4:14, 30:50] = value
    return mask


def people(folder: Path, count: int = 6, masks: Sequence[np.ndarray] | None = None) -> list[Item]:
    names = [f"{number // 2:02d}{'LR'[number % 2]}" for number in range(count)]
    return [picture(folder, name, square() if masks is None else masks[i]) for i, name in enumerate(names)]


def raster(folder: Path, *, nodata_columns: int = 0) -> tuple[Path, Path]:
    """A 60 x 90 raster of half-metre pixels, and three squares: in the west, in the east, where there is no data."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((1, 60, 90), 500, dtype=np.uint16)
    pixels[:, :, 90 - nodata_columns :] = 0
    size = {"count": 1, "height": 60, "width": 90, "dtype": "uint16", "driver": "GTiff"}
    with rasterio.open(
        folder / "scene.tif", "w", crs="EPSG:32616", transform=from_origin(1000, 2000, 0.5, 0.5), **size
    ) as file:
        file.write(pixels)
    places = [(1002.0, 1990.0), (1030.0, 1985.0), (1042.0, 1992.0)]
    rings = [[[x, y], [x + 3, y], [x + 3, y - 2], [x, y - 2], [x, y]] for x, y in places]
    geometry = [{"type": "Polygon", "coordinates": [ring]} for ring in rings]
    features = [{"type": "Feature", "properties": {}, "geometry": one} for one in geometry]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32616"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "scene.tif", folder / "labels.json"
