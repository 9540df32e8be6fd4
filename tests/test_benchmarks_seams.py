"""The seam benchmark on a small scene: exact for an oracle, hardly a split or fused object for a jittered one."""

from functools import cache, partial
from itertools import product

import numpy as np
import pytest

from samgraft.recipes.mosaic.plan import plan_tiles
from tests.benchmarks import _endless
from tests.benchmarks._seam_peers import boxes_of, windows
from tests.benchmarks._seam_scene import Scene, in_parts, jittered, judge, judge_boxes, oracle, scene
from tests.benchmarks.raster_memory import _both
from tests.benchmarks.seams import merge
from tests.recipes.mosaic._worlds import canonical


@cache
def _scene(side: int) -> Scene:
    return scene(side)


def test_the_scene_has_what_it_says() -> None:
    of = _scene(1024)
    assert len(of.boxes) == 3 + 1 + 20 + 31
    assert np.array_equal(canonical(of.labels), of.labels)
    widths = [box[1].stop - box[1].start for box in of.boxes]
    assert sum(width == 1024 for width in widths) == 3


def test_the_judge_tells_split_fused_and_dropped_objects() -> None:
    truth, result = np.zeros((10, 40), dtype=np.int32), np.zeros((10, 40), dtype=np.int32)
    for number, left in enumerate((0, 10, 20, 30), start=1):
        truth[2:8, left : left + 8] = number
    result[2:8, 0:8] = 1  # exact
    result[2:8, 10:14], result[2:8, 14:18] = 2, 3  # split
    assert judge(truth, result) == {"out": 3, "exact": 1, "split": 1, "fused": 0, "dropped": 2}
    result[2:8, 20:38] = 4  # fused
    assert judge(truth, result) == {"out": 4, "exact": 1, "split": 1, "fused": 2, "dropped": 0}
    assert judge(truth, truth) == {"out": 4, "exact": 4, "split": 0, "fused": 0, "dropped": 0}
    assert in_parts(result) == 0
    result[9, 0] = 1
    assert in_parts(result) == 1


def test_the_judge_of_boxes_knows_fragments_from_small_objects_inside_a_large_ones_box() -> None:
    truth = [(slice(0, 40), slice(0, 100)), (slice(5, 10), slice(5, 10)), (slice(50, 60), slice(0, 20))]
    whole = [[0, 0, 40, 100], [5, 5, 10, 10], [50, 0, 60, 20]]
    assert judge_boxes(truth, np.array(whole)) == {"out": 3, "exact": 3, "split": 0, "fused": None, "dropped": 0}
    pieces = [[0, 0, 40, 60], [0, 50, 40, 100], [5, 5, 10, 10]]
    assert judge_boxes(truth, np.array(pieces)) == {"out": 3, "exact": 1, "split": 1, "fused": None, "dropped": 1}
    doubled = [*whole, [50, 0, 60, 9]]
    assert judge_boxes(truth, np.array(doubled)) == {"out": 4, "exact": 2, "split": 1, "fused": None, "dropped": 0}
    of = _scene(1024)
    assert judge_boxes(of.boxes, boxes_of(of.labels))["exact"] == len(of.boxes)


@pytest.mark.parametrize("beyond", [False, True])
def test_windows_of_other_packages_cover_the_raster_and_overlap(beyond: bool) -> None:
    tiles = windows(1000, 256, 32, beyond=beyond)
    assert [tile.number for tile in tiles] == list(range(len(tiles)))
    rows = sorted({(tile.window[0].start, tile.window[0].stop) for tile in tiles})
    assert rows[0][0] == 0 and rows[-1][1] == 1000
    assert all(after - stop <= -32 for (_, stop), (after, _) in zip(rows, rows[1:], strict=False))
    assert all(stop - start == 256 for start, stop in rows[1:-1])


@pytest.mark.parametrize("side, overlap", [(160, 48), (333, 1), (512, 32)])
def test_every_object_is_exact_for_one_and_four_workers(side: int, overlap: int) -> None:
    of = _scene(1024)
    plan = plan_tiles((1024, 1024), side, overlap, origin=(37, 101))
    whole, digest, _ = merge(of, plan, oracle, 1)
    assert np.array_equal(whole, of.labels)
    assert merge(of, plan, oracle, 4)[1] == digest


def test_a_jittered_oracle_hardly_splits_or_fuses() -> None:
    of, found = _scene(2048), []
    for (side, overlap), seed in product([(512, 48), (384, 32), (256, 16)], (0, 1)):
        plan = plan_tiles((2048, 2048), side, overlap, origin=(37, 101))
        whole, _, _ = merge(of, plan, partial(jittered, seed=seed), 1)
        found.append(judge(of.labels, whole) | {"in_parts": in_parts(whole)})
        print(side, overlap, seed, found[-1])
    assert sum(one["split"] + one["fused"] for one in found) <= 0.01 * len(of.boxes) * len(found)


def test_the_endless_raster_has_as_many_objects_as_its_formula_says() -> None:
    side = 1280
    plan = plan_tiles((side, side), 300, 20)
    result = _both(plan, side)
    assert result["objects"] == _endless.count(side) == 32 * 40
    whole = _endless.see(plan_tiles((side, side), 2 * side, 1).tile(0), side)
    assert len(whole) == 32 * 40
    assert result["object_pixels"] == (whole.labels > 0).sum()
