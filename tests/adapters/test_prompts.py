"""Prompts of a person, grids of points, and the AutoSAM generator."""

import pytest
import torch

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import attach
from samgraft.adapters.prompts import (
    PROMPTERS,
    AutoSamConfig,
    GridConfig,
    ManualConfig,
    Prompts,
    check_prompts,
    chunk_prompts,
    grid_points,
    make_prompts,
)
from samgraft.errors import ConfigError, PromptError
from tests.adapters.toy import toy_backbone, toy_image

SIZE = (48, 64)


def test_names() -> None:
    assert {"autosam", "autosam_pyramid", "grid", "manual", "rsprompter_query"} <= set(PROMPTERS.names())


def test_ragged_points_are_padded() -> None:
    prompts = make_prompts(SIZE, points=[[(3, 4)], [(5, 6), (63, 47)]], labels=[[1], [0, 1]], image_index=[0, 1])
    assert prompts.points is not None and prompts.labels is not None
    assert prompts.points.tolist() == [[[3.0, 4.0], [0.0, 0.0]], [[5.0, 6.0], [63.0, 47.0]]]
    assert prompts.labels.tolist() == [[1, -10], [0, 1]]
    assert prompts.image_index.tolist() == [0, 1]
    assert not prompts.from_ground_truth


def test_points_and_boxes_together() -> None:
    prompts = make_prompts(SIZE, points=[[(3, 4)]], boxes=[(0, 0, 63, 47)], from_ground_truth=True)
    assert prompts.boxes is not None and prompts.labels is not None
    assert prompts.boxes.tolist() == [[0.0, 0.0, 63.0, 47.0]]
    assert prompts.labels.tolist() == [[1]]
    assert prompts.from_ground_truth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[(64, 5)]]}, r"point \(64, 5\) lies outside the image: x 0..63, y 0..47"),
        ({"points": [[(5, 48)]]}, r"point \(5, 48\) lies outside"),
        ({"points": [[(float("nan"), 5)]]}, r"point \(nan, 5\) lies outside"),
        ({"boxes": [(0, 0, 64, 20)]}, r"corner of a box \(64, 20\) lies outside"),
        ({"boxes": [(-1, 0, 5, 5)]}, r"corner of a box \(-1, 0\) lies outside"),
        ({"boxes": [(9, 0, 5, 5)]}, r"box \(9, 0, 5, 5\) ends before it starts"),
        ({"boxes": [(9, 0, 5)]}, r"boxes have shape \(1, 3\); expected \(N, 4\)"),
        ({"points": [[(5, 5)]], "labels": [[2]]}, "with label 2; expected .* label 1 or 0"),
        ({"points": [[(5, 5)]], "labels": [[1, 0]]}, r"\[1\] points and \[2\] labels"),
        ({"points": [[]]}, "empty list of points"),
        ({"labels": [[1]]}, "prompts per field are none"),
        ({}, "prompts per field are none"),
        ({"points": [[(5, 5)]], "boxes": [(0, 0, 1, 1)] * 2}, r"'points': 1, 'boxes': 2"),
    ],
)
def test_bad_prompts(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make_prompts(SIZE, **arguments)  # type: ignore[arg-type]


def test_unknown_label_and_image() -> None:
    prompts = Prompts(image_index=torch.tensor([0]), points=torch.tensor([[[1.0, 1.0]]]), labels=torch.tensor([[3]]))
    with pytest.raises(PromptError, match="point label 3; expected 1"):
        check_prompts(prompts, SIZE)
    with pytest.raises(PromptError, match=r"image_index runs from 2 to 2; the batch has images 0..1"):
        check_prompts(make_prompts(SIZE, boxes=[(0, 0, 1, 1)], image_index=[2]), SIZE, num_images=2)


def test_manual_prompter_hands_on_and_checks() -> None:
    prompter = ManualConfig().build(toy_backbone())
    image, features = torch.rand(2, 3, *SIZE), Features(neck=torch.zeros(2, 32, 6, 8))
    prompts = prompter(features, image, {"boxes": [(1, 2, 3, 4)], "image_index": [1]})
    assert prompts.boxes.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert prompter(features, image, {"prompts": prompts}).image_index.tolist() == [1]
    with pytest.raises(PromptError, match=r"manual prompts got \['bxes'\]"):
        prompter(features, image, {"bxes": []})
    with pytest.raises(PromptError, match=r"x 0..63, y 0..47"):
        prompter(features, image, {"prompts": make_prompts((64, 64), boxes=[(0, 0, 1, 60)])})


def test_grid_points_are_cell_centres() -> None:
    assert grid_points((4, 8), 2).tolist() == [[1.5, 0.5], [5.5, 0.5], [1.5, 2.5], [5.5, 2.5]]


def test_grid_prompter_and_chunks() -> None:
    prompter = GridConfig(points_per_side=3).build(toy_backbone())
    image, features = torch.rand(2, 3, *SIZE), Features(neck=torch.zeros(2, 32, 6, 8))
    prompts = prompter(features, image, {})
    assert prompts.image_index.tolist() == [0] * 9 + [1] * 9
    assert prompts.points.shape == (18, 1, 2)
    check_prompts(prompts, SIZE, num_images=2)
    valid = torch.zeros(2, *SIZE, dtype=torch.bool)
    valid[1, :, :32] = True
    kept = prompter(features, image, {"valid": valid})
    assert kept.image_index.tolist() == [1] * 3
    assert (kept.points[..., 0] < 32).all()
    assert [len(part) for part in chunk_prompts(prompts, 7)] == [7, 7, 4]
    with pytest.raises(ConfigError, match="points_per_side is 0"):
        GridConfig(points_per_side=0)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_autosam_starts_at_the_unprompted_mask(size: tuple[int, int]) -> None:
    backbone, image = toy_backbone(), toy_image(*size)
    with torch.no_grad():
        features = backbone.encode(image)
        index = torch.tensor([0, 0, 1, 1])
        expected, scores = backbone.decode(features, Prompts(image_index=index))
        grafted = attach(backbone, prompter=AutoSamConfig(num_classes=2, channels=16))
        output = grafted.predict(image)
    assert torch.equal(output.logits, expected.reshape(2, 2, size[0] // 2, size[1] // 2))
    assert output.activation == "sigmoid" and output.num_classes == 2
    assert output.scores is not None and torch.equal(output.scores, scores.reshape(2, 2))
    assert set(grafted.graft_state()) == {f"prompter.{name}" for name, _ in grafted.prompter.named_parameters()}


def test_autosam_learns_each_class_and_nothing() -> None:
    """Class 1 is the disc, class 2 is never there: even a random frozen decoder can be told so."""
    backbone, image = toy_backbone(), toy_image()
    for network in backbone.sam.mask_decoder.output_hypernetworks_mlps:
        network.proj_out.weight.mul_(30)  # logits of the size that a trained decoder has
    target = torch.nn.functional.avg_pool2d((image.mean(1, keepdim=True) > 0.5).float(), 2).round()
    target = torch.cat([target, torch.zeros_like(target)], dim=1)
    grafted = attach(backbone, prompter=AutoSamConfig(num_classes=2, channels=32)).train()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.Adam(grafted.trainable_parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(grafted.predict(image).logits, target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        output = grafted.eval().predict(image)
    disc, probability = target[:, 0] > 0, output.foreground()[:, 0]
    assert losses[-1] < 0.7 * losses[0]
    assert probability[disc].mean() > probability[~disc].mean() + 0.1
    labels = output.labels()
    assert not (labels == 2).any()
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is not None for parameter in grafted.trainable_parameters())


def test_predict_without_semantic_parts_is_refused() -> None:
    grafted = attach(toy_backbone(), prompter=GridConfig(points_per_side=2))
    with pytest.raises(ConfigError, match="the prompter is grid and the decoder answers prompts"):
        grafted.predict(toy_image())
    features = grafted.encode(toy_image())
    prompts = grafted.prompt(features, toy_image())
    masks, scores = grafted.decode(features, prompts, multimask=True)
    assert masks.shape == (8, 3, 32, 32) and scores.shape == (8, 3)
