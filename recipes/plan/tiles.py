"""How many tiles a data set has: the same slices and windows as training and validation, counted and forgotten."""

from dataclasses import dataclass

from samgraft.recipes.config import FitConfig
from samgraft.recipes.data.fit import windows
from samgraft.recipes.data.module import SegmentationData

VALIDATION_PART = 0.25
"""Validation tiles per training tile where nobody says: a fifth of the cases validates."""


@dataclass(frozen=True, kw_only=True)
class TileCount:
    """Tiles, and the memory that they are held in."""

    train: int
    val: int
    bytes: int
    """Of training tiles at network size (image uint8, labels int32), and of validation cases at their own."""
    classes: int
    """Foreground classes."""
    counted: bool
    """Read from the data set, not assumed."""


def assumed_tiles(train: int, val: int | None, *, size: int, classes: int) -> TileCount:
    """Tiles without a data set; ``val`` is a quarter of ``train`` if not given, and cases are as large as tiles."""
    val = round(train * VALIDATION_PART) if val is None else val
    return TileCount(train=train, val=val, bytes=7 * size**2 * (train + val), classes=classes, counted=False)


def count_tiles(config: FitConfig, size: int) -> TileCount:
    """Read every case of the data set once, one after the other.

    Args:
        config: Which data set.
        size: Side of the network input.

    Raises:
        InputError: as training would.
        ConfigError: as training would.
    """
    names, train = config.task.class_names, config.train
    data = SegmentationData(config.data, kind=config.task.kind, size=size, val_cases=train.val_cases, class_names=names)
    window, overlap = config.data.window, config.data.overlap
    drawn = data.index.windows
    tiles, val, kept = 0 if drawn is None else len(drawn), 0, 0
    for ref in data.index.train:
        case = ref.read()
        for rows, cols in windows(case.plane, window, overlap):
            tiles += int((case.labels[:, rows, cols] >= 0).any(axis=(1, 2)).sum())
    for ref in data.val_refs:
        case = ref.read()
        val += case.num_slices * len(windows(case.plane, window, overlap))
        kept += 0 if drawn is not None else case.image.nbytes + case.labels.nbytes
    classes = len(names or data.class_names)
    return TileCount(
        train=tiles,
        val=val,
        bytes=kept + (0 if drawn is not None else 7 * size**2 * tiles),
        classes=classes,
        counted=True,
    )
