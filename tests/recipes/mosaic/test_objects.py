"""Pieces of an object keep their pixels, packed or not."""

import numpy as np
import pytest

from samgraft.recipes.mosaic.objects import MosaicObject, Piece, hull


@pytest.mark.parametrize("side", [5, 64, 65, 300])
def test_a_piece_gives_its_mask_back(side: int) -> None:
    mask = np.random.default_rng(side).random((side, side + 3)) < 0.3
    mask[0, :2], mask[0, 2] = False, True
    piece = Piece.of((slice(10, 10 + side), slice(20, 23 + side)), mask)
    assert np.array_equal(piece.mask, mask)
    assert (piece.area_px, piece.first) == (mask.sum(), (10, 22))


def test_a_full_rectangle_takes_no_array() -> None:
    piece = Piece.of((slice(0, 2000), slice(5, 3005)), np.ones((2000, 3000), dtype=bool))
    assert piece._mask is None
    assert (piece.area_px, piece.mask.all(), piece.mask.shape) == (6_000_000, True, (2000, 3000))


def test_a_large_piece_is_packed() -> None:
    y, x = np.ogrid[:1000, :1000]
    piece = Piece.of((slice(0, 1000), slice(0, 1000)), (y - 500) ** 2 + (x - 500) ** 2 <= 500**2)
    assert isinstance(piece._mask, bytes)
    assert len(piece._mask) < 20_000


def test_the_mask_of_an_object_is_that_of_its_pieces() -> None:
    upper = Piece.of((slice(4, 6), slice(2, 5)), np.array([[0, 1, 1], [1, 0, 0]], dtype=bool))
    lower = Piece.of((slice(6, 7), slice(1, 3)), np.array([[1, 1]], dtype=bool))
    box = hull(piece.part for piece in (upper, lower))
    assert box == (slice(4, 7), slice(1, 5))
    one = MosaicObject(id=3, class_id=1, score=0.5, tiles=2, box=box, area_px=5, parts=(upper, lower))
    assert one.mask.astype(int).tolist() == [[0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]
    assert one.first == (4, 3)
