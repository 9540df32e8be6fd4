"""Adapters of the toy backbone with a header, and pictures for them; never trained, but not degenerate."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GraftConfig, LoraConfig
from samgraft.recipes.api import with_meta
from samgraft.recipes.header import InputRecipe
from tests.adapters.toy import toy_backbone

CLASSES = {1: "a", 2: "b"}


def toy_meta(**recipe: Any) -> BundleMeta:
    """Two classes, inputs of 64 pixels; options of ``InputRecipe``."""
    return BundleMeta(classes=CLASSES, extra={"input": asdict(InputRecipe(**{"size": 64} | recipe))})


def toy_adapter(
    grafts: Sequence[GraftConfig] = (LoraConfig(rank=2),),
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    meta: BundleMeta | None = None,
) -> Grafted:
    """Grafts and class tokens on the toy backbone, moved away from where they start."""
    torch.manual_seed(seed)
    grafted = attach(backbone or toy_backbone(), grafts, decoder=ClassTokensConfig(num_classes=2))
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return with_meta(grafted.eval(), meta or toy_meta())


def toy_file(path: Path, *args: Any, **options: Any) -> Path:
    """The same as a file."""
    grafted = toy_adapter(*args, **options)
    save_bundle(path, grafted, meta=options.get("meta") or toy_meta())
    grafted.detach()
    return path


def blobs(shape: tuple[int, int] = (70, 90), seed: int = 0, *, low: int = 30, high: int = 220) -> NDArray[np.uint8]:
    """(H, W) noise with bright ellipses whose places follow ``seed``."""
    rng = np.random.default_rng(seed)
    image = rng.normal(low, 8, shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(6):
        row, col, radius = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(5, 14)
        image[((y - row) / radius) ** 2 + ((x - col) / (0.6 * radius)) ** 2 < 1] = high
    return np.clip(image, 0, 255).astype(np.uint8)


def stripes(shape: tuple[int, int] = (70, 90), seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) fine stripes: another kind of picture."""
    rng = np.random.default_rng(seed)
    wave = 127 + 100 * np.sin(np.arange(shape[1]) * 2.1 + rng.uniform(0, 6))
    return np.clip(wave + rng.normal(0, 10, shape), 0, 255).astype(np.uint8)


def save_picture(path: Path, image: NDArray[np.uint8]) -> Path:
    """Write a PNG."""
    Image.fromarray(image).save(path)
    return path
