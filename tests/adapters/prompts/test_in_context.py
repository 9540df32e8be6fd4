"""Nearest-neighbour labels worked out by hand, and the prompts made of them."""

import math
from typing import Any

import pytest
import torch

from samgraft.adapters.prompts import InContextConfig, ReferenceRegionConfig, make_references
from samgraft.adapters.prompts.in_context import border, inner_point, main_region, read_labels
from samgraft.errors import ConfigError
from tests.adapters.prompts.one_shot import BOX, inside, overlap, scene, shown
from tests.adapters.toy import toy_backbone
from tests.recipes._oracle import Oracle

SECOND = (8, 40, 31, 55)


def test_labels_are_weighted_by_a_softmax_of_the_nearest() -> None:
    """Cosines 1, 0.6 and 0; the third is not among the two nearest. Weights e^2 and e^1.2 at temperature 0.5."""
    memory = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [100.0, 100.0]])
    found = read_labels(torch.tensor([[1.0, 0.0]]), memory, labels, neighbours=2, temperature=0.5)
    first = math.exp(2) / (math.exp(2) + math.exp(1.2))
    assert found[0].tolist() == pytest.approx([first, 1 - first], abs=1e-6)


def test_tiles_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, memory, labels = (torch.randn(n, 6, generator=generator) for n in (19, 53, 53))
    whole = read_labels(queries, memory, labels, neighbours=5, temperature=0.1)
    for bound in (31, 400):
        assert torch.allclose(
            read_labels(queries, memory, labels, neighbours=5, temperature=0.1, bound=bound), whole, atol=1e-6
        )
    assert read_labels(queries, memory[:2], labels[:2], neighbours=30, temperature=0.1).shape == (19, 6)


def test_one_neighbour_gives_the_reference_back() -> None:
    """The image is the reference: every cell finds itself, with the labels of its 4 x 4 parts (2 x 2 pixels each)."""
    backbone = toy_backbone()
    image, mask = scene((57, 10, 78, 29), (3, 41, 20, 60))
    features, references = shown(backbone, image, mask)
    prompter = InContextConfig(tap=0, neighbours=1, position=0.0, detail=4).build(backbone)
    soft = prompter.read_out(features, image, references)
    expected = torch.nn.functional.avg_pool2d(mask, 2)
    assert soft.shape == (1, 1, 32, 48)
    assert torch.allclose(soft, expected, atol=1e-6)
    found = prompter.find(backbone, features, image, {"references": references})
    assert torch.equal(found.logits[0] > 0, expected[0, 0] > 0.5)


def test_border_is_half_of_the_maximum() -> None:
    soft = torch.zeros(1, 3, 2, 4)
    soft[0, 0, 1, 3], soft[0, 1, 0, 2], soft[0, 2, 0, 0] = 0.3, 1.0, 0.01
    assert border(soft, 0.02).flatten().tolist() == pytest.approx([0.15, 0.5, 0.5])


@pytest.mark.parametrize(("options", "seen"), [({}, True), ({"relative": False}, False), ({"least": 0.4}, False)])
def test_references_that_disagree(options: dict[str, Any], seen: bool) -> None:
    """Three times the same image, labelled once: every cell finds its three copies, and a third of them is object."""
    backbone = toy_backbone()
    image, mask = scene()
    _, references = shown(backbone, image.expand(3, -1, -1, -1), torch.cat([mask, 0 * mask, 0 * mask]))
    prompter = InContextConfig(tap=0, neighbours=3, position=0.0, **options).build(backbone)
    features = backbone.encode(image, (0,))
    soft = prompter.read_out(features, image, references)
    assert torch.allclose(soft, mask[..., ::2, ::2] / 3, atol=1e-4)
    found = prompter.find(backbone, features, image, {"references": references})
    assert torch.equal(found.logits[0] > 0, mask[0, 0, ::2, ::2] * seen > 0)


def test_two_objects_and_two_references() -> None:
    """Each object is in another reference; labels of different kinds do not mix."""
    backbone = toy_backbone()
    first, second = scene(BOX), scene(SECOND)
    images = torch.cat([first[0], second[0]])
    masks = torch.zeros(2, 2, *images.shape[-2:])
    masks[0, 0], masks[1, 1] = first[1][0, 0], second[1][0, 0]
    _, references = shown(backbone, images, masks)
    features = backbone.encode(second[0], (0, 1, 2))
    prompter = InContextConfig(tap=1, neighbours=1, position=0.0).build(backbone)
    soft = prompter.read_out(features, second[0], references)
    truth = second[1][0, 0, ::2, ::2] > 0
    assert overlap(soft[0, 1] > 0.5, truth) == 1 and not (soft[0, 0] > 0.5).any()


def test_prompts_of_a_soft_map() -> None:
    """A bar with a bulge, and a smaller but brighter spot that must not win."""
    soft = torch.zeros(16, 24)
    soft[3:6, 10:20] = 0.8
    soft[12, 2] = 1.0
    region = main_region(soft)
    assert region.nonzero()[0].tolist() == [3, 10] and int(region.sum()) == 30
    x, y = inner_point(region, (64, 96)).tolist()
    assert (y, x) == ((4 + 0.5) * 4 - 0.5, (14 + 0.5) * 4 - 0.5) or (y, x) == (
        (4 + 0.5) * 4 - 0.5,
        (15 + 0.5) * 4 - 0.5,
    )
    assert int(main_region(torch.zeros(4, 6)).sum()) == 1

    backbone = toy_backbone()
    image, mask = scene()
    features, references = shown(backbone, image, mask)
    config = InContextConfig(tap=0, neighbours=1, position=0.0, prompts=("points", "box", "mask"))
    prompts = config.build(backbone)(features, image, {"references": references})
    assert inside(prompts.points[0]) == [True]
    assert prompts.boxes[0].tolist() == pytest.approx(list(BOX), abs=1)
    assert prompts.masks.shape == (1, 1, 32, 48)
    assert torch.equal(prompts.masks[0, 0] > 0, mask[0, 0, ::2, ::2] > 0)
    assert float(prompts.scores) == pytest.approx(1.0, abs=1e-5)


def test_padding_is_neither_remembered_nor_labelled() -> None:
    backbone = Oracle()
    image, mask = scene()
    valid = torch.ones(1, *image.shape[-2:], dtype=torch.bool)
    valid[:, :, 72:] = False
    references = make_references(image, mask, valid=valid).encode(backbone)
    prompter = InContextConfig(tap="neck", neighbours=1, detail=1, position=0.0).build(backbone)
    found = prompter.find(backbone, backbone.encode(image), image, {"references": references, "valid": valid})
    assert not (found.logits[0, :, 36:] > 0).any() and (found.logits[0, 4:16, 28:36] > 0).all()


def test_clicks_do_not_say_what_is_background() -> None:
    backbone = toy_backbone()
    image, _ = scene()
    references = make_references(image, [[[[60, 20]]]], kind="points").encode(backbone)
    features = backbone.encode(image)
    with pytest.raises(ConfigError, match="in_context needs masks or boxes; use reference_region"):
        InContextConfig(tap="neck").build(backbone)(features, image, {"references": references})
    with pytest.raises(ConfigError, match=r"prompts name \['boxes'\]; choose from points, box, mask"):
        InContextConfig(prompts=("boxes",))
    with pytest.raises(ConfigError, match="least is -0.1; expected a probability"):
        InContextConfig(least=-0.1)


@pytest.mark.parametrize(
    ("kind", "annotation"),
    [("points", [[60, 20]]), ("scribble", [[60, 12], [74, 28]]), ("box", [56, 8, 79, 31])],
)
def test_a_region_of_another_image_finds_what_looks_like_it(kind: str, annotation: list[float]) -> None:
    """The first image has the object upper right, the second lower left."""
    backbone = Oracle()
    references = make_references(scene()[0], [[annotation]], kind=kind).encode(backbone)  # type: ignore[arg-type]
    image, _ = scene(SECOND, seed=3)
    prompter = ReferenceRegionConfig(tap="neck", position=0.0, points=3).build(backbone)
    prompts = prompter(backbone.encode(image), image, {"references": references})
    on, off = prompts.labels[0] == 1, prompts.labels[0] == 0
    assert 1 <= int(on.sum()) <= 3 and all(inside(prompts.points[0, on], SECOND))
    assert int(off.sum()) == (1 if kind == "box" else 0) and not any(inside(prompts.points[0, off], SECOND))
    found = prompter.find(backbone, backbone.encode(image), image, {"references": references})
    assert overlap(found.logits[0] > 0, scene(SECOND)[1][0, 0, ::2, ::2] > 0) > 0.9
