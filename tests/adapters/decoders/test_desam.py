"""DeSAM: what is asked for in training, which points count in use, and that it learns."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.decoders import DesamConfig
from samgraft.adapters.decoders.desam import EMPTY, DesamDecoder, draw_points, iou_loss
from samgraft.adapters.decoders.mask_branch import MaskBranch
from samgraft.adapters.graft import attach
from samgraft.errors import ConfigError, ShapeError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image


def three_images() -> tuple[Tensor, Tensor]:
    """A white disc (class 1), a black one on white (class 2), and noise alone; with labels (3, 64, 64)."""
    image = toy_image(batch=3)
    target = (image.mean(1) > 0.5).long()
    target[1] *= 2
    target[2] = 0
    image[1] = 0.95 - image[1]
    image[2] = image[2].clamp_max(0.3)
    return image, target


def dice(mine: Tensor, true: Tensor) -> float:
    return float(2 * (mine & true).sum() / (mine.sum() + true.sum()))


@pytest.mark.parametrize(("prompts", "rate"), [("points", 2e-3), ("box", 1e-2)])
def test_learns_two_classes_and_nothing_and_leaves_the_backbone(prompts: Any, rate: float) -> None:
    """The IoU branch begins as SAM's, so points need a backbone that has learned; a box does not."""
    torch.manual_seed(0)
    image, target = three_images()
    backbone = load_backbone("graft-tiny") if prompts == "points" else toy_backbone()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    grafted = attach(backbone, decoder=DesamConfig(num_classes=2, prompts=prompts, width=32, grid=5)).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=rate)
    features = grafted.encode(image)
    wanted = functional.one_hot(target, 3)[..., 1:].permute(0, 3, 1, 2).float()
    for _ in range(60):
        output, further = grafted.learn(image, target, features=features)
        loss = functional.binary_cross_entropy_with_logits(output.resize((64, 64)).logits, wanted)
        optimizer.zero_grad()
        (loss if further is None else loss + further).backward()
        optimizer.step()
    assert (further is None) == (prompts == "box")
    assert all(p.grad is not None for p in grafted.trainable_parameters()), "the trainable set is what has a gradient"
    assert all(torch.equal(value, frozen[name]) for name, value in grafted.backbone.state_dict().items())
    with torch.no_grad():
        output = grafted.eval().predict(image)
    found = output.resize((64, 64)).labels()
    assert dice(found == 1, target == 1) > 0.85 and dice(found == 2, target == 2) > 0.85
    assert not found[2].any(), "an image without the object is empty"
    assert (output.scores is None) == (prompts == "box")


def test_points_are_drawn_half_and_half() -> None:
    labels = torch.zeros(1, 6, 9, dtype=torch.int64)
    labels[0, 1, 7] = 1
    labels[0, 4:, 2:5] = 2
    labels[0, :, 0] = -1
    torch.manual_seed(0)
    hits = []
    for _ in range(400):
        points, hit = draw_points(labels)
        x, y = points[0, 0].long().tolist()
        assert labels[0, y, x] == hit and hit >= 0
        hits.append(int(hit))
    counts = [hits.count(value) for value in range(3)]
    assert 160 < counts[0] < 240 and 70 < counts[1] < 130 and 70 < counts[2] < 130


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (3, 3), (-1, -1)])
def test_points_where_there_is_no_choice(value: int, expected: int) -> None:
    points, hit = draw_points(torch.full((2, 4, 5), value))
    assert hit.tolist() == [expected] * 2
    assert points.shape == (2, 1, 2)


class Branch(torch.nn.Module):
    """A prompt branch that knows the answer: the IoU is 1 for points left of x = 20; the embedding holds x."""

    def forward(self, backbone: Any, features: Any, prompts: Any) -> tuple[Tensor, Tensor]:
        x = prompts.points[:, 0, 0]
        embedding = x[:, None, None, None].expand(-1, *features.neck.shape[1:])
        return embedding, torch.stack([(x < 20).float(), (x > 60).float() * 0.4], dim=1)


class Mask(MaskBranch):
    """A mask branch that draws a bar two cells wide at the point's x, in both classes."""

    def forward(self, embedding: Tensor, levels: Any) -> Tensor:
        x = embedding[:, 0, 0, 0] / 2
        columns = torch.arange(4 * embedding.shape[3])
        bar = 5 - 10 * ((columns - x[:, None]).abs() > 1.5).float()
        return bar[:, None, None].expand(-1, 2, 4 * embedding.shape[2], -1)


@pytest.mark.parametrize("keep", [1, 16])
def test_good_points_make_the_mask(keep: int) -> None:
    """A 4 x 4 grid on 96 x 64 pixels has points at x = 7.5, 23.5, 39.5 and 55.5; the first is good, for class 1."""
    backbone, image = toy_backbone(), toy_image(96, 64)
    decoder = DesamConfig(num_classes=2, grid=4, width=16, keep=keep).build(backbone).eval()
    decoder.prompt_branch = Branch()  # type: ignore[assignment]
    decoder.mask_branch.__class__ = Mask
    features = backbone.encode(image, taps=decoder.taps)
    with torch.no_grad():
        output = decoder(backbone, features, image)
    assert output.logits.shape == (2, 2, 48, 32)
    inside = (output.logits[:, 0] > 0).nonzero()[:, 2].unique().tolist()
    assert inside == [3, 4, 5]
    assert (output.logits[:, 1] == EMPTY).all()
    assert output.scores is not None and output.scores.tolist() == [[1.0, 0.0]] * 2


def test_near_duplicates_give_one_mask() -> None:
    """Two masks with boxes of IoU 0.8: the one with the larger IoU stays; one elsewhere joins it."""
    decoder = DesamConfig(width=16).build(toy_backbone())
    masks = torch.full((3, 1, 12, 20), -3.0)
    masks[0, 0, 2:10, 2:7] = 4
    masks[1, 0, 2:10, 2:6] = 6
    masks[2, 0, 0:3, 15:18] = 5
    found = decoder._union(masks, torch.tensor([[0.9], [0.8], [0.6]]))[0]
    expected = torch.maximum(masks[0, 0], masks[2, 0])
    assert torch.equal(found, expected)
    assert torch.equal(decoder._union(masks, torch.tensor([[0.7], [0.8], [0.5]]))[0], masks[1, 0])


def test_learn_asks_for_what_the_point_hits() -> None:
    """IoU loss by hand: the prediction is 0.25 everywhere; 1 is asked for inside, 0 outside, half of each."""
    backbone, image = toy_backbone(), toy_image()
    decoder = DesamConfig(width=16, iou_weight=2.0).build(backbone).train()
    last = decoder.prompt_branch.iou_head.proj_out
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(0.25)
    features = backbone.encode(image, taps=decoder.taps)
    for labels, error in [(torch.zeros(2, 64, 64), 0.125), (torch.ones(2, 64, 64), 0.375), (-torch.ones(2, 64, 64), 0)]:
        _, further = decoder.learn(backbone, features, image, None, labels.long())
        assert further is not None
        assert float(further.detach()) == pytest.approx(2 * error)
    with pytest.raises(ShapeError, match=r"labels are \(2, 32, 32\); expected \(2, 64, 64\)"):
        decoder.learn(backbone, features, image, None, torch.zeros(2, 32, 32).long())


def test_iou_loss_weighs_inside_and_outside_alike() -> None:
    """Two classes, four points: hits are class 1 (error 0.4), nothing, class 2 (error 0.2), unknown."""
    iou = torch.tensor([[0.6, 0.1], [0.3, 0.2], [-0.1, 1.2], [5.0, 5.0]])
    inside, outside = (0.4 + 0.2) / 2, (0.1 + 0.3 + 0.2 + 0.1) / 4
    assert float(iou_loss(iou, torch.tensor([1, 0, 2, -1]))) == pytest.approx((inside + outside) / 2)


def test_prompt_branch_starts_as_sam() -> None:
    """Its IoU is SAM's for a point; the mask tokens and all layers are copies."""
    from samgraft.adapters.prompts import Prompts

    backbone, image = toy_backbone(), toy_image(96, 64)
    decoder: DesamDecoder = DesamConfig(num_classes=2, width=16).build(backbone)
    prompts = Prompts(
        image_index=torch.tensor([1, 0]),
        points=torch.tensor([[[20.0, 80.0]], [[50.0, 10.0]]]),
        labels=torch.tensor([[1], [1]]),
    )
    features = backbone.encode(image)
    with torch.no_grad():
        _, expected = backbone.decode(features, prompts)
        embedding, iou = decoder.prompt_branch(backbone, features, prompts)
    torch.testing.assert_close(iou, expected.expand(-1, 2), atol=1e-5, rtol=1e-5)
    assert embedding.shape == (2, 32, 12, 8)


@pytest.mark.parametrize(("size", "taps"), [("b", (2, 5, 8)), ("l", (5, 11, 17)), ("h", (7, 15, 23))])
def test_taps_are_the_published_blocks(size: Any, taps: tuple[int, ...]) -> None:
    with torch.device("meta"):
        decoder = DesamConfig().build(meta_backbone(size))
    assert decoder.taps == taps
    widths = [decoder.mask_branch.context[level][0].second.out_channels for level in range(3)]
    assert widths == [256, 128, 64], "as published"


def test_fewer_taps_are_read_again() -> None:
    branch = MaskBranch(6, 4, 8, 1)
    first, second = torch.randn(1, 3, 5, 6), torch.randn(1, 3, 5, 6)
    torch.manual_seed(0)
    levels = branch.levels([first, second])
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 3, 5), (4, 6, 10), (2, 12, 20)]
    again = branch.levels([first, first, second])
    assert all(torch.equal(a, b) for a, b in zip(levels, again, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "point"}, "prompts is 'point'; did you mean 'points'"),
        ({"taps": ()}, "expected one to three different blocks"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"grid": 0}, "grid is 0"),
        ({"width": 10}, "width is 10; expected a multiple of 4"),
        ({"min_iou": 1.5}, "min_iou is 1.5; expected a share"),
        ({"iou_weight": -1.0}, "iou_weight is -1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DesamConfig(**options)


def test_precision() -> None:
    image = toy_image()
    grafted = attach(toy_backbone().double(), decoder=DesamConfig(width=16, grid=3))
    assert grafted.predict(image.double()).logits.dtype == torch.float64
    rough = attach(toy_backbone(), decoder=DesamConfig(width=16, grid=3)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, further = rough.learn(image, (image.mean(1) > 0.5).long())
    assert further is not None and torch.isfinite(output.logits).all()
    (output.logits.float().mean() + further).backward()
