"""Everything mode against a plain loop, and where pictures are empty, narrow, constant or filled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.box_utils import non_max_suppression
from PIL import Image
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.commands.segment import run as segment_command
from samgraft.recipes.engine.everything import AutomaticMasks, automatic_masks
from samgraft.recipes.engine.runs import from_coco
from samgraft.recipes.engine.windows import from_network
from samgraft.recipes.everything import ORIGINAL, EverythingConfig
from samgraft.recipes.shape_filter import ShapeFilter
from tests.adapters.toy import toy_backbone, toy_image
from tests.recipes._oracle import Oracle, squares

OPEN = {"stability_score_thresh": 0.0, "pred_iou_thresh": -10.0, "max_share": 1.0, "min_network_area": 0, "tile": 0}
BOXES = [(8, 8, 39, 31), (60, 20, 99, 59), (10, 60, 49, 85)]


def image_of(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float().expand(3, *array.shape).contiguous() / 255


def found_in(array: np.ndarray, **options: object) -> AutomaticMasks:
    config = EverythingConfig(**{**OPEN, "pred_iou_thresh": 0.6, **options})
    return automatic_masks(Oracle(), image_of(array), config=config, depth=0)


class Echo(Oracle):
    """Answers a point with three soft blobs of its own size beside it; predicted IoU and softness follow the place."""

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        places = (prompts.points[:, 0] + 0.5) / 2 - 0.5
        rows = []
        for px, py in places.tolist():
            far = ((x - px) ** 2 / 2 + (y - py - 1) ** 2).sqrt()
            rows.append(torch.stack([(size - far) * (0.6 + (3 * px) % 2.3) for size in (1.3, 3.1, 5.2)]))
        score = (places @ torch.tensor([0.37, 0.113])).abs() % 1
        return torch.stack(rows), torch.stack([score, (score + 0.2) % 1, (score + 0.5) % 1], dim=1)


def plain(backbone: Echo, config: EverythingConfig, side: int) -> list[np.ndarray]:
    """Every mask enlarged to the picture, then filtered there: the algorithm without shortcuts."""
    line = (torch.arange(config.points_per_side) + 0.5) / config.points_per_side * 64 - 0.5
    points = torch.stack([line.repeat(len(line)), line.repeat_interleave(len(line))], dim=1)
    prompts = Prompts(
        image_index=torch.zeros(len(points)).long(), points=points[:, None], labels=torch.ones(len(points), 1)
    )
    logits, iou = backbone.decode(Features(neck=torch.zeros(1, 4, 8, 8)), prompts, multimask=True)
    masks, scores = from_network(logits.flatten(0, 1), side), iou.flatten()
    keep = scores > config.pred_iou_thresh
    masks, scores = masks[keep], scores[keep]
    offset = config.stability_score_offset
    keep = (masks > offset).sum((1, 2)) / (masks > -offset).sum((1, 2)) >= config.stability_score_thresh
    masks, scores = masks[keep] > 0, scores[keep]
    boxes = []
    for mask in masks:
        rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes.append([float(cols.min()), float(rows.min()), float(cols.max()) + 1, float(rows.max()) + 1])
    kept = non_max_suppression(torch.tensor(boxes), scores, config.box_nms_thresh)
    return [masks[i].numpy() for i in kept.tolist()]


@pytest.mark.parametrize("side", [64, 100, 40, 200])
@pytest.mark.parametrize("stability", [0.5, 0.6])
def test_shortcuts_change_no_mask(side: int, stability: float) -> None:
    config = EverythingConfig(
        **{**OPEN, "pred_iou_thresh": 0.3, "stability_score_thresh": stability}, points_per_side=9, nms="box"
    )
    expected = plain(Echo(), config, side)
    found = automatic_masks(Echo(), torch.zeros(3, side, side), config=config, depth=0)
    assert len(found) == len(expected) > 10
    assert found.dropped["stability"] > 10 and found.dropped["predicted IoU"] > 10 and found.dropped["doubles"] > 3
    for mask, other in zip(found, expected, strict=True):
        assert np.array_equal(mask, other)


def test_records_have_the_fields_of_the_original() -> None:
    picture = squares((96, 128), BOXES)
    found = found_in(picture, points_per_side=12)
    assert len(found) == 3
    truth = {box: (picture > 100) & False for box in BOXES}
    for record in found.records("binary_mask"):
        x, y, width, height = record["bbox"]
        mask = record["segmentation"]
        assert mask.shape == (96, 128) and mask.sum() == record["area"]
        assert mask[y : y + height, x : x + width].sum() == record["area"]  # width and height count pixels
        assert mask[y : y + height, x].any() and mask[y : y + height, x + width - 1].any()
        near = min(truth, key=lambda box: abs(box[0] - x) + abs(box[1] - y))
        assert np.abs(np.array(near) - [x, y, x + width - 1, y + height - 1]).max() <= 2
        ((px, py),) = record["point_coords"]
        assert near[0] - 1 <= px <= near[2] + 1 and near[1] - 1 <= py <= near[3] + 1
        assert record["crop_box"] == [0, 0, 128, 96]
        assert record["predicted_iou"] == pytest.approx(0.9)
        assert 0 < record["stability_score"] <= 1
    for mode in ("uncompressed_rle", "coco_rle"):
        for record, mask in zip(found.records(mode), found, strict=True):
            assert np.array_equal(from_coco(record["segmentation"]).full(), mask)
    json.dumps(found.records())
    with pytest.raises(ConfigError, match="output_mode is 'rle'"):
        found.records("rle")


@pytest.mark.parametrize("shape", [(1, 90), (90, 1), (1, 1), (5, 300)])
def test_narrow_pictures(shape: tuple[int, int]) -> None:
    picture = np.full(shape, 20, np.uint8)
    picture[:, : (shape[1] + 1) // 2] = 220
    found = found_in(picture, points_per_side=4, crop_n_layers=1)
    assert found.shape == shape
    assert all(mask.shape == shape and mask.any() for mask in found)
    if shape == (1, 90):
        assert found.found[0].runs.box == (0, 0, pytest.approx(44, abs=1), 0)


def test_one_huge_object_is_the_whole_picture() -> None:
    found = found_in(np.full((50, 70), 220, np.uint8))
    assert len(found) == 1
    assert next(iter(found)).all()
    assert (
        found.records()[0]["segmentation"]["counts"]
        == from_coco(found.records("uncompressed_rle")[0]["segmentation"]).coco()["counts"]
    )
    assert found.shapes[0].at_border
    none = found_in(np.full((50, 70), 220, np.uint8), max_share=0.6)
    assert len(none) == 0
    assert "256 by max_share" in none.explain()


def test_nothing_found_says_why() -> None:
    found = found_in(np.full((50, 70), 20, np.uint8), points_per_side=3)
    assert len(found) == 0 and found.labels().max() == 0 and found.records() == []
    assert found.explain() == "27 masks decoded; dropped: 18 by predicted IoU, 9 by stability"
    blank = automatic_masks(Oracle(), torch.zeros(3, 30, 40), valid=np.zeros((30, 40), dtype=bool))
    assert blank.explain() == "0 masks decoded (no point lies on a pixel with data)"


class Nest(Oracle):
    """Answers every point with a disc, a larger disc and the ring between them."""

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        far = ((x - 15.5) ** 2 + (y - 15.5) ** 2).sqrt()
        three = torch.stack([(11 - far) * 5, (9 - far) * 5, torch.minimum(11 - far, far - 9) * 5])
        count = len(prompts)
        return three.expand(count, -1, -1, -1), torch.tensor([0.95, 0.9, 0.8]).expand(count, -1)


def test_concentric_objects_stay_and_the_smaller_is_on_top() -> None:
    config = {**OPEN, "points_per_side": 2, "box_nms_thresh": 0.68}
    by_mask = automatic_masks(Nest(), torch.zeros(3, 64, 64), config=EverythingConfig(**config))
    assert [round(one.iou, 2) for one in by_mask.found] == [0.95, 0.9, 0.8]
    by_box = automatic_masks(Nest(), torch.zeros(3, 64, 64), config=EverythingConfig(**config, nms="box"))
    assert [round(one.iou, 2) for one in by_box.found] == [0.95, 0.9]  # IoU of the boxes (18 / 22)^2 = 0.67
    labels = by_box.labels()
    assert (labels == 2).sum() == by_box.found[1].runs.area
    assert (labels == 1).sum() == by_box.found[0].runs.area - by_box.found[1].runs.area
    round_only = EverythingConfig(**config, shapes=ShapeFilter(circular=0.95, max_diameter="40px"))
    kept = automatic_masks(Nest(), torch.zeros(3, 64, 64), config=round_only)
    assert [round(one.iou, 2) for one in kept.found] == [0.9]
    assert kept.dropped["shape"] == 2 and kept.shapes[0].id == 1


def test_crops_look_closer_and_drop_what_they_cut() -> None:
    boxes = [(5, 5, 12, 12), (100, 70, 107, 77), (20, 20, 100, 35)]
    found = found_in(squares((96, 128), boxes), points_per_side=16, crop_n_layers=1, nms="box", crop_nms_thresh=0.2)
    seen = {one.crop.layer: 0 for one in found.found}
    for one in found.found:
        seen[one.crop.layer] += 1
    assert len(found) == 3
    assert seen[0] == 1  # the long one, which every crop cuts
    assert found.dropped["cut by a crop"] > 0


def test_cleaning_removes_islands_and_then_doubles() -> None:
    picture = squares((64, 64), [(10, 10, 40, 40)])
    picture[24:27, 24:27] = 20
    dirty, tidy = found_in(picture, points_per_side=8), found_in(picture, points_per_side=8, min_mask_region_area=40)
    assert not dirty.found[0].runs.full()[25, 25]
    assert tidy.found[0].runs.full()[25, 25] and len(tidy) == 1


def test_features_of_before_are_used_and_point_grids_ask_where_they_say() -> None:
    backbone, image = toy_backbone(), toy_image(batch=1)[0]
    config = EverythingConfig(**OPEN, points_per_side=None, point_grids=[[(0.25, 0.5), (0.75, 0.1)]], nms="box")
    first = automatic_masks(backbone, image, config=config)
    assert {(one.point[0], round(one.point[1], 4)) for one in first.found} <= {(15.5, 31.5), (47.5, 5.9)}
    features = backbone.encode(image[None])
    again = automatic_masks(backbone, image, config=config, features=features)
    assert [m.runs.counts() for m in again.found] == [m.runs.counts() for m in first.found]
    layered = EverythingConfig(**OPEN, crop_n_layers=1)
    with pytest.raises(ConfigError, match="features belong to one view"):
        automatic_masks(backbone, image, config=layered, features=features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"point_grids": [[(0.5, 0.5)]]}, "either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [[(0.5, 0.5)]], "crop_n_layers": 1}, "expected one per layer: 2"),
        ({"points_per_side": None, "point_grids": [[(0.5, 1.5)]]}, "outside 0 to 1"),
        ({"nms": "masks"}, "did you mean 'mask'"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
        ({"stability_score_offset": -1.0}, "stability_score_offset is -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EverythingConfig(**options)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(3, H, W\) float"):
        automatic_masks(Oracle(), torch.zeros(1, 5, 5))
    with pytest.raises(ShapeError, match=r"valid is \(4, 5\)"):
        automatic_masks(Oracle(), torch.zeros(3, 5, 5), valid=np.ones((4, 5), dtype=bool))


def test_the_command_takes_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(squares((96, 128), BOXES)).save(path)
    monkeypatch.setattr("samgraft.recipes.engine.run.load_backbone", lambda name: Oracle())
    words = [str(path), "--everything", "--original", "--pred-iou-thresh", "0.6", "--stability-score-thresh", "0.5"]
    words += ["--points-per-side", "12", "--crop-overlap-ratio", "0.34", "--max-diameter", "40px"]
    segment_command([*words, "-o", str(tmp_path / "o.geojson"), "--records", str(tmp_path / "r.json")])
    collection = json.loads((tmp_path / "o.geojson").read_text())
    assert len(collection["features"]) == 2  # 32 x 24 and 40 x 26 pixels; 40 x 40 has a diameter of 45
    for feature in collection["features"]:
        assert feature["properties"]["elliptic"] == pytest.approx(3 / np.pi, abs=0.03)
        assert feature["properties"]["diameter_px"] < 40
    records = json.loads((tmp_path / "r.json").read_text())
    assert records["image"] == {"file_name": "p.png", "height": 96, "width": 128}
    assert sorted(a["area"] for a in records["annotations"]) == sorted(
        f["properties"]["area_px"] for f in collection["features"]
    )
    with pytest.raises(ConfigError, match="--min-diameter belongs to --everything"):
        segment_command(
            [str(path), "--box", "1", "1", "9", "9", "--min-diameter", "3px", "-o", str(tmp_path / "m.png")]
        )
    segment_command([str(path), "--everything", "--pred-iou-thresh", "2", "-o", str(tmp_path / "m.png")])
    assert "nothing found: 768 masks decoded; dropped: 768 by predicted IoU" in capsys.readouterr().out


def test_numbers_of_the_original() -> None:
    chosen = (ORIGINAL.points_per_side, ORIGINAL.pred_iou_thresh, ORIGINAL.stability_score_thresh, ORIGINAL.nms)
    assert chosen == (32, 0.88, 0.95, "box")
    assert ORIGINAL.box_nms_thresh == ORIGINAL.crop_nms_thresh == 0.7
