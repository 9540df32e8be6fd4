"""Small rasters, networks whose answers are known, and what they give without tiles."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.area import Area
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.steps import steps
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import look_at
from samgraft.recipes.mosaic.infer import OracleInfer, Source
from samgraft.recipes.mosaic.windows import AdapterInfer, Loaded
from tests.data.rasters import write_raster
from tests.recipes._oracle import OracleGraft


def header(**options: Any) -> Recorded:
    """What an adapter for bright things says; options of ``InputRecipe``."""
    kind, classes = options.pop("kind", "semantic"), options.pop("classes", {1: "bright"})
    return Recorded(recipe=InputRecipe(**{"size": 64, "window": 64} | options), classes=classes, kind=kind)


def bright(
    path: Path, said: Recorded, *, batch: int = 3, area: Area | None = None, scores: bool = False
) -> AdapterInfer:
    """An infer function that calls bright pixels of a raster an object or a class."""
    scene = open_scene(path)
    infer = AdapterInfer(Source.of(path), "bright.graft", look_at(scene), area=area, scores=scores)
    graft: Any = OracleGraft(instance=said.kind == "instance")
    infer._loaded = Loaded(graft, said, steps(graft, said.maps), batch)
    return infer


def tiny_adapter(
    path: Path,
    *,
    kind: str = "semantic",
    window: int | None = 128,
    gsd: tuple[float, float] | None = None,
    **facts: Any,
) -> Path:
    """graft-tiny with a decoder for two classes that was never trained; further facts go into the header."""
    backbone = load_backbone("graft-tiny")
    torch.manual_seed(0)
    grafted = attach(backbone, decoder=ClassTokensConfig(num_classes=2))
    settings = {"size": backbone.spec.native_size, "window": window, "overlap": 0.25, "slice_axis": None}
    extra = {"input": settings | {"neighbours": False, "bands": None, "min_area": 4, "gsd": gsd}} | facts
    classes = {1: "object"} if kind == "instance" else {1: "a", 2: "b"}
    save_bundle(path, grafted, meta=BundleMeta(task=kind, classes=classes, extra=extra))
    grafted.detach()
    return path


def grainy(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """(1, H, W) noise, so that every pixel is close to a decision somewhere."""
    return np.random.default_rng(seed).integers(1, 255, (1, *shape), dtype=np.uint8)


def things(shape: tuple[int, int] = (150, 170), seed: int = 0) -> NDArray[np.uint16]:
    """(1, H, W) labels: a road through everything, a U, touching blocks and some dots; each label is connected."""
    rng, labels = np.random.default_rng(seed), np.zeros(shape, dtype=np.uint16)
    height, width = shape
    for number, col in enumerate(range(12, width - 24, 13)):
        for row in range(60, 100, 10):
            labels[row : row + 10, col : col + 13] = 100 + 10 * number + row // 10
    for number in range(12):
        y, x, radius = rng.integers(6, 50), rng.integers(6, width - 6), rng.integers(2, 6)
        rows, cols = np.ogrid[:height, :width]
        labels[(rows - y) ** 2 + (cols - x) ** 2 <= radius**2] = 20 + number
    labels[104:140, 20:26] = labels[104:140, 130:136] = labels[134:140, 20:136] = 1  # a U, wider than tiles
    labels[52:56] = 2  # a road
    return separate(labels)


def separate(labels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(1, H, W): every connected part its own number, in raster scan order."""
    from skimage import measure

    return measure.label(labels, connectivity=1, background=0).astype(np.uint16)[None]


def oracle(folder: Path, labels: NDArray[np.uint16], **options: Any) -> OracleInfer:
    """The true objects of a label raster that is written here."""
    path = write_raster(folder / "truth.tif", labels, tiled=True, blockxsize=64, blockysize=64)
    return OracleInfer(Source.of(path), **options)
