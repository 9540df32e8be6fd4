"""The router: nearest, unknown, told; a domain that is added changes nothing; the commands."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samgraft.adapters.bundle import read_meta, replace_meta
from samgraft.domains.opening import open_scene
from samgraft.errors import CheckpointError, ConfigError, InputError, NoMatchError
from samgraft.recipes import cli
from samgraft.recipes.api import adapter_meta, load_adapter, segment
from samgraft.recipes.continual.router import Domains, nearest
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.features import learn_features, write_features
from tests.adapters.toy import toy_backbone
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.data.rasters import write_raster
from tests.recipes._adapters import blobs, save_picture, stripes, toy_file
from tests.recipes._sets import write_volumes


def pictures(folder: Path, kind: str, count: int = 5, start: int = 0) -> list[Path]:
    """Pictures of bright ellipses, of stripes, or black ones."""
    make = {"blobs": blobs, "stripes": stripes, "white": lambda seed: np.full((70, 90), 255, np.uint8)}[kind]
    return [save_picture(folder / f"{kind}{i}.png", make(seed=i)) for i in range(start, start + count)]


def learned(file: Path, images: list[Path]) -> Path:
    """An adapter file that remembers ``images``."""
    grafted = load_adapter(file, toy_backbone())
    said = recorded(grafted, adapter_meta(grafted))
    write_features(file, learn_features(grafted, said, [open_scene(path) for path in images]))
    return file


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two adapters of different kinds of pictures."""
    return {
        kind: learned(toy_file(tmp_path / f"{kind}.graft", seed=number), pictures(tmp_path, kind))
        for number, kind in enumerate(("blobs", "stripes"))
    }


@pytest.mark.parametrize(
    ("distances", "name"),
    [
        ({"a": 0.9, "b": 0.3}, "b"),
        ({"a": 1.2, "b": 1.1}, None),
        ({"a": 1.0}, "a"),
        ({"a": math.inf, "b": 0.5}, "b"),
        ({"a": 0.5, "b": 0.5}, "a"),
        ({"a": math.nan}, None),
    ],
)
def test_nearest_within_its_threshold(distances: dict[str, float], name: str | None) -> None:
    route = nearest(distances)
    assert route.name == name and route.distances == distances


def test_text_is_ordered_by_distance() -> None:
    assert nearest({"a": 2.0, "b": 1.5}).text() == "unknown (distance in thresholds: b 1.50, a 2.00)"


def test_new_pictures_go_to_their_domain_and_others_to_none(files: dict[str, Path], tmp_path: Path) -> None:
    domains = Domains.load(files.values(), toy_backbone())
    for kind in files:
        for path in pictures(tmp_path, kind, count=3, start=20):
            assert domains.route(path).name == kind
    strange = domains.route(pictures(tmp_path, "white", count=1)[0])
    assert strange.name is None and min(strange.distances.values()) > 1
    with pytest.raises(InputError, match="white0.png is unlike the training images of every adapter: unknown"):
        domains.segment(tmp_path / "white0.png", progress=False)


def test_results_are_those_of_the_adapter_alone_and_adding_a_domain_changes_none(
    files: dict[str, Path], tmp_path: Path
) -> None:
    image = pictures(tmp_path, "blobs", count=1, start=30)[0]
    backbone = toy_backbone()
    domains = Domains(backbone)
    domains.add("blobs", files["blobs"])
    before, route = domains.segment(image, progress=False)
    assert route is not None and route.name == "blobs" and before.meta["domain"] == "blobs"
    alone = segment(image, adapter=files["blobs"], backbone=toy_backbone(), progress=False)
    assert np.array_equal(before.labels, alone.labels)
    domains.add("stripes", files["stripes"])
    after, _ = domains.segment(image, progress=False)
    told, none = domains.segment(image, name="stripes", progress=False)
    assert np.array_equal(after.labels, before.labels)
    assert none is None and told.meta["route"] == "told" and not np.array_equal(told.labels, before.labels)
    assert not backbone.occupied and domains.names() == ("blobs", "stripes")
    with pytest.raises(NoMatchError, match="no domain 'cells'; known: blobs, stripes"):
        domains.segment(image, name="cells")


def test_what_cannot_be_loaded_or_looked_at(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="load the backbone that it names"):
        Domains.load(files.values(), toy_backbone(seed=3))
    with pytest.raises(ConfigError, match="would both be called 'blobs'"):
        Domains.load([files["blobs"], tmp_path / "other" / "blobs.graft"], toy_backbone())
    with pytest.raises(ConfigError, match="no adapter given"):
        Domains.load([], toy_backbone())
    domains = Domains.load(files, toy_backbone())
    with pytest.raises(ConfigError, match="there is an adapter 'blobs' already"):
        domains.add("blobs", files["stripes"])
    assert not domains.shelf.backbone.occupied
    plain = toy_file(tmp_path / "plain.graft")
    image = pictures(tmp_path, "blobs", count=1)[0]
    with pytest.raises(CheckpointError, match="adapter 'plain' says nothing about the features"):
        Domains.load([plain], toy_backbone()).route(image)
    meta = read_meta(files["blobs"])
    replace_meta(files["blobs"], replace(meta, modality="CT"))  # of which a picture cannot be; a volume of MR neither
    volume = write_volumes(tmp_path / "mr", cases=1, modality="MRI") / "imagesTr" / "case_00_0000.nii.gz"
    found = Domains.load(files, toy_backbone()).route(volume)
    assert math.isinf(found.distances["blobs"]) and math.isfinite(found.distances["stripes"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A backbone that the command line can load."""
    return write_hf_folder(tmp_path / "toy", toy_sam())


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from samgraft.adapters.backbones import load_backbone

    files = []
    for number, kind in enumerate(("blobs", "stripes")):
        file = toy_file(tmp_path / f"{kind}.graft", seed=number, backbone=load_backbone(folder))
        images = [str(path) for path in pictures(tmp_path, kind)]
        assert cli.main(["route", "--learn", *images, "-a", str(file), "--backbone", str(folder)]) == 0
        files.append(str(file))
    assert "wrote the features of 5 images into" in capsys.readouterr().out
    image = str(pictures(tmp_path, "stripes", count=1, start=40)[0])
    assert cli.main(["route", image, "--adapters", *files, "--backbone", str(folder)]) == 0
    assert f"{image}: stripes (distance in thresholds: stripes 0." in capsys.readouterr().out
    words = ["segment", image, "-a", files[0], "-a", files[1], "--backbone", str(folder)]
    out = [str(tmp_path / name) for name in ("auto.png", "told.png", "alone.png")]
    assert cli.main([*words, "--route", "auto", "-o", out[0]]) == 0
    assert "route: stripes (distance" in capsys.readouterr().out
    assert cli.main([*words, "--route", "stripes", "-o", out[1]]) == 0
    assert cli.main(["segment", image, "-a", files[1], "--backbone", str(folder), "-o", out[2]]) == 0
    assert len({Path(path).read_bytes() for path in out}) == 1
    capsys.readouterr()
    for more, message in (
        ([], "2 adapters; add --route auto"),
        (["--route", "cells"], "--route cells: no adapter of that name; known: blobs, stripes, or auto"),
    ):
        assert cli.main([*words, *more, "-o", out[0]]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["segment", image, "--everything", "--route", "auto", "-o", out[0]]) == 2
    assert "chooses among adapters; add --adapter FILE" in capsys.readouterr().err
    assert cli.main(["route", image, "--learn", "-a", *files]) == 2
    assert "--learn teaches one adapter; 2 are given" in capsys.readouterr().err


def test_a_raster_is_routed_by_windows_spread_over_it(tmp_path: Path) -> None:
    from tests.recipes._adapters import toy_meta

    meta = toy_meta(window=60)
    file = toy_file(tmp_path / "a.graft", meta=meta)
    raster = write_raster(tmp_path / "train.tif", blobs((400, 500))[None])
    learned(file, [raster])
    domains = Domains.load([file], toy_backbone())
    same = domains.route(write_raster(tmp_path / "same.tif", blobs((600, 300), seed=9)[None]))
    other = domains.route(write_raster(tmp_path / "other.tif", stripes((600, 300))[None]))
    assert same.name == "a" and same.distances["a"] < other.distances["a"]
