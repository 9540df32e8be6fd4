"""Patient frames: RAS (NIfTI) and LPS (DICOM, ITK) differ only in the sign of x and y.

Takes a Grid, gives the same Grid in the other frame; no pixel moves and no rounding happens.
"""

import numpy as np

from samgraft.errors import GeometryError
from samgraft.grid import Grid

_FLIP = np.array([-1.0, -1.0, 1.0, 1.0])[:, None]


def to_frame(grid: Grid, world: str) -> Grid:
    """Express a volume's grid in "RAS" or "LPS" by flipping the signs of the first two affine rows.

    Raises:
        GeometryError: the grid is 2D or its world is not a patient frame.
    """
    if grid.ndim != 3 or grid.world not in ("RAS", "LPS") or world not in ("RAS", "LPS"):
        raise GeometryError(
            f"a {grid.ndim}D grid in world {grid.world[:40]!r} cannot be expressed as {world!r}; "
            "expected a volume in RAS or LPS (pictures go to .png, rasters to .tif)"
        )
    if grid.world == world:
        return grid
    affine = grid.affine * _FLIP + 0.0  # "+ 0.0" turns -0.0 into 0.0, so that there and back is bit-equal
    return Grid(shape=grid.shape, affine=affine, world=world, nodata=grid.nodata, anchor=grid.anchor)


def check_shape(shape: tuple[int, ...], grid: Grid, path: object) -> None:
    """Refuse an array that does not lie on the grid.

    Raises:
        GeometryError: names both shapes.
    """
    if tuple(shape) != grid.shape:
        raise GeometryError(f"cannot write {path}: array is {tuple(shape)}, its grid {grid.shape}; they must be equal")
