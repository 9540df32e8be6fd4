"""Discs of two brightnesses, and the same scenes as a scanner with another gain shows them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from samgraft.adapters.backbones.base import Backbone
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.training import fit
from tests.recipes._sets import disc


def write_discs(root: Path, *, cases: int, gain: float = 1.0, offset: float = 0.0, seed: int = 0) -> Path:
    """images/ and masks/ of 64 x 64 pixels: bright discs on a textured ground, seen with a gain and an offset."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(cases):
        label = np.zeros((64, 64), dtype=bool)
        for _ in range(rng.integers(1, 4)):
            label |= disc(64, 64, *rng.uniform(12, 52, 2), rng.uniform(6, 12))
        ground = rng.normal(70, 10, (8, 8)).repeat(8, axis=0).repeat(8, axis=1)
        image = ground + 90 * label + rng.normal(0, 8, label.shape)
        pixels = np.clip(gain * image + offset, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"s{index:02d}.png")
        Image.fromarray(label.astype(np.uint8) * 255).save(root / "masks" / f"s{index:02d}.png")
    names = [f"s{index:02d}" for index in range(cases)]
    (root / "splits.json").write_text(json.dumps([{"train": names[:-4], "val": names[-4:]}]))
    return root


def train_source(root: Path, run: Path, backbone: Backbone, *, steps: int = 150, kind: str = "semantic") -> Path:
    """An adapter of the discs, without augmentation of intensities, so that a shift hurts it."""
    config = FitConfig(
        task=TaskConfig(grafts={"lora": {"rank": 4}}, lr=5e-3, warmup=0.1, kind=kind),  # type: ignore[arg-type]
        data=DataConfig(path=str(root), layout="image_mask", size=64, batch_size=4),
        augment=AugmentConfig(gamma=0.0, contrast=0.0, brightness=0.0, blur=0.0, noise=0.0),
        train=TrainConfig(steps=steps, val_every=steps, progress=False, accelerator="cpu", cache=False),
    )
    return fit(config, run, backbone=backbone, report=False).adapter
