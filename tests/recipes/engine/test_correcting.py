"""A session with one object of a volume: the same as one call until a click, what clicks change, undo, refusals."""

import numpy as np
import pytest

import samgraft
from samgraft.errors import PromptError
from samgraft.recipes.api import UserPrompts, VolumeOptions, VolumePrompt, VolumePrompts, VolumeSession, segment_volume
from samgraft.volumetric.shape_rules import ShapeRules
from tests.recipes._oracle import Oracle
from tests.recipes.engine.test_propagated import KEY_BOX, WIDE, write
from tests.volumetric._phantoms import disc, tilted_cylinder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A tilted cylinder and, apart from it, a rod: volume on disk, and both masks (D, H, W)."""
    cylinder = tilted_cylinder()
    rod = np.zeros_like(cylinder)
    rod[6:13] = disc(cylinder.shape[1:], 6, 40, 3)
    assert not (cylinder & rod).any()
    return write(tmp_path_factory.mktemp("s") / "two.nii.gz", cylinder | rod), cylinder, rod


def session(path, axis=0, **more):
    prompts = UserPrompts(boxes=(KEY_BOX,), slice=9, axis=axis)
    return VolumeSession(samgraft.open(path), Oracle(), prompts, propagation=WIDE, **more)


def test_before_any_click_it_is_what_one_call_gives(two):
    path, cylinder, _ = two
    scene, prompts = samgraft.open(path), UserPrompts(boxes=(KEY_BOX,), slice=9)
    once = segment_volume(scene, Oracle(), prompts, options=VolumeOptions(propagation=WIDE)).segmentation
    begun = session(path).result().segmentation
    assert np.array_equal(begun.labels, once.labels) and begun.grid == scene.grid
    assert begun.meta == once.meta
    assert 2 * ((begun.labels > 0) & cylinder).sum() > 1.9 * cylinder.sum() > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_click_adds_the_other_piece_along_any_axis_and_undo_takes_it_back(tmp_path, two, axis):
    _, cylinder, rod = two
    path = write(tmp_path / "turned.nii.gz", np.moveaxis(cylinder | rod, 0, axis))
    one = session(path, axis)
    first = one.result().segmentation.labels
    assert not (first.astype(bool) & np.moveaxis(rod, 0, axis)).any()
    more = one.click(40, 6, 9, 1).segmentation.labels
    found = np.moveaxis(more > 0, axis, 0)
    assert np.array_equal((found & rod).any(axis=(1, 2)), rod.any(axis=(1, 2))), "on every slice of the rod"
    assert (found & rod).sum() > 0.7 * rod.sum(), "the oracle sees every other pixel: 21 of the 29 of a disc"
    assert np.array_equal(found & ~rod, np.moveaxis(first > 0, axis, 0)), "the cylinder stays as it was"
    less = one.click(40, 6, 9, 0).segmentation.labels
    assert not (np.moveaxis(less > 0, axis, 0) & rod).any()
    assert np.array_equal(one.undo().segmentation.labels, more)
    assert np.array_equal(one.undo().segmentation.labels, first)
    with pytest.raises(PromptError, match="no click to take back"):
        one.undo()


def test_points_off_the_object_on_other_slices_are_the_first_clicks(two):
    path, cylinder, _ = two
    rows, cols = np.nonzero(cylinder[15])
    x, y = float(cols.mean().round()), float(rows.mean().round())
    prompt = VolumePrompt(box=(7, 9, 30, 19), extent=(3, 16), points=((x, y, 15, 0),))
    found = VolumeSession(samgraft.open(path), Oracle(), VolumePrompts(objects=(prompt,)), propagation=WIDE).result()
    assert not found.segmentation.labels[15].any() and found.segmentation.labels[9].any()


def test_shape_rules_serve_the_result_alone(two):
    path, cylinder, rod = two
    one = session(path, rules=ShapeRules(largest=True))
    largest = one.click(40, 6, 9, 1).segmentation.labels
    assert not (largest.astype(bool) & rod).any() and (largest > 0).sum() > 0.9 * cylinder.sum()


def test_refusals_change_nothing(two):
    path, _, _ = two
    one = session(path)
    before = one.result().segmentation.labels
    depth, height, width = before.shape
    for click, words in (
        ((width, 3, 9, 1), f"x is in 0..{width - 1}"),
        ((3, -1, 9, 1), f"y in 0..{height - 1}"),
        ((3, 3, depth, 0), f"slices in 0..{depth - 1}"),
        ((3, 3, 9, 2), "label of a click is 2"),
    ):
        with pytest.raises(PromptError, match=words.replace(".", r"\.")):
            one.click(*click)
    with pytest.raises(PromptError, match="nothing was found on the annotated slices"):
        one.click(18, 14, 9, 0)  # the middle of the only annotated slice: all of its mask would go
    assert np.array_equal(one.result().segmentation.labels, before)
    with pytest.raises(PromptError, match="no click to take back"):
        one.undo()
    both = UserPrompts(boxes=(KEY_BOX, KEY_BOX), slice=9)
    with pytest.raises(PromptError, match="prompts for 2 objects"):
        VolumeSession(samgraft.open(path), Oracle(), both)
    nothing = UserPrompts(boxes=((0.0, 20.0, 4.0, 24.0),), slice=0)
    with pytest.raises(PromptError, match="nothing was found"):
        VolumeSession(samgraft.open(path), Oracle(), nothing)
