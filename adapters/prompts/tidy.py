"""Masks of one object without islands and small holes, where the references say that the object has none.

An object that every reference shows in one part is in one part: what a mask has beside that part is left out. The part
that stays is the one under the prompt's point, or the one with the largest sum of positive logits where the point lies
beside the mask or nobody set one. Holes up to a share of the mask are filled; larger ones (a ring) stay.

Only signs change: a logit that changes sides keeps its size, so the border of what stays is where it was.

Source:
    This project; what it is worth was measured on train images (see ``IslandsConfig``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.adapters.prompts.matching import ReferenceConfig
from samgraft.adapters.prompts.references import References
from samgraft.errors import ConfigError

MAIN_SHARE = 0.95
"""Share of an object that its largest part has in a reference that shows it in one part."""
_EIGHT = np.ones((3, 3), dtype=bool)
Cells = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class IslandsConfig(ReferenceConfig):
    """Base of methods whose masks are cleaned.

    Dice on 40 training slices of cardiac_mr at 256 pixels, mean of four runs with one reference each (the slices of its
    patient left out):
    persam_f 0.414 with islands and 0.461 without, in_context 0.453 and 0.465.
    """

    islands: bool | None = None
    """Keep all parts of a mask (True) or one (False); None keeps one of an object that every reference shows in one
    part.
    """
    fill_holes: float = 0.0
    """Holes up to this share of the mask's area are filled; 0 fills none (0.05 changed Dice by 0.001 at most, down for
    persam_f).
    """

    def __post_init__(self) -> None:
        """Check the share."""
        super().__post_init__()
        if not 0 <= self.fill_holes <= 1:
            raise ConfigError(
                f"{self.method}: fill_holes is {self.fill_holes}; expected a share of the mask's area, 0 to 1"
            )

    def tidy(self, logits: Tensor, references: References, points: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Masks without islands and small holes.

        Args:
            logits: (B K, h, w), image-major.
            references: Of K kinds of objects.
            points: (B K, 2) (x, y) in pixels of an input of ``size``, or None.
            size: (H, W).
        """
        if self.islands is True and not self.fill_holes:
            return logits
        alone = in_one_part(references) if self.islands is None else [not self.islands] * references.num_objects
        found = []
        for number, one in enumerate(logits):
            cell = None if points is None else _cell(points[number], size, (one.shape[-2], one.shape[-1]))
            values = one.detach().float().cpu().numpy()
            wanted = torch.from_numpy(tidied(values, cell, alone[number % len(alone)], self.fill_holes)).to(one.device)
            strength = one.abs().clamp_min(torch.finfo(one.dtype).tiny)
            found.append(torch.where(wanted == (one > 0), one, torch.where(wanted, strength, -strength)))
        return torch.stack(found) if found else logits


def in_one_part(references: References) -> list[bool]:
    """For every kind of object whether each reference that has it shows it in one part."""
    masks = (references.masks > 0.5).cpu().numpy()
    return [all(_one_part(mask) for mask in masks[:, kind]) for kind in range(masks.shape[1])]


def tidied(logits: NDArray[np.float32], cell: tuple[int, int] | None, alone: bool, holes: float) -> Cells:
    """What is inside after cleaning.

    Args:
        logits: (h, w), inside above 0.
        cell: Row and column of the prompt's point.
        alone: Keep one part only; parts join over corners.
        holes: Share of the mask's area up to which holes are filled; background joins over edges.
    """
    inside = logits > 0
    if not inside.any():
        return inside
    if alone:
        parts, count = ndimage.label(inside, structure=_EIGHT)
        chosen = 0 if cell is None else int(parts[cell])
        if chosen == 0:
            chosen = 1 + int(np.argmax(ndimage.sum_labels(logits, parts, np.arange(1, count + 1))))
        inside = parts == chosen
    if holes:
        parts, count = ndimage.label(~inside)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        open_ = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        small = np.setdiff1d(np.flatnonzero(sizes <= holes * np.count_nonzero(inside)), [0, *open_])
        inside = inside | np.isin(parts, small)
    return inside


def _one_part(mask: Cells) -> bool:
    """True also for an empty mask: a reference without the object says nothing."""
    parts, _ = ndimage.label(mask, structure=_EIGHT)
    sizes = np.bincount(parts.ravel())[1:]
    return not len(sizes) or bool(sizes.max() >= MAIN_SHARE * sizes.sum())


def _cell(point: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the cell of a mask that holds a point (x, y)."""
    x, y = point.tolist()
    row, col = (int((v + 0.5) * n / length) for v, n, length in zip((y, x), grid, size, strict=True))
    return min(max(row, 0), grid[0] - 1), min(max(col, 0), grid[1] - 1)
