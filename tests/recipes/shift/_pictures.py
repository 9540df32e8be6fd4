"""Small sets of pictures for the tests of the shift."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.recipes._sets import disc


def write_set(root: Path, *, count: int = 8, seed: int = 0, gamma: float = 1.0, invert: bool = False) -> Path:
    """Gray PNG files NAME-0.png, NAME-1.png, ... of 60 x 70 pixels: bright discs on dark noise.

    Args:
        root: Folder to make; its name begins the names of the files.
        count: Pictures.
        seed: Of noise and places.
        gamma: Exponent of the values.
        invert: Dark discs on bright noise.
    """
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        image = rng.uniform(0.1, 0.3, (60, 70))
        image[disc(60, 70, rng.uniform(15, 45), rng.uniform(15, 55), 9)] += 0.5
        image = (1 - image if invert else image) ** gamma
        Image.fromarray((255 * image + 0.5).astype(np.uint8)).save(root / f"{root.name}-{index}.png")
    return root
