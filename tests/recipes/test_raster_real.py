"""Training from the 48 chips of buildings_banepa as one mosaic: west trains, east validates."""

import json
from pathlib import Path

import numpy as np
import pytest

from samgraft.domains.datasets.raster_vector import read_raster_vector
from samgraft.domains.labels.source import UNKNOWN, ObjectLabels, window_of
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data

pytestmark = pytest.mark.remote_sensing
EAST = 386_694 / 2**19 * 360 - 180
"""Western edge of the two columns of chips that validate."""


def test_chips_are_one_mosaic_with_a_strip_between_west_and_east(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "geo" / "buildings_banepa" / "train"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    ring = [[EAST, 27.0], [86.0, 27.0], [86.0, 28.0], [EAST, 28.0], [EAST, 27.0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    east = tmp_path / "east.geojson"
    east.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    labels = next(iter((root / "osm").glob("*.geojson")))
    config = DataConfig(
        layout="mosaic",
        path=str(root),
        rasters="oam/*.tif",
        labels=str(labels),
        val_area=str(east),
        window=256,
        size=256,
        block_m=67.5,
    )
    index = index_data(config, "instance", ["building"])
    windows = index.windows
    assert windows is not None
    height, width = windows.source.scene.grid.shape  # the pixels of a chip follow its latitude: 30 chips are moved
    assert width == 3072 and 4096 <= height <= 4097
    assert index.gsd == pytest.approx((0.132, 0.132), rel=0.02)
    outlines = windows.source.labels
    assert isinstance(outlines, ObjectLabels) and len(outlines) > 1400
    assert windows.windows[:, 3].max() <= 2048 - 256 and windows.blocks.val_parts()[:, 3].min() > 2048
    facts = windows.describe()
    assert facts["val_objects"] > 300 and facts["train_objects"] > 300  # type: ignore[operator]
    draws = list(windows.sampler(length=40, seed=0, batch=4))
    assert max(d.window[3] for d in draws) <= 2048 - 256
    case = next(ref.load() for ref in index.val if ref.load().labels.max() > 5)
    assert case.image.std() > 10

    chips = read_raster_vector(root / "oam", root / "osm")
    chip = min(chips, key=lambda c: c.id)  # its pixels are the mosaic's own
    scene = chip.load_image()
    corner = windows.source.scene.grid.to_index(scene.grid.to_world(np.array([0.0, 0.0])))
    top, left = (round(float(v)) for v in corner)
    place = window_of((top, top + 512, left, left + 512))
    image, drawn = windows.source.read(place)
    assert np.array_equal(image, scene.read()[list(windows.source.look.channels)])
    known = drawn != UNKNOWN  # slivers at the edges of the window are not
    own = chip.load_label()
    assert known.mean() > 0.95 and np.array_equal((drawn > 0)[known], (own > 0)[known])
