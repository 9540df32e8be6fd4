"""Slabs: runs of consecutive slices of a volume, for networks that look across slices; in training and in use.

Slices keep the spacing of the file along their axis; in the plane they are fitted into squares as single slices are
(``samgraft.recipes.data.fit``). A volume with fewer slices than a slab has its outermost ones repeated at both ends.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from samgraft.errors import InputError
from samgraft.recipes.data.cases import CaseArrays, CaseRef
from samgraft.recipes.data.fit import Fit, blend_weight, window_starts, windows
from samgraft.recipes.losses import IGNORE

Place = tuple[slice, slice]
Slab = tuple[Tensor, Tensor]
"""Image (3, D, S, S) uint8 and label (D, S, S) int32, ``IGNORE`` in the padding."""


@dataclass(frozen=True, kw_only=True)
class Slabs:
    """How a volume is cut into slabs."""

    count: int
    """Slices of the volume."""
    slab: int
    """Slices of a slab."""
    overlap: float = 0.5
    """Least overlap of neighbours, as a share of a slab."""

    @property
    def starts(self) -> list[int]:
        """First slice of every slab, in order; one below zero where the volume is shorter than a slab."""
        if self.count <= self.slab:
            return [-((self.slab - self.count) // 2)]
        return window_starts(self.count, self.slab, self.overlap)

    def slices(self, start: int) -> list[int]:
        """The slices of one slab; the outermost ones repeat where it reaches beyond the volume."""
        return [min(max(index, 0), self.count - 1) for index in range(start, start + self.slab)]

    def inside(self, start: int) -> slice:
        """Which of a slab's slices lie in the volume."""
        return slice(max(0, -start), min(self.slab, self.count - start))


@dataclass(frozen=True, eq=False)
class _Stack:
    """One window of a case through all slices, at network size."""

    images: Tensor
    """(n, C, S, S) uint8; C is 1 where the three channels are the same."""
    labels: Tensor
    """(n, S, S) int32."""


class SlabSet(Dataset[Slab]):
    """Every slab of the training cases, one for each first slice; slices are scaled once and kept as bytes.

    Args:
        cases: Training cases; read here.
        slab: Slices D of a slab.
        size: Side S of the network input.
        window: Native side of windows, or None for whole slices.
        overlap: Overlap of windows as a share of their side.
    """

    def __init__(self, cases: Sequence[CaseRef], *, slab: int, size: int, window: int | None, overlap: float) -> None:
        """Read and scale everything."""
        self.slab = slab
        self.foreground: list[bool] = []
        self._stacks: list[_Stack] = []
        self._places: list[tuple[int, int]] = []
        for ref in cases:
            case = ref.read()
            for place in windows(case.plane, window, overlap):
                self._add(_stack(case, place, size))
        if not self._places:
            raise InputError("there is no training case; check data.path, the split and data.cases")

    def _add(self, stack: _Stack) -> None:
        count = len(stack.images)
        labelled = (stack.labels > 0).flatten(1).any(dim=1)
        shortest = Slabs(count=count, slab=self.slab).starts[0]
        for start in range(shortest, max(shortest, count - self.slab) + 1):
            self._places.append((len(self._stacks), start))
            self.foreground.append(bool(labelled[max(0, start) : start + self.slab].any()))
        self._stacks.append(stack)

    def label_maps(self) -> Sequence[Tensor]:
        """All label maps, (n, S, S) of each volume's slices."""
        return [stack.labels for stack in self._stacks]

    def __len__(self) -> int:
        """Number of slabs."""
        return len(self._places)

    def __getitem__(self, index: int) -> Slab:
        """One slab; repeated slices beyond the volume count for nothing."""
        number, start = self._places[index]
        stack = self._stacks[number]
        cut = Slabs(count=len(stack.images), slab=self.slab)
        chosen, inside = cut.slices(start), cut.inside(start)
        image = stack.images[chosen].transpose(0, 1).expand(3, -1, -1, -1)
        label = stack.labels[chosen]
        label[: inside.start] = IGNORE
        label[inside.stop :] = IGNORE
        return image, label


def _stack(case: CaseArrays, place: Place, size: int) -> _Stack:
    rows, cols = place
    fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
    same = case.image.shape[1] == 1 and not case.neighbours
    pictures = (case.image[i] if same else case.picture(i) for i in range(case.num_slices))
    images = [fit.image(torch.from_numpy(np.ascontiguousarray(p[:, rows, cols])).float() / 255) for p in pictures]
    labels = torch.from_numpy(case.labels[:, rows, cols].astype(np.int32))
    bytes_ = (torch.stack(images) * 255).round().clamp(0, 255).to(torch.uint8)
    return _Stack(images=bytes_, labels=fit.labels(labels))


def flat_slabs(image: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """Slabs as the batch of slices that an encoder takes, and the slices D of a slab; pictures pass unchanged.

    Args:
        image: (B, 3, D, S, S), or (B, 3, S, S).
        label: (B, D, S, S), or (B, S, S); or None.

    Returns:
        (B * D, 3, S, S), (B * D, S, S) or None, and D; 1 for pictures.
    """
    if image.ndim == 4:
        return image, label, 1
    flat = None if label is None else label.flatten(0, 1)
    return image.transpose(1, 2).flatten(0, 1), flat, image.shape[2]


def slab_squares(
    pictures: Iterable[NDArray[np.uint8]], cut: Slabs, places: Sequence[Place], *, size: int
) -> Iterator[Tensor]:
    """Network inputs (1, 3, D, S, S): all windows of the first slab, then those of the next.

    Args:
        pictures: (3, h, w) of every slice, in order; read as far as a slab needs, and kept as long.
        cut: Slabs of the volume.
        places: Windows of every slice.
        size: Side S of the network input.
    """
    source, held = enumerate(pictures), dict[int, Tensor]()
    for start in cut.starts:
        wanted = cut.slices(start)
        while wanted[-1] not in held:
            index, picture = next(source)
            held[index] = torch.from_numpy(np.ascontiguousarray(picture))
        held = {index: held[index] for index in sorted(held) if index >= wanted[0]}
        for rows, cols in places:
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            squares = {i: fit.image(held[i][:, rows, cols].float() / 255) for i in set(wanted)}
            yield torch.stack([squares[i] for i in wanted], dim=1)[None]


def slab_maps(
    logits: Iterable[Tensor],
    shape: tuple[int, int],
    cut: Slabs,
    places: Sequence[Place],
    *,
    size: int,
    maps: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Maps (K, h, w) of every slice, in order, from the logits of what :func:`slab_squares` gave.

    Logits of windows and of slabs are blended where they overlap; a slab counts most in its middle. Only slices that
    a later slab can still change are held.

    Args:
        logits: (D, K, s, s) of each.
        shape: (h, w) of the slices.
        cut: Slabs of the volume.
        places: Windows of every slice.
        size: Side of the network input.
        maps: What blended logits become.
    """
    given, weights = iter(logits), blend_weight(cut.slab, 1)[:, 0]
    held: dict[int, tuple[Tensor, float]] = {}
    finished = 0
    for start in cut.starts:
        while finished < start:
            total, mass = held.pop(finished)
            yield maps(total / mass)
            finished += 1
        inside = cut.inside(start)
        found = _on_slices([next(given)[inside].float().cpu() for _ in places], shape, places, size)
        for step, one in enumerate(found, start=inside.start):
            weight = float(weights[step])
            total, mass = held.get(start + step, (torch.zeros_like(one), 0.0))
            held[start + step] = (total.add_(one, alpha=weight), mass + weight)
    for index in range(finished, cut.count):
        total, mass = held.pop(index)
        yield maps(total / mass)


def _on_slices(logits: Sequence[Tensor], shape: tuple[int, int], places: Sequence[Place], size: int) -> Tensor:
    """Logits (D, K, h, w) of slices from those of their windows, (D, K, s, s) each."""
    if len(places) == 1:
        return Fit(source=shape, size=size).back(logits[0])
    total, mass = torch.zeros(*logits[0].shape[:2], *shape), torch.zeros(shape)
    for (rows, cols), one in zip(places, logits, strict=True):
        fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
        weight = blend_weight(*fit.source)
        total[..., rows, cols] += fit.back(one) * weight
        mass[rows, cols] += weight
    return total / mass
