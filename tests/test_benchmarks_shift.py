"""The benchmark of domain shift: scores, the arithmetic of its tables, what is planned and with which settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.grid import Grid
from samgraft.recipes.tasks import SegmentationTask
from tests.benchmarks import _shift_rows, _shift_scores, _shift_summary, shift
from tests.benchmarks._graft_rows import KEY
from tests.benchmarks._shift_pairs import PAIRS
from tests.data.shift_items import picture, square


# --- scores -----------------------------------------------------------------------------------------------------------
def grid(shape: tuple[int, int]) -> Grid:
    return Grid(shape=shape, affine=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), world="pixel")


def instance_map(labels: np.ndarray, scores: dict[int, float]) -> Segmentation:
    records = tuple(InstanceRecord(id=i, class_id=1, score=s, box=(0, 0, 1, 1)) for i, s in scores.items())
    return Segmentation(
        labels=labels, grid=grid(labels.shape), kind="instance", classes={1: "thing"}, instances=records
    )


def test_objects_with_gaps_in_their_numbers_keep_their_scores() -> None:
    labels = np.zeros((4, 6), dtype=np.int32)
    labels[0, :2], labels[2, :3] = 7, 3
    found, scores = _shift_scores.objects_of(instance_map(labels, {7: 0.5, 3: 0.25}))
    assert (found[2, 0], found[0, 0], scores.tolist()) == (1, 2, [0.25, 0.5])


def test_ap50_counts_the_objects_of_all_cases_together(tmp_path: Path) -> None:
    truth_map = square((20, 60)) + 2 * (np.arange(60) < 10) * (np.arange(20) < 10)[:, None]
    items = [picture(tmp_path, f"{n}x", truth_map, labels="instances") for n in "ab"]
    sure = np.where(truth_map == 1, 1, 0)

    def predict(path: Path) -> Segmentation:
        labels = sure if path.stem == "ax" else np.zeros_like(sure)
        return instance_map(labels, {1: 0.9} if labels.any() else {})

    figures = _shift_scores.score("ap50", [(item, item.image) for item in items], predict)
    assert figures["ap50"] == pytest.approx(0.25)  # one of four, and nothing wrong
    assert (figures["n"], figures["objects"], figures["predicted"]) == (2, 4, 1)


def test_dice_is_a_mean_over_cases_and_observers_are_compared_alike(tmp_path: Path) -> None:
    items = [picture(tmp_path, f"{n}x", square()) for n in "ab"]
    half = square()
    half[:, 40:] = 0
    shown = {"ax": square(), "bx": half}

    def predict(path: Path) -> Segmentation:
        return Segmentation(labels=shown[path.stem], grid=grid((40, 56)), kind="semantic", classes={1: "thing"})

    cases = [(item, item.image) for item in items]
    assert _shift_scores.score("dice", cases, predict)["dice"] == pytest.approx((1 + 2 / 3) / 2)
    other = picture(tmp_path / "second", "bx", half)
    found = _shift_scores.agreement(cases, lambda item: item if item.id == "ax" else replace(item, label=other.label))
    assert found["by_case"] == pytest.approx([1, 2 / 3])


# --- tables -----------------------------------------------------------------------------------------------------------
def result(method: str, value: float, seed: int = 0, pair: str = "p", **more: Any) -> dict[str, Any]:
    fixed = {"metric": "dice", "n": 4, "steps": 9, "seconds": 3.0, "busy": 1.0, "fell_back": None}
    kept = {"backbone_unchanged": True, "source_unchanged": True, "source_adapter": f"s{seed}"}
    return {"set": pair, "method": method, "seed": seed, "dice": value, **fixed, **kept, **more}


def test_the_gap_is_between_means_over_the_seeds_that_have_all_three() -> None:
    rows = [result("source only", 0.2), result("source only", 0.4, 1), result("source only", 0.9, 2)]
    rows += [result("all target labels", 0.8), result("all target labels", 0.8, 1)]
    rows += [result("weak boxes", 0.5), result("weak boxes", 0.7, 1), result("weak boxes", 0.1, 2)]
    # seeds 0 and 1: from 0.3 to 0.8, weak boxes at 0.6
    assert _shift_summary.closed(rows, "p", "weak boxes") == pytest.approx(0.6)
    assert _shift_summary.closed(rows, "p", "no labels") is None
    assert _shift_summary.differences(rows, "p", "weak boxes") == pytest.approx([0.3, 0.3, -0.8])
    line = next(one for one in _shift_summary.overview(rows) if one["row"] == "weak boxes")
    assert line["p"] == f"{(0.5 + 0.7 + 0.1) / 3:.3f} (60 %)"


def test_without_a_gap_no_share_is_told() -> None:
    rows = [result("source only", 0.80), result("all target labels", 0.81), result("weak boxes", 0.9)]
    assert _shift_summary.closed(rows, "p", "weak boxes") is None
    harm = [result("source only", 0.5), result("all target labels", 0.7), result("weak boxes", 0.4)]
    assert _shift_summary.closed(harm, "p", "weak boxes") == pytest.approx(-0.5)


def test_aims_want_every_pair_three_pairs_and_no_harm() -> None:
    rows = []
    for number, (boxes, free) in enumerate([(0.7, 0.3), (0.61, 0.25), (0.9, 0.5), (0.65, -0.01)]):
        rows += [result(*value, pair=f"p{number}") for value in (("source only", 0.0), ("all target labels", 1.0))]
        rows += [result("weak boxes", boxes, pair=f"p{number}"), result("no labels", free, pair=f"p{number}")]
    assert [line["reached"] for line in _shift_summary.aims(rows)] == [True, True, True]
    worse = [row | {"dice": 0.59} if row["method"] == "weak boxes" and row["set"] == "p1" else row for row in rows]
    assert [line["reached"] for line in _shift_summary.aims(worse)] == [False, True, True]
    harmed = [row | {"dice": -0.011} if row["method"] == "no labels" and row["set"] == "p3" else row for row in rows]
    assert [line["reached"] for line in _shift_summary.aims(harmed)] == [True, True, False]
    fewer = [row for row in rows if row["set"] != "p0" or row["method"] == "source only"]
    assert [line["reached"] for line in _shift_summary.aims(fewer)] == [None, None, None]


def test_the_long_table_counts_what_fell_back_and_complaints_name_mixed_sources() -> None:
    rows = [result("source only", 0.5), result("source only", 0.5, 1), result("all target labels", 0.7)]
    rows += [result("no labels", 0.5, fell_back=True), result("no labels", 0.55, 1, fell_back=False)]
    line = next(one for one in _shift_summary.long_table(rows) if one["row"] == "no labels")
    assert (line["fell_back"], line["worst_difference"]) == ("1 of 2", pytest.approx(0.0))
    assert not any("different source" in note for note in _shift_summary.complaints(rows, []))
    rows.append(result("weak boxes", 0.6, source_adapter="other", backbone_unchanged=False))
    notes = _shift_summary.complaints(rows, [{"method": "x", "set": "p", "seed": 0, "failed": "no"}])
    assert any("p seed 0" in note and "different source" in note for note in notes)
    assert "Backbone changed by: weak boxes on p." in notes and "- failed: x on p, seed 0: no" in notes


# --- plan -------------------------------------------------------------------------------------------------------------
def test_the_plan_has_every_row_where_it_serves_and_groups_share_a_source() -> None:
    options = shift.arguments([])
    tasks = shift.plan(options, "w")
    assert len({tuple(task[key] for key in KEY) for task in tasks}) == len(tasks)
    by_pair = {name: [t["method"] for t in tasks if t["set"] == name and t["seed"] == 0] for name in PAIRS}
    assert "second observer" in by_pair["retina_camera"] and "second observer" not in by_pair["sarcoma_ct_to_mr"]
    assert "align fourier" not in by_pair["buildings_banepa_to_rio"] and "align fourier" in by_pair["retina_camera"]
    found = shift.groups(tasks, [])
    assert len(found) == 3 * 6
    assert {tuple(dict.fromkeys(t["set"] for t in group)) for group in found if len({t["set"] for t in group}) > 1} == {
        ("buildings_banepa_to_rio", "buildings_banepa_to_atlanta")
    }
    assert shift.groups(tasks, tasks) == []
    budgets = {task["method"]: task["budget"] for task in tasks}
    assert (budgets["source only"], budgets["weak boxes"], budgets["align auto"]) == (0.0, 90.0, 0.0)


def test_a_trial_keeps_apart_from_the_results() -> None:
    real, trial = shift.arguments([]), shift.arguments(["--trial"])
    assert (trial.seeds, trial.budget, trial.json.name) == ([0], 5.0, "shift_trial.json")
    assert real.work != trial.work
    tasks = [shift.plan(options, "w")[0] for options in (real, trial)]
    assert tasks[0]["recipe"] != tasks[1]["recipe"]


def test_settings_of_a_run_follow_recipe_pair_and_side(tmp_path: Path) -> None:
    pair = PAIRS["buildings_banepa_to_rio"]
    source = _shift_rows.fit_config(pair, tmp_path, target=False, seed=2, budget=30)
    target = _shift_rows.fit_config(
        pair, tmp_path, target=True, seed=2, budget=30, start_from=tmp_path / "s.graft", supervision="boxes"
    )
    assert (source.data.window, target.data.window, source.data.size, target.data.size) == (256, 72, 128, 128)
    assert (source.train.start_from, target.train.start_from) == (None, str(tmp_path / "s.graft"))
    assert (source.train.minutes, source.train.seed, target.data.supervision) == (0.5, 2, "boxes")
    assert replace(source.task, lr=source.task.lr / 2) == target.task and source.task.kind == "instance"


def test_the_clock_of_a_run_shows_process_time_since_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    task, clock, now = SegmentationTask.__new__(SegmentationTask), _shift_rows.ProcessClock(), {"process": 5.0}
    monkeypatch.setattr("time.process_time", lambda: now["process"])
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    object.__setattr__(task, "began", 0.0)
    clock.on_train_start(None, task)  # type: ignore[arg-type]
    now["process"] = 17.0
    clock.on_train_batch_start(None, task, None, 0)  # type: ignore[arg-type]
    assert (1000.0 - task.began, clock.steps) == (pytest.approx(12.0), 1)
