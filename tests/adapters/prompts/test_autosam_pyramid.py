"""AutoSAM's pyramid: sizes, the start, the published scaling, and that it can say nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.graft import attach
from samgraft.adapters.prompts import AutoSamConfig, AutoSamPyramidConfig, Prompts
from samgraft.adapters.prompts.autosam_pyramid import PyramidDecoder, min_max
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image

SMALL = AutoSamPyramidConfig(widths=(16, 16, 24))


def test_published_decoder() -> None:
    """6,169,088 parameters are published; 512 of them belong to a norm that is never used."""
    with torch.device("meta"):
        decoder = PyramidDecoder((192, 320, 720), 256, 1)
        grafted = attach(meta_backbone("b"), prompter=AutoSamPyramidConfig(widths=(192, 320, 720)))
    assert sum(p.numel() for p in decoder.parameters()) == 6_169_088 - 512
    assert grafted.prompter.shrink == 4, "256 pixels beside 1024"


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (72, 40)], ids=["square", "tall", "odd"])
def test_starts_at_the_unprompted_mask(size: tuple[int, int]) -> None:
    backbone, image = toy_backbone(), toy_image(*size)
    with torch.no_grad():
        expected, _ = backbone.decode(backbone.encode(image), Prompts(image_index=torch.tensor([0, 0, 1, 1])))
        grafted = attach(backbone, prompter=AutoSamPyramidConfig(num_classes=2, widths=(16, 16, 24)))
        output = grafted.predict(image)
    assert torch.equal(output.logits, expected.reshape(2, 2, size[0] // 2, size[1] // 2))
    assert set(grafted.graft_state()) == {f"prompter.{name}" for name, _ in grafted.prompter.named_parameters()}


def test_published_prompt_is_bounded_and_takes_the_place_of_no_mask() -> None:
    backbone, image = toy_backbone(), toy_image(96, 64)
    features = backbone.encode(image)
    prompter = AutoSamPyramidConfig(init="published", bound=1.0, widths=(16, 16, 24)).build(backbone)
    with torch.no_grad():
        prompter.decoder.last.bias += 50
        assert torch.equal(prompter(features, image, {}).dense, torch.ones(2, 32, 12, 8))
        wide = AutoSamPyramidConfig(init="published", widths=(16, 16, 24)).build(backbone)
        wide.load_state_dict(prompter.state_dict())
        assert float(wide(features, image, {}).dense.min()) == pytest.approx(8, abs=0.01)
        free = AutoSamPyramidConfig(init="published", tanh=False, widths=(16, 16, 24)).build(backbone)
        free.load_state_dict(prompter.state_dict())
        assert free(features, image, {}).dense.min() > 40


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_prompts_lie_where_the_image_says(shrink: int) -> None:
    """A bright spot in the lower left corner of a tall image changes the dense prompt most near it."""
    torch.manual_seed(0)
    backbone, image = toy_backbone(), torch.full((1, 3, 96, 64), 0.3)
    spot = image.clone()
    spot[..., 72:88, 8:16] = 1
    prompter = AutoSamPyramidConfig(init="published", shrink=shrink, widths=(16, 16, 24)).build(backbone)
    features = backbone.encode(image)
    with torch.no_grad():
        change = (prompter(features, spot, {}).dense - prompter(features, image, {}).dense).square().sum(dim=(0, 1))
    row, column = divmod(int(change.argmax()), 8)
    assert row in (8, 9, 10, 11) and column in (0, 1, 2, 3)


def test_min_max_by_hand() -> None:
    logits = torch.tensor([[[[-4.0, -2.0, 0.0], [4.0, 2.0, -4.0]]]], requires_grad=True)
    scaled = min_max(logits).sigmoid()
    expected = torch.tensor([[[[0.0, 0.25, 0.5], [1.0, 0.75, 0.0]]]])
    torch.testing.assert_close(scaled, expected, atol=2e-6, rtol=0)
    scaled[0, 0, 0, 1].backward()
    assert logits.grad is not None and logits.grad[0, 0, 0, 1] == pytest.approx(1 / 8)
    assert (min_max(torch.full((1, 1, 2, 2), 3.0)) < 0).all(), "a constant map is empty"


def test_min_max_always_finds_something() -> None:
    image = toy_image()
    plain = attach(toy_backbone(), prompter=AutoSamPyramidConfig(init="published"))
    scaled = attach(toy_backbone(), prompter=AutoSamPyramidConfig(init="published", min_max=True))
    scaled.load_graft_state(plain.graft_state())
    with torch.no_grad():
        raw, found = plain.predict(image), scaled.predict(image)
    torch.testing.assert_close(found.logits, min_max(raw.logits))
    assert (found.labels() == 1).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    "config",
    [AutoSamConfig(channels=32), AutoSamPyramidConfig(widths=(16, 16, 24))],
    ids=lambda c: c.method,
)
def test_learns_to_say_nothing(config: Any) -> None:
    """Two images with a disc, two without: after a few steps the masks of the latter are empty."""
    torch.manual_seed(0)
    backbone, image = toy_backbone(), toy_image(batch=4)
    for network in backbone.sam.mask_decoder.output_hypernetworks_mlps:
        network.proj_out.weight.mul_(30)  # logits of the size that a trained decoder has
    target = functional.avg_pool2d((image.mean(1, keepdim=True) > 0.5).float(), 2).round()
    image[2:] = 0.3 * torch.rand_like(image[2:])
    target[2:] = 0
    grafted = attach(backbone, prompter=config).train()
    optimizer = torch.optim.Adam(grafted.trainable_parameters(), lr=2e-3)
    features = grafted.encode(image)

    def loss() -> Tensor:
        output, further = grafted.learn(image, target[:, 0].long(), features=features)
        assert further is None
        return functional.binary_cross_entropy_with_logits(output.logits, target)

    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with torch.no_grad():
        labels = grafted.eval().predict(image).labels() > 0
    assert not labels[2:].any()
    true = target[:2, 0] > 0
    assert 2 * (labels[:2] & true).sum() / (labels[:2].sum() + true.sum()) > 0.6
    assert all(p.grad is not None and (p.grad != 0).any() for p in grafted.trainable_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (16, 16)}, r"widths are \[16, 16\]; expected three multiples of 8"),
        ({"widths": (16, 20, 24)}, "expected three multiples of 8"),
        ({"shrink": 0}, "shrink is 0"),
        ({"bound": 0.0}, "bound is 0"),
        ({"num_classes": 0}, "num_classes 0, depth 1"),
        ({"init": "zero"}, "init is 'zero'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoSamPyramidConfig(**options)


def test_precision() -> None:
    image = toy_image()
    grafted = attach(toy_backbone().double(), prompter=SMALL)
    assert grafted.predict(image.double()).logits.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = attach(toy_backbone(), prompter=SMALL).predict(image).logits
    assert torch.isfinite(logits).all()
