"""Whole runs from weak labels: masks are never read, and what is learned is much more than filled boxes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import load_bundle, read_meta
from samgraft.errors import ConfigError
from samgraft.recipes.cli import main
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.training import RunResult, fit, load_adapted, validate
from samgraft.recipes.weak.pseudo import PseudoLabels
from samgraft.recipes.weak.simulate import simulate
from samgraft.recipes.weak_config import WeakConfig
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures, write_rasters, write_volumes

ANY = WeakConfig(min_iou=0.0, min_stability=0.0, certain=0.1)
"""Takes every mask: those of a backbone with random weights are poor."""


def write_crosses(root: Path, *, cases: int = 8, seed: int = 0) -> Path:
    """64 x 64 pictures with two bright crosses, which fill about two fifths of their boxes; masks/ has them."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(cases):
        mask = np.zeros((64, 64), bool)
        for left in (2, 34):
            row, col, arm = rng.integers(16, 48), left + rng.integers(12, 15), rng.integers(9, 12)
            mask[row - arm : row + arm + 1, col - 2 : col + 3] = True
            mask[row - 2 : row + 3, col - arm : col + arm + 1] = True
        image = np.clip(60 + 110 * mask + rng.normal(0, 10, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(np.repeat(image[..., None], 3, axis=-1)).save(root / "images" / f"c{index}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"c{index}.png")
    names = [f"c{i}" for i in range(cases)]
    (root / "splits.json").write_text(json.dumps([{"train": names[:-2], "val": names[-2:]}]))
    return root


def config_of(root: Path, supervision: str, *, steps: int, layout: str = "image_mask", **task: object) -> FitConfig:
    """A short run on 64 pixels with labels that ``simulate`` wrote beside the images."""
    data = DataConfig(path=str(root), layout=layout, size=64, batch_size=4, supervision=supervision)  # type: ignore[arg-type]
    settings: dict[str, object] = {"grafts": {"lora": {"rank": 2}}, "lr": 1e-2, "warmup": 0.1} | task
    return FitConfig(
        task=TaskConfig(**settings),  # type: ignore[arg-type]
        data=data,
        augment=AugmentConfig(rotate=5, scale=0.05, shift=0.02),
        train=TrainConfig(steps=steps, val_every=steps, progress=False, accelerator="cpu", cache=False),
        weak=ANY,
    )


@pytest.mark.parametrize(
    ("layout", "kind", "supervision"),
    [
        ("image_mask", "semantic", "boxes"),
        ("image_mask", "instance", "points"),
        pytest.param("image_mask", "semantic", "scribbles", marks=pytest.mark.slow),
        pytest.param("image_mask", "instance", "coarse", marks=pytest.mark.slow),
        ("nnunet", "semantic", "points"),
        ("raster_vector", "instance", "boxes"),
    ],
)
def test_noise_in_the_place_of_masks_or_no_masks_at_all_give_the_same_weights(
    tmp_path: Path, layout: str, kind: str, supervision: str
) -> None:
    write = {"image_mask": write_pictures, "nnunet": write_volumes, "raster_vector": write_rasters}[layout]
    folder = {"nnunet": "labelsTr", "raster_vector": "labels"}.get(
        layout, "masks" if kind == "semantic" else "instances"
    )
    options = {"instances": True} if (layout, kind) == ("image_mask", "instance") else {}
    root = write(tmp_path / "data", **options)
    config = config_of(root, supervision, steps=4, layout=layout, kind=kind)
    simulate(config.data, kind, supervision, root)  # type: ignore[arg-type]
    states = []
    for number, spoil in enumerate((lambda: None, lambda: spoilt(root / folder), lambda: shutil.rmtree(root / folder))):
        spoil()
        backbone = toy_backbone()
        result = fit(config, tmp_path / f"run{number}", backbone=backbone, report=False)
        states.append(load_bundle(result.adapter, toy_backbone()).graft_state())
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in states[0])
    assert result.summaries[0].name == "agreement" and 0 <= result.summaries[0].mean <= 1
    assert read_meta(result.adapter).training["supervision"] == supervision


def spoilt(folder: Path) -> None:
    """Replace every label file by bytes that are no label."""
    for path in folder.iterdir():
        path.write_bytes(b"not a mask")


def dice_of(config: FitConfig, result: RunResult, backbone: Backbone) -> float:
    """Mean Dice on the validation cases against the hidden masks."""
    hidden = replace(config, data=replace(config.data, supervision="masks"))
    task, data = load_adapted(hidden, result.adapter, backbone=backbone)
    return next(s.mean for s in validate(task, data, progress=False) if s.name == "dice/mean")


def test_crosses_are_learned_from_boxes_without_any_prompt(tmp_path: Path) -> None:
    root = write_crosses(tmp_path / "data")
    config = config_of(root, "boxes", steps=80)
    config = replace(config, weak=WeakConfig(prompts=False, crf=0.5, tightness=1.0))
    simulate(config.data, "semantic", config.data.supervision, root)
    result = fit(config, tmp_path / "run", backbone=toy_backbone(), report=True)
    assert dice_of(config, result, toy_backbone()) > 0.75  # filled boxes: 0.59
    rounds = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["weak/round"] for row in rounds if "weak/round" in row] == [1, 2]
    for name in ("weak_labels.png", "weak_round_2.png", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 500


@pytest.mark.parametrize(("supervision", "steps", "least"), [("points", 40, 0.7), ("scribbles", 40, 0.7)])
def test_crosses_are_learned_from_prompted_masks(tmp_path: Path, supervision: str, steps: int, least: float) -> None:
    root = write_crosses(tmp_path / "data")
    config = config_of(root, supervision, steps=steps)
    config = replace(config, weak=WeakConfig())
    simulate(config.data, "semantic", config.data.supervision, root)
    result = fit(config, tmp_path / "run", report=False)
    assert dice_of(config, result, load_backbone("graft-tiny")) > least  # filled boxes: 0.59


@pytest.mark.parametrize("supervision", ["boxes", "points", "scribbles", "coarse"])
def test_certain_pixels_of_the_embedded_backbone_are_right(tmp_path: Path, supervision: str) -> None:
    root = write_crosses(tmp_path / "data", cases=4)
    config = config_of(root, supervision, steps=1)
    simulate(config.data, "semantic", config.data.supervision, root)
    truth = {
        ref.id: ref.read().labels for ref in index_data(replace(config.data, supervision="masks"), "semantic").train
    }
    make = PseudoLabels(load_backbone("graft-tiny"), WeakConfig(), instance=False)
    right, known, found, total = [], [], [], []
    for ref in index_data(config.data, "semantic").train:
        case = make(ref.read())
        assert case.weak is not None and case.weak.unsure is not None
        certain = (case.labels != -1) & ~case.weak.unsure
        right.append((case.labels[certain] == truth[ref.id][certain]).mean())
        known.append(certain.mean())
        found.append((certain & (case.labels == 1) & (truth[ref.id] == 1)).sum())
        total.append((truth[ref.id] == 1).sum())
    assert make.asked == 4 and make.trusted >= 3
    assert np.mean(right) > 0.95 and np.mean(known) > (0.05 if supervision == "scribbles" else 0.9)
    assert np.sum(found) / np.sum(total) > (0.65 if supervision == "points" else 0.9)


def test_the_command_line_fits_boxes_from_a_source_and_scores_with_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_crosses(tmp_path / "data", cases=4)
    simulate(DataConfig(path=str(root), layout="image_mask"), "semantic", "boxes", root)
    words = [
        "--data",
        str(root),
        "--data.layout",
        "image_mask",
        "--size",
        "64",
        "--steps",
        "2",
        "--train.val_every",
        "2",
    ]
    words += ["--train.progress", "false", "--train.accelerator", "cpu", "--train.cache", "false"]
    assert main(["fit", *words, "-o", str(tmp_path / "source")]) == 0
    weak = ["--data.supervision", "boxes", "--weak.first_round", "0", "--weak.rounds", "1"]
    source = tmp_path / "source" / "adapter.graft"
    assert main(["fit", *words, *weak, "--train.start_from", str(source), "-o", str(tmp_path / "run")]) == 0
    assert "agreement" in capsys.readouterr().out
    first = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["weak/round"]) == (0, 1) and first["weak/accepted"] + first["weak/refused"] == 4
    masks = ["--data.supervision", "masks", "--train.progress", "false"]
    assert main(["validate", "--run", str(tmp_path / "run"), *masks]) == 0
    assert "dice/mean" in capsys.readouterr().out


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.supervision is 'lines'; expected one of masks, boxes"):
        DataConfig(supervision="lines")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weak and partial labels are learned slice by slice"):
        DataConfig(supervision="boxes", slab=4)
    with pytest.raises(ConfigError, match="weak.low is 0.7 and weak.high 0.6"):
        WeakConfig(low=0.7, high=0.6)
