"""Contact sheets: many images with outlines on one PNG, to be looked at."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path
from samgraft.domains.scene import Array
from samgraft.recipes.report import Panel, overlay, png

GAP = 6
"""White pixels between pictures."""


def titled(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """``picture`` (H, W, 3) under a strip with a line of text."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (picture.shape[1], 16), "white")
    ImageDraw.Draw(strip).text((3, 2), title, fill="black")
    return np.concatenate([np.asarray(strip, dtype=np.uint8), picture])


def contact_sheet(path: Path, panels: Sequence[tuple[str, Array, Array, Array]], *, side: int = 256) -> None:
    """Write pictures in rows of about the same number.

    Args:
        path: PNG to write; replaced only when complete.
        panels: Title, image as in ``Panel``, labels (H, W) drawn in colour, and labels drawn in white.
        side: Small images are enlarged to about this many pixels, large ones shrunk to three times as many.

    Raises:
        OutputError: the file cannot be written.
    """
    pictures = [
        titled(overlay(Panel(title=title, image=image, predicted=labels, truth=white), side=side), title)
        for title, image, labels, white in panels
    ]
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    height, width = (max((p.shape[axis] for p in pictures), default=1) for axis in (0, 1))
    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = np.full((rows * (height + GAP), columns * (width + GAP), 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(sheet))
