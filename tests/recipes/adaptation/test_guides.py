"""Another adapter that labels in the place of a source adapter that understands nothing of the target."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.bundle import EMBEDDED, read_header, read_meta
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.guides import as_taught
from samgraft.recipes.adaptation.looks import LOOKS, PLAIN
from samgraft.recipes.adaptation.run import adapt
from samgraft.recipes.callbacks import frozen_hashes
from samgraft.recipes.engine.run import load_adapter
from samgraft.recipes.representations import BorderMaps, ClassMaps
from tests.adapters.toy import toy_backbone
from tests.recipes.adaptation._sets import train_source, write_discs

CONFIG = AdaptConfig(steps=60, every=30, judge_tiles=6, lr=4e-3, momentum=0.8, progress=False)


def discs(root: Path, **look: float) -> Path:
    """As ``write_discs``, with the masks as instances: discs that touch are one."""
    made = write_discs(root, cases=20, **look)  # type: ignore[arg-type]
    (made / "masks").rename(made / "instances")
    for path in (made / "instances").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    return made


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bright discs with the source adapter, dark discs with the one that knows them."""
    root = tmp_path_factory.mktemp("guides")
    sets = {"bright": discs(root / "bright"), "dark": discs(root / "dark", gain=-1.0, offset=230.0, seed=1)}
    torch.manual_seed(0)
    return sets | {
        name: train_source(sets[kind], root / name, toy_backbone(), kind="instance", head=head)
        for name, kind, head in (("source", "bright", "class_tokens"), ("guide", "dark", "distances"))
    }


def mean_iou(adapter: Path, root: Path) -> float:
    """Of the foreground of the four held-out pictures."""
    grafted = load_adapter(adapter, toy_backbone())
    found = []
    for name in json.loads((root / "splits.json").read_text())[0]["val"]:
        predicted = samgraft.segment(root / "images" / f"{name}.png", adapter=grafted, progress=False).labels > 0
        truth = np.asarray(Image.open(root / "instances" / f"{name}.png")) > 0
        found.append((predicted & truth).sum() / max(1, (predicted | truth).sum()))
    return float(np.mean(found))


def run(places: dict[str, Path], out: Path, config: AdaptConfig) -> Path:
    backbone, lines = toy_backbone(), list[str]()
    hashes, before = frozen_hashes(backbone), places["source"].read_bytes()
    result = adapt(places["source"], [places["dark"]], out, config, backbone=backbone, tell=lines.append)
    assert frozen_hashes(backbone) == hashes and not backbone.occupied and places["source"].read_bytes() == before
    assert not result.fell_back, lines
    return result.adapter


def test_a_guide_teaches_what_the_source_does_not_know(places: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, guide=str(places["guide"]))
    adapter = run(places, tmp_path / "a.graft", config)
    source, guide, adapted = (mean_iou(path, places["dark"]) for path in (places["source"], places["guide"], adapter))
    assert source < 0.3 < 0.6 < guide and adapted > 0.5, (source, guide, adapted)
    told = read_meta(adapter).extra["adaptation"]
    assert told["guide"] == {"file": "adapter.graft", "tensors_sha256": read_header(places["guide"])["tensors_sha256"]}
    assert read_header(adapter)["decoder"] == read_header(places["source"])["decoder"]
    assert "guide" in (tmp_path / "a.adapt" / "report.html").read_text()


def test_one_of_the_package_is_taken_where_it_understands_more(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDED, "helper", places["guide"])
    monkeypatch.setattr("samgraft.recipes.adaptation.voices.LOOKS", {PLAIN: LOOKS[PLAIN]})  # a negative helps too
    short = replace(CONFIG, steps=2, every=2)
    lines: list[str] = []
    adapt(places["source"], [places["dark"]], tmp_path / "a.graft", short, backbone=toy_backbone(), tell=lines.append)
    looked = next(line for line in lines if line.startswith("looks and guides"))
    assert looked.endswith("taken: helper") and "graft-tiny-objects" not in looked  # that one is of another backbone
    assert read_meta(tmp_path / "a.graft").extra["adaptation"]["guide"]["file"] == "helper"
    own = replace(short, guide="none")
    adapt(places["source"], [places["dark"]], tmp_path / "b.graft", own, backbone=toy_backbone(), tell=lines.append)
    assert "helper" not in lines[-1] and read_meta(tmp_path / "b.graft").extra["adaptation"]["guide"] is None


def test_what_is_no_guide_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = train_source(write_discs(tmp_path / "d", cases=8), tmp_path / "run", toy_backbone(), steps=2)
    for source, guide, error, why in (
        (classes, places["guide"], ConfigError, "this source adapter gives classes"),
        (places["source"], classes, ConfigError, "separates no objects"),
        (places["source"], tmp_path / "gone.graft", CheckpointError, "gone.graft"),
    ):
        config = replace(CONFIG, guide=str(guide))
        with pytest.raises(error, match=why):
            work = tmp_path / "-".join(why.split())
            adapt(source, [places["dark"]], tmp_path / "c.graft", config, work=work, backbone=toy_backbone())
    assert not (tmp_path / "c.graft").exists()


def test_objects_become_what_the_head_learns() -> None:
    objects = torch.zeros(1, 7, 7, dtype=torch.int64)
    objects[0, 1:6, 1:6], objects[0, 6] = 3, -1
    taught = as_taught(objects, BorderMaps.for_head(None, classes=1, border=1))
    assert taught[0, 3, 3] == 1 and taught[0, 1, 1] == 2 and taught[0, 0, 0] == 0 and bool((taught[0, 6] == -1).all())
    assert torch.equal(as_taught(objects, ClassMaps.for_head(None, classes=1, border=1)), objects)
