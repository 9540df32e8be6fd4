"""The benchmark of prompters: metrics by hand, data by plain readers, a perfect head that scores 1, plans, tables."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.adapters.decoders.hq_token import HqTokenConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, Objects
from samgraft.adapters.prompts.rsprompter_anchor import RSPrompterAnchorConfig
from samgraft.adapters.prompts.sam_det import SamDetConfig
from samgraft.recipes.config import AugmentConfig
from tests.adapters.toy import toy_backbone
from tests.benchmarks import (
    _data,
    _object_arms,
    _object_data,
    _object_maps,
    _object_metrics,
    _object_rows,
    _object_sets,
    _prompter_runs,
    _prompter_summary,
    detected_masks,
    prompter_pictures,
    prompters,
)
from tests.benchmarks._data import Case
from tests.benchmarks._object_metrics import Near, Overlaps
from tests.benchmarks._object_sets import ObjectSet, Result
from tests.benchmarks._sets import SetSpec

WINDOW = 48
SHAPE = (64, 112)


def overlaps(scores: list[float], iou: list[list[float]]) -> Overlaps:
    return Overlaps(
        scores=np.asarray(scores), iou=np.asarray(iou, dtype=np.float64).reshape(len(scores), -1 if iou else 0)
    )


# --- metrics ----------------------------------------------------------------------------------------------------------
def test_coco_precision_is_read_at_101_recall_values() -> None:
    image = overlaps([0.7, 0.9, 0.8], [[0.0, 0.8], [0.6, 0.0], [0.0, 0.0]])
    found = _object_metrics.coco_average_precision([image], (0.5, 0.65))
    assert found[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)  # hit, miss, hit: recall 1/2 at 1, then 1 at 2/3
    assert found[1] == pytest.approx(51 / 3 / 101)  # only the third prediction hits: recall 1/2 at precision 1/3


def test_coco_precision_of_all_images_together() -> None:
    sure = overlaps([0.9], [[1.0]])
    wrong = overlaps([0.95, 0.2], [[0.1], [0.9]])
    pooled = _object_metrics.coco_average_precision([sure, wrong], (0.5,))  # miss, hit, hit
    assert pooled[0] == pytest.approx(2 / 3)
    missed = Overlaps(scores=np.zeros(0), iou=np.zeros((0, 1)))
    assert _object_metrics.coco_average_precision([sure, missed], (0.5,))[0] == pytest.approx(51 / 101)


def test_coco_precision_gives_a_true_object_to_the_best_score_only_and_that_takes_its_best_free_object() -> None:
    twice = overlaps([0.9, 0.8], [[0.9], [0.95]])
    assert _object_metrics.coco_average_precision([twice], (0.5,))[0] == 1  # the double comes after full recall
    stolen = overlaps([0.9, 0.8], [[0.6, 0.7], [0.0, 0.8]])
    assert _object_metrics.coco_average_precision([stolen], (0.5,))[0] == pytest.approx(51 / 101)


def test_coco_precision_counts_more_than_100_predictions_of_an_image() -> None:
    many = Overlaps(scores=np.linspace(1, 0.1, 150), iou=np.eye(150))
    assert _object_metrics.coco_average_precision([many]).tolist() == [1.0] * 10
    assert np.isnan(_object_metrics.coco_average_precision([overlaps([], [])], (0.5,)))[0]


def test_the_competition_counts_every_prediction_image_by_image() -> None:
    half = overlaps([0.9, 0.1], [[0.8, 0.0], [0.0, 0.55]])  # one IoU reaches seven thresholds, the other two
    assert _object_metrics.competition_score([half]) == pytest.approx((2 * 1 + 5 / 3) / 10)
    missed, nothing = Overlaps(scores=np.zeros(0), iou=np.zeros((0, 3))), overlaps([], [])
    assert _object_metrics.competition_score([missed, nothing, half]) == pytest.approx((0 + 1 + 11 / 30) / 3)
    assert np.isnan(_object_metrics.competition_score([]))


def test_coco_precision_equals_pycocotools_on_drawn_boxes() -> None:
    """Values of pycocotools 2.0.11 for the same boxes (``COCOeval``, bbox, maxDets 10000)."""
    rng = np.random.default_rng(5)
    images = []
    for _ in range(4):
        count = int(rng.integers(3, 14))
        low, side = rng.integers(0, 60, (count, 2)), rng.integers(6, 30, (count, 2))
        true = np.concatenate([low, low + side - 1], axis=1).astype(np.float64)
        found = np.concatenate([true[rng.random(count) < 0.85], true[rng.random(count) < 0.3]])
        found = np.concatenate([found + rng.integers(-2, 3, found.shape), true[:1] + 40])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        scores = rng.permutation(1000)[: len(found)] / 1000
        images.append(Overlaps(scores=scores, iou=_object_metrics.box_iou(found, true)))
    values = _object_metrics.coco_average_precision(images)
    np.testing.assert_allclose(values, COCO, atol=1e-6)


COCO = [0.586666, 0.565292, 0.548305, 0.412327, 0.292777, 0.151682, 0.089744, 0.013263, 0.0, 0.0]


def test_boxes_count_their_last_pixel() -> None:
    boxes = np.array([[0.0, 0.0, 3.0, 1.0], [10.0, 10.0, 10.0, 10.0]])
    iou = _object_metrics.box_iou(boxes, np.array([[2.0, 0.0, 5.0, 1.0], [10.0, 10.0, 11.0, 10.0]]))
    assert iou.tolist() == [[4 / 12, 0.0], [0.0, 0.5]]


def test_points_are_hit_once_nearest_first_within_reach() -> None:
    distance = _object_metrics.distances(
        np.array([[10.0, 0.0], [14.0, 0.0], [40.0, 7.0]]), np.array([[13.0, 0.0], [8.0, 0.0], [40.0, 1.0]]), 0.6
    )
    assert distance[0, 0] == pytest.approx(1.8) and distance[2, 2] == pytest.approx(3.6)
    image = Near(scores=np.array([0.9, 0.8, 0.7]), distance=distance)
    hits = _object_metrics.points_hit([image], 0.0)  # 14 takes 13 (0.6 m), 10 then takes 8 (1.2 m), 3.6 m is too far
    assert (hits.found, hits.predicted, hits.true) == (2, 3, 3)
    alone = _object_metrics.points_hit([image], 0.85)
    assert (alone.recall, alone.precision, alone.f1) == (pytest.approx(1 / 3), 1.0, 0.5)


def test_boxes_are_paired_as_a_whole_before_they_count() -> None:
    image = overlaps([0.9, 0.8], [[0.6, 0.5], [0.55, 0.0]])
    assert _object_metrics.boxes_hit([image], 0.0).found == 2  # greedily the first would take the box of the second
    assert _object_metrics.boxes_hit([overlaps([0.9], [[0.4]])], 0.0).found == 0  # above, not at, the threshold


def test_the_score_that_counts_is_the_one_with_the_best_f1() -> None:
    images = [overlaps([0.9, 0.6, 0.3, 0.2], [[1, 0], [0, 1], [0, 0], [0, 0]]), overlaps([0.5], [[0.0]])]
    assert _object_metrics.best_threshold(images, "boxes") == 0.6
    assert _object_metrics.best_threshold([overlaps([], [])], "boxes") == 0.0


# --- data -------------------------------------------------------------------------------------------------------------
def test_columns_are_read_by_name_and_last_pixels_are_inside(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image_path,xmin,xmax,ymin,ymax,label\na.tif,1,82,103,235,0\n")
    assert _object_data.read_boxes(table).tolist() == [[1, 103, 81, 234]]
    table.write_text("x,y\n9,70\n67,99\n")
    assert _object_data.read_points(table).tolist() == [[9, 70], [67, 99]]
    table.write_text("x,y\n")
    assert _object_data.read_points(table).shape == (0, 2)


def test_discs_share_pixels_by_distance() -> None:
    label = _object_data.discs(np.array([[3.0, 2.0], [6.0, 2.0]]), (5, 10), 2.0)
    assert label[2].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 0]
    assert label[:, 3].tolist() == [1, 1, 1, 1, 1] and label[0].tolist() == [0, 0, 0, 1, 0, 0, 2, 0, 0, 0]


def test_ellipses_fill_boxes_and_the_smaller_one_is_on_top() -> None:
    label = _object_data.ellipses(np.array([[2.0, 1.0, 3.0, 2.0], [0.0, 0.0, 7.0, 3.0]]), (5, 9))
    assert label[:, 8].tolist() == [0] * 5 and label[4].tolist() == [0] * 9
    assert label[1].tolist() == [2, 2, 1, 1, 2, 2, 2, 2, 0]
    assert label[0].tolist() == [0, 2, 2, 2, 2, 2, 2, 0, 0]


def _shared() -> bool:
    try:
        return (_data.data_root() / "geo" / "trees_naip").is_dir()
    except SystemExit:
        return False


needs_data = pytest.mark.skipif(not _shared(), reason="the shared benchmark data (SAMGRAFT_SHARED) are not here")


@needs_data
def test_trees_of_the_file_and_its_split() -> None:
    train, val = _object_data.trees("train"), _object_data.trees("val")
    assert (len(train), len(val), val[0].name) == (30, 10, "riverside_2020_9.tif")
    first = train[0]
    assert first.points is not None and first.points[:2].tolist() == [[9, 70], [67, 99]]
    assert (first.image.shape, first.metre, len(first.points)) == ((256, 256, 3), pytest.approx(0.6), 59)
    assert first.label[70, 9] == 1 and first.label[99, 67] == 2 and first.label[70, 13:15].tolist() == [1, 0]


@needs_data
def test_crowns_of_the_files_at_a_tenth_of_a_metre() -> None:
    forest, savanna, one = _object_data.crowns()
    assert [len(c.boxes if c.boxes is not None else ()) for c in (forest, savanna, one)] == [61, 7, 1]
    assert savanna.boxes is not None and savanna.boxes[0].tolist() == [1, 103, 81, 234]
    assert one.image.shape == (127, 135, 3) and one.metre == pytest.approx(0.1, rel=0.01)
    assert one.boxes is not None
    np.testing.assert_allclose(one.boxes[0], (43.2, 23.1, 117.7, 106.1), atol=0.1)
    folds = _object_sets.folds(_object_sets.SETS["tree_crowns_neon"], None, 0, tune=False)
    assert [[c.name for c in held] for _, held in folds] == [[c.name] for c in (forest, savanna, one)]
    assert all(len(train) == 2 and held[0].name not in {c.name for c in train} for train, held in folds)


# --- a perfect head ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class OracleConfig(PrompterConfig):
    """Red is the number of the object."""

    method: ClassVar[str] = "oracle"
    drop: int = 0
    """Objects left out."""

    def build(self, backbone: Backbone) -> "Oracle":
        del backbone
        return Oracle(self.drop)


class Oracle(PromptGenerator, ObjectHead):
    def __init__(self, drop: int) -> None:
        super().__init__()
        self.drop, self.bias = drop, nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        raise NotImplementedError

    def losses(self, backbone: Backbone, features: Features, image: Tensor, objects: Objects) -> dict[str, Tensor]:
        assert not features.neck.requires_grad and self.training
        self.seen.append(len(objects))
        return {"bias": (self.bias - 1).square().sum()}

    def find(self, backbone: Backbone, features: Features, image: Tensor, context: Mapping[str, Any]) -> FoundObjects:
        red = (image[:, 0] * 255).round().long()
        pairs = [(b, v) for b in range(len(red)) for v in red[b].unique().tolist() if v > self.drop]
        masks = [(red[b] == v).float() * 2 - 1 for b, v in pairs]
        return FoundObjects(
            image_index=torch.tensor([b for b, _ in pairs], dtype=torch.int64),
            logits=torch.stack(masks) if masks else torch.zeros(0, *red.shape[1:]),
            scores=torch.tensor([1 - v / 100 for _, v in pairs]),
            classes=torch.zeros(len(pairs), dtype=torch.int64),
        )


def toy_set(**values: Any) -> ObjectSet:
    spec = SetSpec(
        name="toy",
        size=WINDOW,
        window=WINDOW,
        classes=3,
        budget=1,
        headline=("ap50",),
        augment=AugmentConfig(enabled=False),
        batch=2,
        border=1,
        min_area=4,
    )
    return replace(ObjectSet(spec=spec, kind="masks", metric="ap50"), **values)


def toy_case() -> Case:
    """A picture wider than high with touching objects, one longer than a window, one in a corner."""
    label = np.zeros(SHAPE, dtype=np.int32)
    label[10:16, 4:104], label[16:30, 20:40], label[30:44, 20:40], label[50:64, 100:112] = 1, 2, 3, 4
    image = np.repeat(label[..., None] / np.float32(255), 3, axis=2).astype(np.float32)
    return Case(id="toy", name="toy", image=image, label=label)


@pytest.mark.parametrize(("drop", "expected"), [(0, 1.0), (1, (51 + 25) / 101)])
def test_a_perfect_head_scores_one_and_a_lost_object_is_lost_recall(drop: int, expected: float) -> None:
    grafted, chosen, case = attach(toy_backbone(), prompter=OracleConfig(drop=drop)), toy_set(), toy_case()
    assert isinstance(grafted.prompter, Oracle)
    method = _object_arms.of_head(grafted.prompter, grafted, chosen)
    found = method.find(case)
    figures = _object_sets.score(chosen, [found], [case], [0.0])
    assert len(_object_sets.places(chosen, SHAPE)) > 4
    assert (figures["ap50"], figures["ap"]) == (pytest.approx(expected), pytest.approx(expected))
    assert figures["best_iou"] == pytest.approx(1 - drop / 4) and figures["true"] == 4
    assert found.scores.tolist() == pytest.approx([1 - v / 100 for v in range(1 + drop, 5)])


def test_a_run_trains_the_head_alone_and_reports_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, made = toy_set(), list[Oracle]()
    monkeypatch.setitem(_object_sets.SETS, "toy", chosen)
    monkeypatch.setattr(_prompter_runs, "folds", lambda *args, **kw: [([toy_case()], [toy_case()])])

    def build(row: Any, chosen: ObjectSet, backbone: Backbone, *rest: Any) -> _object_arms.Method:
        grafted = attach(backbone, prompter=OracleConfig())
        assert isinstance(grafted.prompter, Oracle)
        made.append(grafted.prompter)
        return _object_arms.of_head(grafted.prompter, grafted, chosen)

    monkeypatch.setattr(_prompter_runs, "build", build)
    row = _object_rows.Row(name="oracle", kind="head")
    task = {"set": "toy", "cases": None, "seed": 0, "method": "oracle", "budget": 0.5, "weights": "w", "factor": None}
    found = _prompter_runs.one(toy_backbone(), task | {"config": "c", "recipe": "r", "tune": False}, row)
    assert found["backbone_unchanged"] and found["steps"] == len(made[0].seen) > 1 and max(made[0].seen) > 0
    assert (found["ap50"], found["trainable"], found["metric"], found["n"]) == (pytest.approx(1), 1, "ap50", 1)
    assert made[0].bias.item() != 0 and found["seconds"] >= 0.5 and found["seconds_per_image"] > 0
    assert found["lr"] == _object_rows.HEAD_RATE


def test_grafts_of_a_row_are_trained_with_it_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, backbone, seen = toy_set(), toy_backbone(), list[float]()
    monkeypatch.setitem(_object_sets.SETS, "toy", chosen)
    monkeypatch.setattr(_prompter_runs, "folds", lambda *args, **kw: [([toy_case()], [toy_case()])])
    use = _prompter_runs.use

    def watched(method: _object_arms.Method, cases: list[Case]) -> Any:
        assert isinstance(method.module, Grafted)
        tensors = method.module.graft_state().items()
        seen.extend(float(tensor.abs().max()) for name, tensor in tensors if "lora_B" in name)
        return use(method, cases)

    monkeypatch.setattr(_prompter_runs, "use", watched)
    row = next(row for row in _object_rows.MORE if row.name == "distances + lora")
    task = {"set": "toy", "cases": None, "seed": 0, "method": row.name, "budget": 0.5, "weights": "w", "factor": None}
    known = {"config": "c", "recipe": "r", "tune": False}
    first, second = (_prompter_runs.one(backbone, task | known, row) for _ in range(2))
    assert seen and min(seen) > 0, "LoRA's B is zero until it is trained"
    assert first["backbone_unchanged"] and second["backbone_unchanged"] and first["without_gradient"] == 0
    plain = replace(row, grafts=())
    assert row.describe(chosen) != plain.describe(chosen)


def test_every_picture_gives_a_window_per_round_wherever_it_lies() -> None:
    large, small = toy_case(), toy_case()
    small = replace(small, image=small.image[:40, :30] + 0.5, label=small.label[:40, :30])
    drawn = _object_sets.crops(toy_set(), [large, small], torch.Generator().manual_seed(3))
    for _ in range(4):
        image, label = next(drawn)  # batches of two: one of each, in any order
        first = int(image[1].max() < 0.5)
        assert image[1 - first].min() >= 0.5 and image[first].max() < 0.1
        inside, red = label[first], (image[first, 0] * 255).round().long()
        assert torch.equal(inside, red)  # a window of the large picture, with the labels of the same place
        assert (label[1 - first][:, :6] == -1).all() and (label[1 - first][8:40, 12:30] >= 0).all()


def test_shown_windows_hold_an_object() -> None:
    images, masks = _object_sets.shown_windows(toy_set(), [toy_case()], 3)
    assert len(images) == len(masks) == 3 and masks.flatten(1).any(dim=1).all()
    assert torch.equal(masks, images[:, 0] > 0)


def test_an_answering_decoder_is_trained_with_the_head_and_asked_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    grafted = attach(toy_backbone(), prompter=SamDetConfig(), decoder=HqTokenConfig())
    assert isinstance(grafted.prompter, ObjectHead)
    method = _object_arms.of_head(grafted.prompter, grafted, toy_set())
    case = toy_case()
    image = torch.from_numpy(case.image[:48, :48].transpose(2, 0, 1).copy())[None]
    label = torch.from_numpy(case.label[:48, :48].astype(np.int64))[None]
    assert method.objective is not None
    method.objective(image, label).backward()
    assert grafted.decoder is not None
    trained = [p for part in (grafted.prompter, grafted.decoder) for p in part.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in method.trained}
    assert any(p.grad is not None and bool(p.grad.any()) for p in grafted.decoder.parameters())
    asked: list[int] = []
    whole = grafted.decode

    def decode(features: Features, prompts: Prompts, **options: Any) -> tuple[Tensor, Tensor]:
        asked.append(len(prompts))
        return whole(features, prompts, **options)

    monkeypatch.setattr(grafted, "decode", decode)
    method.find(case)
    assert len(asked) == 1


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(ValueError, match="nan"):
        _object_arms.finite(torch.tensor(float("nan")))


# --- maps -------------------------------------------------------------------------------------------------------------
def test_blending_windows_of_a_ramp_gives_the_ramp() -> None:
    rows, cols = np.indices(SHAPE)
    image = np.stack([rows / 64, cols / 112, (rows + cols) / 200], axis=2).astype(np.float32)
    case = Case(id="ramp", name="ramp", image=image, label=np.zeros(SHAPE, dtype=np.int32))
    found = _object_maps.blended(lambda window: window * 3 - 1, toy_set(), case)
    np.testing.assert_allclose(found.numpy(), image.transpose(2, 0, 1) * 3 - 1, atol=1e-5)


@pytest.mark.parametrize("head", [None, DistancesConfig()])
def test_maps_give_back_the_objects_that_they_were_made_of(head: DistancesConfig | None) -> None:
    case, chosen = toy_case(), toy_set()
    maps = _object_maps.maps_of(chosen, head)
    target = maps.target(torch.from_numpy(case.label.astype(np.int64))[None])[0]
    logits = target.logit(1e-6) if head else torch.nn.functional.one_hot(target, 3).permute(2, 0, 1) * 20.0
    found = _object_maps.read(maps, chosen, logits)
    figures = _object_sets.score(chosen, [found], [case], [0.0])
    least = 0.97 if head else 1.0  # a watershed shares the seam of touching objects as it comes
    assert figures["ap50"] == pytest.approx(1) and float(figures["best_iou"]) >= least


def test_a_class_is_one_certain_object() -> None:
    chosen = toy_set(kind="classes", metric="dice")
    found = _object_maps.read(_object_maps.maps_of(chosen, None), chosen, torch.tensor([[[0.0, 0.0]], [[1.0, -1.0]]]))
    assert (found.labels.tolist(), found.scores.tolist()) == ([[1, 0]], [1.0])


def test_class_weights_count_where_there_are_classes() -> None:
    weighted = toy_set(spec=replace(toy_set().spec, class_weights=(1.0, 1.0, 50.0)))
    maps, label = _object_maps.maps_of(weighted, None), torch.zeros(1, 6, 9, dtype=torch.int64)
    label[0, 1:5, 2:7] = 1
    logits = torch.zeros(1, 3, 3, 3)
    logits[:, 1] = 1.0  # sure of "interior", hence wrong on borders
    heavy, light = (
        _object_maps.difference(maps, _object_maps.loss_of(maps, one), logits, label) for one in (weighted, toy_set())
    )
    assert heavy > light


# --- results ----------------------------------------------------------------------------------------------------------
def test_places_of_a_result_and_objects_without_a_pixel() -> None:
    labels = np.zeros((4, 7), dtype=np.int32)
    labels[1:3, 2:6], labels[3, 0] = 3, 1
    found = _object_sets.result_of(labels, [0.1, 0.2, 0.3])
    assert found.scores.tolist() == [0.1, 0.3]
    assert found.boxes().tolist() == [[0, 3, 0, 3], [2, 1, 5, 2]]
    assert found.centroids().tolist() == [[0, 3], [3.5, 1.5]]
    assert found.labels[1, 2] == 2 and found.labels[3, 0] == 1


def test_points_are_scored_with_the_threshold_of_training_pictures() -> None:
    chosen = toy_set(kind="points", metric="f1")
    labels = np.zeros((20, 30), dtype=np.int32)
    labels[2:5, 2:5], labels[10:13, 20:23], labels[15:18, 5:8] = 1, 2, 3
    points = np.array([[3.0, 3.0], [21.0, 15.0]])  # the second is 4 pixels below a prediction: 2.4 m
    case = _object_data.TreeCase(
        id="t", name="t", image=np.zeros((20, 30, 3), np.float32), label=labels, metre=0.6, points=points
    )
    found = Result(labels=labels, scores=np.array([0.9, 0.8, 0.3]))
    least = _object_sets.choose_threshold(chosen, [found], [case])
    assert least == 0.8
    figures = _object_sets.score(chosen, [found], [case], [least])
    assert (figures["recall"], figures["precision"], figures["predicted"]) == (1.0, 1.0, 2)
    assert _object_sets.score(chosen, [found], [case], [0.0])["precision"] == pytest.approx(2 / 3)


def test_classes_are_scored_by_dice_of_the_objects_that_count() -> None:
    chosen = toy_set(kind="classes", metric="dice")
    labels = np.array([[1, 1, 2, 2, 0, 0]], dtype=np.int32)
    truth = np.array([[1, 1, 0, 0, 0, 0]], dtype=np.int32)
    case = Case(id="p", name="p", image=np.zeros((1, 6, 3), np.float32), label=truth)
    found = Result(labels=labels, scores=np.array([0.9, 0.4]))
    assert _object_sets.score(chosen, [found], [case], [0.0])["dice"] == pytest.approx(4 / 6)
    least = _object_sets.choose_threshold(chosen, [found], [case])
    assert 0.4 < least <= 0.9 and _object_sets.score(chosen, [found], [case], [least])["dice"] == 1


# --- plan and tables --------------------------------------------------------------------------------------------------
def options(**values: Any) -> argparse.Namespace:
    found = prompters.arguments([])
    vars(found).update({"rows": ["everything", "unet"], **values})
    return found


def known_rows() -> dict[str, _object_rows.Row]:
    return {row.name: row for row in _object_rows.MORE if row.decoder is None}


def test_rows_are_what_the_registries_can_train() -> None:
    found = _object_rows.rows(toy_backbone())
    assert {"everything", "unet", "class_tokens", "conv_head", "autosam", "sam_det", "persam"} <= set(found)
    assert not {"grid", "manual", "mask"} & set(found)
    kinds = [found[name].kind for name in ("class_tokens", "autosam", "sam_det", "sam_seg", "persam", "distances")]
    assert kinds == ["maps", "maps", "head", "head", "references", "maps"]
    nuclei, heart = _object_sets.SETS["nuclei"], _object_sets.SETS["cardiac_mr"]
    options = found["class_tokens"].describe(nuclei)[2]
    assert (options["num_classes"], options["full_resolution"]) == (2, True)
    assert found["class_tokens"].describe(heart)[2]["num_classes"] == 1


def test_a_part_that_cannot_be_built_is_a_row_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, backbone: Backbone) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(_object_rows.DECODERS.get("conv_head"), "build", broken)
    found = _object_rows.rows(toy_backbone())
    assert found["conv_head"].kind == "head" and "class_tokens" in found


def test_everything_mode_runs_once_and_never_on_classes() -> None:
    tasks = prompters.plan(options(sets=["nuclei", "cardiac_mr", "tree_crowns_neon"], seeds=[3, 4]), "w", known_rows())
    assert [(t["set"], t["cases"], t["seed"], t["budget"]) for t in tasks if t["method"] == "everything"] == [
        ("nuclei", 5, 3, 0.0),
        ("nuclei", None, 3, 0.0),
        ("tree_crowns_neon", None, 3, 0.0),
    ]
    assert len([t for t in tasks if t["method"] == "unet"]) == 2 * (2 + 2 + 1)
    assert len({tuple(t[key] for key in _prompter_runs.KEY) for t in tasks}) == len(tasks)


def test_several_scales_are_for_pictures_of_unknown_scale() -> None:
    row = _object_rows.Row(name="two", kind="unet", scales=(1.0, 0.5))
    tasks = prompters.plan(options(rows=["two"], sets=list(_object_sets.SETS), seeds=[0]), "w", {"two": row})
    assert {task["set"] for task in tasks} == {"nuclei", "retina_vessels", "cardiac_mr"}


def test_tuning_plans_factors_and_hashes_follow_them() -> None:
    tasks = prompters.plan(options(tune=True, sets=["nuclei"], fractions=["all"], seeds=[0]), "w", known_rows())
    assert [(t["method"], t["factor"]) for t in tasks] == [("unet", 0.3), ("unet", 1.0), ("unet", 3.0)]
    assert len({t["recipe"] for t in tasks}) == 3 and len({t["config"] for t in tasks}) == 1


def test_unknown_rows_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(SystemExit, match="no such row: nope; there are: everything, everything, loose, unet"):
        prompters.chosen_rows(options(rows=["nope"]), known_rows())


def result(method: str, value: float, seed: int = 0, cases: int | None = None) -> dict[str, Any]:
    fixed = {
        "set": "nuclei",
        "metric": "ap50",
        "train_cases": 70,
        "budget": 60.0,
        "busy": 1.0,
        "backbone_unchanged": True,
    }
    return {"method": method, "ap50": value, "seed": seed, "cases": cases, "steps": 10 + seed, **fixed}


def test_tables_say_mean_spread_and_who_beats_whom() -> None:
    rows = [result("sam_det", 0.5), result("sam_det", 0.7, 1), result("everything", 0.4), result("unet", 0.9, cases=5)]
    first = _prompter_summary.overview(rows)[0]
    assert (first["nuclei, all"], first["nuclei, 5"]) == ("0.600 ± 0.141", None)
    beaten = _prompter_summary.order(rows)
    assert (beaten[0]["nuclei, all"], beaten[1]["nuclei, all"]) == (None, "+0.200")
    assert [(a["best"], a["reached"]) for a in _prompter_summary.aims(rows)] == [("sam_det", False), ("unet", True)]
    line = _prompter_summary.long_table(rows)[0]
    assert (line["ap50"], line["seeds"], line["steps"], line["f1"]) == (pytest.approx(0.6), 2, 10, None)
    assert line["budget"] == 60
    page = _prompter_summary.page(rows, [{"method": "x", "set": "nuclei", "failed": "no"}])
    assert "- failed: x on nuclei: no" in page


# --- boxes or masks ---------------------------------------------------------------------------------------------------
def test_masks_of_true_boxes_and_of_found_ones_are_compared_window_by_window() -> None:
    first = torch.zeros(2, 4, 4, dtype=torch.bool)
    first[0, :2], first[1, 0, 0] = True, True
    assert detected_masks.iou(first, first[:1]).tolist() == [[1.0], [0.125]]
    grafted = attach(toy_backbone(), prompter=RSPrompterAnchorConfig()).eval()
    label = torch.zeros(2, 32, 32, dtype=torch.int64)
    label[0, 2:12, 2:12], label[0, 16:30, 4:20] = 1, 2
    seen = detected_masks.Seen()
    with torch.no_grad():
        detected_masks.measure(grafted, torch.rand(2, 3, 32, 32), label, seen)
        detected_masks.measure(grafted, torch.rand(2, 3, 32, 32), torch.zeros_like(label), seen)
    assert [len(values) for values in seen.told.values()] == [2, 2]
    for images in seen.found.values():
        assert [one.iou.shape[1] for one in images] == [2, 0, 0, 0]
        assert all(one.iou.shape[0] == len(one.scores) for one in images)
    assert seen.line()["objects"] == 2 and 0 <= seen.line()["own boxes"] <= 1


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_kept_label_maps_are_drawn_where_the_objects_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy_case()
    monkeypatch.setitem(_object_sets.SETS, "nuclei", toy_set())
    monkeypatch.setattr(prompter_pictures, "folds", lambda *args, **kw: [([case], [case])])
    found = _object_sets.result_of(case.label, [0.9, 0.8, 0.7, 0.1])
    folder = _prompter_runs.kept_folder(tmp_path, set="nuclei", cases=None, seed=0, method="oracle")
    _prompter_runs.keep(folder, [found], [case], [0.5])
    labels = prompter_pictures.labels_of(folder, 0, case)
    assert np.array_equal(labels, np.where(case.label == 4, 0, case.label)), "the last object does not count"
    target = tmp_path / "sheet.png"
    prompter_pictures.main([str(tmp_path), "--rows", "oracle", "-o", str(target)])
    picture = np.asarray(Image.open(target).convert("RGB")).astype(int)
    height = round(SHAPE[0] * 2 * 300 / (SHAPE[1] * 2))
    assert picture.shape == (prompter_pictures.HEAD + height + prompter_pictures.GAP, 2 * 306, 3)
    corner = (slice(prompter_pictures.HEAD + height - 40, None), slice(260, 300))
    right = (corner[0], slice(corner[1].start + 306, corner[1].stop + 306))
    coloured = [(picture[place].max(-1) - picture[place].min(-1) > 60).sum() for place in (corner, right)]
    assert coloured[0] > 100 and coloured[1] == 0, "its outline is in the truth, and not in what counts"
    with pytest.raises(SystemExit, match="run tests.benchmarks.prompters with --keep"):
        prompter_pictures.main([str(tmp_path), "--rows", "other", "-o", str(target)])
    with pytest.raises(SystemExit, match="is of toy, expected elsewhere"):
        prompter_pictures.labels_of(folder, 0, replace(case, name="elsewhere"))


def test_views_of_a_row_are_averaged_in_use_alone() -> None:
    row = next(row for row in _object_rows.MORE if row.name == "distances, 8 views")
    chosen, case = toy_set(), toy_case()
    single = replace(row, views=1)
    assert row.describe(chosen) != single.describe(chosen)
    methods = [_object_arms.build(one, chosen, toy_backbone(), 0, [case]) for one in (row, single)]
    batch = next(_object_sets.crops(chosen, [case], torch.Generator().manual_seed(0)))
    losses = []
    for method in methods:
        method.module.eval()
        losses.append(None if method.objective is None else method.objective(*batch).item())
    assert losses[0] == losses[1] and losses[0] is not None
    lying = replace(case, image=np.rot90(case.image).copy(), label=np.rot90(case.label).copy())
    turned = [[method.find(one).labels > 0 for one in (case, lying)] for method in methods]
    differing = [np.mean(np.rot90(upright) != other) for upright, other in turned]
    assert differing[0] < 0.002 and differing[1] > 10 * max(differing[0], 1e-4)


def test_a_row_begins_with_an_adapter_and_may_stay_as_it_is(tmp_path: Path) -> None:
    backbone, chosen = toy_backbone(), toy_set()
    grafted = attach(backbone, decoder=DistancesConfig(full_resolution=True))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    wanted = {name: tensor.clone() for name, tensor in grafted.graft_state().items()}
    save_bundle(tmp_path / "a.graft", grafted, meta=BundleMeta(task="instance", classes={1: "object"}))
    grafted.detach()
    fixed = {**_object_rows.EMBEDDED, "start": str(tmp_path / "a.graft")}
    as_it_is = _object_rows.Row(name="as it is", **fixed, trained=False)
    further = _object_rows.Row(name="further", **fixed)
    for row in (as_it_is, further):
        method = _object_arms.build(row, chosen, backbone, 0, [toy_case()])
        assert isinstance(method.module, Grafted)
        state = method.module.graft_state()
        assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert (method.objective is None) == (row is as_it_is)
        method.module.detach()
    assert as_it_is.describe(chosen) != further.describe(chosen)
    plain = replace(further, start=None)
    assert further.optimiser(chosen).lr == _object_rows.STARTED * plain.optimiser(chosen).lr
    tasks = prompters.plan(
        options(sets=["nuclei"], rows=["as it is", "further"]), "w", {r.name: r for r in (as_it_is, further)}
    )
    assert [(t["method"], t["seed"], t["budget"] > 0) for t in tasks if t["cases"] is None] == [
        ("as it is", 0, False),
        ("further", 0, True),
        ("further", 1, True),
        ("further", 2, True),
    ]
