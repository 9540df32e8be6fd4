"""Partially labelled sets: marginal and exclusion losses by hand, the list of annotated classes, and a whole run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from samgraft.errors import ConfigError, InputError, ShapeError
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.losses import SegmentationLoss
from samgraft.recipes.training import fit
from samgraft.recipes.weak_labels.partial import annotated_flags, exclusion_loss, marginal_logits
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures, write_volumes
from tests.recipes.test_tasks import small_config

PIXEL = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 4, 1, 1)


def test_classes_that_were_not_annotated_join_the_background() -> None:
    known = annotated_flags(frozenset({1}), 3)[None]
    assert known.tolist() == [[True, False, False]]
    joined = marginal_logits(PIXEL, known).softmax(1).flatten()
    assert joined.tolist() == pytest.approx([0.8, 0.2, 0.0, 0.0], abs=1e-6)
    same = marginal_logits(PIXEL, annotated_flags(None, 3)[None]).softmax(1).flatten()
    assert same.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)
    with pytest.raises(ShapeError, match=r"annotated is \(1, 2\)"):
        marginal_logits(PIXEL, torch.ones(1, 2, dtype=torch.bool))


def test_the_usual_loss_of_marginal_logits() -> None:
    loss = SegmentationLoss(dice_weight=0.0)
    logits = torch.cat([PIXEL, PIXEL])
    known = torch.tensor([[True, False, False], [True, True, True]])
    labels = torch.tensor([0, 2]).view(2, 1, 1)
    found = loss(marginal_logits(logits, known), labels)
    assert found.item() == pytest.approx(-(math.log(0.8) + math.log(0.3)) / 2, rel=1e-5)
    free = PIXEL.clone().requires_grad_()
    loss(marginal_logits(free, known[:1]), labels[:1]).backward()
    assert free.grad is not None
    grad = free.grad.flatten()
    assert grad[1] > 0 and (grad[[0, 2, 3]] < 0).all()  # background may be any class that was not annotated


def test_a_labelled_pixel_excludes_the_others() -> None:
    logits, known = PIXEL.expand(1, 4, 1, 3), torch.tensor([[True, False, False]])
    labels = torch.tensor([1, 0, -1]).view(1, 1, 3)
    assert exclusion_loss(logits, labels, known).item() == pytest.approx(0.7, rel=1e-5)
    assert exclusion_loss(logits, labels, torch.ones(1, 3, dtype=torch.bool)).item() == 0.0


def partial_volumes(root: Path) -> tuple[Path, dict[str, list[str]]]:
    """Three cases, each with "left" or "right" only, and one with both."""
    write_volumes(root)
    table = {"case_00": ["left"], "case_01": ["right"], "case_02": ["left"], "case_03": ["left", "right"]}
    for case, names in table.items():
        path = root / "labelsTr" / f"{case}.nii.gz"
        volume = nib.load(path)
        label = np.asarray(volume.dataobj).copy()
        for value, name in ((1, "left"), (2, "right")):
            if name not in names:
                label[label == value] = 0
        nib.save(nib.Nifti1Image(label, volume.affine), path)
    (root / "annotated.json").write_text(json.dumps(table))
    return root, table


def test_a_run_learns_each_class_from_the_cases_that_have_it(tmp_path: Path) -> None:
    root, _ = partial_volumes(tmp_path / "v")
    config = small_config(root, partial=True)
    config = replace(config, train=replace(config.train, steps=60, val_every=60), task=replace(config.task, lr=1e-2))
    result = fit(config, tmp_path / "run", backbone=toy_backbone(), report=False)
    scores = {s.name: s.mean for s in result.summaries}
    plain = replace(config, data=replace(config.data, partial=False))
    naive = {s.name: s.mean for s in fit(plain, tmp_path / "plain", backbone=toy_backbone(), report=False).summaries}
    assert scores["dice/mean"] > 0.75
    assert scores["dice/right"] > naive["dice/right"] + 0.1  # two of three cases call it background


def test_the_list_is_checked(tmp_path: Path) -> None:
    root, table = partial_volumes(tmp_path / "v")
    config = DataConfig(path=str(root), partial=True)
    with pytest.raises(ConfigError, match="task.kind 'semantic'"):
        cells = write_pictures(tmp_path / "p", instances=True)
        index_data(replace(config, layout="image_mask", path=str(cells)), "instance")
    path = root / "annotated.json"
    path.write_text(json.dumps(table | {"case_01": ["left"]}))
    with pytest.raises(InputError, match="case_01 has pixels of right, not annotated"):
        index_data(config, "semantic").train[1].load()
    path.write_text(json.dumps(table | {"case_01": ["spleen"]}))
    with pytest.raises(InputError, match=r"case_01 has the classes \['spleen'\]; known: left, right"):
        index_data(config, "semantic")
    path.write_text(json.dumps({"case_00": ["left"]}))
    with pytest.raises(InputError, match="lacks 3 cases"):
        index_data(config, "semantic")


def test_only_annotated_classes_are_scored(tmp_path: Path) -> None:
    root, table = partial_volumes(tmp_path / "v")
    (root / "splits.json").write_text(json.dumps([{"train": ["case_00", "case_03"], "val": ["case_01"]}]))
    config = replace(small_config(root, partial=True))
    config = replace(config, train=replace(config.train, steps=1, val_every=1))
    result = fit(config, tmp_path / "run", backbone=toy_backbone(), report=False)
    assert {s.name for s in result.summaries if s.name.startswith("dice/")} == {"dice/right", "dice/mean"}
    assert table["case_01"] == ["right"]
