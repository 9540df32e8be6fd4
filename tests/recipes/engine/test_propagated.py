"""Prompts in 3D on files: any axis, any direction, spacing, flips, and the command line."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import samgraft
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.errors import ConfigError, InputError, PromptError
from samgraft.recipes import cli
from samgraft.recipes.commands.segment import _parser
from samgraft.recipes.commands.volume_options import volume_options
from samgraft.recipes.engine.prompted import AskSettings
from samgraft.recipes.engine.propagated import VolumeOptions, segment_volume
from samgraft.recipes.engine.volume_slices import FLIPS, SceneSlices, mirrored_prompt
from samgraft.recipes.look import look_at
from samgraft.recipes.prompt_files import line_prompts, mask_prompt
from samgraft.recipes.prompting import ObjectPrompt, UserPrompts
from samgraft.recipes.volume_prompt_files import is_volume_prompts, read_volume_prompts, write_volume_prompts
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts, box_from_world, box_to_world, from_world
from samgraft.volumetric.propagation import PropagationConfig, SlicePrompt, StopRule, propagate
from samgraft.volumetric.propagation.propagate import annotate
from samgraft.volumetric.shape_rules import ShapeRules
from samgraft.volumetric.trust import Signals, calibrate
from tests.recipes._oracle import Oracle
from tests.volumetric._phantoms import tilted_cylinder

KEY_BOX = (13.0, 9.0, 23.0, 19.0)
"""Of the cylinder on slice 9: radius 5 around (18, 14)."""
WIDE = PropagationConfig(box_margin=1.5, stop=StopRule(length=None))
"""The oracle cuts at boxes, also at those that are carried."""


def write(path, truth, *, spacing=(1.0, 1.0, 1.0)):
    """(D, H, W) bool as NIfTI, 220 on 20; spacing in the same order."""
    affine = np.diag([*reversed(spacing), 1.0])
    affine[:3, 3] = (-5.0, 12.0, 3.0)
    data = np.where(truth, 220, 20).astype(np.uint8)
    nib.save(nib.Nifti1Image(data.transpose(2, 1, 0), affine), path)
    return path


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def cylinder(tmp_path_factory):
    """Path, and (D, H, W) truth of a tilted cylinder on slices 3 to 16."""
    truth = tilted_cylinder()
    return write(tmp_path_factory.mktemp("v") / "case.nii.gz", truth), truth


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_box_on_one_slice_becomes_the_object_along_any_axis(tmp_path, cylinder, axis):
    truth = np.moveaxis(cylinder[1], 0, axis)
    path = write(tmp_path / "turned.nii.gz", truth)
    prompts = UserPrompts(boxes=(KEY_BOX,), slice=9, axis=axis)
    result = samgraft.segment(
        path, backbone=Oracle(), prompts=prompts, volume=VolumeOptions(propagation=WIDE), progress=False
    )
    assert result.grid == samgraft.open(path).grid
    assert dice(result.labels > 0, truth) > 0.93
    filled = np.flatnonzero((np.moveaxis(result.labels, axis, 0) > 0).any(axis=(1, 2)))
    assert (filled[0], filled[-1]) == (3, 16)
    assert result.meta["axis"] == "DHW"[axis] and "9->17" in result.meta["stopped"]
    assert not result.from_ground_truth


def test_without_volume_options_the_other_slices_stay_empty(cylinder):
    result = samgraft.segment(cylinder[0], backbone=Oracle(), prompts=UserPrompts(boxes=(KEY_BOX,), slice=9))
    assert np.flatnonzero(result.labels.any(axis=(1, 2))).tolist() == [9]


def test_line_mask_points_and_box_in_3d_find_the_same_object(cylinder):
    path, truth = cylinder
    scene = samgraft.open(path)
    mask = mask_prompt(truth[9])
    kinds = {
        "mask": VolumePrompt(slices=(ObjectPrompt(mask=mask, slice=9),)),
        "two slices": VolumePrompt(
            slices=(ObjectPrompt(mask=mask, slice=9), ObjectPrompt(box=(7, 9, 17, 19), slice=3))
        ),
        "points": VolumePrompt(points=((18, 14, 9, 1), (21, 14, 12, 1))),
        "box in 3D": VolumePrompt(box=(7, 9, 30, 19), extent=(3, 16)),
    }
    for name, prompt in kinds.items():
        found = segment_volume(
            scene, Oracle(), VolumePrompts(objects=(prompt,)), options=VolumeOptions(propagation=WIDE)
        ).segmentation
        assert dice(found.labels > 0, truth) > 0.9, name
    line = line_prompts([(13, 14, 23, 14)], scene, slice=9)
    drawn = samgraft.segment(path, backbone=Oracle(), prompts=line, volume=VolumeOptions(propagation=WIDE))
    assert dice(drawn.labels > 0, truth) > 0.9
    one = segment_volume(scene, Oracle(), VolumePrompts(objects=(kinds["mask"],)))
    assert np.array_equal(one.objects[0].mask[9], truth[9]), "a mask is taken as it is"


def test_box_in_3d_slice_by_slice_or_propagated_within_it(cylinder):
    path, truth = cylinder
    prompt = VolumePrompts(objects=(VolumePrompt(box=(0, 0, 63, 20), extent=(5, 11)),))
    for mode in ("slices", "propagate"):
        found = segment_volume(
            samgraft.open(path), Oracle(), prompt, options=VolumeOptions(propagation=WIDE, box3d=mode)
        )
        labels = found.segmentation.labels
        assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [5, 6, 7, 8, 9, 10, 11]
        assert dice(labels[5:12] > 0, truth[5:12]) > 0.9
    assert found.objects[0].runs[0].annotated == (8,), "the middle of the extent"


def test_two_objects_keep_their_labels_and_the_surer_one_wins(cylinder):
    path, truth = cylinder
    second = VolumePrompt(points=((18, 14, 9, 1),), class_name="other")
    first = VolumePrompt(slices=(ObjectPrompt(box=KEY_BOX, slice=9),), class_name="tumour")
    found = segment_volume(
        samgraft.open(path), Oracle(), VolumePrompts(objects=(first, second)), options=VolumeOptions(propagation=WIDE)
    ).segmentation
    assert dict(found.classes) == {1: "tumour", 2: "other"}
    assert {r.id: r.class_id for r in found.instances}.items() <= {1: 1, 2: 2}.items()
    assert dice(found.labels > 0, truth) > 0.9


def test_object_that_is_not_found_is_named_and_the_others_stay(cylinder):
    path, truth = cylinder
    nothing = VolumePrompt(slices=(ObjectPrompt(box=(40, 2, 50, 8), slice=9),))
    something = VolumePrompt(slices=(ObjectPrompt(box=KEY_BOX, slice=9),))
    prompts = VolumePrompts(objects=(nothing, something), from_ground_truth=True)
    found = segment_volume(samgraft.open(path), Oracle(), prompts, options=VolumeOptions(propagation=WIDE))
    assert found.segmentation.meta["objects not found"] == "1"
    assert [record.id for record in found.segmentation.instances] == [2]
    assert found.segmentation.from_ground_truth
    assert dice(found.segmentation.labels == 2, truth) > 0.9


def test_directions_commute_bit_for_bit_with_a_real_network(tmp_path):
    truth = tilted_cylinder(shape=(9, 48, 64), first=1, last=7, radius=8)
    noisy = np.where(truth, 180, 60) + np.random.default_rng(0).normal(0, 12, truth.shape)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(noisy.astype(np.float32).transpose(2, 1, 0), affine), tmp_path / "n.nii.gz")
    scene = samgraft.open(tmp_path / "n.nii.gz")
    network = load_backbone("graft-tiny")
    settings = AskSettings(backbone=network, size=128, contexts=(1.6,), batch=4, depth=0, fit=True, better=None)
    config = PropagationConfig(memory=2, memory_weight=0.3)
    found = []
    for first in (True, False):
        slices = SceneSlices(scene, look_at(scene), 0, settings)
        annotated = annotate(slices, {4: SlicePrompt(box=(7.0, 6.0, 23.0, 22.0), tight=True)})
        found.append(propagate(slices, annotated, config, upward_first=first))
    one, other = found
    assert len(one.answers) >= 5
    assert one.answers.keys() == other.answers.keys()
    assert all(a.logits.tobytes() == other.answers[i].logits.tobytes() for i, a in one.answers.items())
    assert dice(one.volume(), truth) > 0.8


@pytest.mark.parametrize("name", sorted(FLIPS))
def test_mirrored_slices_answer_in_original_pixels(cylinder, name):
    path, truth = cylinder
    scene = samgraft.open(path)
    settings = AskSettings(backbone=Oracle(), size=64, contexts=(2.0,), batch=4, depth=0, fit=False, better=None)
    slices = SceneSlices(scene, look_at(scene), 0, settings, mirror=FLIPS[name])
    answer = slices.ask(9, SlicePrompt(box=KEY_BOX))
    assert dice(answer.mask(), truth[9]) > 0.93
    point = slices.ask(9, SlicePrompt(points=((18.0, 14.0, 1),)))
    assert dice(point.mask(), truth[9]) > 0.93
    assert np.array_equal(slices.picture(9) > 0.5, truth[9])
    features = slices.features(9, KEY_BOX)
    assert features.neck.shape[1:] == (32, 32) and float(features.neck[0, 16, 16]) > 0.8


def test_mirrored_prompt_by_hand():
    prompt = SlicePrompt(box=(1.0, 2.0, 5.0, 3.0), points=((0.0, 9.0, 1),), mask=np.eye(10, 20, dtype=bool))
    turned = mirrored_prompt(prompt, (10, 20), (True, True))
    assert turned.box == (14.0, 6.0, 18.0, 7.0)
    assert turned.points == ((19.0, 0.0, 1),)
    assert turned.mask[9, 19] and turned.mask[8, 18]


def test_flips_rules_uncertainty_and_flag(tmp_path, cylinder):
    path, truth = cylinder
    calibration = calibrate([Signals(flips=v, predicted_iou=0.8) for v in (0.2, 0.4, 0.6, 0.8)], [0.1, 0.2, 0.9, 0.9])
    options = VolumeOptions(
        propagation=WIDE,
        flips=("none", "both"),
        rules=ShapeRules(largest=True),
        calibration=calibration,
        uncertainty=str(tmp_path / "u.nii.gz"),
        return_walks=True,
    )
    prompts = UserPrompts(boxes=(KEY_BOX,), slice=9)
    result = samgraft.segment(path, backbone=Oracle(), prompts=prompts, volume=options)
    (record,) = result.instances
    assert record.properties["signal_flips"] > 0.9 and record.properties["signal_directions"] > 0.9
    assert record.properties["good_probability"] > 0.5 and result.meta["look at"] == "nothing"
    assert dice(result.labels > 0, truth) > 0.93
    written = nib.load(tmp_path / "u.nii.gz")
    bits = np.asarray(written.dataobj).T
    assert np.array_equal(written.affine, nib.load(path).affine)
    assert bits.shape == truth.shape and bits.min() >= 0 and bits.max() <= 1
    assert bits[9, 14, 18] < 0.1 and bits[9, 2, 50] == 0, "sure inside and far away"
    unknown = VolumeOptions(calibration=calibrate([Signals(directions=0.5)] * 3, [0.9] * 3))
    unsure = samgraft.segment(path, backbone=Oracle(), prompts=prompts, volume=unknown)
    assert unsure.meta["look at"] == "object 1 (not enough signals)"
    strict = VolumeOptions(flips=("none", "both"), calibration=calibrate([Signals(flips=0.5)] * 3, [0.1] * 3))
    flagged = samgraft.segment(path, backbone=Oracle(), prompts=prompts, volume=strict)
    assert flagged.meta["look at"] == "object 1 (probability of being good 0.20)"


# --- prompts


def test_world_positions_of_an_oblique_left_handed_grid(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.0, -0.9, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 3.3]])  # i runs along y, j along -x
    affine[:3, 3] = (10.0, -4.0, 100.0)
    nib.save(nib.Nifti1Image(np.zeros((30, 20, 8), np.uint8), affine), tmp_path / "a.nii")
    grid = samgraft.open(tmp_path / "a.nii").grid
    assert grid.shape == (8, 20, 30)
    place = affine @ [12, 5, 3, 1]
    assert from_world([(*place[:3], 1)], grid, 0)[0] == pytest.approx((12.0, 5.0, 3, 1))
    assert from_world([(*place[:3], 0)], grid, 2)[0] == pytest.approx((5.0, 3.0, 12, 0))
    low, high = (affine @ [4, 15, 1, 1])[:3], (affine @ [9, 2, 6, 1])[:3]
    assert box_from_world(low, high, grid, 0) == ((4.0, 2.0, 9.0, 15.0), (1, 6))
    back = box_to_world((4.0, 2.0, 9.0, 15.0), (1, 6), grid, 0)
    assert back["from"] == pytest.approx((affine @ [4, 2, 1, 1])[:3].tolist())
    assert back["to"] == pytest.approx((affine @ [9, 15, 6, 1])[:3].tolist())
    with pytest.raises(PromptError, match="holds no voxel centre"):
        box_from_world(low + 0.1, low + 0.2, grid, 0)


def test_what_a_3d_prompt_asks_on_slices():
    box = VolumePrompt(box=(1, 2, 9, 8), extent=(3, 9), points=((5, 5, 4, 0),))
    assert box.on_slices().keys() == {6} and box.on_slices()[6].box == (1, 2, 9, 8)
    clicked = VolumePrompt(box=(1, 2, 9, 8), extent=(3, 9), points=((5, 5, 4, 1), (6, 5, 4, 0), (5, 5, 12, 1)))
    said = clicked.on_slices()
    assert said.keys() == {4, 12}, "points say more than the middle of the box"
    assert said[4].box == (1, 2, 9, 8) and said[4].points == ((5, 5, 1), (6, 5, 0))
    assert said[12].box is None, "outside the extent"
    joined = VolumePrompt(slices=(ObjectPrompt(box=(0, 0, 4, 4), slice=2),), points=((1, 1, 2, 0), (1, 1, 7, 0)))
    assert joined.on_slices().keys() == {2} and joined.on_slices()[2].points == ((1, 1, 0),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither an annotated slice, nor a 3D box, nor a point with label 1"),
        ({"points": ((1, 1, 1, 0),)}, "neither an annotated slice"),
        ({"box": (0, 0, 3, 3)}, "needs its first and last slice"),
        ({"box": (0, 0, 3, 3), "extent": (5, 4)}, "slices 5 to 4"),
        ({"slices": (ObjectPrompt(box=(0, 0, 3, 3)),)}, "annotated slice without a number"),
        ({"points": ((1, 1, 1, 2),)}, "expected x, y, slice and label"),
    ],
)
def test_prompts_in_3d_that_say_nothing_are_refused(options, message):
    with pytest.raises(PromptError, match=message):
        VolumePrompt(**options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (VolumePrompt(points=((1, 1, 20, 1),)), r"slice 20 lies outside the volume"),
        (VolumePrompt(points=((1, 1, 2, 1), (64, 1, 4, 0))), r"point \(64, 1\) on slice 4 lies outside"),
        (VolumePrompt(box=(0, 0, 3, 3), extent=(5, 20)), r"slice 20 lies outside the volume: axis D has slices 0..19"),
        (VolumePrompt(box=(0, 0, 3, 40), extent=(5, 8)), r"corner of a box \(3, 40\) lies outside"),
    ],
)
def test_prompts_outside_the_volume_are_refused(cylinder, prompt, message):
    with pytest.raises(PromptError, match=message):
        segment_volume(samgraft.open(cylinder[0]), Oracle(), VolumePrompts(objects=(prompt,)))


def test_file_of_volume_prompts(tmp_path, cylinder):
    path, truth = cylinder
    scene = samgraft.open(path)
    label = np.where(truth, 3, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(label.transpose(2, 1, 0), nib.load(path).affine), tmp_path / "label.nii.gz")
    centre = scene.grid.to_world(np.array([9.0, 14.0, 18.0])).tolist()
    objects = [
        {"class": "a", "slice": 9, "box": list(KEY_BOX), "points": [[18, 14, 9, 1]]},
        {"class": "a", "slice": 9, "line": [13, 14, 23, 14]},
        {"class": "b", "slices": [3, 16], "box": [7, 9, 30, 19]},
        {"class": "b", "mask": "label.nii.gz", "label": 3, "slice": 9},
        {"class": "c", "world": {"points": [[*centre, 1]]}},
        {"class": "c", "annotations": [{"slice": 9, "box": list(KEY_BOX)}, {"slice": 12, "points": [[21, 14, 1]]}]},
    ]
    file = write_volume_prompts(tmp_path / "p.json", objects, axis=0, image="case.nii.gz")
    assert is_volume_prompts(file) and not is_volume_prompts(path)
    read = read_volume_prompts(file, scene)
    assert read.class_names() == ("a", "b", "c") and len(read) == 6
    assert read.objects[0].on_slices()[9].points == ((18.0, 14.0, 1),)
    assert read.objects[1].slices[0].box == (13.0, 9.0, 23.0, 19.0) and len(read.objects[1].slices[0].points) == 5
    assert read.objects[2].extent == (3, 16)
    assert np.array_equal(read.objects[3].slices[0].mask.inside, truth[9, 9:20, 13:24])
    assert read.objects[4].points == ((pytest.approx(18.0), pytest.approx(14.0), 9, 1),)
    assert read.objects[5].on_slices().keys() == {9, 12}
    result = samgraft.segment(path, backbone=Oracle(), prompts=file, volume=VolumeOptions(propagation=WIDE))
    assert dice(result.labels > 0, truth) > 0.9


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"objects": []}, InputError, "is no file of volume prompts"),
        ({"samgraft": "volume prompts", "objects": {}}, InputError, "expected a list of objects"),
        ({"samgraft": "volume prompts", "objects": []}, PromptError, "no object is asked for"),
        ({"samgraft": "volume prompts", "objects": [{"boxs": 1}]}, InputError, r"\['boxs'\] is not known"),
        ({"samgraft": "volume prompts", "objects": [{"box": [0, 0, 4, 4]}]}, PromptError, 'needs "slice"'),
        (
            {"samgraft": "volume prompts", "objects": [{"box": [0, 0, 4], "slice": 2}]},
            PromptError,
            "expected 4 numbers",
        ),
        ({"samgraft": "volume prompts", "axis": 4, "objects": [{"slice": 1}]}, PromptError, "axis 4 of a volume"),
        (
            {"samgraft": "volume prompts", "objects": [{"annotations": [{"slise": 1}]}]},
            InputError,
            r"unknown keys \['slise'\]",
        ),
    ],
)
def test_wrong_files_are_named(tmp_path, cylinder, content, error, message):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        read_volume_prompts(file, samgraft.open(cylinder[0]))


# --- command line


def test_command_line_propagates_a_box(tmp_path, cylinder, capsys):
    path, truth = cylinder
    words = ["segment", str(path), "--slice", "9", "--box", "13", "9", "23", "19", "--propagate", "--largest"]
    assert cli.main([*words, "-o", str(tmp_path / "m.nii.gz"), "--stop", "min_iou=0.3"]) == 0
    said = capsys.readouterr().out
    assert "1 objects of" in said and "stopped: object 1: 9->" in said
    mask = np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj).T > 0
    assert dice(mask, truth) > 0.75, "graft-tiny on a small noiseless disc"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1", "1", "5", "5", "--carry", "box"], "--carry is about prompts that go through a volume"),
        (["--box", "1", "1", "5", "5", "--flips"], "--flips is about prompts that go through a volume"),
        (["--adapter", "a.graft", "--memory", "3"], "--memory is about prompts that go through a volume"),
        (["--box", "1", "1", "5", "5", "--propagate", "--stop", "iou=1"], "--stop iou=1: expected RULE=VALUE"),
        (["--box", "1", "1", "5", "5", "--propagate", "--stop", "min_iou=x"], "'x' is no number"),
        (["--box", "1", "1", "5", "5", "--propagate", "--carry", "boxes"], "expected one or more of box, mask, points"),
    ],
)
def test_command_line_refuses_what_makes_no_sense(words, message):
    values = _parser().parse_args(["x.nii.gz", "-o", "y.nii.gz", *words])
    with pytest.raises(ConfigError, match=message):
        volume_options(values)


def test_command_line_options_arrive():
    words = "x.nii.gz -o y.nii.gz --box 1 1 5 5 --propagate --carry points mask --memory 4 --stop max_growth=off"
    words += " --flips --both-ways --fill-holes 20 --min-volume 5 --box3d slices --uncertainty u.nii"
    options = volume_options(_parser().parse_args(words.split()))
    expected = VolumeOptions(
        propagation=PropagationConfig(carry=("points", "mask"), memory=4, stop=StopRule(max_growth=None)),
        box3d="slices",
        flips=("none", "rows", "cols", "both"),
        return_walks=True,
        rules=ShapeRules(fill_holes_mm3=20.0, min_mm3=5.0),
        uncertainty="u.nii",
    )
    assert options == expected
    assert volume_options(_parser().parse_args("x.png -o y.png --box 1 1 5 5".split())) is None


def test_picture_and_wrong_words_are_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(PromptError, match="propagation through slices needs a volume"):
        samgraft.segment(
            tmp_path / "a.png", backbone=Oracle(), prompts=UserPrompts(boxes=((1, 1, 5, 5),)), volume=VolumeOptions()
        )
    with pytest.raises(ConfigError, match="expected one or more of none, rows, cols, both"):
        VolumeOptions(flips=("up",))
    with pytest.raises(ConfigError, match="expected a name that ends in .nii"):
        VolumeOptions(uncertainty="u.png")
    with pytest.raises(ConfigError, match="volume= is about prompts or an adapter"):
        samgraft.segment(tmp_path / "a.png", backbone=Oracle(), volume=VolumeOptions())
    assert torch.is_grad_enabled()
