"""Benchmarks of one-shot methods and of everything mode: what they measure again and what they find again."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samgraft.adapters.prompts import InContextConfig, PersamFConfig
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.engine.runs import runs_of
from tests.adapters.toy import toy_backbone
from tests.benchmarks import everything, one_shot

HEIGHT, WIDTH = 40, 64


def toy_item(case: str, left: int) -> one_shot.Item:
    """A bright square on noise, at another place in each picture, and features of all blocks."""
    truth = np.zeros((HEIGHT, WIDTH), dtype=bool)
    truth[8:24, left : left + 16] = True
    noise = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(left))
    picture = 0.2 * noise + 0.7 * torch.from_numpy(truth)
    fit = Fit(source=(HEIGHT, WIDTH), size=64)
    image = fit.image(picture)
    with torch.no_grad():
        features = toy_backbone().encode(image[None], range(3))
    return one_shot.Item(
        case=case,
        picture=picture,
        truth=truth,
        image=image,
        mask=fit.image(torch.from_numpy(truth).float()[None])[0],
        valid=fit.labels(torch.ones(HEIGHT, WIDTH, dtype=torch.int64), outside=0) > 0,
        features=features,
    )


def test_centre_of_an_item_lies_on_the_network_input() -> None:
    """40 rows in a square of 64: 12 rows above. The deepest pixel of rows 8 to 23, columns 30 to 45 is a middle one."""
    x, y = one_shot.centre(toy_item("a", 30)).points[0, 0].tolist()  # type: ignore[index]
    assert x in (37, 38) and y - 12 in (15, 16)


def test_one_shot_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def items(backbone: Any, name: str, split: str, **_: Any) -> list[one_shot.Item]:
        read.append(split)
        return [toy_item(f"{split} {left}", left) for left in ((4, 20, 40) if split == "train" else (10, 30))]

    monkeypatch.setattr(one_shot, "items", items)
    configs = {"persam_f": PersamFConfig(steps=1), "in_context: read-out": InContextConfig()}
    monkeypatch.setattr(one_shot, "CONFIGS", configs)
    options = Namespace(shots=[1, 3], runs=2, images=2, size=64)
    backbone = toy_backbone()
    rows = list(one_shot.compare(backbone, "toy", options, []))
    assert [(row["method"], row["references"], row["draws"]) for row in rows] == [
        *((method, 0, 1) for method in one_shot.CENTRE),
        (one_shot.TOLD, 1, 2),
        ("persam_f", 1, 2),
        ("in_context: read-out", 1, 2),
        ("in_context: read-out", 3, 1),
    ]
    assert [row["from_ground_truth"] for row in rows] == [True] * 4 + [False] * 3
    assert all(0 <= row["lowest"] <= row["dice"] <= row["highest"] <= 1 for row in rows)
    assert read == ["train", "val"]
    written = json.loads(json.dumps(rows))
    missing = list(one_shot.compare(backbone, "toy", options, written[:-1]))
    assert [(row["method"], row["references"]) for row in missing] == [("in_context: read-out", 3)]
    assert missing[0]["dice"] == rows[-1]["dice"]
    read.clear()
    assert list(one_shot.compare(backbone, "toy", options, written)) == [] and read == []
    configs["persam_f"] = PersamFConfig(steps=2)
    assert {row["method"] for row in one_shot.compare(backbone, "toy", options, written)} == {"persam_f", one_shot.TOLD}


def test_everything_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original takes 6 s and 300 MB and finds two masks; samgraft 2 s, 100 MB, and one of them."""
    asked: list[str] = []
    squares = [runs_of(np.ones((6, 4), dtype=bool), top=top, left=9, shape=(20, 30)) for top in (1, 12)]

    def isolated(module: str, arguments: list[str], *, threads: int) -> dict[str, Any]:
        task = json.loads(arguments[1])
        asked.append(f"{task['way']} {task['round']}")
        if task["way"] == "calibrate":
            return {"pred_iou": 0.4, "stability": 0.6}
        ours = task["way"] == "samgraft"
        found = squares[:1] if ours else squares
        Path(task["masks_at"]).write_text(json.dumps([mask.coco() for mask in found]))
        seconds, memory = (2.0, 100.0) if ours else (6.0, 300.0)
        return {
            "search_s": seconds,
            "total_s": seconds + 1,
            "search_mb": memory,
            "total_mb": 400.0,
            "masks": len(found),
        }

    monkeypatch.setattr(everything, "isolated", isolated)
    options = ["--rounds", "2", "--ways", "original", "samgraft", "--json", str(tmp_path / "found.json")]
    everything.main(options)
    assert asked == ["calibrate 0", "original 0", "samgraft 0", "original 1", "samgraft 1"]
    first = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [row["faster"] for row in first] == [1, 3] and first[1]["memory"] == pytest.approx(1 / 3)
    assert (first[1]["count_difference"], first[1]["matched_iou"]) == (-0.5, 0.5)
    asked.clear()
    everything.main([*options, "--rounds", "3"])
    assert asked == ["original 2", "samgraft 2"]
    assert json.loads((tmp_path / "found.json").read_text())["results"] == first


def test_discs_stand_near_the_points_that_ask() -> None:
    """Points near (90, 45) of a picture with 4 pixels a cell: the disc's middle is the cell around (22.1, 10.9)."""
    prompts = everything.prompts_of(torch.tensor([[95.0, 40.0]]))
    logits, iou = everything.discs(prompts, 64, 4.0)
    assert logits.shape == (1, 3, 64, 64) and iou.shape == (1, 3)
    row, column = divmod(int(logits[0, 2].argmax()), 64)
    assert (row, column) == (11, 22)
    areas = (logits[0] > 0).flatten(1).sum(dim=1)
    assert areas[0] < areas[1] < areas[2]
