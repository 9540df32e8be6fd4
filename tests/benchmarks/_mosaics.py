"""What benchmarks of the raster engine share: large files made quickly, graft-tiny on them, and an endless oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.domains.scene import Array
from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.infer import Source, TileInfer
from samgraft.recipes.mosaic.plan import Tile
from tests.benchmarks import _endless
from tests.benchmarks.pipeline import texture

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


def tiny_adapter(path: Path, *, kind: str = "semantic", window: int = 128) -> Path:
    """graft-tiny with a decoder for two classes that was never trained."""
    backbone = load_backbone("graft-tiny")
    torch.manual_seed(0)
    grafted = attach(backbone, decoder=ClassTokensConfig(num_classes=3 if kind == "instance" else 2))
    settings = {"size": backbone.spec.native_size, "window": window, "overlap": 0.25, "slice_axis": None}
    extra = {"input": settings | {"neighbours": False, "bands": None, "min_area": 4}}
    classes = {1: "object"} if kind == "instance" else {1: "a", 2: "b"}
    save_bundle(path, grafted, meta=BundleMeta(task=kind, classes=classes, extra=extra))
    grafted.detach()
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
