"""The engine in threads equals the engine in one thread bit by bit, leaves nothing behind, and keeps memory flat."""

import threading

import numpy as np
import pytest
import rasterio
import torch
from monai.data.box_utils import non_max_suppression

import samgraft
from samgraft.adapters.backbones.base import Features
from samgraft.adapters.bundle import BundleMeta
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.adapters.prompts import proposals
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.proposals import best_masks, outer_boxes
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.errors import InputError
from samgraft.recipes.api import EverythingConfig, UserPrompts, VolumeOptions, with_meta
from samgraft.recipes.engine.focus import segment_boxes, segment_points
from samgraft.recipes.engine.planes import Plane, Rows
from samgraft.recipes.look import look_at
from tests.adapters.toy import toy_backbone, toy_image
from tests.data.volumes import nifti, ramp
from tests.recipes._oracle import Oracle
from tests.recipes.test_api import RECIPE
from tests.recipes.test_engine import picture, raster, volume

WIDE_OPEN = EverythingConfig(
    points_per_side=5, pred_iou_thresh=-10, stability_score_thresh=0.0, max_share=1.0, min_network_area=0, tile=48
)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("samgraft-")] == []


def network(kind="semantic", **recipe):
    """A toy adapter of two classes, or of interior and border, that answers with a bit of everything."""
    made = attach(toy_backbone(), [LoraConfig()], decoder=ClassTokensConfig(num_classes=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.trainable_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    classes = {1: "roof"} if kind == "instance" else {1: "disc", 2: "ring"}
    return with_meta(made.eval(), BundleMeta(task=kind, classes=classes, extra={"input": RECIPE | recipe}))


def noise(*shape, seed=0, top=255):
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def bands(path, *, nodata=None, shape=(3, 150, 170)):
    """A deflated, tiled raster with a corner without data."""
    image = noise(*shape)
    if nodata is not None:
        image[:, : shape[1] // 2, : shape[2] // 2] = nodata
    raster(path, image, nodata=nodata)
    with rasterio.open(path) as source:
        profile, pixels = source.profile, source.read()
    profile |= {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels)
    return path


def stack():
    return noise(6, 50, 40, seed=2).astype(np.int16) * 4


SCENES = {
    "picture": (lambda folder: picture(folder / "p.png", noise(70, 90, 3)), {}, "mask.png"),
    "raster": (lambda folder: bands(folder / "r.tif", nodata=0), {"window": 40}, "mask.tif"),
    "objects": (lambda folder: bands(folder / "o.tif", nodata=0), {"window": 64, "kind": "instance"}, "mask.tif"),
    "volume": (lambda folder: volume(folder / "v.nii.gz", stack()), {"window": None}, "mask.nii.gz"),
    "neighbours": (lambda folder: volume(folder / "v.nii", stack()), {"neighbours": True}, "mask.nii.gz"),
    "other axis": (lambda folder: volume(folder / "v.nii.gz", stack()), {"slice_axis": 2}, "mask.nii.gz"),
}


@pytest.mark.parametrize("name", SCENES)
def test_threads_give_the_bytes_of_the_plain_loop(tmp_path, name):
    make, recipe, output = SCENES[name]
    path, adapter = make(tmp_path), network(**recipe)
    written = []
    for depth, batch in ((0, None), (2, None), (1, None), (2, 3)):
        target = tmp_path / f"{depth}-{batch}-{output}"
        found = samgraft.segment(path, adapter=adapter, output=target, pipeline=depth, batch=batch)
        written.append((found.labels, target.read_bytes()))
    assert len(np.unique(written[0][0])) > 1
    assert written[0][1] == written[1][1] == written[2][1]
    # other batches may move the last bits of a float, and then a pixel on the edge of two classes
    assert (written[3][0] != written[0][0]).mean() < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"everything": WIDE_OPEN},
        {"prompts": UserPrompts(boxes=tuple((i * 9.0, i * 5.0, i * 9.0 + 20, i * 5.0 + 30) for i in range(7)))},
        {"prompts": UserPrompts(points=((30.0, 20.0, 1), (60.0, 60.0, 0)))},
    ],
)
def test_modes_without_an_adapter_do_too(tmp_path, options):
    path, backbone = bands(tmp_path / "r.tif"), toy_backbone()
    plain, threaded = (samgraft.segment(path, backbone=backbone, pipeline=depth, **options) for depth in (0, 2))
    assert plain.labels.any()
    assert np.array_equal(plain.labels, threaded.labels)
    assert plain.instances == threaded.instances


@pytest.mark.parametrize("nodata", [None, 0])
def test_blocks_of_a_raster_are_read_once(tmp_path, monkeypatch, nodata):
    scene = samgraft.open(bands(tmp_path / "r.tif", nodata=nodata))
    reads = []
    original = RasterScene.read_valid

    def spy(self, window=None, channels=None):
        reads.append((window[0].start, window[0].stop))
        return original(self, window, channels)

    monkeypatch.setattr(RasterScene, "read_valid", spy)
    plane = Plane(scene, look_at(scene))
    rows = Rows(plane)
    for top in (0, 10, 50, 90):
        place = (slice(top, top + 60), slice(15, 80))
        pixels, valid = rows.read(*place)
        assert np.array_equal(pixels, plane.read(*place)) and np.array_equal(valid, plane.valid(*place))
    assert reads == [(0, 64), (64, 96), (96, 128), (128, 150)]
    again, _ = rows.read(slice(0, 20), slice(0, 9))
    assert np.array_equal(again, plane.read(slice(0, 20), slice(0, 9)))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_in_the_middle_of_a_raster_leaves_no_file(tmp_path, depth):
    path = bands(tmp_path / "r.tif", shape=(3, 600, 128))
    whole = path.read_bytes()
    scene = samgraft.open(path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="truncated or damaged"):
        samgraft.segment(
            scene, adapter=network(window=64), output=[tmp_path / "m.tif", tmp_path / "m.png"], pipeline=depth
        )
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_of_the_network_comes_through(tmp_path):
    adapter = network(window=40)

    def broken(image, features=None):
        raise FloatingPointError("decoder")

    adapter.predict = broken
    with pytest.raises(FloatingPointError, match="decoder"):
        samgraft.segment(bands(tmp_path / "r.tif"), adapter=adapter, output=tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists()


def test_progress_names_every_window_once(tmp_path):
    from samgraft.recipes.engine.automatic import segment_automatic
    from samgraft.recipes.engine.everything import segment_everything
    from samgraft.recipes.engine.recorded import recorded

    scene = samgraft.open(bands(tmp_path / "r.tif", nodata=0))
    seen = []

    def track(sequence, what):
        for item in sequence:
            yield item
            seen.append(what)

    adapter = network(window=64, overlap=0.0)
    segment_automatic(scene, adapter, recorded(adapter, samgraft.recipes.api.adapter_meta(adapter)), track=track)
    assert seen == ["windows"] * 9
    seen.clear()
    segment_everything(scene, toy_backbone(), config=WIDE_OPEN, track=track)
    assert seen == ["windows"] * 20


# --- many prompts on one embedding


def grid(count):
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(count, 1, 2, generator=generator) * 63
    return Prompts(image_index=torch.zeros(count, dtype=torch.int64), points=points, labels=torch.ones(count, 1).long())


class Stamps(Oracle):
    """Answers a point with three squares around it, of sides 5, 9 and 13; x and y decide on the predicted IoU."""

    def decode(self, features, prompts, *, multimask=False):
        self.seen.append(prompts)
        y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        far = torch.stack([torch.maximum((x - px).abs(), (y - py).abs()) for px, py in prompts.points[:, 0].tolist()])
        iou = (prompts.points[:, 0] * torch.tensor([7.1, 3.3])).sum(1, keepdim=True) % 1
        return torch.stack([size - far for size in (2.5, 4.5, 6.5)], dim=1), iou - torch.tensor([0.02, 0.0, 0.01])


@pytest.mark.parametrize("room", [0, 40 * 64 * 64 * 4])
def test_masks_that_fell_out_are_decoded_again(monkeypatch, room):
    def test(logits, iou):
        return iou > 0.2

    features = Features(neck=torch.zeros(1, 1, 8, 8))
    options = {"test": test, "nms": 0.3, "chunk": 16}
    plenty, little = Stamps(), Stamps()
    expected = best_masks(plenty, features, grid(100), **options)
    monkeypatch.setattr(proposals, "KEPT_BYTES", room)
    found = best_masks(little, features, grid(100), **options)
    assert len(plenty.seen) == 7 < len(little.seen)
    assert len(expected.iou) > 20 and (expected.iou.diff() <= 0).all()
    assert torch.equal(found.iou, expected.iou) and torch.equal(found.logits, expected.logits)
    # all at once, as a plain loop would do it
    logits, iou = Stamps().decode(features, grid(100), multimask=True)
    good = test(logits.flatten(0, 1), iou.flatten())
    masks, scores = logits.flatten(0, 1)[good], iou.flatten()[good]
    keep = non_max_suppression(outer_boxes(masks), scores, 0.3)
    assert torch.equal(found.logits, masks[keep]) and torch.equal(found.iou, scores[keep])


def test_nothing_worth_keeping_gives_nothing():
    backbone = toy_backbone()
    features = Features(neck=backbone.encode(toy_image(batch=1)).neck)
    found = best_masks(backbone, features, grid(9), test=lambda logits, iou: iou > 1e6, nms=0.5)
    assert len(found.logits) == len(found.iou) == 0


def test_outer_boxes_of_masks():
    masks = torch.full((3, 6, 8), -1.0)
    masks[0, 2:4, 1:7] = 1
    masks[1, 5, 7] = 1
    assert outer_boxes(masks).tolist() == [[1, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]


def test_points_on_one_picture_share_its_embedding(monkeypatch):
    backbone, images = toy_backbone(), []
    original = backbone.encode
    monkeypatch.setattr(
        backbone, "encode", lambda image, taps=(): (images.append(len(image)), original(image, taps))[1]
    )
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * 63
    found = segment_points(backbone, toy_image(batch=1)[0], points, refine=False)
    assert images == [1] and len(found) == 50
    alone = segment_points(backbone, toy_image(batch=1)[0], points[7:8], refine=False)[0]
    assert all(torch.allclose(a.logits, b.logits, atol=1e-3) for a, b in zip(found[7], alone, strict=True))


@pytest.mark.parametrize("count", [1, 20])
def test_boxes_and_points_in_threads_equal_the_plain_loop(count):
    backbone, image = toy_backbone(), toy_image(90, 120, batch=1)[0]
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)) * 50
    boxes = torch.cat([corners, corners + 25], dim=1)
    for call in (lambda **o: segment_boxes(backbone, image, boxes, **o), lambda **o: sum(
        segment_points(backbone, image, corners, **o), ())):  # fmt: skip
        plain, threaded = call(pipeline=0), call(pipeline=2)
        assert len(plain) == len(threaded) >= count
        assert all(torch.equal(a.logits, b.logits) and a.iou == b.iou for a, b in zip(plain, threaded, strict=True))


def test_progress_of_prompts_in_a_volume_names_every_object(tmp_path, monkeypatch):
    seen = []

    def bar(sequence, what):
        seen.append((what, len(sequence)))
        yield from sequence

    monkeypatch.setattr("samgraft.recipes.engine.run._bar", bar)
    prompts = UserPrompts(boxes=((4, 4, 20, 20), (20, 20, 36, 36)), slice=2, axis=0)
    path = nifti(tmp_path / "v.nii.gz", ramp((50, 40, 6)), affine=np.eye(4))
    for progress in (True, False):
        samgraft.segment(path, prompts=prompts, volume=VolumeOptions(), backbone=toy_backbone(), progress=progress)
    assert seen == [("objects", 2)]
