"""Prompts from files: pixels worked out by hand, then through the engine with a backbone whose answers are known."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rasterio.warp import transform as warp_points

import samgraft
from samgraft.adapters.prompts.improve import Improvement
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError, GeometryError, InputError, PromptError
from samgraft.recipes import cli
from samgraft.recipes.engine.run import segment
from samgraft.recipes.engine.views import mask_logits
from samgraft.recipes.engine.windows import Window
from samgraft.recipes.prompt_files import line_prompts, prompts_from_file, recist
from samgraft.recipes.prompting import MaskPrompt, ObjectPrompt, ObjectPrompts
from tests.data import rasters
from tests.recipes._oracle import Oracle, squares

BOXES = [(70, 5, 99, 24), (10, 40, 29, 59)]
"""Two bright rectangles on a picture of 64 rows and 120 columns."""


def picture(folder: Path) -> Path:
    path = folder / "scene.png"
    Image.fromarray(squares((64, 120), BOXES)).save(path)
    return path


def coco(folder: Path, *, name: str = "scene.png", width: int = 120, extra: tuple[dict[str, object], ...] = ()) -> Path:
    annotations: list[dict[str, object]] = [
        {"id": 7, "image_id": 3, "category_id": 0, "bbox": [70, 5, 30, 20], "score": 0.9},
        {"id": 8, "image_id": 3, "category_id": 5, "bbox": [10, 40, 20, 20], "score": 0.4},
        *extra,
    ]
    content = {
        "images": [
            {"id": 1, "file_name": "other.png", "width": 9, "height": 9},
            {"id": 3, "file_name": f"folder/{name}", "width": width, "height": 64},
        ],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "roof"}, {"id": 5, "name": "tank"}],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def expect_objects(result: Segmentation, names: list[str]) -> None:
    """The two rectangles with their classes; the decoder's coarse mask may round off a corner."""
    for box, record, name in zip(BOXES, result.instances, names, strict=True):
        assert record.box == box and result.classes[record.class_id] == name
        expect_inside(result.labels == record.id, box)


def expect_inside(mask: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Nothing outside ``box`` (first and last pixel inside), and nearly all of it."""
    x0, y0, x1, y1 = box
    inside = int(mask[y0 : y1 + 1, x0 : x1 + 1].sum())
    assert inside == mask.sum() and inside >= 0.95 * (x1 - x0 + 1) * (y1 - y0 + 1)


def test_coco_boxes_become_objects_with_their_classes(tmp_path: Path) -> None:
    scene = samgraft.open(picture(tmp_path))
    found = prompts_from_file(coco(tmp_path), scene)
    assert [one.box for one in found.prompts.objects] == [(70, 5, 99, 24), (10, 40, 29, 59)]
    result = segment(scene, backbone=Oracle(), prompts=coco(tmp_path), network_size=64, progress=False)
    expect_objects(result, ["roof", "tank"])
    assert not result.from_ground_truth


def test_coco_scores_crowds_and_boxes_outside_are_named(tmp_path: Path) -> None:
    extra = (
        {"id": 9, "image_id": 3, "category_id": 0, "bbox": [120, 5, 4, 4]},
        {"id": 10, "image_id": 3, "category_id": 0, "bbox": [100, 60, 40, 9]},
        {"id": 11, "image_id": 3, "category_id": 0, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {"id": 12, "image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5]},
    )
    scene, path = samgraft.open(picture(tmp_path)), coco(tmp_path, extra=extra)
    found = prompts_from_file(path, scene, min_score=0.5)
    assert [one.box for one in found.prompts.objects] == [(70, 5, 99, 24), (100, 60, 119, 63)]  # cut at the edges
    assert found.left_out == (
        "annotation 11: a crowd",
        "annotation 8: score 0.4 is below 0.5",
        "annotation 9: outside the image",
    )
    with pytest.raises(PromptError, match="1 left out: annotation 9: outside the image; take them out"):
        prompts_from_file(path, scene, outside="refuse")
    with pytest.warns(UserWarning, match="annotation 9: outside"):
        segment(scene, backbone=Oracle(), prompts=path, network_size=64, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "third.png"}, "has 0 images named 'scene.png'"),
        ({"width": 60}, "of 60 x 64 pixels; the image has 120 x 64"),
        ({"extra": ({"id": 9, "image_id": 77, "bbox": [1, 1, 2, 2]},)}, "belongs to image 77, which is not among"),
        ({"extra": ({"id": 9, "image_id": 3, "bbox": [1, 1, "a", 2]},)}, "bbox of annotation 9: 'a' is no number"),
        ({"extra": ({"id": 9, "image_id": 3, "bbox": [1, 1]},)}, r"bbox \[1, 1\]; expected \[x, y, width, height\]"),
    ],
)
def test_damaged_or_foreign_coco_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompts_from_file(coco(tmp_path, **options), samgraft.open(picture(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "boxes", "names"),
    [
        ("xmin,ymin,xmax,ymax,label\n70,5,99,24,roof\n10,40,29,59,\n", BOXES, ["roof", "object"]),
        ("x,y,width,height,Class\n70,5,30,20,a\n10,40,20,20,b\n", BOXES, ["a", "b"]),
        ("image_path,xmin,ymin,xmax,ymax\na/scene.png,70,5,99,24\nother.png,1,1,5,5\n", BOXES[:1], ["object"]),
    ],
)
def test_tables_of_boxes(tmp_path: Path, text: str, boxes: list[tuple[int, ...]], names: list[str]) -> None:
    (tmp_path / "t.csv").write_text(text)
    found = prompts_from_file(tmp_path / "t.csv", samgraft.open(picture(tmp_path))).prompts.objects
    assert [one.box for one in found] == boxes and [one.class_name for one in found] == names


def test_tables_of_points_join_by_object(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("object,x,y,positive\na,80,10,1\nb,15,50,\na,60,10,0\nc,3,3,0\n,20,45,1\n")
    scene = samgraft.open(picture(tmp_path))
    found = prompts_from_file(tmp_path / "t.csv", scene)
    points = [one.points for one in found.prompts.objects]
    assert points == [((80, 10, 1), (60, 10, 0)), ((15, 50, 1),), ((20, 45, 1),)]
    assert found.left_out == ("object c: no point on the object",)
    result = segment(scene, backbone=Oracle(), prompts=found.prompts, network_size=120, progress=False)
    assert result.instances[0].id == 1
    expect_inside(result.labels == 1, BOXES[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has the columns a, b; expected one of"),
        ("x,y\n1,two\n", "row 2: 'two' is no number"),
        ("x,y,positive\n1,2,3\n", "positive is 3; expected 1"),
        ("x,y\n500,2\n", "asks for nothing in scene.png; 1 left out: row 2: outside the image"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((InputError, PromptError), match=message):
        prompts_from_file(tmp_path / "t.csv", samgraft.open(picture(tmp_path)))


@pytest.mark.remote_sensing
@pytest.mark.parametrize("crs", ["EPSG:4326", rasters.UTM])
def test_features_are_reprojected_and_those_elsewhere_named(tmp_path: Path, crs: str) -> None:
    path = rasters.write_raster(tmp_path / "scene.tif", squares((64, 120), BOXES)[None].repeat(3, axis=0))

    def place(col: float, row: float) -> list[float]:
        x, y = rasters.NORTH_UP @ (col, row)
        return [v[0] for v in warp_points(rasters.UTM, crs, [x], [y])]

    ring = [place(70, 5), place(100, 5), place(100, 25), place(70, 25), place(70, 5)]
    geometries = [
        ({"type": "Polygon", "coordinates": [ring]}, "roof", 0.9),
        ({"type": "Point", "coordinates": place(15.5, 50.5)}, "tank", 0.8),
        ({"type": "Point", "coordinates": place(500, 50)}, "tank", 0.7),
        ({"type": "Point", "coordinates": place(20, 50)}, "tank", 0.1),
        ({"type": "LineString", "coordinates": [place(10.5, 45.5), place(29.5, 55.5)]}, "tank", None),
    ]
    features = [
        {"type": "Feature", "geometry": geometry, "properties": {"class": name, "score": score}}
        for geometry, name, score in geometries
    ]
    name = {"type": "name", "properties": {"name": crs}}
    content = {
        "type": "FeatureCollection",
        "features": features,
        "crs": {"type": "name", "properties": name["properties"]},
    }
    (tmp_path / "f.geojson").write_text(json.dumps(content))
    scene = samgraft.open(path)
    found = prompts_from_file(tmp_path / "f.geojson", scene, min_score=0.5)
    box, point, line = found.prompts.objects
    np.testing.assert_allclose(box.box, (70, 5, 99, 24), atol=1e-3)
    np.testing.assert_allclose(point.points, [(15, 50, 1)], atol=1e-3)
    np.testing.assert_allclose(line.points[0], (10, 45, 1), atol=1e-3)
    assert [one.class_name for one in (box, point, line)] == ["roof", "tank", "tank"] and not line.tight
    assert found.left_out == ("feature 2: outside the image", "feature 3: score 0.1 is below 0.5")
    with pytest.raises(PromptError, match="feature 2: outside"):
        prompts_from_file(tmp_path / "f.geojson", scene, outside="refuse")
    result = segment(scene, backbone=Oracle(), prompts=found.prompts, network_size=64, progress=False)
    assert result.instances[0].box == BOXES[0] and result.grid == scene.grid
    assert result.classes == {1: "roof", 2: "tank"}


def volume(folder: Path) -> Path:
    """(6, 64, 120): the rectangles on slices 2 and 4."""
    stack = np.full((6, 64, 120), 20, np.uint8)
    stack[2], stack[4] = squares((64, 120), BOXES[:1]), squares((64, 120), BOXES[1:])
    path = folder / "scene.nii.gz"
    nib.save(nib.Nifti1Image(stack.transpose(2, 1, 0), np.diag([1.5, 1.5, 5.0, 1.0])), path)
    return path


@pytest.mark.medical
def test_prompts_on_several_slices_of_a_volume(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slice,xmin,ymin,xmax,ymax,class\n4,10,40,29,59,cyst\n2,70,5,99,24,node\n")
    scene = samgraft.open(volume(tmp_path))
    result = segment(scene, backbone=Oracle(), prompts=tmp_path / "t.csv", network_size=64, progress=False)
    assert [(r.id, r.box, result.classes[r.class_id]) for r in result.instances] == [
        (1, BOXES[1], "cyst"),
        (2, BOXES[0], "node"),
    ]
    assert sorted(np.unique(result.labels[2])) == [0, 2] and sorted(np.unique(result.labels[4])) == [0, 1]
    expect_inside(result.labels[2] == 2, BOXES[0])
    expect_inside(result.labels[4] == 1, BOXES[1])
    assert not result.labels[[0, 1, 3, 5]].any() and result.meta["slice"] == "D=2,4"
    (tmp_path / "t.csv").write_text("slice,x,y\n6,10,40\n")
    with pytest.raises(PromptError, match=r"slice 6 lies outside the volume: axis D has slices 0\.\.5"):
        segment(scene, backbone=Oracle(), prompts=tmp_path / "t.csv", network_size=64, progress=False)
    (tmp_path / "f.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(GeometryError, match="the image is a volume; give a CSV"):
        prompts_from_file(tmp_path / "f.geojson", scene)


@pytest.mark.medical
def test_an_earlier_mask_is_used_on_its_fullest_slice(tmp_path: Path) -> None:
    path = volume(tmp_path)
    labels = np.zeros((6, 64, 120), np.uint8)
    labels[2, 6:20, 72:95] = 3
    labels[1, 6:8, 72:95] = 3
    labels[4, 42:50, 12:20] = 9
    affine = np.diag([1.5, 1.5, 5.0, 1.0])
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "mask.nii.gz")
    scene = samgraft.open(path)
    first, second = prompts_from_file(tmp_path / "mask.nii.gz", scene).prompts.objects
    assert first.mask is not None and second.mask is not None
    assert (first.slice, first.mask.box, second.slice, second.mask.box) == (2, (72, 6, 94, 19), 4, (12, 42, 19, 49))
    assert first.source == "label 3" and not first.tight
    oracle = Oracle()
    result = segment(scene, backbone=oracle, prompts=tmp_path / "mask.nii.gz", network_size=64, progress=False)
    expect_inside(result.labels[2] == 1, (72, 6, 94, 19))  # the oracle answers inside the box
    assert all(prompts.masks is not None and prompts.boxes is not None for prompts in oracle.seen)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine * 2), tmp_path / "other.nii.gz")
    with pytest.raises(GeometryError, match=r"mask other.nii.gz: grids differ"):
        prompts_from_file(tmp_path / "other.nii.gz", scene)


def test_mask_logits_lie_where_the_window_looks() -> None:
    mask = MaskPrompt(top=10, left=30, inside=np.ones((8, 16), bool))
    logits = mask_logits(mask, Window(top=6, left=20, side=32), 16)[0]  # two pixels per cell
    assert logits.shape == (16, 16)
    assert (logits > 0).nonzero().min(dim=0).values.tolist() == [2, 5]
    assert (logits > 0).nonzero().max(dim=0).values.tolist() == [5, 12]
    assert (
        float(logits.max()) == pytest.approx(math.log(999), abs=1e-3) == pytest.approx(-float(logits.min()), abs=1e-3)
    )
    beyond = mask_logits(mask, Window(top=-4, left=40, side=16), 16)[0]
    assert (beyond > 0).nonzero().tolist() == [[14, x] for x in range(6)] + [[15, x] for x in range(6)]
    assert not bool((mask_logits(mask, Window(top=50, left=50, side=16), 16) > 0).any())


def test_a_diameter_gives_a_box_that_is_square_in_millimetres() -> None:
    box, points = recist((20, 10, 26, 18), (64, 120))  # 10 long, middle (23, 14)
    assert box == (18, 9, 28, 19)
    assert points == ((20, 10, 1), (21.5, 12, 1), (23, 14, 1), (24.5, 16, 1), (26, 18, 1))
    box, _ = recist((20, 10, 32, 10), (64, 120), (3.0, 0.5))  # 6 mm along a row: 12 pixels across, 2 down
    assert box == (20, 9, 32, 11)
    assert recist((0, 2, 8, 2), (64, 120))[0] == (0, 0, 8, 6)  # cut at the top
    with pytest.raises(PromptError, match="give two different ends"):
        recist((5, 5, 5, 5), (64, 120))


@pytest.mark.medical
def test_a_diameter_on_a_slice_goes_in_as_box_and_points(tmp_path: Path) -> None:
    scene = samgraft.open(volume(tmp_path))
    oracle = Oracle()
    asked = line_prompts([(72, 14, 98, 14)], scene, slice=2)
    assert asked.objects[0].box == (72, 1, 98, 27) and not asked.objects[0].tight
    result = segment(scene, backbone=oracle, prompts=asked, network_size=64, progress=False)
    expect_inside(result.labels[2] == 1, (72, 5, 98, 24))
    assert all(p.points is not None and p.points.shape == (1, 5, 2) and p.boxes is not None for p in oracle.seen)


def test_the_command_takes_files_lines_and_improvements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, boxes, out = picture(tmp_path), coco(tmp_path), tmp_path / "out.geojson"
    words = ["segment", str(scene), "--prompts", str(boxes), "--min-score", "0.5", "--refine", "1", "-o", str(out)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "1 left out: annotation 8: score 0.4 is below 0.5" in said and "1 objects" in said and "roof" in said
    assert [f["properties"]["class_name"] for f in json.loads(out.read_text())["features"]] == ["roof"] * len(
        json.loads(out.read_text())["features"]
    )
    words = ["segment", str(scene), "--line", "72", "14", "98", "14", "--augment-points", "distance", "-o", str(out)]
    assert cli.main(words) == 0 and "1 objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "x.csv", "--box", "1", "1", "5", "5"], "exclude each other"),
        (["--everything", "--refine", "2"], "improve answers to prompts"),
        (["--box", "1", "1", "5", "5", "--augment-points", "farthest"], "augment is 'farthest'"),
        (["--prompts", "nothing.csv"], "no such file; give detections as"),
    ],
)
def test_the_command_refuses_what_cannot_be(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["segment", str(picture(tmp_path)), *words, "-o", str(tmp_path / "o.png")]) == 2
    assert message in capsys.readouterr().err


def test_improvement_reaches_every_look_and_needs_prompts(tmp_path: Path) -> None:
    scene, oracle = samgraft.open(picture(tmp_path)), Oracle()
    result = segment(
        scene, backbone=oracle, prompts=coco(tmp_path), network_size=64, better=Improvement(refine=1), progress=False
    )
    expect_objects(result, ["roof", "tank"])
    assert sum(prompts.masks is not None for prompts in oracle.seen) * 2 == len(oracle.seen)
    with pytest.raises(ConfigError, match="better= improves answers to prompts"):
        segment(scene, backbone=oracle, better=Improvement(refine=1), progress=False)


def test_prompts_are_checked_when_they_are_made() -> None:
    with pytest.raises(PromptError, match="row 3 has neither a box, nor a mask, nor a point with label 1"):
        ObjectPrompt(points=((1, 1, 0),), source="row 3")
    with pytest.raises(PromptError, match="no object is asked for"):
        ObjectPrompts(objects=())
