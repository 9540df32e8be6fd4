"""Mirror images of an adapter's input, and a calibration that is fitted on validation cases and kept in the file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import samgraft
from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.errors import CheckpointError, ConfigError
from samgraft.grid import Grid
from samgraft.recipes import cli
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.engine.flipped import segment_flipped
from samgraft.recipes.engine.propagated import VolumeOptions
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.prompted_trust import fit_prompted_trust, validation_cases
from samgraft.recipes.trusting import calibration_of, predict_flipped, store_trust
from samgraft.volumetric.propagation import PropagationConfig
from samgraft.volumetric.shape_rules import ShapeRules
from samgraft.volumetric.trust import Signals, calibrate
from tests.adapters.toy import toy_backbone
from tests.recipes._oracle import Oracle, OracleGraft
from tests.recipes._sets import write_volumes
from tests.volumetric._phantoms import tilted_cylinder


def case(truth):
    image = np.where(truth, 220, 20).astype(np.uint8)[:, None]
    grid = Grid(shape=truth.shape, affine=np.eye(4), world="RAS")
    return CaseArrays(id="a", image=image, labels=np.zeros(truth.shape, np.int8), grid=grid, axis=0)


def bright(squares):
    """Logits of one class: bright pixels."""
    logits = (squares[:, :1] - 0.5) * 20
    return torch.cat([-logits, logits], dim=1)


def shifted(squares):
    """The same, moved one pixel to the right: a network that is not symmetric."""
    return torch.roll(bright(squares), 1, dims=-1)


def test_symmetric_network_agrees_with_itself_and_a_shifted_one_does_not():
    truth = tilted_cylinder(shape=(20, 64, 64))
    same = predict_flipped(bright, case(truth), classes=1, size=64)
    assert np.array_equal(same.labels, truth)
    assert same.signals[1].flips == 1.0 and same.signals[1].predicted_iou > 0.999
    assert same.uncertainty.max() < 0.01
    moved = predict_flipped(shifted, case(truth), classes=1, size=64, mirrors=((), (-1,)))
    own = np.roll(truth, 1, axis=-1)
    other = np.roll(truth, -1, axis=-1)
    assert moved.signals[1].flips == pytest.approx(2 * (own & other).sum() / (own.sum() + other.sum()))
    edge = own ^ other
    assert moved.uncertainty[edge].min() > 0.99 and moved.uncertainty[~edge].max() < 0.01


def test_automatic_result_of_a_volume_with_flips_rules_and_flag(tmp_path):
    truth = tilted_cylinder(shape=(20, 48, 64))
    stray = truth.copy()
    stray[0, 40:43, 3:6] = True
    data = np.where(stray, 220, 20).astype(np.uint8)
    nib.save(nib.Nifti1Image(data.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    scene = samgraft.open(tmp_path / "a.nii.gz")
    recorded = Recorded(recipe=InputRecipe(size=64), classes={2: "bright"})
    doubtful = calibrate([Signals(flips=0.9, predicted_iou=0.9)] * 4, [0.2] * 4)
    found = segment_flipped(
        scene, OracleGraft(), recorded, rules=ShapeRules(largest=True), calibrations={"bright": doubtful}
    )
    labels = found.segmentation.labels
    assert set(np.unique(labels)) == {0, 2} and not labels[0].any()
    overlap = 2 * ((labels > 0) & truth).sum() / ((labels > 0).sum() + truth.sum())
    assert overlap > 0.93
    assert found.segmentation.meta["look at"].startswith("bright (probability of being good 0.1")
    assert found.segmentation.grid == scene.grid and found.uncertainty.shape == truth.shape
    with pytest.raises(ConfigError, match="are for class maps of volumes"):
        segment_flipped(
            scene, OracleGraft(instance=True), Recorded(recipe=InputRecipe(size=64), classes={1: "b"}, kind="instance")
        )


def bundle(path: Path) -> Path:
    grafted = attach(toy_backbone(), [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=1))
    meta = BundleMeta(classes={1: "tumour"}, extra={"input": {"size": 64}})
    return save_bundle(path, grafted, meta=meta)


def test_calibration_is_kept_in_the_adapter_and_nothing_else_changes(tmp_path):
    path = bundle(tmp_path / "a.graft")
    before, tensors = read_header(path), load_bundle(path, toy_backbone()).graft_state()
    automatic = calibrate([Signals(flips=v) for v in (0.3, 0.5, 0.9)], [0.1, 0.2, 0.9])
    prompted = calibrate([Signals(directions=v) for v in (0.3, 0.5, 0.9)], [0.1, 0.2, 0.9], form="isotonic")
    store_trust(path, "automatic", {"tumour": automatic})
    store_trust(path, "prompted", {"": prompted})
    meta = read_meta(path)
    assert calibration_of(meta, "automatic", "tumour") == automatic
    assert calibration_of(meta, "prompted") == prompted
    assert calibration_of(meta, "automatic", "liver") is None and calibration_of(BundleMeta(), "automatic") is None
    after = read_header(path)
    assert {k: v for k, v in after.items() if k != "meta"} == {k: v for k, v in before.items() if k != "meta"}
    assert after["meta"]["extra"]["input"] == {"size": 64}
    again = load_bundle(path, toy_backbone()).graft_state()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    with pytest.raises(CheckpointError, match="expected calibrations by kind and class"):
        calibration_of(BundleMeta(extra={"trust": [1]}), "automatic")


def test_propagated_objects_are_calibrated_on_boxes_of_the_key_slice(tmp_path):
    root = write_volumes(tmp_path / "set", cases=3)
    cases = validation_cases(root)
    assert [one.id for one in cases] == ["case_02"]
    options = VolumeOptions(propagation=PropagationConfig(carry=("mask",)), flips=("none", "cols"))
    found = fit_prompted_trust(Oracle(), cases, options=options, good_dice=0.5, context=2.0)
    assert (found.cases, found.signals) == (2, ("flips", "predicted_iou")), "two structures in one case"
    from samgraft.recipes.trusting import with_trust

    assert calibration_of(with_trust(BundleMeta(), "prompted", {"": found}), "prompted") == found


@pytest.mark.slow
def test_command_calibrates_and_segment_flags(tmp_path, capsys):
    root, run = write_volumes(tmp_path / "set", cases=4), tmp_path / "run"
    words = ["--data", str(root), "--size", "64", "--batch-size", "2", "--steps", "2"]
    assert cli.main(["fit", "--config", "mr_hippocampus", *words, "--output", str(run)]) == 0
    adapter = run / "adapter.graft"
    assert cli.main(["trust", "--adapter", str(adapter), "--config", "mr_hippocampus", "--data", str(root)]) == 0
    assert "of 1 reach Dice 0.8 in validation (logistic)" in capsys.readouterr().out
    query = root / "imagesTr" / "case_03_0000.nii.gz"
    out = tmp_path / "m.nii.gz"
    words = ["segment", str(query), "--adapter", str(adapter), "--flips", "--largest", "-o", str(out)]
    assert cli.main([*words, "--uncertainty", str(tmp_path / "u.nii.gz")]) == 0
    assert "look at: " in capsys.readouterr().out and out.is_file()
    assert nib.load(tmp_path / "u.nii.gz").get_data_dtype() == np.float32
