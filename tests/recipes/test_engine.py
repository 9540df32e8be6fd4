import nibabel as nib
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import Affine

import samgraft
from samgraft.errors import CheckpointError, ConfigError, OutputError, PromptError, ShapeError
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.engine import automatic, planes
from samgraft.recipes.engine.automatic import segment_automatic
from samgraft.recipes.engine.everything import EverythingConfig, segment_everything
from samgraft.recipes.engine.focus import segment_boxes, segment_points
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.engine.run import segment
from samgraft.recipes.engine.windows import Window, crop_of, from_network, scale_boxes, to_network, window_around
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.inference import slice_probabilities
from samgraft.recipes.look import look_at
from samgraft.recipes.prompting import UserPrompts
from tests.recipes._oracle import Oracle, OracleGraft, squares

TRANSFORM = Affine(0.5, 0.1, 500_000, 0.1, -0.5, 5_000_000)


def picture(path, image):
    Image.fromarray(image).save(path)
    return path


def raster(path, image, *, nodata=None):
    bands = image if image.ndim == 3 else image[None]
    profile = {"count": len(bands), "dtype": bands.dtype, "crs": "EPSG:32633", "transform": TRANSFORM, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], **profile) as target:
        target.write(bands)
    return path


def volume(path, stack):
    """(D, H, W) as NIfTI with thick, oblique slices."""
    affine = np.diag([1.5, 1.5, 5.0, 1.0])
    affine[:3, :3] = affine[:3, :3] @ np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    nib.save(nib.Nifti1Image(stack.transpose(2, 1, 0), affine), path)
    return path


def recorded(**options):
    kind, classes = options.pop("kind", "semantic"), options.pop("classes", {1: "bright"})
    return Recorded(recipe=InputRecipe(**{"size": 64, **options}), classes=classes, kind=kind)


# --- windows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_window_holds_its_box_and_stays_inside_where_it_fits(height, width, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0, width - 1)), data.draw(st.integers(y0, height - 1))
    window = window_around((x0, y0, x1, y1), (height, width), 1.8)
    assert window.left <= x0 and x1 < window.left + window.side
    assert window.top <= y0 and y1 < window.top + window.side
    assert window.side <= max(16, height, width, 1.2 * max(x1 - x0 + 1, y1 - y0 + 1) + 1)
    if window.side <= width:
        assert 0 <= window.left <= width - window.side


def test_scaled_box_keeps_its_outer_edges():
    box = torch.tensor([[10.0, 20.0, 19.0, 39.0]])  # ten pixels wide, twenty high
    scaled = scale_boxes(box.double(), [Window(top=10, left=0, side=32)], 64)
    assert scaled.tolist() == [[20.0, 20.0, 39.0, 59.0]]


def test_crop_repeats_edges_outside():
    image = torch.arange(12, dtype=torch.float32).reshape(1, 3, 4).expand(3, 3, 4)
    crop = crop_of(image)(Window(top=-1, left=-2, side=5))
    assert crop[0].tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 1, 2], [4, 4, 4, 5, 6], [8, 8, 8, 9, 10], [8, 8, 8, 9, 10]]


@pytest.mark.parametrize("side", [16, 37, 64, 100, 301])
def test_there_and_back_does_not_move(side):
    ramp = torch.arange(side, dtype=torch.float32).expand(3, side, side)
    back = from_network(to_network(ramp, 64), side)
    inner = slice(side // 6, -side // 6)
    assert torch.allclose(back[:, inner, inner], ramp[:, inner, inner], atol=0.12)


# --- prompts on tensors


def test_box_finds_its_square_exactly_when_scales_are_whole():
    image = torch.from_numpy(squares((64, 64), [(16, 24, 31, 39)])).float().expand(3, 64, 64) / 255
    (found,) = segment_boxes(Oracle(), image, torch.tensor([[16.0, 24.0, 31.0, 39.0]]), context=2.0)
    expected = np.zeros((64, 64), dtype=bool)
    expected[24:40, 16:32] = True
    assert np.array_equal(found.full(), expected)
    assert found.iou == pytest.approx(0.8)
    assert found.box() == (16.0, 24.0, 31.0, 39.0)


@pytest.mark.parametrize("box", [(0, 0, 30, 12), (3, 5, 9, 10), (100, 40, 159, 99), (0, 0, 159, 99), (77, 31, 103, 70)])
def test_box_at_any_place_and_size_is_not_shifted(box):
    image = torch.from_numpy(squares((100, 160), [box])).float().expand(3, 100, 160) / 255
    (found,) = segment_boxes(Oracle(), image, torch.tensor([box], dtype=torch.float32))
    truth = squares((100, 160), [box]) > 100
    union = (found.full() | truth).sum()
    assert (found.full() & truth).sum() / union > 0.85
    centre, expected = np.argwhere(found.full()).mean(axis=0), np.argwhere(truth).mean(axis=0)
    assert np.abs(centre - expected).max() < 0.02 * max(truth.any(0).sum(), truth.any(1).sum()) + 0.26


def test_many_boxes_in_small_batches_give_the_same_as_one_batch():
    places = [(i * 20, i * 9, i * 20 + 11, i * 9 + 8) for i in range(7)]
    image = torch.from_numpy(squares((100, 160), places)).float().expand(3, 100, 160) / 255
    one = segment_boxes(Oracle(), image, torch.tensor(places, dtype=torch.float32), batch=100)
    some = segment_boxes(Oracle(), image, torch.tensor(places, dtype=torch.float32), batch=2)
    assert all(np.array_equal(a.full(), b.full()) for a, b in zip(one, some, strict=True))


def test_no_box_gives_no_mask():
    assert segment_boxes(Oracle(), torch.zeros(3, 20, 20), torch.zeros(0, 4)) == []


def test_point_gives_three_masks_best_first_and_looks_again_closely():
    backbone = Oracle()
    image = torch.from_numpy(squares((400, 300), [(200, 100, 231, 139)])).float().expand(3, 400, 300) / 255
    ((best, second, third),) = segment_points(backbone, image, torch.tensor([[215.0, 120.0]]))
    assert [best.iou, second.iou, third.iou] == pytest.approx([0.9, 0.5, 0.4])
    assert best.window.side < 120
    box = best.box()
    assert box is not None and np.abs(np.array(box) - (200, 100, 231, 139)).max() <= 1
    assert len(backbone.seen) == 2


def test_negative_points_and_padding_reach_the_decoder():
    backbone = Oracle()
    image = torch.from_numpy(squares((64, 64), [(10, 10, 40, 40)])).float().expand(3, 64, 64) / 255
    points = torch.tensor([[[20.0, 20.0], [60.0, 60.0]]])
    segment_points(backbone, image, points, torch.tensor([[1, 0]]), refine=False)
    prompts = backbone.seen[0]
    assert prompts.points is not None and prompts.points.tolist() == [[[20.0, 20.0], [60.0, 60.0]]]
    assert prompts.labels is not None and prompts.labels.tolist() == [[1, 0]]


def test_prompts_outside_the_image_name_the_extent():
    with pytest.raises(PromptError, match=r"\(64, 3\) lies outside the image: x 0\.\.63, y 0\.\.31"):
        segment_points(Oracle(), torch.zeros(3, 32, 64), torch.tensor([[64.0, 3.0]]))
    with pytest.raises(PromptError, match=r"x 0\.\.63"):
        segment_boxes(Oracle(), torch.zeros(3, 32, 64), torch.tensor([[0.0, 0.0, 70.0, 3.0]]))


def test_wrong_size_or_picture_is_named():
    with pytest.raises(ShapeError, match="network size is 60; expected a positive multiple of the patch of 8"):
        segment_boxes(Oracle(), torch.zeros(3, 32, 64), torch.zeros(1, 4), size=60)
    with pytest.raises(ShapeError, match=r"image is \(1, 32, 64\)"):
        segment_boxes(Oracle(), torch.zeros(1, 32, 64), torch.zeros(1, 4))


# --- UserPrompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither a box nor a point"),
        ({"boxes": ((5, 5, 4, 9),)}, r"box \(5, 5, 4, 9\) ends before it starts"),
        ({"boxes": ((0, 0, 1, float("nan")),)}, "four finite numbers"),
        ({"points": ((1, 1, 0),)}, "all points have label 0"),
        ({"points": ((1, 1, 3),)}, "point label 3"),
        ({"boxes": ((0, 0, 1, 1), (2, 2, 3, 3)), "points": ((1, 1, 1),)}, "2 boxes together with 1 points"),
    ],
)
def test_contradictory_prompts_are_refused(options, message):
    with pytest.raises(PromptError, match=message):
        UserPrompts(**options)


def test_prompts_outside_a_volume_are_named(tmp_path):
    grid = samgraft.open(volume(tmp_path / "v.nii.gz", np.zeros((6, 20, 30), np.int16))).grid
    with pytest.raises(PromptError, match=r"slice 6 lies outside the volume: axis D has slices 0\.\.5"):
        UserPrompts(boxes=((0, 0, 3, 3),), slice=6).check(grid)
    with pytest.raises(PromptError, match=r"x 0\.\.29, y 0\.\.19"):
        UserPrompts(boxes=((0, 0, 30, 3),), slice=2).check(grid)
    with pytest.raises(PromptError, match=r"x 0\.\.29, y 0\.\.5"):
        UserPrompts(points=((3, 6, 1),), axis=1).check(grid)
    with pytest.raises(PromptError, match="axis 3 of a volume"):
        UserPrompts(points=((3, 6, 1),), axis=3).check(grid)


def test_slice_of_a_picture_is_refused(tmp_path):
    path = picture(tmp_path / "p.png", squares((20, 20), []))
    with pytest.raises(PromptError, match="a slice .* the input is a picture"):
        segment(path, backbone=Oracle(), prompts=UserPrompts(boxes=((0, 0, 3, 3),), slice=1))


# --- prompted scenes


def test_box_on_a_raster_keeps_the_grid_and_writes_polygons(tmp_path):
    path = raster(tmp_path / "r.tif", squares((90, 120), [(40, 20, 71, 51)]))
    outputs = [tmp_path / "mask.tif", tmp_path / "mask.geojson"]
    result = segment(path, backbone=Oracle(), prompts=UserPrompts(boxes=((40, 20, 71, 51),)), output=outputs)
    assert result.grid == samgraft.open(path).grid == samgraft.open(outputs[0]).grid
    assert np.array_equal(samgraft.open(outputs[0]).read_labels() > 0, result.labels > 0)
    assert outputs[1].stat().st_size > 100
    (record,) = result.instances
    assert record.score == pytest.approx(0.8) and np.abs(np.array(record.box) - (40, 20, 71, 51)).max() <= 1


def test_box_on_a_volume_fills_that_slice_only(tmp_path):
    stack = np.full((6, 80, 100), -500, np.int16)
    stack[3, 30:60, 20:50] = 1000
    path = volume(tmp_path / "v.nii.gz", stack)
    prompts = UserPrompts(boxes=((20, 30, 49, 59),), slice=3, from_ground_truth=True)
    result = segment(path, backbone=Oracle(), prompts=prompts, output=tmp_path / "m.nii.gz")
    assert set(np.flatnonzero(result.labels.any(axis=(1, 2)))) == {3}
    truth = stack > 0
    assert (truth & (result.labels > 0)).sum() / (truth | (result.labels > 0)).sum() > 0.9
    assert np.array_equal(nib.load(path).affine, nib.load(tmp_path / "m.nii.gz").affine)
    assert result.from_ground_truth and result.meta["slice"] == "D=3"


def test_other_axis_of_a_volume(tmp_path):
    stack = np.full((40, 50, 60), -500, np.int16)
    stack[10:30, 20, 15:45] = 1000
    path = volume(tmp_path / "v.nii.gz", stack)
    result = segment(path, backbone=Oracle(), prompts=UserPrompts(boxes=((15, 10, 44, 29),), slice=20, axis=1))
    assert set(np.flatnonzero(result.labels.any(axis=(0, 2)))) == {20}
    assert (result.labels[:, 20] > 0)[11:29, 16:44].all()


def test_windows_of_a_large_raster_give_the_same(tmp_path, monkeypatch):
    path = raster(tmp_path / "r.tif", squares((300, 320), [(40, 20, 71, 51), (200, 250, 319, 299)]))
    prompts = UserPrompts(boxes=((40, 20, 71, 51), (200, 250, 319, 299)))
    whole = segment(path, backbone=Oracle(), prompts=prompts)
    monkeypatch.setattr(planes, "WHOLE_BYTES", 0)
    assert np.array_equal(segment(path, backbone=Oracle(), prompts=prompts).labels, whole.labels)


def test_overlapping_objects_keep_their_numbers_and_nodata_stays_empty(tmp_path):
    image = squares((64, 64), [(8, 8, 39, 39)])
    image[8:40, 8:16] = 255
    path = raster(tmp_path / "r.tif", image, nodata=255)
    result = segment(path, backbone=Oracle(), prompts=UserPrompts(boxes=((8, 8, 39, 39), (50, 50, 60, 60))))
    assert [r.id for r in result.instances] == [1]
    assert result.meta["objects not found"] == "1"
    assert not result.labels[:, 8:16].any() and (result.labels[10:38, 18:38] == 1).all()


def test_box_with_points_is_one_object(tmp_path):
    backbone = Oracle()
    path = picture(tmp_path / "p.png", squares((80, 80), [(20, 20, 50, 50)]))
    segment(path, backbone=backbone, prompts=UserPrompts(boxes=((20, 20, 50, 50),), points=((30, 30, 1), (60, 60, 0))))
    assert len(backbone.seen) == 6  # three contexts at two resolutions
    for prompts in backbone.seen:
        assert len(prompts) == 1 and prompts.boxes is not None
        assert prompts.labels is not None and prompts.labels.tolist() == [[1, 0]]


# --- automatic


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_picture_in_windows_is_the_bright_part(tmp_path, activation):
    boxes = [(10, 10, 60, 40), (100, 80, 139, 149), (0, 140, 40, 159)]
    scene = samgraft.open(picture(tmp_path / "p.png", squares((160, 144), boxes)))
    result = segment_automatic(scene, OracleGraft(activation=activation), recorded(window=64))
    assert (
        np.array_equal(result.labels > 0, squares((160, 144), boxes) > 100)
        or ((result.labels > 0) ^ (squares((160, 144), boxes) > 100)).mean() < 0.02
    )
    assert result.kind == "semantic" and result.grid == scene.grid


@pytest.mark.parametrize(
    ("shape", "window", "overlap"), [((97, 131), 64, 0.25), ((64, 200), 48, 0.5), ((30, 40), 64, 0.25)]
)
def test_strips_equal_the_blending_of_training(tmp_path, shape, window, overlap):
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    scene = samgraft.open(picture(tmp_path / "p.png", image))
    options = recorded(window=window, overlap=overlap)
    network = automatic.steps(OracleGraft(), options.representation)
    found = torch.zeros(2, *shape)
    rows = []
    for strip in automatic.strips(network, planes.Plane(scene, look_at(scene)), options, batch=3):
        found[:, strip.rows] = strip.maps
        rows += list(range(strip.rows.start, strip.rows.stop))
        assert strip.valid.all() and strip.valid.shape == (strip.rows.stop - strip.rows.start, shape[1])
    assert rows == list(range(shape[0]))
    case = CaseArrays(
        id="p", image=image[None, None], labels=np.zeros((1, *shape), np.int8), grid=scene.grid, axis=None
    )
    ((_, expected),) = slice_probabilities(
        lambda image: network.decode(network.encode(image)), case, size=64, window=window, overlap=overlap
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_volume_is_cut_along_its_thick_axis(tmp_path):
    stack = np.full((5, 64, 64), -500, np.int16)
    stack[2:4, 16:48, 8:40] = 1000
    path = volume(tmp_path / "v.nii.gz", stack)
    graft = OracleGraft()
    result = segment_automatic(samgraft.open(path), graft, recorded())
    assert graft.calls == 5
    assert np.array_equal(result.labels > 0, stack > 0)
    assert result.save(tmp_path / "m.nii.gz") and np.array_equal(
        nib.load(tmp_path / "m.nii.gz").affine, nib.load(path).affine
    )


def test_recorded_axis_and_neighbours_are_used(tmp_path):
    stack = np.full((48, 40, 32), -500, np.int16)
    stack[16:32, 10:30, 8:24] = 1000
    scene = samgraft.open(volume(tmp_path / "v.nii.gz", stack))
    graft = OracleGraft()
    result = segment_automatic(scene, graft, recorded(slice_axis=2, neighbours=True))
    assert graft.calls == 32
    # the first channel is the slice before, so the answer comes one slice late
    moved = np.zeros_like(stack, dtype=bool)
    moved[16:32, 10:30, 9:25] = True
    assert ((result.labels > 0) ^ moved).mean() < 0.01


def test_instances_of_a_raster_with_nodata(tmp_path):
    boxes = [(10, 10, 41, 41), (80, 20, 111, 51), (20, 100, 99, 131)]
    image = squares((150, 160), boxes)
    image[:, 130:] = 255
    scene = samgraft.open(raster(tmp_path / "r.tif", image, nodata=255))
    graft = OracleGraft(instance=True)
    result = segment_automatic(scene, graft, recorded(window=64, kind="instance", classes={1: "roof"}))
    assert result.kind == "instance" and len(result.instances) == 3 and dict(result.classes) == {1: "roof"}
    assert not result.labels[:, 130:].any()
    truth = squares((150, 160), boxes) > 100
    assert ((result.labels > 0) ^ truth).mean() < 0.01
    boxes_found = np.array([r.box for r in result.instances])
    assert np.abs(boxes_found[0] - boxes[0]).max() <= 1


def test_empty_windows_are_not_computed(tmp_path):
    image = np.full((64, 256), 255, np.uint8)
    image[:, :60] = squares((64, 60), [(10, 10, 40, 40)])
    scene = samgraft.open(raster(tmp_path / "r.tif", image, nodata=255))
    graft = OracleGraft()
    result = segment_automatic(scene, graft, recorded(window=64, overlap=0.0))
    assert graft.calls == 1
    assert (result.labels[12:38, 12:38] == 1).all() and not result.labels[:, 60:].any()


def test_probabilities_of_a_large_raster_go_to_a_file(tmp_path, monkeypatch):
    scene = samgraft.open(raster(tmp_path / "r.tif", squares((96, 96), [(10, 10, 50, 50)])))
    options = recorded(window=64, kind="instance")
    memory = segment_automatic(scene, OracleGraft(instance=True), options).labels
    monkeypatch.setattr(automatic, "IN_MEMORY", 0)
    assert np.array_equal(segment_automatic(scene, OracleGraft(instance=True), options).labels, memory)


def test_objects_of_a_volume_are_refused(tmp_path):
    scene = samgraft.open(volume(tmp_path / "v.nii.gz", np.zeros((4, 16, 16), np.int16)))
    with pytest.raises(ConfigError, match="separates objects in pictures and rasters only"):
        segment_automatic(scene, OracleGraft(), recorded(kind="instance"))


def test_recorded_window_is_used_and_a_broken_one_named(tmp_path):
    scene = samgraft.open(picture(tmp_path / "p.png", squares((32, 32), [])))
    fixed = Recorded(
        recipe=InputRecipe(size=64), classes={1: "a"}, intensity={"kind": "range", "lower": 10, "upper": 30}
    ).look(scene)
    assert fixed.apply(np.array([[[20.0]]]))[0, 0, 0] == pytest.approx(0.5)
    with pytest.raises(CheckpointError, match="expected numbers lower and upper"):
        Recorded(recipe=InputRecipe(size=64), classes={1: "a"}, intensity={"kind": "range"}).look(scene)


# --- everything, and the outside


@pytest.mark.parametrize("shape", [(96, 128), (300, 420)])
def test_everything_finds_each_bright_thing_once(tmp_path, shape):
    boxes = [(8, 8, 39, 31), (60, 20, 99, 59), (10, 60, 49, 85)]
    boxes = [tuple(v * shape[0] // 96 for v in box) for box in boxes]
    path = picture(tmp_path / "p.png", squares(shape, boxes))
    result = segment(path, backbone=Oracle(), everything=EverythingConfig(pred_iou_thresh=0.45, max_share=0.9))
    truth = squares(shape, boxes) > 100
    assert ((result.labels > 0) ^ truth).mean() < 0.03
    assert len(result.instances) == len(boxes) or shape[0] > 96


def test_everything_on_a_volume_is_refused(tmp_path):
    scene = samgraft.open(volume(tmp_path / "v.nii.gz", np.zeros((4, 16, 16), np.int16)))
    with pytest.raises(ConfigError, match="is a volume: without an adapter it needs a prompt on a slice"):
        segment_everything(scene, Oracle())


def test_output_is_checked_before_the_work(tmp_path):
    path = picture(tmp_path / "p.png", squares((20, 20), []))
    backbone = Oracle()
    prompts = UserPrompts(boxes=((0, 0, 3, 3),))
    with pytest.raises(ConfigError, match="unknown suffix '.jpg'"):
        segment(path, backbone=backbone, prompts=prompts, output=tmp_path / "m.jpg")
    with pytest.raises(OutputError, match="folder .* does not exist"):
        segment(path, backbone=backbone, prompts=prompts, output=tmp_path / "no" / "m.png")
    assert backbone.sizes == []
