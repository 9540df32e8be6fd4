"""Clicks: the deepest point of a mask, a click on an error, and prompts with one click more.

Points are (x, y) pixels, 0 is the first pixel's centre; masks are (row, col).

Source:
    Clicks drawn where two masks differ: EdgeSAM, arXiv:2312.06660, section 3; Segment Anything, arXiv:2304.02643,
    appendix A.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.manual import BACKGROUND, FOREGROUND, PADDING
from samgraft.errors import PromptError, ShapeError

Mask = NDArray[np.bool_]


def deepest_point(mask: Mask) -> tuple[int, int]:
    """(x, y) of the pixel of ``mask`` (H, W) that is farthest from everything outside it; outside the image counts too.

    Of several, the first in reading order.

    Raises:
        PromptError: the mask is empty.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise PromptError("an empty mask has no deepest point; leave out objects without pixels")
    part = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), part.shape)
    return int(col + cols[0]), int(row + rows[0])


def error_click(guess: Mask, truth: Mask, known: Mask | None = None) -> tuple[int, int, int]:
    """The click that a person would correct ``guess`` with: the middle of the largest connected error.

    What was missed and what is too much are separate errors, and parts join over edges, not over corners. Without any
    error the click repeats what is known to be right.

    Args:
        guess: (H, W) the mask so far.
        truth: (H, W) the true one.
        known: (H, W) False where the truth is not known, so that nothing there is an error; None knows everything.

    Returns:
        x, y, and 1 where something was missed, 0 where something is too much. If there is no error, the deepest point
        of the truth with 1; (0, 0, -10), which is padding, if there is no truth either.
    """
    best: Mask | None = None
    label, most = PADDING, 0
    for wrong, sign in ((truth & ~guess, FOREGROUND), (guess & ~truth, BACKGROUND)):
        parts, _ = ndimage.label(wrong if known is None else wrong & known)
        sizes = np.bincount(parts.ravel())[1:]
        if len(sizes) and sizes.max() > most:
            most, label = int(sizes.max()), sign
            best = parts == 1 + int(sizes.argmax())
    if best is None and truth.any():
        best, label = truth, FOREGROUND
    return (0, 0, PADDING) if best is None else (*deepest_point(best), label)


def error_clicks(guess: Tensor, truth: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`error_click` for N masks.

    Args:
        guess: (N, H, W) bool.
        truth: (N, H, W) bool.
        known: (N, H, W) bool or None.

    Returns:
        Points (N, 1, 2) float and labels (N, 1), on the device of ``truth``.

    Raises:
        ShapeError: the masks differ in shape.
    """
    if guess.shape != truth.shape or (known is not None and known.shape != truth.shape):
        raise ShapeError(
            f"guess is {tuple(guess.shape)}, truth {tuple(truth.shape)}; give both at the size of the network input"
        )
    pairs = zip(guess.cpu().numpy(), truth.cpu().numpy(), strict=True)
    seen = [None] * len(truth) if known is None else list(known.cpu().numpy())
    clicks = torch.tensor([error_click(g, t, k) for (g, t), k in zip(pairs, seen, strict=True)], device=truth.device)
    clicks = clicks.reshape(len(truth), 1, 3)
    return clicks[..., :2].float(), clicks[..., 2].long()


def random_error_clicks(guess: Tensor, truth: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random click per prompt where two masks differ; on the true mask where they are equal.

    Args:
        guess: (N, s, s) logits.
        truth: (N, s, s) logits of the same side; above 0 is true.
        side: Side of the view in pixels.
        generator: On the CPU.

    Returns:
        Points (N, 1, 2), pixels; labels (N, 1): 1 where the true mask is, else 0.
    """
    wanted = truth.detach().cpu() > 0
    wrong = (guess.detach().cpu() > 0) != wanted
    cells = wanted.shape[-1]
    rank = torch.where(wrong, 2.0, wanted.float()) + torch.rand(wanted.shape, generator=generator)
    place = rank.flatten(1).argmax(1)
    label = wanted.flatten(1).gather(1, place[:, None]).long()
    cell = torch.stack([place % cells, place // cells], dim=-1).float()
    return ((cell + 0.5) * (side / cells) - 0.5)[:, None], label


def random_points(masks: Tensor, generator: torch.Generator) -> Tensor:
    """One pixel of each mask, all equally likely.

    Args:
        masks: (N, H, W) bool.
        generator: On the CPU.

    Returns:
        (N, 2) float, (x, y), on the device of ``masks``.

    Raises:
        PromptError: an empty mask.
    """
    points = []
    for number, mask in enumerate(masks):
        places = mask.nonzero()
        if not len(places):
            raise PromptError(f"mask {number} is empty, so it has no point; leave out objects without pixels")
        row, col = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        points.append((float(col), float(row)))
    return torch.tensor(points, device=masks.device).reshape(-1, 2)


def with_click(prompts: Prompts, points: Tensor, labels: Tensor) -> Prompts:
    """``prompts`` and one more point each, (N, 1, 2) with labels (N, 1)."""
    if prompts.points is None or prompts.labels is None:
        return replace(prompts, points=points, labels=labels)
    return replace(
        prompts,
        points=torch.cat([prompts.points, points.to(prompts.points)], dim=1),
        labels=torch.cat([prompts.labels, labels.to(prompts.labels)], dim=1),
    )
