"""RSPrompter, query form: losses, gradients, a backbone that stays as it is, and pictures learned by heart."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone, hash_tensors
from samgraft.adapters.prompts import RSPrompterQueryConfig
from samgraft.adapters.prompts.object_masks import certainty, in_the_unknown
from samgraft.adapters.prompts.objects import Objects, objects_from_labels
from samgraft.adapters.prompts.query_layers import mask_products, outside, with_places
from samgraft.adapters.prompts.rsprompter_query import RSPrompterQuery
from samgraft.errors import ConfigError
from tests.adapters.toy import toy_backbone

SMALL = RSPrompterQueryConfig(queries=10, tokens=4, heads=4, hidden=16, decoder_layers=2)
VARIANTS = (
    {},
    {"start": "learned"},
    {"start": "learned", "masked": False, "norm": "batch"},
    {"coarse_mask": False, "decoder_layers": 1},
    {"points": 40, "decoded": 2, "object_classes": 3, "encoder_layers": 0},
)


def _pictures(height: int = 48, width: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two images with rectangles, one in image 0 and two in image 1, none on a diagonal; (2, 3, H, W), (2, H, W)."""
    labels = torch.zeros(2, height, width, dtype=torch.int64)
    labels[0, 4:20, 40:60] = 1
    labels[1, 26:44, 6:24] = 1
    labels[1, 4:18, 30:62] = 2
    noise = 0.1 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (0.2 + noise + 0.5 * (labels > 0)[:, None]).to(dtype), labels


def _case(
    labels: Tensor, image: Tensor, **options: Any
) -> tuple[HFSamBackbone, RSPrompterQuery, Features, Tensor, Objects]:
    torch.manual_seed(0)
    backbone = toy_backbone().to(image.dtype)
    prompter = replace(SMALL, **options).build(backbone)
    with torch.no_grad():
        features = backbone.encode(image, prompter.taps)
    return backbone, prompter, features, image, objects_from_labels(labels)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_learns_and_losses_are_finite(options: dict[str, Any], empty: bool) -> None:
    image, labels = _pictures()
    labels[0] = 0  # one image without an object
    backbone, prompter, features, image, objects = _case(labels * (0 if empty else 1), image, **options)
    losses = prompter.losses(backbone, features, image, objects)
    coarse = {"coarse_bce", "coarse_dice"} if prompter.config.coarse_mask else set()
    centre = {"centre"} if prompter.config.start == "image" else set()
    assert set(losses) == {"class", "bce", "dice"} | coarse | centre
    assert all(loss.ndim == 0 and bool(torch.isfinite(loss)) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in prompter.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert without == []
    if empty:
        assert sum(losses[name].item() for name in losses if name not in ("class", "centre")) == 0
    else:
        moved = [name for name, p in prompter.named_parameters() if p.grad is not None and bool(p.grad.any())]
        assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name, _ in prompter.named_parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())


def test_two_pictures_are_learned_by_heart_and_the_backbone_stays() -> None:
    image, labels = _pictures()
    torch.manual_seed(0)
    backbone = load_backbone("graft-tiny")  # a decoder with random weights follows no prompt
    prompter, objects = SMALL.build(backbone), objects_from_labels(labels)
    with torch.no_grad():
        features = backbone.encode(image, prompter.taps)
    before = hash_tensors(backbone.state_dict())
    optimiser = torch.optim.AdamW(prompter.parameters(), lr=1e-3)
    sums = []
    for _ in range(60):
        loss = torch.stack(list(prompter.losses(backbone, features, image, objects).values())).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        sums.append(loss.item())
    assert sums[-1] < 0.3 * sums[0]
    assert hash_tensors(backbone.state_dict()) == before
    assert not any(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        found = prompter.eval().find(backbone, features, image, {})
    found = found.select(found.scores > 0.5)
    assert found.image_index.sort().values.tolist() == [0, 1, 1]
    masks = torch.nn.functional.interpolate(found.logits[:, None], labels.shape[1:], mode="bilinear")[:, 0] > 0
    own = objects.image_index[:, None] == found.image_index
    both = (objects.masks[:, None] & masks).sum(dim=(2, 3))
    iou = both / (objects.masks[:, None] | masks).sum(dim=(2, 3)) * own
    assert float(iou.amax(dim=1).min()) > 0.7


@pytest.mark.parametrize("coarse_mask", [True, False])
def test_prompts_carry_tokens_masks_and_scores_of_queries_that_are_sure(coarse_mask: bool) -> None:
    image, labels = _pictures()
    _, prompter, features, image, _ = _case(labels, image, coarse_mask=coarse_mask, object_classes=2, score=0.0)
    with torch.no_grad():
        if coarse_mask:
            prompter.place_head.bias[2] = 1  # a narrower bell, which falls below -10 within the image
        prompts = prompter.eval()(features, image, {})
    assert prompts.image_index.tolist() == [0] * 10 + [1] * 10 if not coarse_mask else len(prompts) <= 20
    assert prompts.sparse is not None and prompts.sparse.shape[1:] == (4, 32)
    assert prompts.scores is not None and prompts.class_logits is not None
    best = prompts.class_logits.softmax(dim=1)[:, :2].amax(dim=1)
    if prompts.masks is None:
        assert not coarse_mask
        assert torch.equal(prompts.scores, best)
    else:
        assert prompts.masks.shape[1:] == (1, 24, 32)
        assert float(prompts.masks.abs().max()) == 10
        assert torch.allclose(prompts.scores, best * certainty(prompts.masks[:, 0]))
    middle = float(prompts.scores.median())
    prompter.config = replace(prompter.config, score=middle)
    assert len(prompter(features, image, {})) == int((prompts.scores > middle).sum())


def test_nothing_sure_enough_finds_nothing() -> None:
    image, labels = _pictures()
    backbone, prompter, features, image, _ = _case(labels, image, score=1.0)
    found = prompter.find(backbone, features, image, {})
    assert len(found) == 0
    assert found.logits.shape == (0, 24, 32)


def test_fewer_cells_than_queries_and_double_precision() -> None:
    image, labels = _pictures(dtype=torch.float64)
    labels = labels[:, :16, :40].contiguous()  # 2 x 5 tokens
    backbone, prompter, features, image, objects = _case(labels, image[..., :16, :40], queries=20)
    losses = prompter.losses(backbone, features, image, objects)
    assert all(loss.dtype == torch.float64 and bool(loss.isfinite()) for loss in losses.values())
    assert len(prompter(features, image, {})) <= 20


def test_autocast_gives_nearly_the_same_losses() -> None:
    image, labels = _pictures()
    backbone, prompter, features, image, objects = _case(labels, image)
    exact = prompter.losses(backbone, features, image, objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = prompter.losses(backbone, features, image, objects)
    assert {name: loss.item() for name, loss in rounded.items()} == pytest.approx(
        {name: loss.item() for name, loss in exact.items()}, rel=0.1
    )


def test_a_query_in_unlabelled_parts_is_not_taught_that_nothing_is_there() -> None:
    image, labels = _pictures()
    labels[0, :, 32:] = -1
    backbone, prompter, features, image, objects = _case(labels, image)
    maps = torch.full((2, 3, 24, 32), -5.0)
    maps[0, 0, 3:5, 14:20] = 5.0  # two thirds in the unknown
    maps[0, 1, 3:5, 12:20] = 5.0  # one half
    maps[1, 2, 3:5, 20:30] = 5.0  # all is known there
    assert in_the_unknown(maps, objects.known).tolist() == [[True, False, False], [False, False, False]]


def test_an_empty_mask_hides_nothing_and_is_not_certain() -> None:
    logits = torch.tensor([[[[-1.0, 2.0], [-3.0, 4.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])  # (1, 2, 2, 2)
    assert outside(logits).tolist() == [[[True, False, True, False], [False] * 4]]
    probabilities = torch.tensor([2.0, 4.0]).sigmoid()
    assert torch.allclose(certainty(logits[0]), torch.tensor([float(probabilities.mean()), 0.0]))


def test_places_of_cells_are_in_tokens_and_products_with_them_are_distances() -> None:
    pixels = with_places(torch.full((1, 1, 8, 12), 3.0))  # 2 x 3 tokens
    assert pixels[0, :, 5, 9].tolist() == [3.0, 2.375**2 + 1.375**2, 2.375, 1.375, 1.0]
    x, y = 2.0, 0.5
    weights = torch.tensor([[[0.5, -1.0, 2 * x, 2 * y, -(x**2 + y**2)]]])  # minus the squared distance from (x, y)
    found = mask_products(weights, pixels)
    assert found.shape == (1, 1, 8, 12)
    assert found[0, 0, 5, 9].item() == pytest.approx(1.5 - (0.375**2 + 0.875**2), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "random"}, "start is 'random'"),
        ({"queries": 0}, "queries is 0"),
        ({"encoder_layers": -1}, "encoder_layers is -1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RSPrompterQueryConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"), [({"dim": 36}, "dim is 36; expected a multiple of 8"), ({"taps": (0, 3)}, r"taps \[3\]")]
)
def test_options_that_do_not_fit_the_backbone_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **options).build(toy_backbone())
