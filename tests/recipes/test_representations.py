"""What channels mean: targets, losses, maps, objects; the same in training, validation and use."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import samgraft
from samgraft.adapters.decoders import ClassTokensConfig, DistancesConfig
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig, TaskConfig
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.representations import BorderMaps, ClassMaps, DistanceMaps, represent
from samgraft.recipes.representations.distances import DistanceLoss, DistancePoints
from samgraft.recipes.training import fit, load_adapted, validate
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures
from tests.recipes.test_tasks import small_config


def test_the_head_decides() -> None:
    head = DistancesConfig(centre=0.3)
    assert represent("semantic", ClassTokensConfig(), classes=4) == ClassMaps(classes=4)
    assert represent("instance", None, classes=1, border=2) == BorderMaps(border=2)
    assert represent("instance", head, classes=1) == DistanceMaps(
        thresholds={"foreground": 0.5, "centre": 0.3, "boundary": 0.5}
    )
    assert isinstance(represent("instance", replace(head, from_points=True), classes=1), DistancePoints)
    with pytest.raises(ConfigError, match="head 'distances' is for task.kind instance; the task is 'semantic'"):
        represent("semantic", head, classes=2)


def test_a_sigmoid_head_gets_a_background_of_zeros() -> None:
    logits = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1)
    maps = ClassMaps(classes=2)
    assert maps.logits(SemanticOutput(logits=logits, activation="sigmoid")).flatten().tolist() == [0, 2, -1]
    assert torch.equal(maps.logits(SemanticOutput(logits=logits, activation="softmax")), logits)
    assert maps.channels == 3 and maps.nothing == (1, 0, 0)


def test_targets_keep_what_is_unknown() -> None:
    labels = torch.tensor([[[0, 3, 3, IGNORE], [0, 3, 3, IGNORE], [0, 0, 0, 0]]])
    assert BorderMaps().target(labels)[0, 0].tolist() == [0, 1, 2, IGNORE]  # its innermost pixel stays interior
    maps = DistanceMaps().target(labels)
    assert maps.shape == (1, 3, 3, 4) and maps[0, 0, 0].tolist() == [0, 1, 1, IGNORE]
    assert DistanceMaps().blank(labels).shape == maps.shape


def test_distance_loss_by_hand() -> None:
    """Logits of 0 are 0.5 everywhere: an error of 0.5 costs 0.5 - 0.1 / 2, one of 0.05 costs 0.05^2 / 0.2."""
    target = torch.ones(1, 3, 1, 4)
    target[0, 0, 0] = torch.tensor([1.0, 1.0, 0.0, IGNORE])
    target[0, 1, 0, 0], target[0, 2, 0, 0] = 0.5, 0.55
    target[0, 1, 0, 1], target[0, 2, 0, 1] = 0.0, 1.0
    logits = torch.zeros(1, 3, 1, 4)
    logits[..., 3] = 50  # unknown: whatever it says does not count
    distances = (0.0125 + 0.45 + 0.45 + 0.1 * 0.9) / (2 * 2.1)
    loss = DistanceLoss(dice_weight=0, ce_weight=1, distance_weight=3)(logits, target)
    assert loss.item() == pytest.approx(math.log(2) + 3 * distances, rel=1e-5)
    dice = 1 - 2 * 1.0 / (1.5 + 2)  # p = 0.5 on three known pixels, two of them inside
    loss = DistanceLoss(dice_weight=1, ce_weight=0, distance_weight=0)(logits, target)
    assert loss.item() == pytest.approx(dice, rel=1e-4)
    doubled = DistanceLoss(reduce=lambda sums: 2 * sums)(logits, target)  # two processes with the same images
    assert doubled.item() == pytest.approx(DistanceLoss()(logits, target).item(), rel=1e-4)
    with pytest.raises(ShapeError, match=r"expected \(B, 3, H, W\) twice"):
        DistanceLoss()(logits[:, :2], target)


DISTANCES = {"full_resolution": True, "width": 8, "fused": 16}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distances", DISTANCES | {"from_points": False}),
        ("distances", DISTANCES | {"from_points": True}),
        ("rsprompter_anchor", {"score_threshold": 0.0, "max_objects": 9}),
        pytest.param("rsprompter_query", {"queries": 9, "score": 0.0, "heads": 2}, marks=pytest.mark.slow),
        pytest.param("sam_cls", {}, marks=pytest.mark.slow),
        pytest.param("sam_det", {"score_threshold": 0.0, "max_objects": 9}, marks=pytest.mark.slow),
        pytest.param("sam_seg", {"score_threshold": 0.0, "max_objects": 9}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "from_points" if value.get("from_points") else "",
)
def test_a_run_with_a_head_of_objects_gives_the_same_objects_everywhere(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """Train, load again, validate, and segment the validation picture from its file."""
    config = small_config(write_pictures(tmp_path / "p", instances=True), layout="image_mask", window=48, overlap=0.5)
    head = TaskConfig(kind="instance", grafts={}, head=name, head_options=options, lr=5e-3, min_area=4)
    config = replace(config, task=replace(head, class_weights=(1.0, 1.0, 2.0)))
    run = tmp_path / "run"
    fit(config, run, backbone=toy_backbone(), report=False)
    best = json.loads((run / "metrics.json").read_text())
    task, data = load_adapted(config, run / "adapter.graft", backbone=toy_backbone())
    again = {s.name: s.mean for s in validate(task, data, progress=False)}
    for summary in best["summaries"]:
        assert again[summary["name"]] == pytest.approx(summary["mean"], abs=1e-6)

    case = data.val_refs[0].load()
    predicted, scores = task.objects(case)
    path = next(iter(sorted((tmp_path / "p" / "images").glob("P2-004*"))))
    result = samgraft.segment(path, adapter=run / "adapter.graft", backbone=toy_backbone())
    assert np.array_equal(result.labels, predicted)
    # a detector's rows are summed in another order where another number of windows is looked at together
    near = 1e-5 if name == "distances" else 2e-4
    assert [record.score for record in result.instances] == pytest.approx(scores.tolist(), abs=near)


def test_a_negative_keeps_labels_and_is_drawn_by_chance() -> None:
    still = AugmentConfig(rotate=0, scale=0, shift=0, gamma=0, contrast=0, brightness=0, noise=0, blur=0, invert=0.5)
    image = torch.rand(64, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    label = torch.randint(-1, 3, (64, 8, 12), generator=torch.Generator().manual_seed(2))
    changed, same = augment(image, label, torch.Generator().manual_seed(0), still)
    negative = torch.isclose(changed, 1 - image, atol=1e-6).flatten(1).all(dim=1)
    assert torch.equal(same, label) and 16 < int(negative.sum()) < 48
    assert torch.allclose(changed[~negative], image[~negative], atol=1e-6)
    with pytest.raises(ConfigError, match=r"augment.invert is 1.5; expected 0 to 1"):
        AugmentConfig(invert=1.5)
