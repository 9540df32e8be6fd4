"""Measures, baselines and plumbing of the benchmarks, on tiny arrays."""

import json

import numpy as np
import pytest
import torch

from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.losses import IGNORE
from tests.benchmarks import _baselines, _data, _metrics, _sets, _table, _train, first_slice, render, zero_shot

DISC = (np.add.outer((np.arange(40) - 19.5) ** 2, (np.arange(40) - 19.5) ** 2) <= 10.5**2).astype(bool)


def test_iou_and_dice_values() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert _metrics.iou(a, b) == pytest.approx(4 / 12)
    assert _metrics.dice(a, b) == pytest.approx(0.5)
    empty = np.zeros((4, 4), bool)
    assert (_metrics.iou(empty, empty), _metrics.dice(empty, empty), _metrics.dice(a, empty)) == (1, 1, 0)


def test_mean_by_case_weighs_cases_not_objects() -> None:
    assert _metrics.mean_by_case([("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 0.0)]) == pytest.approx(0.5)
    assert np.isnan(_metrics.mean_by_case([]))


def test_box_is_inclusive_and_refuses_an_empty_mask() -> None:
    assert _data.box_of(DISC) == (10, 10, 29, 29)
    with pytest.raises(ValueError, match="empty mask"):
        _data.box_of(np.zeros((3, 3), bool))


def test_largest_component_and_evenly() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[3:5, 3:5] = True
    assert _data.largest_component(mask).sum() == 4
    assert _data.evenly(3, 6) == [0, 1, 2]
    assert _data.evenly(11, 3) == [0, 5, 10]


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("name", ["ellipse", "otsu", "walker"])
def test_baselines_find_a_disc_of_either_polarity(name: str, invert: bool) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, DISC.shape)
    gray = (np.where(DISC != invert, 0.8, 0.2) + noise).astype(np.float32)
    mask = _baselines.BASELINES[name](gray, _data.box_of(DISC))
    assert _metrics.iou(mask, DISC) > 0.93


def test_baselines_survive_a_flat_picture_and_a_box_that_fills_it() -> None:
    flat = np.full((12, 9), 0.5, np.float32)
    for method in _baselines.BASELINES.values():
        assert method(flat, (0, 0, 8, 11)).shape == (12, 9)
    assert _baselines.otsu(flat, (0, 0, 8, 11)).all()


def test_grow_clips_to_the_picture() -> None:
    assert _baselines.grow((2, 5, 11, 8), (20, 30), 0.5) == (0, 0, 16, 13)


def test_letterbox_round_trip_and_ignored_margin() -> None:
    picture = torch.arange(24.0).reshape(1, 1, 4, 6).repeat(1, 3, 1, 1)
    boxed = _sets.letterbox(picture, 48)
    assert boxed.shape == (1, 3, 48, 48)
    assert boxed[..., 32:, :].abs().max() == 0
    torch.testing.assert_close(_sets.unletterbox(boxed, (4, 6)), picture, atol=0.6, rtol=0)
    label = _sets.letterbox_label(torch.ones(1, 4, 6, dtype=torch.long), 12)
    assert (label[0, :8] == 1).all()
    assert (label[0, 8:] == IGNORE).all()


def test_planes_of_a_volume_hold_neighbours() -> None:
    volume = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 4, 5), np.float32)
    case = _data.Case(id="a", name="a", image=volume, label=np.zeros((3, 4, 5), np.int32))
    assert _sets.planes(case)[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]


def test_choose_spreads_over_patients_and_is_fixed() -> None:
    blank = np.zeros((1, 1), np.int32)
    image = np.zeros((1, 1, 3), np.float32)
    cases = [_data.Case(id=f"p{i // 10}", name=str(i), image=image, label=blank) for i in range(50)]
    chosen = _sets.choose(cases, 5, 0)
    assert sorted(c.id for c in chosen) == ["p0", "p1", "p2", "p3", "p4"]
    assert [c.name for c in chosen] == [c.name for c in _sets.choose(cases, 5, 0)]
    assert len(_sets.choose(cases, None, 0)) == 50


def test_a_perfect_network_scores_one() -> None:
    label = np.zeros((16, 16), np.int32)
    label[4:12, 4:12] = 1
    image = np.repeat(label[..., None], 3, axis=2).astype(np.float32)
    spec = _sets.SetSpec(name="x", size=16, classes=2, budget=1, headline=("dice",))
    case = _data.Case(id="a", name="a", image=image, label=label)

    def oracle(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1) * 20

    scores = _sets.evaluate(oracle, spec, [case], three=False)
    assert (scores["dice"], scores["dice_pooled"], scores["n"]) == (1.0, 1.0, 1)


def test_rate_rises_then_falls_to_zero() -> None:
    assert _train.rate(0.05, 0.05) == pytest.approx(1)
    assert _train.rate(0.025, 0.05) == pytest.approx(0.501)
    assert _train.rate(1.0, 0.05) == pytest.approx(0)


def test_batches_use_every_picture_once_per_round() -> None:
    stream = _train.batches(5, 2, torch.Generator().manual_seed(0))
    seen = torch.cat([next(stream) for _ in range(5)])
    assert sorted(seen.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_volume_augmentation_moves_image_and_label_together() -> None:
    label = torch.zeros(2, 16, 20, 12, dtype=torch.long)
    label[:, 5:11, 6:14, 3:9] = 1
    config = AugmentConfig(gamma=0, contrast=0, brightness=0, noise=0)
    image, moved = _train.augment_volume(label[:, None].float(), label, torch.Generator().manual_seed(0), config)
    assert (moved != label).any()
    agree = ((image[:, 0] > 0.5) == (moved == 1)).float().mean()
    assert agree > 0.97
    still = AugmentConfig(rotate=0, scale=0, shift=0, gamma=0, contrast=0, brightness=0, noise=0)
    same, kept = _train.augment_volume(label[:, None].float(), label, torch.Generator().manual_seed(0), still)
    torch.testing.assert_close(same, label[:, None].float().clamp_min(1e-6), atol=1e-4, rtol=0)
    assert torch.equal(kept, label)


def test_fit_stops_at_its_deadline() -> None:
    label = np.zeros((16, 16), np.int32)
    label[4:12] = 1
    case = _data.Case(id="a", name="a", image=np.zeros((16, 16, 3), np.float32), label=label)
    spec = _sets.SetSpec(name="x", size=16, classes=2, budget=1, headline=("dice",))
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    options = _train.Optimiser(lr=1e-2, batch=2)
    deadline = first_slice.time.process_time() + 0.3
    found = _train.fit(network, network.parameters(), spec, [case], options, deadline=deadline, three=False, seed=0)
    assert found["steps"] >= 1
    assert first_slice.time.process_time() < deadline + 1.0


def test_plan_and_table_and_atomic_json(tmp_path: "_data.Path") -> None:
    path = tmp_path / "a" / "r.json"
    _table.write_json(path, {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    table = _table.markdown([{"a": 0.12345, "b": None}, {"a": 1234, "b": True}])
    assert table.splitlines()[2:] == ["| 0.123 | -   |", "| 1,234 | yes |"]


def test_verdict_counts_wins() -> None:
    rows = [
        {"set": "nuclei", "margin": 0.1},
        {"set": "nerve_us", "margin": -0.2},
        {"set": "buildings_banepa", "margin": 0.3},
    ]
    found = zero_shot.verdict(rows)
    assert (found["medical_won"], found["medical_sets"], found["all_won"], found["worst_margin"]) == (1, 2, 2, -0.2)


def test_render_replaces_only_what_stands_between_the_marks() -> None:
    page = "top\n<!-- begin zero_shot -->\nold\n<!-- end zero_shot -->\nend\n"
    assert render.replaced(page, "zero_shot", "new") == page.replace("old", "\nnew")
    with pytest.raises(SystemExit, match="no marks"):
        render.replaced(page, "first_slice", "new")
