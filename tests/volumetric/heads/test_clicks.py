"""Clicks in a volume: polarity, place along every axis, volumes without clicks, and where training puts them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.graft import Grafted, attach
from samgraft.errors import ConfigError, PromptError, ShapeError
from samgraft.volumetric.heads import Mla3dConfig
from samgraft.volumetric.heads.clicks import PlacedClicks, VolumeClicks, simulate_clicks
from tests.adapters.toy import toy_backbone
from tests.volumetric._stacks import volume

IMAGE = volume(5, 24, 40, volumes=2)


def head() -> Grafted:
    torch.manual_seed(0)
    return attach(toy_backbone(), decoder=Mla3dConfig(clicks=4)).eval()


def clicked(grafted: Grafted, *clicks: tuple[float, float, float, int]) -> Tensor:
    """Logits with clicks (x, y, z, label) in the first volume and none in the second."""
    points = torch.zeros(2, len(clicks), 3)
    labels = torch.full((2, len(clicks)), -1)
    for number, (x, y, z, label) in enumerate(clicks):
        points[0, number], labels[0, number] = torch.tensor([x, y, z]), label
    decoder: Any = grafted.decoder
    with torch.no_grad():
        features = grafted.encode(IMAGE, depth=5)
        found: Tensor = decoder.answer(features, IMAGE, VolumeClicks(points=points, labels=labels)).logits
    return found


def test_place_and_polarity_matter_and_a_volume_without_clicks_is_left_alone() -> None:
    grafted = head()
    decoder: Any = grafted.decoder
    with torch.no_grad():
        plain = decoder.answer(grafted.encode(IMAGE, depth=5), IMAGE, None).logits
    first = clicked(grafted, (30, 6, 1, 1))
    assert (first[:5] - plain[:5]).abs().max() > 1e-4
    torch.testing.assert_close(first[5:], plain[5:], atol=1e-5, rtol=1e-5)
    for other in ((30, 6, 1, 0), (6, 6, 1, 1), (30, 18, 1, 1), (30, 6, 3, 1)):
        assert (clicked(grafted, other) - first)[:5].abs().max() > 1e-6, other
    padded = clicked(grafted, (30, 6, 1, 1), (3, 3, 0, -1))
    torch.testing.assert_close(padded, first, atol=1e-5, rtol=1e-5)


def test_features_are_read_where_the_click_is() -> None:
    """A map that holds its own coordinates; the click (x, y, z) = (11, 17, 3) of a volume (5, 24, 40)."""
    placed = VolumeClicks(points=torch.tensor([[[11.0, 17.0, 3.0]]]), labels=torch.ones(1, 1, dtype=torch.long))
    places = placed.within((5, 24, 40)).places
    torch.testing.assert_close(places[0, 0], torch.tensor([2 * 11.5 / 40 - 1, 2 * 17.5 / 24 - 1, 2 * 3.5 / 5 - 1]))
    grids = torch.meshgrid(*(torch.arange(float(n)) for n in (5, 24, 40)), indexing="ij")
    sampled = torch.nn.functional.grid_sample(torch.stack(grids)[None], places[:, :, None, None], align_corners=False)
    torch.testing.assert_close(sampled.flatten(), torch.tensor([3.0, 17.0, 11.0]))


def test_simulated_clicks_lie_where_they_say() -> None:
    labels = torch.zeros(3, 6, 7, 8, dtype=torch.long)
    labels[0, 2, 3, 4:6] = 1
    labels[2] = 1
    labels[2, 0] = -1
    seen = set()
    for seed in range(20):
        clicks = simulate_clicks(labels, 5, generator=torch.Generator().manual_seed(seed))
        assert int(clicks.labels[0, 0]) == 1 and (clicks.labels[1] == -1).all()
        for row in (0, 2):
            for (x, y, z), label in zip(clicks.points[row].int().tolist(), clicks.labels[row].tolist(), strict=True):
                if label >= 0:
                    assert int(labels[row, z, y, x]) == label
                    seen.add((row, label))
    assert seen == {(0, 0), (0, 1), (2, 1)}  # nothing is outside the object in volume 2: only known voxels count


def test_training_draws_clicks_and_reaches_the_encoder_of_clicks() -> None:
    grafted = head().train()
    labels = torch.zeros(10, 24, 40, dtype=torch.long)
    labels[2:4, 8:16, 8:20] = 1
    features = grafted.encode(IMAGE, depth=5)
    torch.manual_seed(1)
    answers = [grafted.learn(IMAGE, labels, features=features)[0].logits for _ in range(8)]
    assert any((a - answers[0]).abs().max() > 1e-5 for a in answers)
    torch.stack(answers).square().mean().backward()
    assert all(p.grad is not None for p in grafted.trainable_parameters())


def test_wrong_clicks_are_refused() -> None:
    with pytest.raises(PromptError, match=r"labels of clicks are \[2\]"):
        VolumeClicks(points=torch.zeros(1, 1, 3), labels=torch.full((1, 1), 2))
    with pytest.raises(ShapeError, match=r"expected \(B, P, 3\)"):
        VolumeClicks(points=torch.zeros(1, 1, 2), labels=torch.ones(1, 1))
    clicks = VolumeClicks(points=torch.tensor([[[40.0, 1.0, 1.0]]]), labels=torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(PromptError, match=r"click at \(x, y, z\) = \[40.0, 1.0, 1.0\] lies outside"):
        clicks.within((5, 24, 40))
    grafted = attach(toy_backbone(), decoder=Mla3dConfig())
    decoder: Any = grafted.decoder
    with pytest.raises(ConfigError, match="was trained without clicks"):
        decoder.answer(grafted.encode(IMAGE[:5], depth=5), IMAGE[:5], clicks)
    assert isinstance(clicks.within((5, 24, 60)), PlacedClicks)
