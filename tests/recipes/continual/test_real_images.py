"""The router on real pictures it was not told of: none goes to a wrong kind, most go to their own, some to none."""

import json
from pathlib import Path

import pytest

from samgraft.adapters.backbones import load_backbone
from samgraft.domains.opening import open_scene
from samgraft.recipes.api import adapter_meta, load_adapter
from samgraft.recipes.continual.router import Domains
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.features import learn_features, write_features
from samgraft.recipes.sampled import spread
from tests.recipes.mosaic._scenes import tiny_adapter

SETS = ("cardiac_mr", "nerve_us", "retina_vessels")
KNOWN, NEW = 12, 4


def pictures(root: Path, split: str, count: int) -> list[Path]:
    """Pictures of a split, spread over it."""
    members = json.loads((root / "splits.json").read_text())[0][split]
    found = sorted(p for p in (root / "images").iterdir() if any(p.name.startswith(str(one)) for one in members))
    return [found[index] for index in sorted(spread(len(found), count))]


@pytest.mark.medical
def test_validation_pictures_go_to_no_wrong_kind(shared_data: Path, tmp_path: Path) -> None:
    backbone, files = load_backbone("graft-tiny"), {}
    for name in SETS:
        files[name] = tiny_adapter(tmp_path / f"{name}.graft", window=None)
        grafted = load_adapter(files[name], backbone)
        scenes = [open_scene(path) for path in pictures(shared_data / "medical" / name, "train", KNOWN)]
        found = learn_features(grafted, recorded(grafted, adapter_meta(grafted)), scenes)
        grafted.detach()
        write_features(files[name], found)
    domains = Domains.load(files, backbone)
    routes = {
        name: [domains.route(path) for path in pictures(shared_data / "medical" / name, "val", NEW)] for name in SETS
    }
    told = {name: [route.text() for route in some] for name, some in routes.items()}
    wrong = [route for name, some in routes.items() for route in some if route.name not in (name, None)]
    right = [route for name, some in routes.items() for route in some if route.name == name]
    assert not wrong and len(right) >= 8, told
