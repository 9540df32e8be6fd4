"""Objects of one picture that were found at several scales: each is taken from where it was found best.

A network that learned objects of one size sees a far larger one as many, and a far smaller one as nothing. At another
scale the same object has the familiar size. Every object of every scale is a candidate. Its worth is its own score
(for distance maps: how well the maps agree with its shape) and how well the other scales find the same object. The
best candidate is painted first; one that hardly has room left is another view of what is there, and is dropped.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.recipes.joining import Piece

WHOLE = 0.8
"""Least share of a candidate that must still be free; the rest of it goes to better ones."""
OTHERS = 0.4
"""Weight of what other scales say in the worth of a candidate; its own score has the rest."""
Found = tuple[NDArray[np.integer], NDArray[np.floating]]
"""Labels (H, W): objects 1..n, 0 for none; and scores (n,) in [0, 1]."""


def choose_objects(found: Sequence[Found], *, min_area: int = 1) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The best objects of several scales, without overlap.

    Args:
        found: What each scale gave for the same picture.
        min_area: Least pixels of an object that others leave of it.

    Returns:
        Labels (H, W) int32, 1..n by falling worth, and worths (n,) float32 in [0, 1]. One scale alone comes back with
        its own scores, in their order.
    """
    pieces = [piece for scale, (labels, scores) in enumerate(found) for piece in _pieces(labels, scores, scale)]
    areas = [np.bincount(labels.ravel()) for labels, _ in found]
    worths = [_worth(piece, found, areas) for piece in pieces]
    painted = np.zeros(found[0][0].shape, dtype=np.int32)
    kept: list[float] = []
    for number in sorted(range(len(pieces)), key=lambda i: -worths[i]):
        piece = pieces[number]
        free = piece.mask & (painted[piece.place] == 0)
        if free.sum() >= max(min_area, WHOLE * piece.area):
            kept.append(worths[number])
            painted[piece.place][free] = len(kept)
    return painted, np.asarray(kept, dtype=np.float32)


def _pieces(labels: NDArray[np.integer], scores: NDArray[np.floating], scale: int) -> list[Piece]:
    places = enumerate(ndimage.find_objects(labels), start=1)
    return [
        Piece(window=scale, place=place, mask=labels[place] == number, score=float(scores[number - 1]))
        for number, place in places
        if place is not None
    ]


def _worth(piece: Piece, found: Sequence[Found], areas: Sequence[NDArray[np.integer]]) -> float:
    """Score, and the mean over all other scales of the largest IoU with an object there."""
    if len(found) == 1:
        return piece.score
    seen = [_best_iou(piece, found[i][0], areas[i]) for i in range(len(found)) if i != piece.window]
    return (1 - OTHERS) * piece.score + OTHERS * float(np.mean(seen))


def _best_iou(piece: Piece, labels: NDArray[np.integer], areas: NDArray[np.integer]) -> float:
    """Largest IoU of a piece with an object of another scale; 0 if none meets it."""
    met, common = np.unique(labels[piece.place][piece.mask], return_counts=True)
    met, common = met[met > 0], common[met > 0]
    return float((common / (piece.area + areas[met] - common)).max(initial=0))
