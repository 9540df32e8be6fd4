"""Patient frames and orders of axes: RAS (NIfTI) and LPS (DICOM, ITK) differ only in the sign of x and y.

``to_frame`` gives the same Grid in the other frame; no pixel moves and no rounding happens. ``place_labels`` moves
labels between grids whose voxels coincide; nothing is interpolated. ``resample_labels`` takes the nearest voxel.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.domains.scene import Array
from samgraft.errors import GeometryError
from samgraft.grid import Grid

_FLIP = np.array([-1.0, -1.0, 1.0, 1.0])[:, None]

PLACE_TOLERANCE = 0.01
"""Default for how far, in mm, corresponding voxels of two grids may lie apart to count as the same voxels."""


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


def place_labels(labels: Array, source: Grid, target: Grid, *, what: str, tolerance: float = PLACE_TOLERANCE) -> Array:
    """Move labels to another grid that has the same voxels, perhaps in another order: axes swapped, turned, cropped.

    Nothing is interpolated. Voxels outside ``source`` become 0; labels outside ``target`` are refused.

    Args:
        labels: integers on ``source.shape``.
        source: their grid; a patient frame.
        target: the grid that is wanted; RAS or LPS.
        what: name for messages.
        tolerance: how far in mm a voxel centre may lie from one of ``target``.

    Returns:
        Labels on ``target.shape``.

    Raises:
        GeometryError: the voxels do not coincide (the largest distance is named), or labels lie outside ``target``.
    """
    check_shape(np.shape(labels), source, what)
    there = to_frame(source, target.world)
    step = np.linalg.solve(target.affine[:3, :3], there.affine[:3, :3])
    for axis, side in enumerate(there.shape):
        if side == 1:  # a single layer has a direction, and no step
            main = int(np.abs(step[:, axis]).argmax())
            step[:, axis] = np.eye(3)[main] * np.sign(step[main, axis])
    turn = np.rint(step)
    start = target.to_index(there.affine[:3, 3])
    near = None
    if _is_turn(turn):
        near = Grid(shape=there.shape, affine=_affine(target, turn, np.rint(start)), world=target.world)
    distance = float("inf") if near is None else near.corner_distance(there)
    if near is None or distance > tolerance:
        far = f"corners lie {distance:.4g} mm apart" if near is not None else "axes or spacing differ"
        raise GeometryError(
            f"{what}: its voxels are not those of the image: {far} (allowed {tolerance:g} mm); shape {source.shape}, "
            f"spacing {_text(source.spacing)} mm against {target.shape}, {_text(target.spacing)} mm; "
            "resample it onto the image's grid: samgraft labels FILE --image IMAGE --resample -o OUT"
        )
    return _paste(labels, turn, np.rint(start).astype(int), target, what)


def resample_labels(labels: Array, source: Grid, target: Grid) -> Array:
    """Labels at the nearest voxel centre, on another grid of the same patient; 0 outside.

    This moves borders by up to half a voxel of ``source``: only for labels that :func:`place_labels` refuses.

    Args:
        labels: integers on ``source.shape``.
        source: their grid; a patient frame.
        target: the grid that is wanted; RAS or LPS.

    Raises:
        GeometryError: a grid is no patient frame.
    """
    check_shape(np.shape(labels), source, "resampled labels")
    there = to_frame(source, target.world)
    matrix = np.linalg.solve(there.affine[:3, :3], target.affine[:3, :3])
    offset = there.to_index(target.affine[:3, 3])
    resampled: Array = ndimage.affine_transform(
        labels, matrix, offset, output_shape=target.shape, order=0, mode="grid-constant", cval=0
    )
    return resampled


def _is_turn(turn: NDArray[np.float64]) -> bool:
    """True if a 3x3 matrix of whole numbers only swaps and flips axes."""
    size = np.abs(turn)
    return bool((size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all())


def _affine(target: Grid, turn: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine of a grid whose steps and first voxel are given in voxels of ``target``."""
    affine = np.eye(4)
    affine[:3, :3] = target.affine[:3, :3] @ turn
    affine[:3, 3] = target.to_world(start)
    return affine


def _paste(labels: Array, turn: NDArray[np.float64], start: NDArray[np.int_], target: Grid, what: str) -> Array:
    """Turn the array and lay it onto the target."""
    order = [int(np.abs(turn[axis]).argmax()) for axis in range(3)]
    signs = [int(turn[axis, order[axis]]) for axis in range(3)]
    turned = np.transpose(labels, order)[tuple(slice(None, None, sign) for sign in signs)]
    first = [int(s) - (n - 1 if sign < 0 else 0) for s, n, sign in zip(start, turned.shape, signs, strict=True)]
    kept = [(max(0, f), min(side, f + n)) for f, n, side in zip(first, turned.shape, target.shape, strict=True)]
    out = np.zeros(target.shape, dtype=labels.dtype)
    inside = tuple(slice(low - f, max(high, low) - f) for (low, high), f in zip(kept, first, strict=True))
    out[tuple(slice(low, max(high, low)) for low, high in kept)] = turned[inside]
    lost = int(np.count_nonzero(labels)) - int(np.count_nonzero(out))
    if lost:
        raise GeometryError(
            f"{what}: {lost} labelled voxels lie outside the image {target.shape}; the labels belong to another image, "
            "or to the uncropped one"
        )
    return out


def _text(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{v:.4g}" for v in spacing)
