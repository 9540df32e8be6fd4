"""Localisation on files: turns of axes, resampling, and labels that are never read."""

import json

import nibabel as nib
import numpy as np
import pytest

import samgraft
from samgraft.errors import ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.locating import (
    FitLocator,
    as_input,
    box_in_file,
    canonical,
    fit_locator,
    locate,
    resampled,
)
from samgraft.volumetric.localisation import Located, PositionConfig, PositionTraining
from samgraft.volumetric.localisation.landmarks import landmarks_of
from tests.data.volumes import affines, nifti, ramp
from tests.recipes._sets import write_volumes

TINY = FitLocator(
    supports=3,
    network=PositionConfig(spacing=2.0, width=4),
    training=PositionTraining(steps=3, crop=16, batch=1, places=16),
)


@pytest.mark.parametrize("name", [n for n in sorted(affines()) if n != "sheared"])
def test_a_box_comes_back_to_its_voxels_whatever_the_axes(tmp_path, name):
    affine = affines()[name]
    path = nifti(tmp_path / "a.nii", ramp((9, 7, 6), "int16"), affine)
    grid = samgraft.open(path).grid
    turn = canonical(grid)
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[1:4, 2:6, 3:5] = True  # D 1..3, H 2..5, W 3..4
    walls = landmarks_of(turn.turn(mask), turn.spacing)
    found = Located(low=np.diagonal(walls[::2]), high=np.diagonal(walls[1::2]), landmarks=walls, spread=0.0)
    assert box_in_file(found, turn, 0) == ((3.0, 2.0, 4.0, 5.0), (1, 3))
    assert box_in_file(found, turn, 2) == ((2.0, 1.0, 5.0, 3.0), (3, 4))
    assert turn.turn(array).size == array.size


def test_axes_run_towards_superior_anterior_right(tmp_path):
    for name, affine in affines().items():
        path = nifti(tmp_path / f"{name}.nii", ramp((9, 7, 6)), affine)
        grid = samgraft.open(path).grid
        turn = canonical(grid)
        index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1).astype(float)
        world = grid.to_world(index)
        for axis, column in enumerate((2, 1, 0)):
            moved = np.diff(turn.turn(world[..., column]), axis=axis)
            assert (moved > 0).all(), (name, axis)


def test_resampling_keeps_places_in_mm():
    d, h, w = np.meshgrid(np.arange(9), np.arange(13), np.arange(21), indexing="ij")
    ramp_mm = (3.0 * d + 1.0 * h + 0.5 * w).astype(np.float32)
    out = resampled(ramp_mm, (3.0, 1.0, 0.5), 1.0).numpy()
    assert out.shape == (25, 13, 11)
    place = np.indices(out.shape).sum(axis=0)
    assert np.allclose(out[:, :, 2:-2], place[:, :, 2:-2], atol=0.05), "inside; the blur flattens the ends of W"


def test_flat_pictures_have_no_patient_axes(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="patient axes are known"):
        as_input(samgraft.open(tmp_path / "a.png"), 2.0)


@pytest.mark.parametrize("options", [{"supports": 2}, {"supports": 11}, {"cases": ("a", "b")}])
def test_three_to_ten_annotated_volumes(options):
    with pytest.raises(ConfigError, match="expected 3 to 10"):
        FitLocator(**options)


def test_labels_of_the_query_change_nothing(tmp_path):
    root = write_volumes(tmp_path / "set", cases=6)
    path = tmp_path / "a.locate"
    _, meta = fit_locator(root, TINY, output=path)
    assert len(meta["supports"]) == 3 and set(meta["wall_mm_leave_one_out"]) == {"left", "right"}
    assert "case_05" not in meta["cases"], "the validation case is not even looked at"
    query = root / "imagesTr" / "case_05_0000.nii.gz"
    before = locate(query, path)
    label = root / "labelsTr" / "case_05.nii.gz"
    noise = np.random.default_rng(0).integers(0, 3, (40, 36, 6)).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, nib.load(label).affine), label)
    after = locate(query, path)
    for name, found in before.found.items():
        assert found.landmarks.tobytes() == after.found[name].landmarks.tobytes()
        assert found.low.tobytes() == after.found[name].low.tobytes()
    assert [p.box for p in before.prompts.objects] == [p.box for p in after.prompts.objects]
    label.unlink()
    gone = locate(query, path)
    assert [p.extent for p in before.prompts.objects] == [p.extent for p in gone.prompts.objects]


def test_labels_of_other_training_cases_train_nothing(tmp_path):
    root = write_volumes(tmp_path / "set", cases=6)
    names = ("case_00", "case_01", "case_02")
    config = FitLocator(cases=names, network=TINY.network, training=TINY.training)
    one, _ = fit_locator(root, config)
    for other in ("case_03", "case_04"):
        label = root / "labelsTr" / f"{other}.nii.gz"
        nib.save(nib.Nifti1Image(np.ones((40, 36, 6), np.uint8), nib.load(label).affine), label)
    two, _ = fit_locator(root, config)
    assert all(a.equal(b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    with pytest.raises(InputError, match=r"\['case_05'\] have no label among the training cases"):
        fit_locator(root, FitLocator(cases=("case_05", "case_01", "case_02"), network=TINY.network))


def test_wall_distance_by_hand():
    walls = np.zeros((6, 3))
    walls[1, 0], walls[3, 1], walls[5, 2] = 10.0, 20.0, 30.0
    found = Located(low=np.array([1.0, 0, -2]), high=np.array([10.0, 23, 30]), landmarks=walls, spread=0.0)
    assert found.wall_distance(walls) == pytest.approx((1 + 0 + 2 + 0 + 3 + 0) / 6)


def test_command_fits_locates_and_writes_prompts(tmp_path, capsys):
    root = write_volumes(tmp_path / "set", cases=5)
    locator, boxes = tmp_path / "a.locate", tmp_path / "boxes.json"
    words = ["locate", "fit", str(root), "-o", str(locator), "--supports", "3", "--steps", "2", "--crop", "16"]
    assert cli.main([*words, "--spacing", "2"]) == 0
    assert "walls" in capsys.readouterr().out
    query = root / "imagesTr" / "case_04_0000.nii.gz"
    assert cli.main(["locate", str(query), "--locator", str(locator), "-o", str(boxes)]) == 0
    content = json.loads(boxes.read_text())
    assert content["samgraft"] == "volume prompts" and content["axis"] == 0
    assert [one["class"] for one in content["objects"]] == ["left", "right"]
    from samgraft.recipes.volume_prompt_files import read_volume_prompts

    prompts = read_volume_prompts(boxes, samgraft.open(query))
    found = locate(query, locator)
    assert [p.box for p in prompts.objects] == [p.box for p in found.prompts.objects]
    assert cli.main(["locate", str(query), "--locator", str(tmp_path / "no.locate"), "-o", str(boxes)]) == 2
    assert "make one with samgraft locate fit" in capsys.readouterr().err
