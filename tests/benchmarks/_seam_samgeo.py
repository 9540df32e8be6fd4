"""samgeo's merging of the masks in a folder; run by ``seams`` in an interpreter that has samgeo (segment-geospatial).

Usage: python _seam_samgeo.py FOLDER WAY SIDE. Reads FOLDER/plan.npz (side, overlap) and FOLDER/tile*.npz (labels
(h, w), corner), writes FOLDER/WAY.npz. Tiles are cut, looped over and merged by the public methods of samgeo; only the
network is replaced, by one that knows what each tile shows:

- paste: ``SamGeo3.generate_masks_tiled``, an id for every object of every tile, pasted into one raster;
- batch: ``SamGeo.generate(batch=True)``, which writes a mask of everything tile by tile (``tiff_to_tiff``), then
  ``raster_to_vector``, which makes an object of whatever touches by an edge;
- eroded: as batch, with ``erosion_kernel=(3, 3)``, which takes the border pixels off every object first.
"""

import sys
import time
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from rasterio.features import rasterize
from samgeo import SamGeo
from samgeo.common import calculate_sample_grid
from samgeo.samgeo3 import SamGeo3

Masks = dict[tuple[int, int], np.ndarray]


def read_tiles(folder: Path) -> Masks:
    """Labels of every tile by its corner, in order of the files."""
    found = {}
    for path in sorted(folder.glob("tile*.npz")):
        with np.load(path) as file:
            top, left = file["corner"].tolist()
            found[top, left] = file["labels"]
    return found


def masks_of(labels: np.ndarray) -> list[np.ndarray]:
    """One mask for each object."""
    return [labels == label for label in range(1, int(labels.max()) + 1)]


class Tiled(SamGeo3):
    """Every call of the network shows the next tile; the base class says where it put it."""

    def __init__(self, tiles: Masks) -> None:  # the base class would load weights
        self.backend = "transformers"
        self.left_over = list(tiles.items())[::-1]
        self.placed: list[tuple[int, int]] = []
        self.expected: list[tuple[int, int]] = []

    def generate_masks(self, prompt: str, **_: Any) -> None:
        corner, labels = self.left_over.pop()
        if labels.shape != (self.image_height, self.image_width):
            raise ValueError(f"tile {corner} is {labels.shape}, samgeo's {self.image_height, self.image_width}")
        self.masks = masks_of(labels)
        if self.masks:
            self.expected.append(corner)

    def _merge_tile_mask(self, whole: Any, mask: Any, x: int, y: int, *others: Any) -> None:
        self.placed.append((y, x))
        super()._merge_tile_mask(whole, mask, x, y, *others)


class Blocks:
    """Stands in for the mask generator of ``SamGeo``; blocks may reach beyond the raster."""

    def __init__(self, tiles: Masks, blocks: list[dict[str, Any]]) -> None:
        self.tiles = tiles
        self.left_over = blocks[::-1]

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        block = self.left_over.pop()
        shown = self.tiles[max(0, block["y"]), max(0, block["x"])]
        labels = np.zeros(image.shape[:2], dtype=np.int32)
        top, left = max(0, -block["y"]), max(0, -block["x"])
        labels[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        return [{"segmentation": mask, "area": int(mask.sum())} for mask in masks_of(labels)]


class Batch(SamGeo):
    """The base class would load weights."""

    def __init__(self, generator: Blocks) -> None:
        self.mask_generator = generator


def paste(source: Path, tiles: Masks, side: int, overlap: int) -> np.ndarray:
    """The raster of ids that ``generate_masks_tiled`` writes."""
    sam, output = Tiled(tiles), source.with_name("paste.tif")
    sam.generate_masks_tiled(str(source), "object", str(output), tile_size=side, overlap=overlap, verbose=False)
    if sam.left_over or sam.placed != sam.expected:  # samgeo goes on after a tile that raises an error
        raise SystemExit("samgeo's tiles are not those in the folder")
    with rasterio.open(output) as file:
        return np.asarray(file.read(1), dtype=np.int32)


def batch(source: Path, tiles: Masks, side: int, overlap: int, kernel: tuple[int, int] | None) -> np.ndarray:
    """Labels of the polygons that ``raster_to_vector`` makes of the mask that ``generate(batch=True)`` writes."""
    with rasterio.open(source) as file:
        height, width = file.shape
    bound = overlap // 2
    sample = side - 2 * bound
    blocks = calculate_sample_grid(height, width, sample, sample, bound)
    sam = Batch(Blocks(tiles, blocks))
    output, vectors = source.with_name("batch.tif"), source.with_name("batch.gpkg")
    sam.generate(
        str(source), str(output), batch=True, batch_sample_size=(sample, sample), bound=bound, erosion_kernel=kernel
    )
    sam.raster_to_vector(str(output), str(vectors))
    polygons = geopandas.read_file(vectors).geometry
    numbered = zip(polygons, range(1, len(polygons) + 1), strict=True)
    return np.asarray(rasterize(numbered, (height, width), dtype="int32"))


def main(name: str, way: str, side: int) -> None:
    folder = Path(name)
    source = folder / "source.tif"
    with rasterio.open(source, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8") as file:
        file.write(np.zeros((3, side, side), dtype=np.uint8))
    with np.load(folder / "plan.npz") as plan:
        size, overlap = int(plan["side"]), int(plan["overlap"])
    tiles = read_tiles(folder)
    start = time.perf_counter()
    if way == "paste":
        whole = paste(source, tiles, size, overlap)
    else:
        whole = batch(source, tiles, size, overlap, (3, 3) if way == "eroded" else None)
    np.savez(folder / f"{way}.npz", labels=whole, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
