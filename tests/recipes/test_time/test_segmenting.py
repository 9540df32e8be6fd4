"""A raster has one adapted network: the same map at once and by tiles; files, commands and refusals."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import load_bundle, read_header, read_meta
from samgraft.domains.opening import open_scene
from samgraft.recipes import cli
from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic
from samgraft.recipes.test_time.methods import EntropyConfig
from samgraft.recipes.test_time.segmenting import segment_adapted, write_adapted
from tests.data.rasters import write_raster
from tests.recipes._adapters import blobs, save_picture
from tests.recipes.mosaic._scenes import tiny_adapter

METHOD = EntropyConfig(steps=2, inputs=4, change=1e6)


def test_a_pixel_has_one_value_whatever_the_tile(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", blobs((300, 340))[None])
    adapter = tiny_adapter(tmp_path / "a.graft")
    whole, verdict = segment_adapted(raster, adapter=adapter, method=METHOD, progress=False)
    assert verdict.kept and whole.meta["test_time"].startswith("entropy; the entropy fell")
    assert whole.meta["adapter"] == "a.graft"
    fitted, _ = write_adapted(open_scene(raster), adapter, tmp_path / "f.graft", method=METHOD)
    for tile in (160, 301):
        out = tmp_path / f"{tile}.tif"
        segment_mosaic(raster, out, adapter=fitted, options=MosaicOptions(tile=tile, overlap=2))
        with rasterio.open(out) as file:
            assert np.array_equal(file.read(1), whole.labels)
    plain = segment_mosaic(raster, tmp_path / "plain.tif", adapter=adapter)
    with rasterio.open(plain.outputs[0]) as file:
        assert not np.array_equal(file.read(1), whole.labels)
    before = read_header(adapter)["tensors_sha256"]
    assert read_meta(fitted).extra["test_time"]["adapter_sha256"] == before
    backbone = load_backbone("graft-tiny")
    load_bundle(fitted, backbone).detach()
    load_bundle(adapter, backbone).detach()


def test_a_result_that_is_not_kept_writes_nothing(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", blobs((200, 200))[None])
    adapter = tiny_adapter(tmp_path / "a.graft")
    wild = EntropyConfig(steps=3, lr=5.0, inputs=2, change=1.0001)
    path, verdict = write_adapted(open_scene(raster), adapter, tmp_path / "f.graft", method=wild)
    assert path == adapter and not verdict.kept and not (tmp_path / "f.graft").exists()


def test_command_at_once_and_by_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raster = write_raster(tmp_path / "r.tif", blobs((200, 260))[None])
    adapter = str(tiny_adapter(tmp_path / "a.graft"))
    out, tiled = tmp_path / "o.tif", tmp_path / "t.tif"
    words = ["segment", str(raster), "--adapter", adapter, "--test-time", "entropy", "--test-time-steps", "1"]
    words += ["--test-time-inputs", "3", "--test-time-lr", "1e-3"]
    assert cli.main([*words, "-o", str(out)]) == 0
    first = capsys.readouterr().out
    assert "test time: entropy; the entropy fell from" in first and "of the inputs" in first
    assert cli.main([*words, "-o", str(tiled), "--tile", "128"]) == 0
    told = capsys.readouterr().out
    assert f"wrote {tiled}.test_time.graft, the adapter that every tile is segmented with" in told
    with rasterio.open(out) as one, rasterio.open(tiled) as other:
        assert np.array_equal(one.read(1), other.read(1))
    assert read_meta(f"{tiled}.test_time.graft").extra["test_time"]["scene"] == "r.tif"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test-time-steps", "3"], "--test-time-steps: add --test-time"),
        (["--test-time", "entropy", "--box", "1", "1", "9", "9"], "segments by itself, not with --box"),
        (["--test-time", "entropy", "--quantize", "int8"], "not with --quantize"),
        (["--test-time", "statistics", "--test-time-lr", "1"], "belong to entropy"),
        (["--test-time", "statistics"], "says nothing about the features of its training images"),
    ],
)
def test_contradictions_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save_picture(tmp_path / "p.png", blobs())
    adapter = str(tiny_adapter(tmp_path / "a.graft"))
    assert cli.main(["segment", str(image), "-a", adapter, "-o", str(tmp_path / "o.png"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()
