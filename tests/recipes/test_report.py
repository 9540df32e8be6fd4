"""The report: contours in the right place and colour, self-contained HTML, no pickle."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from samgraft.errors import InputError, OutputError, ShapeError
from samgraft.recipes.report import PALETTE, Panel, Report, curves, load_panels, overlay, report_run, save_panels


def panel(**changes: object) -> Panel:
    image = np.full((40, 50), 0.25, dtype=np.float32)
    predicted = np.zeros((40, 50), dtype=np.int32)
    predicted[10:20, 10:20] = 2
    values = {"title": "case <1>", "image": image, "predicted": predicted, **changes}
    return Panel(**values)  # type: ignore[arg-type]


def test_overlay_draws_rims_only() -> None:
    picture = overlay(panel(), side=40)
    assert picture.shape == (40, 50, 3)
    assert tuple(picture[10, 15]) == PALETTE[1]
    assert tuple(picture[15, 15]) == (64, 64, 64) and tuple(picture[9, 15]) == (64, 64, 64)
    truth = np.zeros((40, 50), dtype=np.int32)
    truth[25:35, 25:35] = 1
    both = overlay(panel(truth=truth, instances=True), side=400)
    assert both.shape == (320, 400, 3)
    assert tuple(both[25 * 8, 30 * 8]) == (255, 255, 255)
    assert tuple(both[10 * 8, 15 * 8]) == PALETTE[0]
    with pytest.raises(ShapeError, match="give both on one grid"):
        overlay(panel(truth=truth[:5]))


def test_panels_round_trip_without_pickle(tmp_path: Path) -> None:
    first = panel(truth=np.full((40, 50), -1), caption="Dice 0.5")
    save_panels(tmp_path / "samples.npz", [first, panel()])
    one, two = load_panels(tmp_path / "samples.npz")
    assert (one.title, one.caption) == ("case <1>", "Dice 0.5") and two.truth is None
    np.testing.assert_array_equal(one.predicted, first.predicted)
    assert one.truth is not None and (one.truth == -1).all()
    assert load_panels(tmp_path / "none.npz") == []


def test_html_is_escaped_and_self_contained(tmp_path: Path) -> None:
    report = Report("a & b", subtitle="<i>")
    report.table("numbers", ["what", "value", "n"], [("x", 0.12345, 1200), ("y", float("nan"), 3)])
    report.panels("samples", [panel()], classes={1: "one", 2: "two & more"})
    picture = curves([{"step": 1, "train/loss": 1.0}, {"step": 2, "val/dice": 0.5}])
    assert picture is not None
    report.figure("curves", picture)
    path = report.save(tmp_path / "deep" / "r.html")
    text = path.read_text()
    assert "a &amp; b" in text and "case &lt;1&gt;" in text and "two &amp; more" in text
    assert ">0.123<" in text and ">1,200<" in text and ">-<" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") == 2
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_report_of_a_run_and_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the run folder of samgraft fit"):
        report_run(tmp_path)
    (tmp_path / "config.yaml").write_text("task: {}\n")
    assert "No validation has finished yet" in report_run(tmp_path).read_text()
    score = {"case": "worst", "class_name": "a", "dice": 0.1, "iou": 0.05, "truth_voxels": 5, "predicted_voxels": 6}
    metrics = {
        "step": 7, "kind": "semantic", "classes": {"1": "a"}, "from_ground_truth": True,
        "summaries": [{"name": "dice/a", "mean": 0.5, "std": 0.1, "n": 4}],
        "scores": [{**score, "dice": 0.9, "case": "best"}, score],
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = report_run(tmp_path, tmp_path / "x.html").read_text()
    assert "Prompts were taken from the ground truth" in text and '<td class="num">4</td>' in text
    assert text.index("worst") < text.index("best</td>")


def test_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose a writable folder"):
        Report("t").save(tmp_path / "file" / "r.html")
    with pytest.raises(OutputError, match="cannot write"):
        save_panels(tmp_path / "missing" / "s.npz", [])
