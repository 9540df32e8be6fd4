"""Low-frequency amplitudes of images at network size, for ``augment.fourier``: of target images, or of training tiles.

The bank is made once before training. :func:`samgraft.recipes.augment.augment` mixes an entry of it into an image.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import InputError
from samgraft.recipes.alignment import evenly, image_files, scene_images
from samgraft.recipes.augment import low_places
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.look import Look

MOST = 128
"""Entries of a bank."""


def bank_of_tiles(tiles: Any, beta: float) -> Tensor:
    """Amplitudes of training tiles, evenly chosen.

    Args:
        tiles: A sequence of (image (3, S, S) or (3, D, S, S) uint8, label); of slabs the middle slice counts.
        beta: As ``augment.fourier_beta``.

    Returns:
        (n, 3, k, k).
    """
    images = (tiles[index][0] for index in evenly(len(tiles), MOST))
    flat = (image if image.ndim == 3 else image[:, image.shape[1] // 2] for image in images)
    return _bank((image.float() / 255 for image in flat), beta)


def bank_of_files(
    path: Path, look_of: Callable[[Scene], Look], axis_of: Callable[[Scene], int | None], *, size: int,
    window: int | None, beta: float,
) -> Tensor:  # fmt: skip
    """Amplitudes of target images, fitted into squares as training images are; labels are not needed.

    Args:
        path: Folder of images, or one image (a raster gives blocks, a volume slices).
        look_of: Channels and scale of one of them.
        axis_of: Volumes: the array axis that is cut.
        size: Side S of the network input.
        window: Native side of windows, or None for whole pictures.
        beta: As ``augment.fourier_beta``.

    Returns:
        (n, 3, k, k).

    Raises:
        InputError: no image there, or no valid pixel.
    """
    files = image_files(path)
    chosen = [files[index] for index in evenly(len(files), MOST)]

    def squares() -> Iterable[Tensor]:
        for file in chosen:
            scene = open_scene(file)
            for image, _ in scene_images(scene, look_of(scene), axis_of(scene), window):
                if np.isfinite(image).any():
                    yield Fit(source=(image.shape[1], image.shape[2]), size=size).image(_filled(image))

    found = list(squares())
    if not found:
        raise InputError(f"augment.fourier: {path} has no valid pixel; name a folder of target images")
    return _bank([found[index] for index in evenly(len(found), MOST)], beta)


def _bank(squares: Iterable[Tensor], beta: float) -> Tensor:
    """(n, 3, k, k) amplitudes of squares (3, S, S) in [0, 1]."""
    rows = []
    for square in squares:
        down, right = low_places(square.shape[-2], square.shape[-1], beta)
        rows.append(torch.fft.fft2(square)[:, down[:, None], right].abs())
    return torch.stack(rows)


def _filled(image: NDArray[np.float32]) -> Tensor:
    """Missing pixels as the mean of their channel."""
    means = np.nanmean(image, axis=(1, 2), keepdims=True)
    return torch.from_numpy(np.where(np.isfinite(image), image, means).astype(np.float32))
