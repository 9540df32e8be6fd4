"""The seam benchmark on a small scene: exact for an oracle, hardly a split or fused object for a jittered one."""

from functools import cache, partial
from itertools import product

import numpy as np
import pytest

from samgraft.recipes.mosaic.plan import plan_tiles
from tests.benchmarks import _endless
from tests.benchmarks._seam_scene import Scene, in_parts, jittered, judge, oracle, scene
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
