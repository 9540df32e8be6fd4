"""One mask that everything mode found, and where it comes from."""

from dataclasses import dataclass

from samgraft.recipes.engine.crops import Crop
from samgraft.recipes.engine.runs import RunMask


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One mask that passed the filters."""

    runs: RunMask
    iou: float
    """As the decoder predicts it; may exceed 1."""
    stability: float
    point: tuple[float, float]
    """(x, y) in pixels of the picture: what was asked."""
    crop: Crop
    cut: bool = False
    """Ends at the edge of a tile, so that it is probably a part."""
    margin: int = 1
    """Pixels from an edge within which it counts as ending there."""
