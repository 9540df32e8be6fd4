"""Real nuclei: what the embedded backbone makes of their boxes and points, against the hidden masks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samgraft.adapters.backbones.hub import load_backbone
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.weak.pseudo import PseudoLabels
from samgraft.recipes.weak.simulate import simulate
from samgraft.recipes.weak_config import Supervision, WeakConfig

pytestmark = pytest.mark.medical


def few_nuclei(shared: Path, root: Path, count: int = 4) -> DataConfig:
    """Pictures from small to large in bytes, evenly chosen, as a set of their own."""
    source = shared / "medical" / "nuclei"
    names = sorted(
        (p.name for p in (source / "images").iterdir()), key=lambda n: (source / "images" / n).stat().st_size
    )
    chosen = names[:: max(1, len(names) // count)][:count]
    for folder in ("images", "instances"):
        (root / folder).mkdir(parents=True)
        for name in chosen:
            shutil.copy(source / folder / name, root / folder / name)
    stems = [Path(name).stem for name in chosen]
    (root / "splits.json").write_text(json.dumps([{"train": stems[:-1], "val": stems[-1:]}]))
    return DataConfig(path=str(root), layout="image_mask", labels="instances")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


@pytest.mark.parametrize(("supervision", "least"), [("boxes", 0.92), ("points", 0.8)])
def test_pseudo_masks_are_better_than_filled_boxes(
    shared_data: Path, tmp_path: Path, supervision: Supervision, least: float
) -> None:
    config = few_nuclei(shared_data, tmp_path / "nuclei")
    place = simulate(config, "instance", supervision, tmp_path)
    boxes = simulate(config, "instance", "boxes", tmp_path)
    weak = replace(config, supervision=supervision, weak=str(place))
    truth = {r.id: r.read().labels[0] for r in index_data(config, "instance").train}
    boxed = replace(weak, supervision="boxes", weak=str(boxes))
    filled_of = {r.id: r.read() for r in index_data(boxed, "instance").train}
    make = PseudoLabels(load_backbone("graft-tiny"), WeakConfig(), instance=True)
    found, filled = [], []
    for ref in index_data(weak, "instance").train:
        case, mask = make(ref.read()), truth[ref.id] > 0
        assert case.weak is not None and case.weak.unsure is not None
        certain = (case.labels[0] != -1) & ~case.weak.unsure[0]
        found.append(dice((case.labels[0] > 0) & certain, mask & certain))
        area = np.zeros_like(mask)
        other = filled_of[ref.id].weak
        assert other is not None
        for one in other.objects:
            x0, y0, x1, y1 = map(int, one.around)
            area[y0 : y1 + 1, x0 : x1 + 1] = True
        filled.append(dice(area, mask))
    assert np.mean(found) > least  # measured: boxes 0.960, points 0.862 (of 75 % of the pixels); filled boxes 0.838
    assert supervision == "points" or np.mean(found) > np.mean(filled) + 0.08
