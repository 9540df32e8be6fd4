"""Procedural pictures with numbered objects: reproducible, true, and written so that a recipe can train on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samgraft.errors import ConfigError
from samgraft.recipes import cli
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.pretrain import objects as module
from samgraft.recipes.pretrain.objects import EMPTY, SMALLEST, VAL_FROM, _numbered, make_objects, write_objects


def test_the_same_seed_draws_the_same_and_another_another() -> None:
    first, again, other = (make_objects(seed, 64) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_objects_are_connected_numbered_without_gaps_and_not_tiny() -> None:
    empty = 0
    for seed in range(120):
        image, found = make_objects(seed, 64)
        assert image.shape == (3, 64, 64) and 0 <= image.min() and image.max() <= 1 and np.isfinite(image).all()
        numbers = np.unique(found[found > 0])
        assert np.array_equal(numbers, np.arange(1, len(numbers) + 1))
        for number in numbers:
            assert ndimage.label(found == number)[1] == 1 and (found == number).sum() >= SMALLEST
        empty += not len(numbers)
    assert 0 < empty < 120 * 5 * EMPTY


def test_of_a_cut_object_the_largest_piece_counts_and_crumbs_are_ground() -> None:
    regions = np.zeros((20, 20), dtype=np.int32)
    regions[2:6], regions[:, 12], regions[15:17, 2:5] = 1, 2, 3  # a bar that a line cuts, and six pixels
    found = _numbered(regions, [(1,), (2,), (3,)])
    assert found[3, 2] == 1 and found[3, 15] == 0 and found[10, 12] == 2 and found[15, 2] == 0
    assert found.max() == 2


def test_things_behind_are_no_objects_and_look_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    render = module.render

    def watched(rng: np.random.Generator, regions: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        seen.append(kinds.tolist())
        return render(rng, regions, kinds)

    monkeypatch.setattr(module, "render", watched)
    monkeypatch.setattr(module, "CLUTTERED", 1.0)
    monkeypatch.setattr(module, "EMPTY", 1.0)
    for seed in range(30):
        assert not make_objects(seed, 64)[1].any()
    assert all(kind == 0 or kind >= 100 for kinds in seen for kind in kinds)
    assert any(kind >= module.CLUTTER_KIND for kinds in seen for kind in kinds)


def test_a_written_set_is_read_by_a_recipe_and_goes_on_where_it_was(tmp_path: Path) -> None:
    write_objects(tmp_path, train=3, val=2, size=64)
    image, found = make_objects(VAL_FROM + 1, 64)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "instances" / "val_000001.png")), found)
    shown = np.asarray(Image.open(tmp_path / "images" / "val_000001.png"))
    assert np.abs(shown - image.transpose(1, 2, 0) * 255).max() <= 0.51
    data = SegmentationData(DataConfig(path=str(tmp_path), layout="image_mask", labels="instances"), kind="instance")
    assert (len(data.index.train), len(data.index.val)) == (3, 2)
    (tmp_path / "images" / "000001.png").write_bytes(b"kept")
    (tmp_path / "images" / "000002.png").unlink()
    write_objects(tmp_path, train=4, val=2, size=64)
    assert (tmp_path / "images" / "000001.png").read_bytes() == b"kept"
    assert sorted(p.name for p in (tmp_path / "images").iterdir() if p.suffix != ".png") == []
    assert json.loads((tmp_path / "splits.json").read_text())["train"] == ["000000", "000001", "000002", "000003"]


def test_command_line_and_wrong_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--scenes", str(tmp_path / "s"), "--count", "2"]) == 0
    assert len(list((tmp_path / "s" / "images").iterdir())) == 3
    assert str(tmp_path / "s") in capsys.readouterr().out
    with pytest.raises(ConfigError, match="0 training and 1 validation pictures of 128 pixels; expected"):
        write_objects(tmp_path / "t", train=0, val=1)
    assert not (tmp_path / "t").exists()
