"""What the benchmarks of volumes claim, on a few real cases with small settings; skipped where the data is absent."""

import argparse

import numpy as np
import pytest

from samgraft.adapters.backbones.hub import load_backbone
from samgraft.recipes.engine.prompted import AskSettings
from samgraft.recipes.engine.volume_slices import SceneSlices
from samgraft.recipes.look import look_at
from samgraft.recipes.prompting import coarsest_axis
from samgraft.volumetric.localisation import Locator, PositionConfig, PositionTraining, Support, train_positions
from tests.benchmarks.localisation import NAMES, padded_cases, score
from tests.benchmarks.propagation import measure, volumes

pytestmark = [pytest.mark.slow, pytest.mark.medical]


def test_one_box_on_the_key_slice_beats_a_box_on_every_slice(shared_data, monkeypatch):
    monkeypatch.setenv("SAMGRAFT_SHARED", str(shared_data.parent))
    settings = AskSettings(
        backbone=load_backbone("graft-tiny"), size=128, contexts=(1.6,), batch=8, depth=0, fit=True, better=None
    )
    rows = []
    for name, scene, truth in volumes("sarcoma_mr", "val", 2):
        slices = SceneSlices(scene, look_at(scene), coarsest_axis(scene.grid), settings)
        rows.append({"case": name, **measure(slices, truth, argparse.Namespace(ways=[], clicks=[1, 3, 5]))})
    print(rows)
    assert all(row["same"] for row in rows), "the order of directions does not matter"
    assert np.mean([row["propagated"] - row["slices of a 3D box"] for row in rows]) > 0
    assert np.mean([row["5 clicks"] - row["propagated"] for row in rows]) > 0


def test_walls_of_the_hippocampus_are_found_in_padded_and_shifted_volumes(shared_data, monkeypatch):
    monkeypatch.setenv("SAMGRAFT_SHARED", str(shared_data.parent))
    spacing = 1.0
    train = padded_cases("train", 24, 24, seed=0)
    supports = [Support(image=image, walls=walls) for _, image, walls in train[:5]]
    training = PositionTraining(steps=150, crop=32, batch=1, places=128)
    network, figures = train_positions(
        [image for _, image, _ in train], PositionConfig(spacing=spacing, width=8, reach=30.0), training
    )
    rows = score(Locator.of(network, supports, NAMES), supports, padded_cases("val", 8, 24, seed=1))
    means = {k: np.mean([row[k] for row in rows if row["structure"] == "whole"]) for k in rows[0] if "m" in k[:1]}
    walls = float(np.mean([row["wall_mm"] for row in rows]))
    print(figures, means, walls)
    assert walls < 4.0
    assert walls < np.mean([row["middle of the array"] for row in rows])
