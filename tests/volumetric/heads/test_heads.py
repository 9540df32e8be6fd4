"""Heads for volumes: which slices they look at, merged planes, counts, and learning what one slice cannot say."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samgraft.adapters.decoders import DECODERS, ClassTokensConfig
from samgraft.adapters.decoders.base import DecoderConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GraftConfig
from samgraft.errors import ConfigError
from samgraft.recipes.losses import SegmentationLoss
from samgraft.volumetric.grafts import Adapter3dsamConfig, MaSamConfig
from samgraft.volumetric.heads import Detail3dConfig, Mla3dConfig, ProgressiveConfig
from samgraft.volumetric.heads.levels import quarters
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone
from tests.volumetric._stacks import sees, volume

HEADS: list[DecoderConfig] = [
    Detail3dConfig(num_classes=2),
    Mla3dConfig(num_classes=2),
    ProgressiveConfig(num_classes=2),
]
each = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.method)


def answer(grafted: Grafted, image: Tensor, depth: int) -> Tensor:
    return grafted.predict(image, features=grafted.encode(image, depth=depth)).logits


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_registered_by_name() -> None:
    assert {"detail_3d", "mla_3d", "progressive"} <= set(DECODERS.names())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 5])
def test_answers_for_every_slice(head: Any, depth: int, dtype: torch.dtype) -> None:
    grafted, image = attach(toy_backbone().to(dtype), decoder=head), volume(depth, volumes=2).to(dtype)
    with torch.no_grad():
        logits = answer(grafted, image, depth)
        alone = answer(grafted, image[depth:], depth)
    scale = 1 if head.method == "progressive" else 2  # all pixels of a patch of 8, or four per side
    assert logits.shape == (2 * depth, 3, 40 // scale, 64 // scale) and logits.dtype == dtype
    torch.testing.assert_close(logits[depth:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("head", "reach"),
    [
        (ProgressiveConfig(), 0),
        (Detail3dConfig(), 6),  # all: instance norms take the statistics of the slab
        (Mla3dConfig(), 6),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_which_slices_a_head_reads(head: DecoderConfig, reach: int) -> None:
    grafted, image = attach(toy_backbone(), decoder=head), volume(6, 24, 24).requires_grad_(True)
    logits = answer(grafted, image, 6)
    for z in (0, 3, 5):
        assert sees(logits[z], image) == [s for s in range(6) if abs(s - z) <= reach]


@pytest.mark.parametrize("head", HEADS[:2], ids=lambda head: head.method)
def test_merged_planes_come_back_as_slices(head: Any) -> None:
    """Slices of one plane get answers of their own: the path from the volume itself tells them apart."""
    grafted = attach(toy_backbone(), Adapter3dsamConfig(depth_patch=4), decoder=head)
    image = volume(7, 24, 40)
    with torch.no_grad():
        features = grafted.encode(image, depth=7)
        logits = grafted.predict(image, features=features).logits
    assert features.depth == 2 and logits.shape == (7, 3, 12, 20)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@each
def test_everything_learns(head: Any) -> None:
    grafted = attach(toy_backbone(), decoder=head).train()
    answer(grafted, volume(3), 3).square().mean().backward()
    for name, parameter in grafted.named_parameters():
        if parameter.requires_grad and not name.endswith("k_proj.bias"):  # softmax does not see that one
            assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_counts_are_the_published_ones() -> None:
    """specs/adapters.md 2.1, 2.3 and 8; the progressive decoder without the IoU head, which class maps do not read."""
    backbone = meta_backbone("b")
    with torch.device("meta"):
        progressive = ProgressiveConfig(num_classes=12).build(backbone)
        levels = Mla3dConfig(num_classes=1).build(backbone)
    assert count(progressive) == 5_243_725 - (2 * (256**2 + 256) + 256 * 13 + 13)
    assert count(levels.necks) == 7_868_416  # type: ignore[arg-type]
    assert count(levels) - count(levels.necks) == 7_088_256  # type: ignore[arg-type]
    assert quarters(12) == (2, 5, 8, 11) and quarters(32) == (7, 15, 23, 31) and quarters(3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("grafts", "head"),
    [
        ((), Detail3dConfig(depth_halvings=0)),
        ((MaSamConfig(dropout=0.0),), ClassTokensConfig()),
    ],
    ids=["detail_3d", "ma_sam + class_tokens"],
)
def test_learns_what_a_slice_alone_cannot_say(grafts: tuple[GraftConfig, ...], head: DecoderConfig) -> None:
    """All slices look alike but one bright marker; the slice behind it is the object. Slice by slice that is a guess:
    one in five, with a loss of at least the entropy; in volumes it is learned."""
    torch.manual_seed(0)
    grafted = attach(toy_backbone(), grafts, decoder=head).train()
    optimizer, loss_of = torch.optim.AdamW(grafted.trainable_parameters(), lr=5e-3), SegmentationLoss(dice_weight=0.0)
    generator = torch.Generator().manual_seed(1)
    loss = torch.tensor(torch.inf)
    for _ in range(60):
        image, label = _marked(generator)
        logits = answer(grafted, image, 6)
        logits = nn.functional.interpolate(logits, image.shape[-2:])
        loss = loss_of(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25  # entropy of one in five: 0.50


def _marked(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    image = 0.4 + 0.02 * torch.rand(6, 3, 24, 24, generator=generator)
    label = torch.zeros(6, 24, 24, dtype=torch.long)
    marker = int(torch.randint(5, (), generator=generator))
    image[marker] += 0.4
    label[marker + 1] = 1
    return image, label


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Detail3dConfig(stride=3), "stride is 3; expected a power of 2"),
        (lambda: Detail3dConfig(depth_halvings=-1), "depth_halvings is -1"),
        (lambda: Detail3dConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: Detail3dConfig(taps="some"), "taps is 'some'"),
        (lambda: Mla3dConfig(width=0), "width is 0"),
        (lambda: Mla3dConfig(clicks=3, num_classes=2), "a click means one object, and there are 2 classes"),
    ],
)
def test_wrong_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
