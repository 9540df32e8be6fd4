"""The options of "everything": those of the original generator under their names, and a few of our own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samgraft.adapters.config import check_choice
from samgraft.errors import ConfigError
from samgraft.recipes.shape_filter import ShapeFilter

PointGrids = Sequence[Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """Where is asked, and what is kept. ``ORIGINAL`` has the numbers of the published generator.

    Thresholds were chosen for graft-tiny on training images of nuclei and buildings. It believes less in its masks than
    SAM does: of those that a grid of points gives, 1 in 100 has a predicted IoU above 0.58 to 0.74.
    """

    points_per_side: int | None = 16
    """Points along each side of the picture, or of each tile of a large one; None with ``point_grids``."""
    points_per_batch: int | None = None
    """Points decoded together; None takes as many as the backbone's cache likes."""
    pred_iou_thresh: float = 0.4
    """Masks must have a larger predicted IoU than this."""
    stability_score_thresh: float = 0.7
    """Least stability, 0 to 1: pixels above logit +offset over pixels above logit -offset."""
    stability_score_offset: float = 1.0
    """That offset."""
    box_nms_thresh: float = 0.5
    """Of two masks of one crop with a larger IoU than this the better one stays."""
    crop_n_layers: int = 0
    """Layers of crops beside the whole: layer i has 2^i x 2^i."""
    crop_nms_thresh: float = 0.5
    """The same for masks of different crops; that of the smaller crop stays."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the first layer's crops as a share of the short side; each further layer has half of it."""
    crop_n_points_downscale_factor: int = 1
    """Layer i has ``points_per_side / factor^i`` points along each side."""
    point_grids: PointGrids | None = None
    """Instead of ``points_per_side``: per layer, points (x, y) as shares of width and height, 0 to 1."""
    min_mask_region_area: int = 0
    """Holes and islands with fewer pixels are filled and removed; 0 leaves masks as they are."""
    nms: str = "mask"
    """"mask" compares masks, so that concentric objects stay; "box" compares their boxes, as the original does."""
    tile: int | None = None
    """Side in pixels of the tiles that a large picture is cut into; 0 looks at the whole whatever its size; None takes
    twice the network size, or the whole if that is little more. What serves best is a few times the largest object.
    """
    overlap: float = 0.25
    """What neighbouring tiles share: below 1 a share of their side, from 1 on pixels."""
    max_share: float = 0.6
    """Largest share of a crop that a mask may cover; more is background. 1 allows all."""
    min_network_area: int = 12
    """Smallest mask, in pixels of the network's input."""
    shapes: ShapeFilter | None = None
    """Keep only objects of a certain form and size."""

    def __post_init__(self) -> None:
        """Check the numbers; grids become tuples."""
        self._check_grids()
        least = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0, "crop_n_points_downscale_factor": 1}
        for name, low in {**least, "min_mask_region_area": 0, "tile": 0, "min_network_area": 0}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}; expected at least {low}")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ConfigError(f"crop_overlap_ratio is {self.crop_overlap_ratio}; expected 0 up to, not including, 1")
        self.overlap_of(self.tile or math.inf)
        if self.stability_score_offset < 0:
            raise ConfigError(f"stability_score_offset is {self.stability_score_offset}; expected at least 0")
        check_choice("everything", "nms", self.nms, ("mask", "box"))

    def overlap_of(self, tile: float) -> float:
        """``overlap`` as a share of the side of tiles of ``tile`` pixels.

        Raises:
            ConfigError: it is negative, no number of pixels, or not smaller than the tile.
        """
        share = self.overlap if self.overlap < 1 else self.overlap / tile
        if not 0 <= share < 1 or (self.overlap >= 1 and self.overlap != int(self.overlap)):
            raise ConfigError(
                f"overlap is {self.overlap:g}; expected a share of a tile's side (0 up to, not including, 1), or whole "
                f"pixels, fewer than a tile has{'' if math.isinf(tile) else f' ({tile:g})'}"
            )
        return share

    def _check_grids(self) -> None:
        grids: Any = self.point_grids
        if (grids is None) == (self.points_per_side is None):
            raise ConfigError("give either points_per_side or point_grids, and None for the other")
        if grids is None:
            return
        plain = tuple(tuple((float(x), float(y)) for x, y in grid) for grid in grids)
        object.__setattr__(self, "point_grids", plain)
        if len(plain) != self.crop_n_layers + 1:
            raise ConfigError(f"point_grids has {len(plain)} grids; expected one per layer: {self.crop_n_layers + 1}")
        if any(not (0 <= v <= 1) for grid in plain for point in grid for v in point):
            raise ConfigError("point_grids holds values outside 0 to 1; give shares of width and height")


ORIGINAL = EverythingConfig(
    points_per_side=32,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    box_nms_thresh=0.7,
    crop_nms_thresh=0.7,
    nms="box",
    tile=0,
    max_share=1.0,
    min_network_area=0,
)
"""Defaults of the original generator."""
