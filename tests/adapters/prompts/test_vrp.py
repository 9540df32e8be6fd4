"""VRP: its size, what its tokens read, and that it learns without touching the backbone."""

import pytest
import torch

from samgraft.adapters.graft import attach
from samgraft.adapters.prompts import VrpConfig, make_references
from samgraft.adapters.prompts.objects import Objects, boxes_of
from samgraft.adapters.prompts.vrp import VrpEncoder, class_masks, pseudo_mask, reference_for, sine_code
from samgraft.errors import ConfigError
from tests.adapters.prompts.one_shot import scene, shown
from tests.adapters.toy import toy_backbone

BOXES = ((56, 8, 79, 31), (8, 40, 31, 55), (40, 16, 71, 39))


def batch() -> tuple[torch.Tensor, Objects]:
    """Three images with one box each, and those boxes as objects."""
    pairs = [scene(box, seed=number) for number, box in enumerate(BOXES)]
    masks = torch.cat([mask for _, mask in pairs])[:, 0] > 0
    objects = Objects(
        image_index=torch.arange(3),
        boxes=boxes_of(masks),
        masks=masks,
        classes=torch.zeros(3, dtype=torch.int64),
        known=torch.ones_like(masks),
    )
    return torch.cat([image for image, _ in pairs]), objects


def test_published_size() -> None:
    with torch.device("meta"):
        encoder = VrpEncoder(1536, 256, queries=50, heads=4)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 1_592_064
    with pytest.raises(ConfigError, match="width 30 of the prompts cannot be shared by 4 heads"):
        VrpEncoder(8, 30)


def test_tokens_for_every_image_and_object() -> None:
    backbone = toy_backbone()
    image, _ = batch()
    masks = torch.zeros(1, 2, *image.shape[-2:])
    masks[0, 0, 8:32, 56:80], masks[0, 1, 40:56, 8:32] = 1, 1
    _, references = shown(backbone, image[:1], masks)
    features = backbone.encode(image, (0, 1, 2))
    prompter = VrpConfig(queries=6).build(backbone).eval()
    prompts = prompter(features, image, {"references": references})
    assert prompts.image_index.tolist() == [0, 0, 1, 1, 2, 2] and prompts.sparse.shape == (6, 6, 32)
    assert not torch.allclose(prompts.sparse[0], prompts.sparse[1], atol=1e-4)
    swapped = make_references(image[:1], masks.flip(1)).encode(backbone, prompter.taps)
    other = prompter(features, image, {"references": swapped})
    assert torch.allclose(other.sparse[[1, 0, 3, 2]], prompts.sparse[:4], atol=1e-5)
    found = prompter.find(backbone, features, image, {"references": references})
    assert found.classes.tolist() == [0, 1] * 3 and found.logits.shape == (6, 32, 48)


def test_pseudo_mask_is_the_largest_cosine() -> None:
    seen = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]).reshape(1, 2, 1, 3)
    shown_ = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 1.0]]).reshape(1, 2, 1, 3)
    share = torch.tensor([[[0.0, 0.02, 0.0]]])
    assert pseudo_mask(seen, shown_, share).flatten().tolist() == pytest.approx([0.6, 0.8, 0.0])


def test_sine_code_tells_rows_from_columns() -> None:
    code = sine_code(8, (4, 6))
    assert code.shape == (1, 8, 4, 6)
    assert torch.equal(code[0, :4, 2, 0], code[0, :4, 2, 5]) and torch.equal(code[0, 4:, 0, 3], code[0, 4:, 3, 3])
    assert not torch.allclose(code[0, :4, 0, 0], code[0, :4, 1, 0])


def test_images_of_a_batch_are_each_others_references() -> None:
    _, objects = batch()
    masks = class_masks(objects, 2)
    assert masks[:, 0].equal(objects.masks) and not masks[:, 1].any()
    there = masks[:, 0].clone()
    there[1] = False
    assert [reference_for(target, there) for target in range(3)] == [2, 2, 0]
    assert reference_for(0, there[:1]) == 0 and reference_for(0, there[1:2]) is None


def test_it_learns_from_episodes_and_the_backbone_stays() -> None:
    backbone = toy_backbone()
    for network in backbone.sam.mask_decoder.output_hypernetworks_mlps:
        network.proj_out.weight.mul_(30)  # logits of the size that a trained decoder has
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    grafted = attach(backbone, prompter=VrpConfig(queries=8, dropout=0.0)).train()
    image, objects = batch()
    features = grafted.encode(image)
    optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = grafted.prompter.losses(backbone, features, image, objects)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert set(losses) == {"mask_ce", "mask_dice"} and totals[-1] < 0.7 * totals[0]
    assert all(parameter.grad is not None for parameter in grafted.trainable_parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    assert all(key.startswith("prompter.encoder.") for key in grafted.graft_state())


def test_losses_without_objects_are_zero_and_attached() -> None:
    backbone = toy_backbone()
    prompter = VrpConfig(queries=4).build(backbone)
    image, objects = batch()
    none = Objects(
        image_index=objects.image_index[:0],
        boxes=objects.boxes[:0],
        masks=objects.masks[:0],
        classes=objects.classes[:0],
        known=objects.known,
    )
    losses = prompter.losses(backbone, backbone.encode(image, prompter.taps), image, none)
    total = sum(losses.values())
    total.backward()
    assert float(total.detach()) == 0 and all(p.grad is not None for p in prompter.parameters())
