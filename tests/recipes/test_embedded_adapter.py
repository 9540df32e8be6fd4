"""The adapter in the package: found by its name wherever an adapter is read, and able to find what it was made for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import EMBEDDED, bundle_path, read_header, read_meta, read_tensors
from samgraft.errors import CheckpointError
from samgraft.recipes import cli
from samgraft.recipes.api import segment, segment_mosaic
from samgraft.recipes.instances import average_precision, match_instances
from samgraft.recipes.pretrain.objects import VAL_FROM, make_objects, write_objects
from tests.data.rasters import write_raster

NAME = "graft-tiny-objects"
SEEDS = range(VAL_FROM + 10_000, VAL_FROM + 10_012)
"""Scenes that neither trained nor validated it."""


def picture(path: Path, seed: int) -> np.ndarray:
    """Write a scene; its objects."""
    image, found = make_objects(seed)
    Image.fromarray((image.transpose(1, 2, 0) * 255).astype(np.uint8)).save(path)
    return found


def test_a_name_is_a_file_unless_a_file_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle_path(NAME) == EMBEDDED[NAME] and EMBEDDED[NAME].is_file()
    assert EMBEDDED[NAME].stat().st_size < 2_000_000 and EMBEDDED[NAME].with_suffix(".md").is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_bytes(b"mine")
    assert bundle_path(NAME) == Path(NAME)
    with pytest.raises(CheckpointError, match="no adapter file graft-tiny-object"):
        read_header("graft-tiny-object")


def test_it_belongs_to_the_embedded_backbone_and_says_what_it_saw() -> None:
    header, meta = read_header(NAME), read_meta(NAME)
    assert header["backbone"]["sha256"] == load_backbone("graft-tiny").weights_hash()
    assert (meta.task, meta.classes, header["grafts"]) == ("instance", {1: "object"}, {})
    assert meta.training["data"] == "scenes" and str(Path.home()) not in EMBEDDED[NAME].read_bytes().decode("latin-1")


def test_it_finds_objects_of_unseen_scenes(tmp_path: Path) -> None:
    matches = []
    for seed in SEEDS:
        truth = picture(tmp_path / "p.png", seed)
        found = segment(tmp_path / "p.png", adapter=NAME, progress=False)
        scores = np.array([record.score for record in found.instances])
        matches.append(match_instances(str(seed), np.asarray(found.labels), scores, truth))
    assert average_precision(matches) > 0.5


def test_command_line_and_tiles_know_the_name(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", SEEDS[0])
    assert cli.main(["segment", str(tmp_path / "p.png"), "--adapter", NAME, "-o", str(tmp_path / "o.tif")]) == 0
    image = np.concatenate([np.concatenate([make_objects(s)[0] for s in SEEDS[i : i + 2]], 2) for i in (0, 2)], 1)
    raster = write_raster(tmp_path / "r.tif", (image * 255).astype(np.uint8))
    summary = segment_mosaic(raster, tmp_path / "r.gpkg", adapter=NAME)
    assert summary.objects > 3


def test_a_recipe_begins_with_it(tmp_path: Path) -> None:
    write_objects(tmp_path / "data", train=3, val=1)
    words = ["fit", "--config", "nuclei_few", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "run")]
    assert cli.main([*words, "--train.fast_dev_run", "true", "--train.accelerator", "cpu"]) == 0
    found, start = (read_tensors(path, read_header(path)) for path in (tmp_path / "run" / "adapter.graft", NAME))
    assert found.keys() == start.keys() and any(not torch.equal(found[name], start[name]) for name in start)
    assert all((found[name] - start[name]).abs().max() < 0.01 for name in start), "two steps from where it began"
