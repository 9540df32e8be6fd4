"""Phantoms, the demonstration on a toy backbone, and the Python of the README and the tutorials."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pyogrio
import pytest
from PIL import Image

import samgraft
from samgraft.adapters.backbones import hub
from samgraft.recipes.demo import DemoConfig, run_demo
from samgraft.recipes.demo_report import best_slice
from samgraft.recipes.phantoms import ABDOMEN_CLASSES, make_abdomen, make_village, truth, write_abdomen, write_village
from tests.adapters.toy import toy_backbone
from tests.conftest import ROOT

SMALL = DemoConfig(
    volumes=1,
    scenes=1,
    seconds=60,
    steps=2,
    size=64,
    volume_shape=(16, 96, 96),
    scene_shape=(180, 160),
    progress=False,
)
DOCS = ("README.md", "docs/tutorial_clinical.md", "docs/tutorial_remote_sensing.md")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    lines = []
    folder = tmp_path_factory.mktemp("demo") / "demo_out"
    return run_demo(folder, config=SMALL, backbone=toy_backbone, say=lines.append), folder, lines


def test_abdomen_is_repeatable_oblique_and_anisotropic(tmp_path):
    one, again = make_abdomen(3, shape=(8, 64, 64)), make_abdomen(3, shape=(8, 64, 64))
    assert np.array_equal(one.image, again.image) and one.grid == again.grid
    assert not np.array_equal(one.image, make_abdomen(4, shape=(8, 64, 64)).image)
    spacing = one.grid.spacing
    assert spacing[0] == pytest.approx(5.0, abs=1e-3) and spacing[1] == pytest.approx(4.8, abs=1e-3)
    directions = np.abs(one.grid.affine[:3, :3] / spacing)
    assert directions.max() < 0.999, "every axis is oblique"
    write_abdomen(one, tmp_path / "a.nii.gz", tmp_path / "l.nii.gz")
    scene = samgraft.open(tmp_path / "a.nii.gz")
    assert scene.grid == one.grid and np.array_equal(scene.read()[0], one.image)
    assert np.array_equal(samgraft.open(tmp_path / "l.nii.gz").read_labels(), one.labels)


def test_abdomen_lies_in_the_body_as_a_patient_does():
    found = make_abdomen(0)
    centre = {v: found.grid.to_world(np.argwhere(found.labels == v).mean(axis=0)) for v in ABDOMEN_CLASSES}
    middle = found.grid.to_world((np.array(found.grid.shape) - 1) / 2)
    right, anterior, superior = centre[1] - middle
    assert right > 10 and superior > 0 and anterior > centre[2][1] - middle[1], (
        "liver: right, above and before the kidneys"
    )
    assert {0, 1, 2} == set(np.unique(found.labels).tolist())
    assert -1024 <= found.image.min() < -900 and 300 < found.image.max() < 1500


def test_village_keeps_its_place_and_its_polygons(tmp_path):
    found = make_village(5, shape=(160, 200))
    write_village(found, tmp_path / "v.tif", tmp_path / "v.gpkg")
    scene = samgraft.open(tmp_path / "v.tif")
    assert scene.grid == found.grid and np.array_equal(scene.read(), found.image)
    info = pyogrio.read_info(tmp_path / "v.gpkg")
    assert info["crs"] == "EPSG:32633" and info["features"] == found.buildings.max() > 3
    assert truth(found).from_ground_truth


def test_demo_writes_what_it_says(demo):
    result, folder, lines = demo
    for name in ("mask.nii.gz", "buildings.gpkg", "buildings.geojson", "report.html", "overview.png"):
        assert (folder / name).stat().st_size > 200
        assert any(name in line for line in lines), name
    assert np.array_equal(nib.load(folder / "mask.nii.gz").affine, nib.load(folder / "abdomen.nii.gz").affine)
    assert pyogrio.read_info(folder / "buildings.gpkg")["crs"] == "EPSG:32633"
    assert set(result.volume.figures) == {"Dice liver", "Dice kidney"}
    assert {"IoU buildings", "AP50"} <= set(result.scene.figures)
    assert result.volume.adapter.stat().st_size < 5 * 2**20


def test_demo_report_names_n_and_shows_both(demo):
    result, folder, _ = demo
    text = (folder / "report.html").read_text()
    assert "n = 1" in text and text.count("<img") >= 9 and "http" not in re.sub(r"data:[^\"]*", "", text)
    assert Image.open(result.picture).size[0] > 800


def test_demo_can_be_run_again_in_the_same_folder(demo, tmp_path):
    _, folder, _ = demo
    (folder / "runs" / "old").mkdir()
    from samgraft.recipes.demo import _prepare

    _prepare(folder.parent / "copy")
    (folder.parent / "copy" / "runs" / "old").mkdir()
    _prepare(folder.parent / "copy")
    assert list((folder.parent / "copy" / "runs").iterdir()) == []


def test_best_slice_has_the_most_classes():
    labels = np.zeros((3, 4, 4), dtype=int)
    labels[0] = 1
    labels[1, 0], labels[1, 1] = 1, 2
    assert best_slice(labels) == 1


def blocks(name: str) -> list[str]:
    """Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("name", DOCS)
def test_python_of_the_pages_runs(name, demo, monkeypatch, capsys):
    _, folder, _ = demo
    real = hub.load_backbone
    monkeypatch.setattr("samgraft.recipes.engine.run.load_backbone", lambda source: _toy(source, real))
    monkeypatch.setattr("samgraft.recipes.training.load_backbone", lambda source: _toy(source, real))
    monkeypatch.chdir(folder.parent)
    found = blocks(name)
    assert found
    for code in found:
        exec(compile(code, name, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out


def _toy(source, real):
    """The toy in place of graft-tiny, so that pages run quickly; anything else as usual."""
    toy = toy_backbone()
    return toy if source in ("graft-tiny", toy.spec.name) else real(source)


def test_pages_link_to_files_that_exist():
    for name in (*DOCS, "docs/architecture.md"):
        page = ROOT / name
        links = [x for x in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in x]
        missing = [x for x in links if not (page.parent / x).exists() and Path(x).name != "demo.png"]
        assert not missing, f"{name}: {missing}"
