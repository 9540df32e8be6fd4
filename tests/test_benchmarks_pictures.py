"""Pictures of the documentation: small enough, and boxes cut into the parts of an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samgraft.domains.opening import open_scene
from samgraft.recipes.commands.segment import run as segment_command
from tests.benchmarks import raster_pictures as pictures
from tests.data.rasters import write_raster

pytestmark = pytest.mark.remote_sensing


def test_a_picture_is_made_smaller_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 140, (3, 200, 160), dtype=np.uint8)
    image[:, 60:100, 50:110] = 220
    path = write_raster(tmp_path / "r.tif", image)
    words = [str(path), "--box", "50", "60", "109", "99", "-o", str(tmp_path / "o.gpkg")]
    segment_command(words)
    monkeypatch.setattr(pictures, "MOST_BYTES", 40_000)
    assert pictures.drawn([path], tmp_path / "o.gpkg", None, tmp_path / "p.png") >= 1
    assert (tmp_path / "p.png").stat().st_size <= 40_000
    assert Image.open(tmp_path / "p.png").size in ((160, 200), (320, 400), (480, 600), (640, 800))
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    with pytest.raises(SystemExit, match="no picture of at most 100 bytes"):
        pictures.drawn([path], tmp_path / "o.gpkg", None, tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


def test_boxes_go_to_the_part_that_holds_their_middle(tmp_path: Path) -> None:
    """90 columns make thirds of 30: boxes with middles at 15 and 29.5 lie in the first, one at 31 in the second."""
    parts = pictures.thirds(write_raster(tmp_path / "r.tif", np.zeros((3, 20, 90), np.uint8)), tmp_path / "parts")
    assert [open_scene(part).grid.shape for part in parts] == [(20, 30)] * 3
    rows = "r,10,2,20,8,T\nr,25,3,34,9,T\nr,28,1,34,5,T\n"
    (tmp_path / "b.csv").write_text(f"image_path,xmin,ymin,xmax,ymax,label\n{rows}")
    found = pictures.boxes_of(tmp_path / "b.csv", parts[:2])
    assert [(one["image_id"], one["bbox"]) for one in found["annotations"]] == [
        (1, [10.0, 2.0, 10.0, 6.0]),
        (1, [25.0, 3.0, 5.0, 6.0]),
        (2, [0.0, 1.0, 4.0, 4.0]),
    ]
