"""Boxes to masks: cutting, painting and run lengths by hand; whole sets with a backbone whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.domains.datasets.image_mask import read_image_mask
from samgraft.domains.detections.base import Detection, clip_box
from samgraft.domains.detections.coco import from_rle, to_rle
from samgraft.domains.detections.sets import DetectionSet, read_detection_set
from samgraft.errors import ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.box_mask_sets import boxes_to_masks
from samgraft.recipes.box_masks import (
    UNKNOWN,
    BoxMask,
    BoxMasksConfig,
    cut_mask,
    paint_masks,
)
from samgraft.recipes.engine.views import ObjectMask
from samgraft.recipes.engine.windows import Window
from tests.data import rasters
from tests.recipes._oracle import Oracle, squares

SHAPE = (64, 120)
LARGE, SMALL = (70, 5, 99, 24), (90, 15, 110, 30)
"""The bright rectangle, and a box that holds its last 10 x 10 pixels."""


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([[0, 1, 1], [1, 1, 0]], [1, 4, 1]),
        ([[1, 0], [1, 0]], [0, 2, 2]),
        ([[0, 0, 1]], [2, 1]),
        ([[0, 0]], [2]),
        ([[1, 1]], [0, 2]),
    ],
)
def test_run_lengths_go_down_the_columns(mask: list[list[int]], counts: list[int]) -> None:
    array = np.array(mask, dtype=bool)
    assert to_rle(array) == {"size": list(array.shape), "counts": counts}
    assert np.array_equal(from_rle(to_rle(array)), array)


def test_run_lengths_of_a_part_of_an_image() -> None:
    assert to_rle(np.ones((1, 1), bool), top=1, left=2, shape=(3, 4)) == {"size": [3, 4], "counts": [7, 1, 4]}
    part = np.random.default_rng(0).random((5, 9)) > 0.4
    whole = np.zeros((12, 20), bool)
    whole[4:9, 7:16] = part
    assert to_rle(part, top=4, left=7, shape=(12, 20)) == to_rle(whole)
    with pytest.raises(InputError, match="add up to 3; the mask has 2 x 2"):
        from_rle({"size": [2, 2], "counts": [1, 2]})


def test_boxes_are_cut_at_the_edges() -> None:
    assert clip_box((-3, 5, 4, 9), (20, 30)) == (0, 5, 4, 9)
    assert clip_box((28, 18, 40, 40), (20, 30)) == (28, 18, 29, 19)
    assert clip_box((29.5, 2, 40, 3), (20, 30)) == (29, 2, 29, 3)
    assert clip_box((30, 2, 40, 3), (20, 30)) is None and clip_box((-5, 2, -1, 3), (20, 30)) is None


def answer(logits: torch.Tensor, top: int, left: int) -> ObjectMask:
    return ObjectMask(window=Window(top=top, left=left, side=logits.shape[0]), logits=logits, iou=0.75, shape=SHAPE)


def test_masks_are_cut_to_the_dilated_box_and_know_their_stability() -> None:
    logits = torch.full((30, 30), -5.0)
    logits[3:27, 3:27] = 5.0  # rows 13 to 36, columns 43 to 66 of the picture
    logits[5, 3:27] = 0.5
    one = Detection(box=(50, 10, 59, 29), source="box 1")  # 10 wide, 20 high
    mask = cut_mask(one, answer(logits, 10, 40), np.ones((30, 30), bool), 0.1)
    assert mask is not None
    assert (mask.top, mask.left, mask.inside.shape) == (13, 49, (19, 12))  # one pixel to each side, two below
    assert mask.inside.all() and mask.predicted_iou == 0.75
    assert mask.stability == pytest.approx(18 / 19)  # of 19 rows one is below +1
    valid = np.ones((30, 30), bool)
    valid[:, :15] = False
    half = cut_mask(one, answer(logits, 10, 40), valid, 0.0)
    assert half is not None and (half.left, half.inside.shape) == (55, (18, 6))  # at least one pixel of slack
    assert cut_mask(one, answer(logits - 9, 10, 40), np.ones((30, 30), bool), 0.1) is None


def made(box: tuple[int, int, int, int], name: str) -> BoxMask:
    inside = np.ones((box[3] - box[1] + 1, box[2] - box[0] + 1), bool)
    source = Detection(box=box, class_name=name)
    return BoxMask(source=source, top=box[1], left=box[0], inside=inside, predicted_iou=1.0, stability=1.0)


def test_small_masks_lie_on_large_ones_and_shared_pixels_are_marked() -> None:
    masks = [made((4, 2, 5, 3), "b"), made((1, 1, 8, 5), "a"), made((8, 4, 10, 6), "a")]  # 4, 40 and 9 pixels
    painted = paint_masks(masks, {"a": 1, "b": 2}, (8, 12))
    assert [(painted.instance == k).sum() for k in (1, 2, 3)] == [4, 34, 9]
    assert painted.instance[2, 4] == 1 and painted.instance[4, 8] == 3 and painted.instance[5, 8] == 3
    assert (painted.semantic == 2).sum() == 4 and (painted.semantic == 1).sum() == 43
    assert np.argwhere(painted.overlap).tolist() == [[2, 4], [2, 5], [3, 4], [3, 5], [4, 8], [5, 8]]
    instance, semantic = painted.marked()
    assert (instance == -1).sum() == (semantic == UNKNOWN).sum() == 6 and semantic[4, 9] == 1
    same = paint_masks([made((1, 1, 2, 2), "a"), made((2, 2, 3, 3), "b")], {"a": 1, "b": 2}, (5, 6))
    assert same.instance[2, 2] == 2  # of equal ones the later


def write_set(folder: Path) -> tuple[Path, Path]:
    """Three pictures: overlapping boxes, no box, and one box on the left."""
    images = folder / "images"
    images.mkdir()
    for name, boxes in (("one", [LARGE]), ("none", []), ("left", [(3, 30, 30, 50)])):
        Image.fromarray(squares(SHAPE, boxes)).save(images / f"{name}.png")
    boxes = [(1, 4, LARGE), (1, 9, SMALL), (3, 9, (3, 30, 30, 50)), (3, 9, (200, 5, 220, 9)), (3, 9, (60, 5, 70, 9))]
    content = {
        "images": [
            {"id": k, "file_name": f"{name}.png", "width": 120, "height": 64}
            for k, name in enumerate(("one", "none", "left"), start=1)
        ],
        "annotations": [
            {"id": k, "image_id": owner, "category_id": label, "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], "score": 0.5}
            for k, (owner, label, (x0, y0, x1, y1)) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 9, "name": "tank"}, {"id": 4, "name": "roof"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json", images


def make(data: DetectionSet, output: Path, **options: object) -> object:
    return boxes_to_masks(data, output, Oracle(), BoxMasksConfig(network_size=64, **options))  # type: ignore[arg-type]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_set_is_written_with_negatives_overlaps_and_measures(tmp_path: Path) -> None:
    data, out = read_detection_set(*write_set(tmp_path)), tmp_path / "out"
    assert dict(data.classes) == {1: "roof", 2: "tank"}
    done = make(data, out)
    assert (done.written, done.kept, done.masks, done.negatives) == (3, 0, 3, 1)  # type: ignore[attr-defined]
    assert done.left_out == ("left.png: annotation 5: no mask found",)  # type: ignore[attr-defined]
    instances, semantic = read(out / "instances" / "one.png"), read(out / "semantic" / "one.png")
    assert (instances[5:25, 70:100] > 0).mean() > 0.98 and (instances[15:25, 90:100] == 2).mean() > 0.95
    assert (semantic == UNKNOWN)[15:25, 90:100].mean() > 0.95 and (semantic[5:15, 70:100] == 1).mean() > 0.95
    assert (instances[semantic == UNKNOWN] == 2).all()
    assert not read(out / "instances" / "none.png").any() and (out / "contact_sheet.png").stat().st_size > 1000
    content = json.loads((out / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["one.png", "none.png", "left.png"]
    first, second, third = content["annotations"]
    assert (first["image_id"], first["category_id"], third["image_id"], third["category_id"]) == (1, 1, 3, 2)
    assert from_rle(second["segmentation"])[20, 95] and from_rle(first["segmentation"])[20, 95]  # whole masks stay
    assert first["bbox"] == [70, 5, 30, 20] and first["area"] == from_rle(first["segmentation"]).sum()
    assert first["predicted_iou"] == 0.8 and 0.8 < first["stability"] <= 1 and first["score"] == 0.5
    index = read_image_mask(out)
    assert len(index) == 3 and index.kind == "instance"
    assert index.case("one").load_image().read().shape == (1, *SHAPE)
    assert set(np.unique(index.case("one").load_label())) == {0, 1, 2}


def test_the_smallest_object_may_keep_shared_pixels(tmp_path: Path) -> None:
    make(read_detection_set(*write_set(tmp_path)), tmp_path / "out", overlap="smallest")
    semantic = read(tmp_path / "out" / "semantic" / "one.png")
    assert set(np.unique(semantic)) == {0, 1, 2} and (semantic[15:25, 90:100] == 2).mean() > 0.95


def test_a_run_goes_on_where_it_was_and_other_settings_begin_again(tmp_path: Path) -> None:
    boxes, images = write_set(tmp_path)
    out = tmp_path / "out"
    first = make(read_detection_set(boxes, images), out)
    before = (out / "annotations.json").read_bytes()
    (out / "records" / "left.json").unlink()
    (out / "semantic" / "one.png").unlink()
    again = make(read_detection_set(boxes, images), out)
    assert (again.written, again.kept, again.masks) == (2, 1, first.masks)  # type: ignore[attr-defined]
    assert (out / "annotations.json").read_bytes() == before
    assert make(read_detection_set(boxes, images), out).written == 0  # type: ignore[attr-defined]
    assert make(read_detection_set(boxes, images), out, dilate=0.5).written == 3  # type: ignore[attr-defined]
    boxes.write_text(boxes.read_text().replace('"score": 0.5', '"score": 0.6', 1))
    assert make(read_detection_set(boxes, images), out, dilate=0.5).written == 1  # type: ignore[attr-defined]


@pytest.mark.remote_sensing
def test_rasters_with_polygons_keep_their_grid(tmp_path: Path) -> None:
    (tmp_path / "rasters").mkdir()
    path = rasters.write_raster(tmp_path / "rasters" / "tile.tif", squares(SHAPE, [LARGE])[None].repeat(3, axis=0))
    x0, y0, x1, y1 = LARGE
    ring = [rasters.NORTH_UP @ (x, y) for x, y in ((x0, y0), (x1 + 1, y0), (x1 + 1, y1 + 1), (x0, y1 + 1), (x0, y0))]
    content = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": rasters.UTM}},
        "features": [
            {"type": "Feature", "properties": {"use": "barn"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        ],
    }
    (tmp_path / "roofs.geojson").write_text(json.dumps(content))
    data = read_detection_set(tmp_path / "roofs.geojson", tmp_path / "rasters", class_field="use")
    make(data, tmp_path / "out")
    scene = samgraft.open(tmp_path / "out" / "instances" / "tile.tif")
    assert scene.grid == samgraft.open(path).grid
    labels = scene.read_labels()
    assert (labels[y0 : y1 + 1, x0 : x1 + 1] == 1).mean() > 0.98 and labels.sum() <= 600
    assert json.loads((tmp_path / "out" / "annotations.json").read_text())["categories"] == [{"id": 1, "name": "barn"}]
    plain = read_detection_set(tmp_path / "roofs.geojson", tmp_path / "rasters")
    assert dict(plain.classes) == {1: "object"} and make(plain, tmp_path / "plain").masks == 1  # type: ignore[attr-defined]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    boxes, images = write_set(tmp_path)
    with pytest.raises(InputError, match="is no folder; name the folder of the images"):
        read_detection_set(boxes, tmp_path / "nowhere")
    (images / "left.png").rename(images / "right.png")
    with pytest.raises(InputError, match=r"lacks 1 of 3 images: left.png"):
        read_detection_set(boxes, images)
    Image.fromarray(squares((30, 40), [])).save(images / "left.png")
    with pytest.raises(InputError, match=r"left.png of 120 x 64 pixels; .* has 40 x 30"):
        make(read_detection_set(boxes, images), tmp_path / "out")
    with pytest.raises(ConfigError, match="overlap is 'last'"):
        BoxMasksConfig(overlap="last")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dilate is 2"):
        BoxMasksConfig(dilate=2)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes, images = write_set(tmp_path)
    words = [
        "boxes-to-masks",
        str(boxes),
        "--images",
        str(images),
        "-o",
        str(tmp_path / "out"),
        "--overlaps",
        "smallest",
    ]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "3 images, classes roof, tank" in said and "[2/3] none: 0 masks" in said and "3 images written" in said
    assert cli.main(words) == 0 and "3 there before" in capsys.readouterr().out
    assert cli.main([*words[:-2], "--dilate", "3"]) == 2
    assert "dilate is 3" in capsys.readouterr().err
