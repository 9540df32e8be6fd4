"""Annotations become masks, masks become shares of cells, cells become prototypes; on images that are not square."""

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts import References, make_references, masks_from_labels
from samgraft.adapters.prompts.references import draw, prototypes, references_of
from samgraft.errors import ConfigError, PromptError, ShapeError
from tests.adapters.toy import toy_backbone, toy_image

SIZE = (16, 24)
IMAGE = torch.zeros(1, 3, *SIZE)


def block(rows: slice, cols: slice) -> Tensor:
    mask = torch.zeros(1, 1, *SIZE)
    mask[0, 0, rows, cols] = 1
    return mask


def test_box_holds_its_first_and_last_pixel() -> None:
    drawn = draw("box", [17, 2, 19, 5], SIZE)
    assert torch.equal(drawn, block(slice(2, 6), slice(17, 20))[0, 0].bool())


def test_points_and_scribbles_are_drawn_where_they_lie() -> None:
    clicks = draw("points", [[20, 3], [5.2, 10]], SIZE, radius=0)
    assert sorted(clicks.nonzero().tolist()) == [[3, 20], [10, 5]]
    line = draw("scribble", [[4, 2], [4, 6], [9, 6]], SIZE, radius=0)
    assert sorted(line.nonzero().tolist()) == [[2, 4], [3, 4], [4, 4], [5, 4]] + [[6, x] for x in range(4, 10)]
    wide = draw("scribble", [[4, 2], [4, 6]], SIZE, radius=2)
    assert wide[4, 2:7].all() and not wide[4, 1] and not wide[4, 7] and wide[8, 4] and not wide[9, 4]
    assert not draw("points", None, SIZE).any()


@pytest.mark.parametrize(
    ("kind", "annotation", "message"),
    [
        ("box", [5, 5, 24, 9], r"leaves the image: x 0..23, y 0..15"),
        ("points", [[3, 16]], r"leaves the image: x 0..23, y 0..15"),
        ("scribble", [[float("nan"), 3]], "leaves the image"),
        ("box", [9, 5, 3, 9], "ends before it starts"),
        ("box", [[1, 2]], "four numbers x0, y0, x1, y1"),
        ("points", [], r"\(x, y\) of at least one point"),
    ],
)
def test_bad_annotations(kind: str, annotation: list[float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        draw(kind, annotation, SIZE)  # type: ignore[arg-type]


def test_an_object_below_one_cell_has_a_prototype() -> None:
    """Three pixels: two in cell (1, 2) and one in (0, 2); nearest sampling would lose all of them."""
    mask = torch.zeros(1, 1, *SIZE)
    mask[0, 0, 7:10, 17] = 1
    neck = torch.zeros(1, 2, 2, 3)
    neck[0, :, 1, 2], neck[0, :, 0, 2] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 6.0])
    references = References(images=IMAGE, masks=mask, features=Features(neck=neck))
    shares = references.shares()
    assert shares[0, 0].tolist() == [[0, 0, 1 / 64], [0, 0, 2 / 64]]
    target = prototypes(neck.permute(0, 2, 3, 1), shares)
    assert torch.allclose(target, torch.tensor([[2.0, 2.0]]))
    assert references.shares(parts=4)[0, 0, 3:5, 8].tolist() == [0.25, 0.5]


def test_padding_counts_nowhere() -> None:
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, :, 16:] = False
    mask = block(slice(0, 8), slice(8, 24))
    neck = torch.ones(1, 2, 2, 3)
    references = References(images=IMAGE, masks=mask, valid=valid, features=Features(neck=neck))
    assert references.shares()[0, 0].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert references.known()[0].tolist() == [[1, 1, 0], [1, 1, 0]]


def test_kinds_are_converted_in_one_place() -> None:
    images = torch.zeros(2, 3, *SIZE)
    boxes = make_references(images, [[[0, 0, 3, 1], None], [None, [20, 10, 23, 15]]], kind="box")
    assert boxes.num_objects == 2 and len(boxes) == 2 and boxes.kind == "box"
    assert boxes.masks.sum(dim=(2, 3)).tolist() == [[8, 0], [0, 24]]
    labels = torch.zeros(2, *SIZE, dtype=torch.int64)
    labels[0, 3, 4], labels[1, 5, 6] = 1, 2
    masks = masks_from_labels(labels, 2)
    assert masks.nonzero().tolist() == [[0, 0, 3, 4], [1, 1, 5, 6]]
    assert make_references(images, masks).masks.dtype == torch.float32


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (torch.zeros(1, 1, *SIZE), PromptError, r"no reference shows object 0 \(of 1, from 0\).*empty in all 1 images"),
        (torch.full((1, 1, *SIZE), 2.0), PromptError, r"outside \[0, 1\]"),
        (torch.full((1, 1, *SIZE), float("nan")), PromptError, "NaN"),
        (torch.ones(1, 1, 24, 16), ShapeError, r"images \(1, 3, 16, 24\), masks \(1, 1, 24, 16\)"),
        (torch.ones(1, 0, *SIZE), ShapeError, "hold nothing"),
    ],
)
def test_bad_masks(masks: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_references(IMAGE, masks)


def test_features_are_kept_and_asked_for() -> None:
    backbone, images = toy_backbone(), toy_image(64, 96)
    references = make_references(images, (images[:, 0] > 0.5).float())
    with pytest.raises(ConfigError, match=r"no features of blocks \[1\]; call references.encode"):
        references.ready((1,))
    encoded = references.encode(backbone, (1,))
    assert encoded.encode(backbone) is encoded
    assert torch.equal(encoded.ready((1,)).taps[1], backbone.encode(images, (1,)).taps[1])
    second = encoded.select([1])
    assert torch.equal(second.ready().neck[0], encoded.ready().neck[1]) and len(second) == 1
    with pytest.raises(ConfigError, match=r"context holds \['image'\]; this method needs context\['references'\]"):
        references_of({"image": images})
