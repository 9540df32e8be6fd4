"""Blocks that train or validate: nothing that trains comes within the buffer of what validates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samgraft.domains.labels.blocks import Blocks, block_parts, draw_blocks, lattice_shape
from samgraft.domains.labels.source import window_of, windows_of
from samgraft.errors import ConfigError, ShapeError

sides = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    side=sides,
    buffer=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    seed=st.integers(0, 2**16),
)
def test_no_pixel_of_a_training_window_lies_within_the_buffer(
    shape: tuple[int, int], side: tuple[int, int], buffer: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    val = rng.random(lattice_shape(shape, side)) < 0.3
    blocks = Blocks(shape=shape, side=side, buffer=buffer, val=val)
    near = np.zeros(shape, dtype=bool)
    for part in blocks.val_parts():
        near[window_of(part)] = True
    near = ndimage.maximum_filter(near, size=[2 * b + 1 for b in buffer], mode="constant")
    low = rng.integers(0, shape, (20, 2))
    high = np.minimum(low + rng.integers(1, 30, (20, 2)), shape)
    windows = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    assert blocks.trains(windows).tolist() == [not near[window_of(w)].any() for w in windows]


def test_distance_is_counted_in_free_pixels() -> None:
    blocks = Blocks(shape=(30, 50), side=(10, 20), buffer=(3, 4), val=np.eye(3, dtype=bool))
    assert blocks.val_parts().tolist() == [[0, 10, 0, 20], [10, 20, 20, 40], [20, 30, 40, 50]]
    some = windows_of(
        (slice(13, 20), slice(0, 16)),  # three rows below the first block, four columns left of the second
        (slice(12, 20), slice(0, 16)),
        (slice(13, 20), slice(0, 17)),
        (slice(0, 7), slice(24, 50)),
        (slice(0, 8), slice(24, 50)),
    )
    assert blocks.trains(some).tolist() == [True, False, False, True, False]


def test_blocks_cover_a_raster_once() -> None:
    seen = np.zeros((25, 33), dtype=int)
    for part in block_parts((25, 33), (10, 16)):
        seen[window_of(part)] += 1
    assert (seen == 1).all()
    with pytest.raises(ShapeError, match=r"val is \(2, 2\); the lattice has \(3, 3\)"):
        Blocks(shape=(25, 33), side=(10, 16), buffer=(0, 0), val=np.zeros((2, 2), dtype=bool))


def test_drawn_blocks_follow_the_density() -> None:
    density = np.zeros((100, 1))
    density[50:, 0] = np.linspace(0.01, 0.5, 50)
    usable = np.ones(100, dtype=bool)
    usable[:10] = False
    drawn = draw_blocks(density, usable, share=0.2, most=40, seed=3)
    assert drawn.sum() == 18 and not drawn[:10].any()
    assert (density[drawn, 0] == 0).sum() == 8  # 40 of 90 blocks are empty, so 8 of 18, as far as runs allow
    assert abs(density[drawn].mean() - density[usable].mean()) < 0.02
    assert (drawn == draw_blocks(density, usable, share=0.2, most=40, seed=3)).all()
    assert (drawn != draw_blocks(density, usable, share=0.2, most=40, seed=4)).any()
    assert draw_blocks(density, usable, share=0.2, most=5, seed=3).sum() == 5


def test_a_rare_class_is_judged_and_learned() -> None:
    density = np.full((60, 2), 0.3)
    density[:, 1] = 0
    density[7:13, 1] = 0.001  # in six of sixty blocks
    both = [draw_blocks(density, np.ones(60, bool), share=0.2, most=60, seed=s)[7:13].sum() for s in range(20)]
    assert set(both) <= {1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_the_only_block_with_labels_among_few_is_drawn_where_one_is_drawn(seed: int) -> None:
    density = np.array([[0.0], [0.0], [0.2], [0.0], [0.1]])
    drawn = draw_blocks(density, np.ones(5, bool), share=0.1, most=9, seed=seed)
    assert drawn.sum() == 1 and density[drawn, 0] > 0


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 blocks of the raster can be used"):
        draw_blocks(np.zeros((3, 1)), np.array([False, True, False]), share=0.2, most=4, seed=0)
