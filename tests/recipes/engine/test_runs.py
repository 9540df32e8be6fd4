"""Masks as runs: COCO's numbers and text, parts, boxes, intersections."""

import numpy as np
import pytest

from samgraft.errors import InputError
from samgraft.recipes.engine.runs import from_coco, pack, runs_of, unpack

RNG = np.random.default_rng(3)
NOISE = RNG.random((9, 14)) < 0.4


def test_counts_go_down_the_columns() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[1:, 1] = True  # positions 4, 5
    mask[0, 2] = True  # position 6: the same run in COCO
    mask[2, 3] = True  # position 11, the last
    assert runs_of(mask).counts() == [4, 3, 4, 1]
    assert runs_of(mask).coco(compressed=False) == {"size": [3, 4], "counts": [4, 3, 4, 1]}


@pytest.mark.parametrize(("value", "counts"), [(False, [12]), (True, [0, 12])])
def test_constant_masks(value: bool, counts: list[int]) -> None:
    mask = np.full((3, 4), value)
    runs = runs_of(mask)
    assert runs.counts() == counts
    assert runs.area == 12 * value
    assert runs.box == ((0, 0, 3, 2) if value else (0, 0, -1, -1))
    assert np.array_equal(from_coco(runs.coco()).full(), mask)
    assert runs.iou(runs) == float(value)


def test_text_of_counts() -> None:
    # 6, 1; 40 = 8 + 32: 8 and "more", then 1; 4 - 1 = 3; 5 - 40 = -35 = 29 - 64: 29 and "more", then -2, which is 30
    digits = [6, 1, 8 + 32, 1, 3, 29 + 32, 30]
    counts, text = [6, 1, 40, 4, 5], "".join(chr(48 + digit) for digit in digits)
    assert pack(counts) == text == "61X13mN"
    assert unpack(text) == unpack(text.encode()) == counts


@pytest.mark.parametrize("seed", range(5))
def test_text_comes_back(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 10**seed * 3 + 1, 40).tolist()
    assert unpack(pack(counts)) == counts


def test_damaged_rle_is_refused() -> None:
    with pytest.raises(InputError, match="add up to 11 pixels .* expected 3 x 4 = 12"):
        from_coco({"size": [3, 4], "counts": [5, 6]})
    with pytest.raises(InputError, match="ends within a number"):
        unpack(chr(48 + 33))
    with pytest.raises(InputError, match="character ' '"):
        unpack("6 1")


def test_parts_of_noise() -> None:
    runs = runs_of(NOISE)
    assert runs.area == NOISE.sum()
    assert np.array_equal(runs.full(), NOISE)
    assert np.array_equal(runs.crop(slice(2, 7), slice(3, 14)), NOISE[2:7, 3:])
    assert runs.crop(slice(2, 2), slice(3, 14)).shape == (0, 11)


def test_a_mask_in_a_larger_picture() -> None:
    runs = runs_of(NOISE, top=4, left=20, shape=(30, 50))
    full = np.zeros((30, 50), dtype=bool)
    full[4:13, 20:34] = NOISE
    assert np.array_equal(runs.full(), full)
    rows, cols = np.nonzero(full)
    assert runs.box == (cols.min(), rows.min(), cols.max(), rows.max())
    assert np.array_equal(runs.crop(), full[runs.place])
    assert runs.counts() == runs_of(full).counts()


def test_intersection_and_iou_of_noise() -> None:
    other = np.random.default_rng(4).random(NOISE.shape) < 0.7
    a, b = runs_of(NOISE), runs_of(other)
    assert a.intersection(b) == b.intersection(a) == (NOISE & other).sum()
    assert a.iou(b) == (NOISE & other).sum() / (NOISE | other).sum()
    assert a.intersection(runs_of(np.zeros_like(NOISE))) == 0
