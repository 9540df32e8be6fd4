"""Distances of objects, and objects of distances."""

import numpy as np
import pytest

from samgraft.adapters.decoders.distance_maps import agreement, distance_targets, flood, objects_from_distances, seeds
from samgraft.errors import ShapeError

ROOT = 0.5**0.5


def touching() -> np.ndarray:
    """5 x 7: a square of 3 x 3 that touches a strip of 3 x 2."""
    instances = np.zeros((5, 7), dtype=np.int32)
    instances[1:4, 1:4] = 9
    instances[1:4, 4:6] = 4
    return instances


def test_targets_of_touching_objects() -> None:
    foreground, centre, boundary = distance_targets(touching())
    assert np.array_equal(foreground, touching() > 0)
    # the square: its middle is two pixels deep, its rim one
    square = np.full((3, 3), 0.5)
    square[1, 1] = 0
    assert boundary[1:4, 1:4] == pytest.approx(square)
    assert centre[1:4, 1:4] == pytest.approx(np.array([[1, ROOT, 1], [ROOT, 0, ROOT], [1, ROOT, 1]]))
    # the strip: every pixel is one deep; of its two middle pixels the first is the centre
    assert boundary[1:4, 4:6] == pytest.approx(np.zeros((3, 2)))
    assert centre[1:4, 4:6] == pytest.approx(np.array([[ROOT, 1], [0, ROOT], [ROOT, 1]]))
    outside = touching() == 0
    assert (centre[outside] == 1).all() and (boundary[outside] == 1).all()


def test_the_edge_of_the_picture_is_no_boundary() -> None:
    instances = np.zeros((4, 6), dtype=np.uint16)
    instances[0:2, 2:5] = 1
    _, centre, boundary = distance_targets(instances)
    assert boundary[0:2, 2:5] == pytest.approx(np.array([[0.5, 0, 0.5], [0.5, 0.5, 0.5]]))
    assert centre[0:2, 2:5] == pytest.approx(np.array([[ROOT, 0, ROOT], [1, ROOT, 1]]))


def test_unknown_pixels_are_no_boundary_and_no_object() -> None:
    instances = np.zeros((3, 6), dtype=np.int64)
    instances[:, 1:4], instances[:, 4:] = 5, -1
    foreground, centre, boundary = distance_targets(instances)
    assert foreground[1].tolist() == [0, 1, 1, 1, -1, -1]
    assert boundary[1] == pytest.approx([1, 2 / 3, 1 / 3, 0, 1, 1])
    assert centre[1, 3] == 0 and centre[0, 1] == 1  # the deepest pixel, and the furthest from it


@pytest.mark.parametrize("edge", [False, True])
def test_one_pixel_and_a_full_picture(edge: bool) -> None:
    instances = np.zeros((3, 4), dtype=np.int32)
    instances[0 if edge else 1, 2] = 1
    maps = distance_targets(instances)
    assert maps[:, 0 if edge else 1, 2].tolist() == [1, 0, 0]
    assert maps[0].sum() == 1
    full = distance_targets(np.ones((3, 4), dtype=np.int32))
    assert (full[0] == 1).all() and (full[2] == 0).all() and full[1].max() == 1
    assert (distance_targets(np.zeros((3, 4), dtype=np.int32))[0] == 0).all()


def test_targets_of_a_stack_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 3, 4\); expected \(H, W\)"):
        distance_targets(np.zeros((1, 3, 4), dtype=np.int32))


def test_seeds_need_both_distances_and_no_object_stays_without() -> None:
    maps = distance_targets(touching())
    assert seeds(maps).tolist() == seeds(maps, foreground=0.9).tolist()
    found = seeds(maps)
    assert {(int(r), int(c)) for r, c in np.argwhere(found)} == {(2, 2), (2, 4)}
    far = maps.copy()
    far[1] = 1  # nothing is near a centre, so the component is one object
    assert (seeds(far) > 0).sum() == 15 and seeds(far).max() == 1
    far[0, 2, 3] = far[0, 1, 3] = far[0, 3, 3] = 0  # a gap makes two components
    assert sorted(np.bincount(seeds(far).ravel())[1:].tolist()) == [6, 6]


def test_flood_meets_on_the_ridge() -> None:
    height = np.array([[0, 0.1, 0.2, 0.9, 0.2, 0], [0, 0.1, 0.9, 0.2, 0.1, 0]])
    markers = np.zeros((2, 6), dtype=np.int32)
    markers[0, 0], markers[1, 5] = 7, 3
    # both ridge pixels are first touched by a pixel of height 0.1 or 0.2 of the side named here
    assert flood(height, markers, np.ones((2, 6), dtype=bool)).tolist() == [[7, 7, 7, 3, 3, 3], [7, 7, 7, 3, 3, 3]]


def test_flood_of_a_plain_meets_half_way_and_stays_in_the_mask() -> None:
    mask = np.array([[1, 1, 1, 1, 1, 1, 0, 1]], dtype=bool)
    markers = np.array([[2, 0, 0, 0, 0, 1, 0, 0]])
    assert flood(np.zeros((1, 8)), markers, mask).tolist() == [[2, 2, 2, 1, 1, 1, 0, 0]]


def test_a_low_pass_is_crossed_before_a_high_wall() -> None:
    """The marker reaches the pocket behind the wall through the gap in it, and before the other marker climbs over."""
    height = np.array([[0.0, 0.8, 0.1, 0.9, 0.0], [0.0, 0.2, 0.1, 0.9, 0.0]])
    markers = np.array([[1, 0, 0, 0, 2], [0, 0, 0, 0, 0]])
    found = flood(height, markers, np.ones((2, 5), dtype=bool))
    assert found[:, :3].tolist() == [[1, 1, 1], [1, 1, 1]] and found[:, 4].tolist() == [2, 2]


def test_objects_come_back_from_their_own_distances() -> None:
    instances = np.zeros((24, 40), dtype=np.int32)
    instances[3:12, 2:11], instances[3:12, 11:20] = 1, 2  # touching
    instances[0:5, 25:34], instances[15:24, 33:40] = 3, 4  # cut by the edge
    instances[16, 4] = 5
    labels, scores = objects_from_distances(distance_targets(instances), min_area=1)
    assert sorted(np.bincount(labels.ravel())[1:].tolist()) == sorted(np.bincount(instances.ravel())[1:].tolist())
    for value in range(1, 6):
        assert len(np.unique(labels[instances == value])) == 1
    assert scores == pytest.approx(np.ones(5))
    labels, scores = objects_from_distances(distance_targets(instances), min_area=2)
    assert labels.max() == len(scores) == 4 and labels[16, 4] == 0


def test_score_is_foreground_times_agreement() -> None:
    maps = distance_targets(np.pad(np.ones((3, 3), dtype=np.int32), 1))
    maps[0] *= 0.75
    labels, scores = objects_from_distances(maps, min_area=1)
    assert scores == pytest.approx([0.75])
    maps[2, 1:4, 1:4] = 0  # eight of nine pixels are wrong by a half
    assert agreement(maps, labels) == pytest.approx([0.75 * (1 - 4 / 9)])


def test_one_object_that_was_two_scores_less() -> None:
    maps = distance_targets(touching())
    right = agreement(maps, np.where(touching() == 9, 1, np.where(touching() == 4, 2, 0)))
    merged = agreement(maps, (touching() > 0).astype(np.int32))
    assert right == pytest.approx([1, 1])
    assert merged == pytest.approx([1 - 6 * 0.5 / 15])  # five pixels of the strip and one of the square are off by half


def test_maps_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 4, 4\); expected \(3, H, W\): foreground, centre, boundary"):
        objects_from_distances(np.zeros((2, 4, 4)))
    labels, scores = objects_from_distances(np.zeros((3, 4, 5), dtype=np.float32))
    assert labels.shape == (4, 5) and not labels.any() and len(scores) == 0
