"""What benchmarks of the raster engine share: large files made quickly, graft-tiny on them, and an endless oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from samgraft.domains.scene import Array
from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.infer import Source, TileInfer
from samgraft.recipes.mosaic.plan import Tile
from tests.benchmarks import _endless
from tests.benchmarks.pipeline import texture
from tests.recipes.mosaic._scenes import tiny_adapter

__all__ = ["EndlessInfer", "raster", "source", "tiny_adapter"]

PROFILE: dict[str, Any] = {
    "driver": "GTiff",
    "count": 3,
    "dtype": "uint8",
    "crs": "EPSG:32633",
    "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6),
    "tiled": True,
    "blockxsize": 512,
    "blockysize": 512,
    "compress": "deflate",
    "interleave": "pixel",
    "bigtiff": "if_safer",
    "sparse_ok": True,
}


def raster(path: Path, side: int, *, filled: int | None = None, nodata: int | None = None) -> Path:
    """Three bands of texture, ``side`` pixels a side; with ``filled``, so many squares of 1024 and nothing else."""
    patch = np.stack([texture((1024, 1024), band) for band in range(3)]) | 1
    across = max(1, side // 1024)
    places = range(across * across) if filled is None else np.linspace(0, across * across - 1, filled).astype(int)
    with rasterio.open(path, "w", height=side, width=side, nodata=nodata, **PROFILE) as target:
        for place in places:
            row, col = (int(v) * 1024 for v in divmod(int(place), across))
            height, width = min(1024, side - row), min(1024, side - col)
            target.write(patch[:, :height, :width], window=Window(col, row, width, height))
    return path


class EndlessInfer(TileInfer):
    """The objects of ``_endless``; reads the raster as a model would."""

    def describe(self) -> dict[str, Any]:
        return {"mode": "endless"}

    def read(self, tile: Tile) -> Array:
        pixels: NDArray[Any] = self.scene.read_valid(tile.window)[0]
        return pixels

    def find(self, tile: Tile, content: Array) -> TileObjects:
        del content
        return _endless.see(tile, self.scene.grid.shape[0])


def source(path: str) -> Source:
    """A raster that other processes open, too."""
    return Source.of(path)
