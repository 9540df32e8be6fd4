"""The distance decoder, and its maps as prompts."""

import pytest
import torch

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.decoders import DistancesConfig
from samgraft.adapters.decoders.distance_maps import distance_targets
from samgraft.adapters.decoders.distance_points import object_prompts, objects_from_points
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.errors import ConfigError
from tests.adapters.toy import toy_backbone, toy_image
from tests.recipes._oracle import Oracle


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_shapes_gradients_and_frozen_rest(full: bool, size: tuple[int, int]) -> None:
    backbone, image = toy_backbone(), toy_image(*size)
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    head = DistancesConfig(full_resolution=full, width=8, fused=16)
    grafted = attach(backbone, LoraConfig(rank=2), decoder=head).train()
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        output = grafted.predict(image)
        output.logits.square().mean().backward()
        optimizer.step()
    assert output.logits.shape == (2, 3, *(size if full else (size[0] // 2, size[1] // 2)))
    assert output.num_classes == 1 and output.channels == ("foreground", "centre", "boundary")
    assert all(p.grad is not None for p in grafted.trainable_parameters())
    grafted.detach()
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())


def test_as_a_class_map_it_is_the_foreground() -> None:
    grafted = attach(toy_backbone(), decoder=DistancesConfig())
    output = grafted.predict(toy_image()).resize((64, 64))
    assert torch.equal(output.labels(), (output.logits[:, 0] > 0).long())
    assert torch.equal(output.foreground()[:, 0], output.logits[:, 0].sigmoid())


def test_float64_and_autocast() -> None:
    backbone, image = toy_backbone(), toy_image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attach(backbone, decoder=DistancesConfig()).predict(image)
    assert found.logits.isfinite().all()
    wide = toy_backbone().double()
    assert attach(wide, decoder=DistancesConfig()).predict(image.double()).logits.dtype == torch.float64


def test_taps_have_to_be_there() -> None:
    grafted = attach(toy_backbone(), decoder=DistancesConfig())
    features = grafted.encode(toy_image())
    with pytest.raises(ConfigError, match=r"distances reads blocks \[0, 1\]; features lack \[0, 1\]"):
        grafted.predict(toy_image(), features=Features(neck=features.neck))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4}, "width is 4; expected at least 8"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"centre": 0.0}, "centre is 0.0; expected above 0, at most 1"),
        ({"box_margin": -0.1}, "box_margin is -0.1; expected 0 or more"),
        ({"taps": "all"}, "taps is 'all'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistancesConfig(**options)  # type: ignore[arg-type]


def two_images() -> torch.Tensor:
    """(2, 32, 48) instance maps: two touching squares, and one object far from the diagonal."""
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    labels[0, 4:13, 20:29], labels[0, 4:13, 29:38] = 1, 2
    labels[1, 22:29, 41:48] = 1  # reaches the right edge
    return labels


def maps_of(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.from_numpy(distance_targets(one.numpy())) for one in labels])


def test_prompts_are_the_centres_and_boxes_of_objects() -> None:
    prompts = object_prompts(maps_of(two_images()), DistancesConfig(from_points=True, box_margin=0.0))
    assert prompts.image_index.tolist() == [0, 0, 1]
    assert prompts.points is not None and prompts.boxes is not None and prompts.scores is not None
    # the third object is four deep from column 44 to the edge, and 44 is nearest to its mean
    assert prompts.points[:, 0].tolist() == [[24, 8], [33, 8], [44, 25]]
    assert prompts.boxes.tolist() == [[20, 4, 28, 12], [29, 4, 37, 12], [41, 22, 47, 28]]
    assert prompts.scores.tolist() == pytest.approx([1, 1, 1])
    wide = object_prompts(maps_of(two_images()), DistancesConfig(from_points=True, box_margin=1.0)).boxes
    assert wide is not None  # x ends at the width, not at the height
    assert wide.tolist() == [[11, 0, 37, 21], [20, 0, 46, 21], [34, 15, 47, 31]]
    assert object_prompts(maps_of(two_images()), DistancesConfig()).boxes is None


def test_masks_of_the_decoder_become_objects() -> None:
    """The oracle answers with the bright component under a point: of two equal answers one stays."""
    labels = two_images()
    image = (labels > 0).float()[:, None].expand(-1, 3, -1, -1)
    backbone = Oracle()
    found = objects_from_points(backbone, backbone.encode(image), maps_of(labels), DistancesConfig(from_points=True))
    assert found.image_index.tolist() == [0, 1]
    assert (found.logits > 0).sum((1, 2)).tolist() == [4 * 9, 3 * 3]  # at half the resolution, half cells lost
    assert found.scores.tolist() == pytest.approx([0.8, 0.8])
    none = objects_from_points(
        backbone, backbone.encode(image), torch.zeros_like(maps_of(labels)), DistancesConfig(from_points=True)
    )
    assert len(none) == 0 and none.logits.shape == (0, 16, 24)
