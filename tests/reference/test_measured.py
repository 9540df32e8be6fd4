"""Tables from result files that are missing, in part, or complete."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference.measured import cells, names, ranking, read, section


def run(method: str, score: float, *, seed: int = 0, name: str = "nuclei", **more: Any) -> dict[str, Any]:
    base = {"method": method, "set": name, "cases": 5, "seed": seed, "budget": 60, "weights": "w", "tune": False}
    return base | {"metric": "ap50", "ap50": score, "trainable": 100, "seconds_per_step": 0.25} | more


ROWS = [
    run("decoder only", 0.50),
    run("decoder only", 0.60, seed=1),
    run("lora", 0.40),
    run("lora", 0.56),
    run("lora", 0.70, seed=1),
    run("lora, last 4", 0.49, cases=None, train_cases=7),
    run("vpt", 0.48),
    run("vpt", 0.9, tune=True),
    run("vpt", 0.1, budget=5),
    run("lora", 0.1, config="old", seed=2),
]
ROWS.insert(0, ROWS.pop())
FAILED = [{"method": "vpt", "set": "nuclei", "failed": "ShapeError: odd"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grafts.json").write_text(
        json.dumps({"results": ROWS, "failed": FAILED, "costs": [{"method": "lora", "extra_mb": 41.7}]})
    )
    costs = [{"method": name, "peak_mb": 5.5, "config": "abc", "size": 64} for name in ("decoder only", "lora", "vpt")]
    (tmp_path / "graft_costs.json").write_text(json.dumps({"results": costs}))
    return tmp_path


def test_without_files(tmp_path: Path) -> None:
    assert section("lora", tmp_path) == "Not measured yet."
    assert ranking(tmp_path, {}) == "Not measured yet; run `python -m tests.benchmarks.grafts`."


def test_names_in_a_label() -> None:
    assert names("lora + decoder_lora") == {"lora", "decoder_lora"}
    assert names("lora, qkv and output") == {"lora"}


def test_differences_are_those_of_the_same_seed(folder: Path) -> None:
    found = {(cell.method, cell.cases): cell for cell in cells(read(folder, "grafts"))}
    lora = found["lora", 5]
    assert lora.scores == (0.56, 0.70)
    assert lora.differences == pytest.approx((0.06, 0.10))
    assert found["lora, last 4", None].differences == ()
    assert found["vpt", 5].differences == pytest.approx((-0.02,))


def test_section_of_a_method(folder: Path) -> None:
    text = section("lora", folder)
    row, cost = [line for line in text.splitlines() if line.startswith("| lora ")]
    assert [cell.strip() for cell in row.split("|")[1:-1]][:9] == [
        *("lora", "nuclei", "5", "ap50", "0.630", "0.099", "0.080", "2", "100")
    ]
    assert row.rstrip("| ").endswith("| 42") and "file, MB" not in text
    (late,) = [line for line in text.splitlines() if line.startswith("| lora, last 4")]
    assert "| all 7 " in late
    assert cost == "| lora         | 5.500   |" and "| decoder only | 5.500 " in text and "abc" not in text
    assert "positive in 1 of 1 rows" in text and "at 64 px" in text and "fails to beat" not in text
    assert "positive in 0 of 1 rows. It fails to beat the decoder alone on every set." in section("vpt", folder)
    assert "ShapeError: odd" in section("vpt", folder) and "ShapeError" not in text


def test_ranking_by_gain(folder: Path) -> None:
    text = ranking(folder, {"lora": "lora.md"})
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == ["[lora](lora.md)", "vpt"]
    assert table[2][1:5] == ["0.080", "-", "1 of 1", "2"]
    assert table[3][1:4] == ["-0.020", "-", "0 of 1"]


def test_spread_is_over_sets_and_numbers_of_images(tmp_path: Path) -> None:
    rows = [run("decoder only", 0.5), run("decoder only", 0.5, name="cardiac_mr")]
    rows += [run("lora", 0.6), run("lora", 0.4, name="cardiac_mr")]
    rows[0]["busy"], rows[1]["busy"] = 0.8, 0.95
    (tmp_path / "grafts.json").write_text(json.dumps({"results": rows}))
    assert "1 of 2 runs had a processor for less than 90%" in ranking(tmp_path, {})
    (row,) = [line for line in ranking(tmp_path, {}).splitlines() if line.startswith("| lora")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["0.000", "0.141", "1 of 2", "2"]
