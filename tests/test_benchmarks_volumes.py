"""The benchmark of volumes: distances in mm by hand, what is drawn, every row once, what is planned and told."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samgraft.recipes.losses import IGNORE
from tests.adapters.toy import toy_backbone
from tests.benchmarks import _volume_rows, _volume_summary, volumes
from tests.benchmarks._data import Case
from tests.benchmarks._surface import mean_scores, surface_scores
from tests.benchmarks._volume_rows import ROWS, VOLUMES, build, drawn, predicted, stacks

SPACING = (3.0, 1.0, 0.5)


def cube(depth: slice, rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros((9, 20, 30), dtype=bool)
    mask[depth, rows, cols] = True
    return mask


@pytest.mark.parametrize(
    ("shift", "distance"),
    [((1, 0, 0), 3.0), ((0, 1, 0), 1.0), ((0, 0, 1), 0.5), ((0, 0, 3), 1.5), ((2, 0, 0), 6.0)],
)
def test_distances_follow_the_spacing_of_every_axis(shift: tuple[int, int, int], distance: float) -> None:
    """A plate one voxel thick across the shift, moved along it: every surface voxel is as far as the shift."""
    axis = next(k for k, n in enumerate(shift) if n)
    extent = [slice(2, 7), slice(4, 16), slice(5, 25)]
    extent[axis] = slice(4, 5)
    a = cube(*extent)
    b = np.roll(a, shift, axis=(0, 1, 2))
    scores = surface_scores(a, b, SPACING)
    assert scores["hd95"] == pytest.approx(distance)
    assert scores["nsd_1mm"] == (1.0 if distance <= 1 else 0.0)
    assert scores["nsd_2mm"] == (1.0 if distance <= 2 else 0.0)
    assert scores["dice"] == 0.0


def test_equal_and_empty_masks() -> None:
    a, none = cube(slice(2, 5), slice(3, 9), slice(3, 9)), cube(slice(0, 0), slice(0, 0), slice(0, 0))
    assert surface_scores(a, a, SPACING) == {"dice": 1.0, "nsd_1mm": 1.0, "nsd_2mm": 1.0, "hd95": 0.0}
    both, one = surface_scores(none, none, SPACING), surface_scores(a, none, SPACING)
    assert [both[k] for k in ("dice", "nsd_1mm", "nsd_2mm")] == [1, 1, 1] and math.isnan(both["hd95"])
    assert [one[k] for k in ("dice", "nsd_1mm", "nsd_2mm")] == [0, 0, 0] and math.isnan(one["hd95"])
    mean = mean_scores([surface_scores(a, a, SPACING), one])
    assert mean == {"dice": 0.5, "nsd_1mm": 0.5, "nsd_2mm": 0.5, "hd95": 0.0, "hd95_n": 1.0}


def case(depth: int = 7, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    label = np.zeros((depth, 30, 20), dtype=np.int32)
    label[depth // 2, 8:20, 5:15] = 1
    image = (0.3 + 0.4 * (label > 0) + 0.05 * rng.random(label.shape)).astype(np.float32)
    return Case(id=f"c{seed}", name=f"c{seed}", image=image, label=label, spacing=(3.0, 1.0, 1.0))


SPEC = replace(VOLUMES["sarcoma_mr"], size=32, slab=4, slices=3)


def test_slabs_hold_foreground_as_often_as_asked() -> None:
    """Slice 10 of 21 is the only one with foreground: four of eighteen slabs of 4 hold it."""
    prepared = stacks(SPEC, [case(21)], "slabs")
    for share, low, high in ((1.0, 1.0, 1.0), (0.0, 0.1, 0.35), (0.5, 0.5, 0.75)):
        spec, generator = replace(SPEC, foreground=share), torch.Generator().manual_seed(0)
        held = []
        for _ in range(200):
            image, label = _volume_rows._slab(prepared[0], spec, 4, generator)
            assert image.shape == (1, 1, 4, 32, 32) and label.shape == (1, 4, 32, 32)
            held.append(bool((label > 0).any()))
        assert low <= float(np.mean(held)) <= high, share


def test_short_volumes_repeat_their_ends_and_say_so() -> None:
    prepared = stacks(SPEC, [case(2)], "slabs")
    image, label = _volume_rows._slab(prepared[0], SPEC, 5, torch.Generator().manual_seed(0))
    assert torch.equal(image[0, 0, 0], image[0, 0, 1]) and torch.equal(image[0, 0, 3], image[0, 0, 4])
    assert (label[0, [0, 3, 4]] == IGNORE).all()


@pytest.mark.parametrize("kind", ["slices", "neighbours", "slabs"])
def test_batches_and_predictions_of_every_kind(kind: Any) -> None:
    """A network that answers by brightness finds the object on the file's grid, whatever goes together."""
    cases = [case(7, 0), case(5, 1)]
    image, label = next(drawn(stacks(SPEC, cases, kind), SPEC, kind, 4, torch.Generator().manual_seed(0)))
    channels = 3 if kind == "neighbours" else 1
    if kind == "slabs":
        assert image.shape == (1, 1, 4, 32, 32) and label.shape == (1, 4, 32, 32)
    else:
        assert image.shape == (3, channels, 1, 32, 32) and label.shape == (3, 1, 32, 32)

    def bright(x: torch.Tensor) -> torch.Tensor:
        middle = x[:, x.shape[1] // 2]
        return torch.stack([torch.full_like(middle, 0.5), middle], dim=1)

    found = predicted(bright, SPEC, cases[0], kind, 4)
    assert found.shape == (7, 30, 20)
    scores = surface_scores(found == 1, cases[0].label == 1, (3.0, 1.0, 1.0))
    assert scores["dice"] > 0.9 and scores["hd95"] <= 1.0


@pytest.mark.parametrize("name", ROWS)
def test_every_row_takes_a_step(name: str) -> None:
    row = ROWS[name]
    backbone = toy_backbone() if row.head is not None else None
    depth, side = (row.depth, 64) if row.depth else (8, 32)  # SwinUNETR halves its input five times
    spec = replace(SPEC, slab=depth)
    network = build(row, spec, backbone)
    image = torch.rand(1, 3 if row.kind == "neighbours" else 1, 1 if row.kind != "slabs" else depth, side, side)
    logits = network.forward(image)
    assert logits.shape == (1, 2, *image.shape[2:])
    logits.square().mean().backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in network.trained)
    if network.grafted is not None:
        network.grafted.detach()


def test_unet_has_the_size_that_is_said() -> None:
    count = sum(p.numel() for p in _volume_rows.scratch("unet", VOLUMES["hippocampus_mr"]).parameters())
    assert 500_000 < count < 700_000


def options(path: Path, **values: Any) -> argparse.Namespace:
    found = volumes.arguments(["--json", str(path)])
    vars(found).update({"methods": list(ROWS)[:2], "sets": ["sarcoma_mr"], "seeds": [0], **values})
    return found


def row(task: dict[str, Any], dice: float) -> dict[str, Any]:
    scores = {"dice": dice, "nsd_1mm": 0.5, "nsd_2mm": 0.6, "hd95": 4.0, "hd95_n": 4.0, "n": 4, "metric": "dice"}
    took = {"trainable": 9, "without_gradient": 0, "seconds_per_step": 1.0, "steps": 3, "extra_mb": 10.0, "busy": 1.0}
    return task | scores | took | {"train_cases": task["cases"] or 10, "lr": 1e-3}


def test_results_are_planned_resumed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in the file is not done again; the best method stands first."""
    asked: list[str] = []

    def streamed(module: str, arguments: list[str], *, threads: int) -> Any:
        import json

        assert module == "volumes" and threads == 1
        for task in json.loads(arguments[1])["tasks"]:
            asked.append(task["method"])
            yield row(task, 0.7 if task["method"] == list(ROWS)[0] else 0.8)

    monkeypatch.setattr("tests.benchmarks.grafts.streamed", streamed)
    monkeypatch.setattr(volumes, "open_backbone", lambda name: toy_backbone())
    path = tmp_path / "volumes.json"
    chosen = options(path)
    monkeypatch.setattr(volumes, "arguments", lambda argv: chosen)
    volumes.main([])
    assert len(asked) == 4
    text = path.with_suffix(".md").read_text()
    assert text.index("2.5D") < text.index("slices:")
    volumes.main([])
    assert len(asked) == 4, "nothing is done twice"
    changed = replace(ROWS[list(ROWS)[0]], lr=1e-4)
    monkeypatch.setitem(ROWS, list(ROWS)[0], changed)
    volumes.main([])
    assert len(asked) == 6, "a row whose settings changed is another run"
    assert "2.5D" in capsys.readouterr().out


def scored(method: str, dice: float, name: str = "sarcoma_mr", cases: int | None = 5, seed: int = 0) -> dict[str, Any]:
    task = {"method": method, "set": name, "cases": cases, "seed": seed, "backbone_unchanged": True}
    return row(task, dice)


def test_one_lucky_seed_is_no_mean_of_two() -> None:
    rows = [
        *(scored("lora + detail_3d", dice, seed=seed) for seed, dice in enumerate((0.6, 0.5))),
        scored("ma_sam + detail_3d", 0.9),
        *(scored("scratch: UNet", 0.4, seed=seed) for seed in (0, 1)),
        scored("scratch: SwinUNETR", 0.8),
    ]
    (line,) = _volume_summary.aims(rows)
    assert (line["best"], line["from scratch"], line["seeds"]) == ("lora + detail_3d", "scratch: UNet", 2)
    assert line["dice"] == pytest.approx(0.55) and line["its dice"] == pytest.approx(0.4) and line["reached"]


def test_aims_compare_the_best_of_both_sides() -> None:
    rows = [
        scored("lora + detail_3d", 0.65),
        scored("lora + detail_3d", 0.55, seed=1),
        scored("slices: lora + class_tokens", 0.5),
        scored("scratch: UNet", 0.45),
        scored("scratch: SwinUNETR", 0.3),
        scored("lora + detail_3d", 0.885, "hippocampus_mr", None),
        scored("scratch: UNet", 0.89, "hippocampus_mr", None),
        scored("lora + detail_3d", 0.9, "sarcoma_ct", None),
    ]
    first, second, third = _volume_summary.aims(rows)
    assert (first["best"], first["from scratch"]) == ("lora + detail_3d", "scratch: UNet")
    assert (first["dice"], first["its dice"], first["reached"]) == (pytest.approx(0.6), 0.45, True)
    assert (second["aim"], second["reached"]) == ("at least scratch", False)
    assert (third["aim"], third["reached"]) == ("at least 0.88", True)
    page = _volume_summary.page(rows, [{"method": "x", "set": "sarcoma_ct", "failed": "no"}])
    assert "- failed: x on sarcoma_ct: no" in page and "0.600 ± 0.071" in page and "sarcoma_ct, all" in page
