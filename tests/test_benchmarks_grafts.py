"""The benchmark of grafts: what is planned, what is skipped, and how it is summed up; no training."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import GRAFTS, LoraConfig
from tests.adapters.toy import toy_backbone
from tests.benchmarks import (
    _arms,
    _data,
    _graft_rows,
    _graft_start,
    _graft_summary,
    _process,
    _sets,
    _steps,
    _train,
    graft_costs,
    grafts,
)

BASE = _graft_rows.BASELINE


def options(**values: Any) -> argparse.Namespace:
    found = grafts.arguments([])
    vars(found).update({"methods": [BASE, "lora"], **values})
    return found


def result(method: str, value: float, seed: int = 0, name: str = "nuclei", **more: Any) -> dict[str, Any]:
    fixed = {"cases": 5, "metric": "dice", "train_cases": 5, "n": 30, "trainable": 7, "adapter_mb": 0.1, "steps": 9}
    took = {"seconds_per_step": 0.5, "without_gradient": 0, "busy": 0.99, "backbone_unchanged": True}
    return {"method": method, "dice": value, "seed": seed, "set": name, **fixed, **took, **more}


def test_rows_hold_the_whole_registry_and_the_baseline() -> None:
    rows = _graft_rows.rows()
    assert {name for name in GRAFTS.names() if not GRAFTS.get(name).volumetric} < set(rows)
    assert "ma_sam" not in rows, "volumes have a benchmark of their own"
    assert next(iter(rows)) == BASE
    assert rows[BASE] == ()
    assert rows["full"][0].lr_factor == 0.5
    assert {config.lr_factor for configs in _graft_rows.rows(3.0).values() for config in configs} == {3.0}


def test_plan_takes_a_seed_everywhere_before_the_next() -> None:
    tasks = grafts.plan(options(sets=["nuclei", "cardiac_mr"], seeds=[0, 1]), "w")
    assert len(tasks) == 2 * 2 * 2 * 2
    assert [task["seed"] for task in tasks] == [0] * 8 + [1] * 8
    assert [(t["set"], t["cases"], t["method"]) for t in tasks[:3]] == [
        ("nuclei", 5, BASE),
        ("nuclei", 5, "lora"),
        ("nuclei", None, BASE),
    ]
    assert len({tuple(task[key] for key in _graft_rows.KEY) for task in tasks}) == len(tasks)


def test_tuning_plans_every_factor_on_training_cases_of_two_sets() -> None:
    found = grafts.arguments(["--tune", "--methods", "lora"])
    tasks = grafts.plan(found, "w")
    assert {(t["set"], t["cases"], t["seed"], t["tune"]) for t in tasks} == {
        ("cardiac_mr", None, 0, True),
        ("nuclei", None, 0, True),
    }
    assert [t["factor"] for t in tasks] == [0.3, 1.0, 3.0] * 2
    assert len({t["recipe"] for t in tasks}) == 2 and len({t["config"] for t in tasks}) == 3


def test_groups_share_data_and_skip_what_is_there() -> None:
    tasks = grafts.plan(options(sets=["nuclei"], seeds=[0, 1]), "w")
    found = grafts.groups(tasks, [tasks[0]])
    assert [[task["method"] for task in group] for group in found] == [["lora"]] + [[BASE, "lora"]] * 3
    assert grafts.groups(tasks, tasks) == []
    for key, other in (("budget", 31.0), ("weights", "v"), ("config", "x"), ("recipe", "x"), ("tune", True)):
        assert len(grafts.groups(tasks[:1], [tasks[0] | {key: other}])) == 1, key


def test_planned_results_come_in_the_order_of_the_plan_and_without_strangers() -> None:
    tasks = grafts.plan(options(sets=["nuclei"], seeds=[0]), "w")
    results = [tasks[1] | {"x": 1}, tasks[0] | {"x": 0}, tasks[0] | {"budget": 99, "x": 2}]
    assert [row["x"] for row in grafts.planned(results, tasks)] == [0, 1]


def test_hashes_follow_every_setting() -> None:
    spec = _sets.SPECS["nuclei"]
    assert _graft_rows.config_hash([LoraConfig()]) == _graft_rows.config_hash([LoraConfig()])
    assert _graft_rows.config_hash([LoraConfig(rank=5)]) != _graft_rows.config_hash([LoraConfig()])
    assert _graft_rows.config_hash([LoraConfig(lr_factor=3)]) != _graft_rows.config_hash([LoraConfig()])
    plain = _graft_rows.optimiser(spec)
    other = replace(plain, lr=3 * plain.lr)
    assert _graft_rows.recipe_hash(spec, plain) != _graft_rows.recipe_hash(spec, other)
    assert _graft_rows.recipe_hash(spec, plain) != _graft_rows.recipe_hash(spec, plain, 240)
    later = _graft_rows.optimiser(spec, start=240)
    assert plain.lr == _graft_rows.GRAFT.lr
    assert later == replace(plain, lr=plain.lr / 4), "a decoder that has trained before goes on at a quarter"


def test_results_survive_on_disk_and_success_clears_failure(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    task = grafts.plan(options(sets=["nuclei"], seeds=[0]), "w")[1]
    grafts.Results(path).add("failed", task | {"failed": "no"}, _graft_rows.KEY)
    results = grafts.Results(path)
    assert grafts.groups([task], results.rows("results")) == [[task]]
    results.add("results", task | {"x": 1}, _graft_rows.KEY)
    again = json.loads(path.read_text())
    assert (again["failed"], again["results"]) == ([], [task | {"x": 1}])
    assert results.forget(["lora"]) == 1
    assert grafts.Results(path).rows("results") == []


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1.0), (3, 0, 0.25), (6, 0, 0.03125), (2, 2, 1.0)])
def test_sign_test(wins: int, losses: int, p: float) -> None:
    assert _graft_summary.sign_test(wins, losses) == pytest.approx(p)
    assert _graft_summary.sign_test(losses, wins) == pytest.approx(p)


def test_summary_pairs_by_seed_and_says_who_wins_everywhere() -> None:
    rows = [result(BASE, 0.5), result(BASE, 0.6, 1), result(BASE, 0.7, 0, "cardiac_mr")]
    rows += [result("lora", 0.6), result("lora", 0.9, 1), result("lora", 0.6, 0, "cardiac_mr")]
    rows += [result("vpt", 0.8), result("vpt", 0.99, 2)]
    base, lora, vpt = _graft_summary.summary(rows, [{"method": "lora", "seconds": 0.25, "extra_mb": 12.0}])
    assert (base["nuclei, 5"], lora["nuclei, 5"], lora["cardiac_mr, 5"]) == (
        "0.550",
        "0.750 (+0.200)",
        "0.600 (-0.100)",
    )
    assert (lora["wins"], lora["losses"], lora["sets_won"], lora["beats_every_set"]) == (2, 1, "1 of 2", False)
    assert (lora["worst"], lora["seconds"], lora["extra_mb"]) == (pytest.approx(-0.1), 0.25, 12.0)
    assert (vpt["wins"], vpt["beats_every_set"]) == (1, None)  # no pair for seed 2, and no run on the other set
    assert "beats_every_set" not in base


def test_long_table_gives_mean_spread_and_costs() -> None:
    rows = [result("lora", 0.4), result("lora", 0.6, 1, busy=0.5), result("vpt", 0.3)]
    lora, vpt = _graft_summary.long_table(rows, [{"method": "lora", "extra_mb": 12.0}])
    assert (lora["mean"], lora["std"], lora["seeds"]) == (pytest.approx(0.5), pytest.approx(0.02**0.5), 2)
    assert (lora["least_busy"], lora["extra_mb"], vpt["std"], vpt["extra_mb"]) == (0.5, 12.0, None, None)


def test_tuning_table_compares_only_whole_sets_of_factors() -> None:
    rows = [result("lora", v, factor=f) for f, v in ((0.3, 0.2), (1.0, 0.4), (3.0, 0.3))]
    rows += [result("lora", 0.9, 0, "cardiac_mr", factor=3.0)]
    (line,) = _graft_summary.tuning(rows)
    assert (line["x 0.3"], line["x 1"], line["x 3"], line["runs"], line["best"]) == (0.2, 0.4, 0.3, 1, 1.0)


def test_page_names_failures_and_disturbed_runs() -> None:
    rows = [result(BASE, 0.5), result("lora", 0.6, busy=0.4, backbone_unchanged=False)]
    text = _graft_summary.page(rows, [], [{"method": "vpt", "set": "nuclei", "failed": "ShapeError: x"}])
    assert "1 of them had a processor for less than 90%" in text
    assert "- failed: vpt on nuclei: ShapeError: x" in text
    assert "Backbone changed by: lora." in text


def test_five_nuclei_pictures_are_of_both_stainings() -> None:
    blank = np.zeros((1, 1), np.int32)
    cases = [
        _data.Case(
            id=str(i), name=str(i), image=np.full((2, 2, 3), 0.9 if i % 8 == 0 else 0.1, np.float32), label=blank
        )
        for i in range(24)
    ]
    for seed in range(3):
        kinds = [_sets.staining(case) for case in _sets.choose(cases, 5, seed, _sets.staining)]
        assert sorted(kinds) in (["bright"] * 2 + ["dark"] * 3, ["bright"] * 3 + ["dark"] * 2)


def test_windows_cover_a_picture_and_a_perfect_network_still_scores_one() -> None:
    label = np.zeros((20, 27), np.int32)
    label[3:17, 5:21] = 1
    image = np.repeat(label[..., None], 3, axis=2).astype(np.float32)
    case = _data.Case(id="a", name="a", image=image, label=label)
    spec = _sets.SetSpec(name="x", size=8, window=8, classes=2, budget=1, headline=("dice",))
    images, targets = _sets.tensors(spec, [case])
    assert (images.shape, targets.shape) == ((12, 3, 8, 8), (12, 8, 8))
    assert torch.equal(images[:, 0].long(), targets)

    def oracle(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1) * 20

    assert _sets.evaluate(oracle, spec, [case], three=False)["dice"] == 1.0


def test_loop_follows_its_clock_and_adds_the_penalty_at_each_parts_own_rate() -> None:
    ticks = iter(float(i) for i in range(100))
    weight, slow = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    spec = _sets.SetSpec(name="x", size=8, classes=2, budget=1, headline=("dice",))
    pictures = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))

    def forward(image: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(image), 2, 8, 8) + 0 * weight

    found = _train.loop(
        forward,
        [weight, slow],
        spec,
        pictures,
        _train.Optimiser(lr=0.1, batch=2),
        start=0.0,
        deadline=5.0,
        seed=0,
        clock=lambda: next(ticks),
        penalty=lambda: weight.sum() + slow.sum(),
        factors={slow: 0.1},
    )
    assert found["steps"] == 5
    assert weight.item() < 0
    assert slow.item() == pytest.approx(0.1 * weight.item(), rel=0.01)


def test_a_run_leaves_the_backbone_as_it_was_and_tells_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((64, 64), np.int32)
    label[8:40, 8:40] = 1
    case = _data.Case(id="a", name="a", image=rng.random((64, 64, 3), np.float32), label=label)
    spec = _sets.SetSpec(name="toy", size=64, classes=2, budget=1, headline=("dice",), batch=1)
    monkeypatch.setitem(_sets.SPECS, "toy", spec)
    backbone = toy_backbone()
    task = {"set": "toy", "cases": None, "seed": 0, "method": "lora", "budget": 0.0, "tune": False, "factor": 3.0}
    task |= {"weights": "w", "config": "c", "recipe": "r", "start": 0.2}
    start = _graft_rows.state_of(backbone)
    row = _graft_rows.one(backbone, task | {"budget": 0.2}, _sets.tensors(spec, [case]), [case])
    assert row["backbone_unchanged"]
    assert _graft_rows.state_of(backbone) == start
    assert row["steps"] >= 1
    assert 0 <= row["dice"] <= 1
    assert (row["metric"], row["lr"], row["without_gradient"]) == ("dice", _graft_rows.GRAFT.lr / 4, 0)
    assert row["adapter_mb"] * 1e6 > 4 * row["trainable"]
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    assert _graft_rows.state_of(backbone) != start


def test_all_rows_begin_with_one_decoder_that_was_trained_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = _sets.SetSpec(name="toy", size=64, classes=2, budget=1, headline=("dice",), batch=1)
    monkeypatch.setitem(_sets.SPECS, "toy", spec)
    backbone = toy_backbone()
    before = _graft_rows.state_of(backbone)
    picture = (torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long))
    task = {"set": "toy", "cases": None, "seed": 0, "tune": False, "weights": "w", "recipe": "r", "start": 0.3}
    plain = _graft_rows.optimiser(spec)

    def made(task: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        return _graft_start.decoder_start(backbone, spec, picture, task, plain, tmp_path / "starts")

    found = made(task)
    assert found is not None and made(task | {"start": 0.0}) is None
    assert _graft_rows.state_of(backbone) == before
    again = made(task)
    assert again is not None and all(torch.equal(again[key], value) for key, value in found.items()), "read from disk"
    torch.manual_seed(1)
    grafted = attach(backbone, (LoraConfig(),), decoder=_arms.decoder_config(spec))
    assert grafted.decoder is not None
    new = {key: value.clone() for key, value in grafted.decoder.state_dict().items()}
    _graft_start.begin_with(grafted, None)
    assert all(torch.equal(value, new[key]) for key, value in grafted.decoder.state_dict().items())
    _graft_start.begin_with(grafted, found)
    assert all(torch.equal(value, found[key]) for key, value in grafted.decoder.state_dict().items())
    assert not torch.equal(new["class_tokens"], found["class_tokens"])


def test_memory_above_what_was_loaded() -> None:
    loaded = torch.ones(20 * 2**18)
    extra = _steps.Extra()
    del loaded
    work = torch.ones(60 * 2**18)
    assert 30 < extra.mb() < 90
    assert work.numel() > 0


def test_streamed_results_come_one_by_one_and_a_failure_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "tests" / "benchmarks"
    package.mkdir(parents=True)
    package.joinpath("child.py").write_text("print('RESULT {\"a\": 1}'); print('x'); print('RESULT {\"a\": 2}'); 1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a whole package there would come before the child's
    stream = _process.streamed("child", [], threads=1)
    assert [next(stream), next(stream)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        next(stream)


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    child = "import time\nfrom tests.benchmarks._process import end_with_parent\nend_with_parent(0.05)\ntime.sleep(60)"
    parent = f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
    parent += "print(p.pid, flush=True)\np.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        status = Path(f"/proc/{number}/status")
        wait_for(lambda: "Threads:\t2" in status.read_text())
        process.kill()
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())


def wait_for(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_costs_are_planned_with_blocks_where_a_method_takes_them() -> None:
    found = graft_costs.plan(
        argparse.Namespace(methods=["lora", "full_decoder"], blocks=["all", "last:4"], size=64, steps=1, threads=1)
    )
    assert [(task["method"], task["blocks"]) for task in found] == [
        (graft_costs.FULL, "all"),
        (BASE, "-"),
        ("lora", "all"),
        ("lora", "last:4"),
        ("full_decoder", "all"),
    ]
    assert len({tuple(task[key] for key in graft_costs.KEY) for task in found}) == 5


def test_shares_are_of_full_fine_tuning_of_the_same_kind() -> None:
    shape = {"size": 64, "steps": 1, "threads": 1}
    rows = [
        shape | {"method": graft_costs.FULL, "seconds": 4.0, "peak_mb": 100.0},
        shape | {"method": "lora", "seconds": 3.0, "peak_mb": 50.0},
        shape | {"method": "vpt", "refused": "no"},
        shape | {"method": "lora", "seconds": 3.0, "peak_mb": 50.0, "threads": 2},
    ]
    found = graft_costs.with_shares(rows)
    assert [(row.get("time_share"), row.get("memory_share")) for row in found] == [
        (1.0, 1.0),
        (0.75, 0.5),
        (None, None),
        (None, None),
    ]
