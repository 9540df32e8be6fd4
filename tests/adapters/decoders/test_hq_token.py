"""The HQ token: sizes, SAM unchanged at step 0, what is answered and what is learned from."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.decoders import DECODERS, HqTokenConfig
from samgraft.adapters.decoders.hq_token import CERTAIN, KINDS, noisy_logits, pixels_of, training_prompts
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts import AutoSamConfig, Prompts
from samgraft.adapters.prompts.objects import Objects, objects_from_labels
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts


def labels(height: int = 64, width: int = 64) -> torch.Tensor:
    """Two objects off the diagonal in image 0, one in image 1."""
    found = torch.zeros(2, height, width, dtype=torch.int64)
    found[0, 6:20, 30:55] = 1
    found[0, 40:60, 4:12] = 2
    found[1, 10:50, 8:24] = 1
    return found


def moved(grafted: Grafted) -> Grafted:
    """Every attached parameter changed."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return grafted


@pytest.mark.parametrize(("size", "count"), [("b", 1_071_104), ("l", 1_333_248), ("h", 1_595_392)])
def test_parameters(size: Any, count: int) -> None:
    backbone = meta_backbone(size)
    with torch.device("meta"):
        grafted = attach(backbone, decoder=HqTokenConfig())
    assert sum(p.numel() for p in grafted.trainable_parameters()) == count
    assert grafted.taps() == ({"b": 2, "l": 5, "h": 7}[size],)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)], ids=["square", "tall"])
def test_step_zero_is_sam_bit_by_bit(size: tuple[int, int]) -> None:
    backbone, image, prompts = toy_backbone(), toy_image(*size), toy_prompts()
    with torch.no_grad():
        features = backbone.encode(image)
        single, quality = backbone.decode(features, prompts)
        three, qualities = backbone.decode(features, prompts, multimask=True)
        grafted = attach(backbone, decoder=HqTokenConfig())
        features = grafted.encode(image)
        logits, iou = grafted.decode(features, prompts)
        assert torch.equal(logits, single) and torch.equal(iou, quality)
        logits, iou = grafted.decode(features, prompts, multimask=True)
    best = qualities.argmax(dim=1)
    assert torch.equal(logits[:, 0], three[torch.arange(3), best])
    assert torch.equal(iou[:, 0], qualities.amax(dim=1))


def test_published_start_and_joined_token_change_sam() -> None:
    backbone, image, prompts = toy_backbone(), toy_image(), toy_prompts()
    expected, quality = backbone.decode(backbone.encode(image), prompts)
    for config, same in [(HqTokenConfig(init="published"), True), (HqTokenConfig(joined=True), False)]:
        grafted = attach(backbone, decoder=config)
        logits, iou = grafted.decode(grafted.encode(image), prompts)
        assert not torch.allclose(logits, expected, atol=1e-4)
        assert torch.equal(iou, quality) == same, "apart, SAM's IoU stays; joined, the token changes it"


def test_answer_is_the_sum_and_parts_are_the_whole() -> None:
    backbone, image, prompts = toy_backbone(), toy_image(), toy_prompts()
    own, _ = backbone.decode(backbone.encode(image), prompts)
    grafted = moved(attach(backbone, decoder=HqTokenConfig(init="published")))
    features = grafted.encode(image)
    both, _ = grafted.decode(features, prompts)
    alone = attach(backbone, decoder=HqTokenConfig(hq_token_only=True))
    alone.load_graft_state(grafted.graft_state())
    hq, _ = alone.decode(features, prompts)
    torch.testing.assert_close(both, own + hq, atol=1e-5, rtol=1e-5)
    assert hq.abs().max() > 1e-2
    parts = {
        int(r): one
        for rows, found, _ in grafted.decode_parts(features, prompts, chunk=2)
        for r, one in zip(rows, found, strict=True)
    }
    torch.testing.assert_close(torch.stack([parts[i] for i in range(3)]), both, atol=1e-5, rtol=1e-5)
    assert grafted.answers_prompts and not attach(backbone).answers_prompts


def test_needs_its_tap() -> None:
    grafted, image = attach(toy_backbone(), decoder=HqTokenConfig()), toy_image()
    with pytest.raises(ConfigError, match=r"hq_token reads blocks \[2\]; features lack \[2\]; .* Grafted.encode"):
        grafted.decode(Features(neck=grafted.encode(image).neck), toy_prompts())


def test_class_maps_with_a_prompter_and_bad_options() -> None:
    grafted = attach(toy_backbone(), prompter=AutoSamConfig(num_classes=2, channels=16), decoder=HqTokenConfig())
    plain = attach(toy_backbone(), prompter=AutoSamConfig(num_classes=2, channels=16))
    image = toy_image(96, 64)
    assert torch.equal(grafted.predict(image).logits, plain.predict(image).logits)
    assert "hq_token" in DECODERS.names()
    with pytest.raises(ConfigError, match="init is 'identty'; did you mean 'identity'"):
        HqTokenConfig(init="identty")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="points is -1"):
        HqTokenConfig(points=-1)


@pytest.mark.parametrize("points", [0, 256])
def test_losses_fall_and_only_the_token_trains(points: int) -> None:
    torch.manual_seed(0)
    backbone, image, objects = toy_backbone(), toy_image(), objects_from_labels(labels())
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    grafted = attach(backbone, decoder=HqTokenConfig(points=points)).train()
    features, decoder = grafted.encode(image), grafted.decoder
    optimizer = torch.optim.Adam(grafted.trainable_parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        losses = decoder.losses(backbone, features, image, objects)
        total = losses["bce"] + losses["dice"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert set(losses) == {"bce", "dice"}
    assert totals[0] > 1.1 and sum(totals[-5:]) / 5 < 0.6 * totals[0]
    assert all(p.grad is not None and (p.grad != 0).any() for p in grafted.trainable_parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    boxes = Prompts(image_index=objects.image_index, boxes=objects.boxes)
    logits, _ = grafted.eval().decode(features, boxes)
    own, _ = backbone.decode(features, boxes)
    truth = functional.max_pool2d(objects.masks[:, None].float(), 2)
    wrong = [functional.binary_cross_entropy_with_logits(found, truth) for found in (logits, own)]
    assert wrong[0] < 0.7 * wrong[1], "what was learned from HQ logits alone helps the sum"


def test_losses_without_objects_and_with_unknown_pixels() -> None:
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, decoder=HqTokenConfig(points=0)).train()
    features = grafted.encode(image)
    nothing = objects_from_labels(torch.zeros(2, 64, 64, dtype=torch.int64))
    losses = grafted.decoder.losses(backbone, features, image, nothing)
    sum(losses.values()).backward()
    assert float(losses["bce"].detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in grafted.trainable_parameters())
    unknown = labels()
    unknown[unknown == 0] = -1
    torch.manual_seed(1)
    with torch.no_grad():
        decoder = attach(backbone, decoder=HqTokenConfig(points=0)).decoder
        decoder.mlp[-1].bias.zero_()
        losses = decoder.losses(backbone, features, image, objects_from_labels(unknown))
    torch.testing.assert_close(losses["bce"], torch.tensor(2.0).log()), "HQ logits of zero on known pixels"


def test_training_prompts_come_from_the_masks() -> None:
    objects: Objects = objects_from_labels(labels())
    rows = torch.tensor([1, 2])
    for kind in KINDS:
        prompts = training_prompts(kind, objects, rows, (32, 32))
        assert prompts.image_index.tolist() == [0, 1] and prompts.from_ground_truth
        if kind == "box":
            assert prompts.boxes is not None and prompts.boxes.tolist() == [[4, 40, 11, 59], [8, 10, 23, 49]]
        if kind == "points":
            assert prompts.points is not None and prompts.points.shape == (2, 10, 2)
            x, y = prompts.points.long().unbind(-1)
            assert objects.masks[rows[:, None], y, x].all()


def test_pixels_of_a_mask_are_drawn_evenly() -> None:
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 1, 4] = mask[0, 2, 0] = True
    torch.manual_seed(0)
    points = pixels_of(mask, 400)[0]
    assert {tuple(point) for point in points.tolist()} == {(4.0, 1.0), (0.0, 2.0)}
    assert 160 < int((points[:, 0] == 4).sum()) < 240
    assert len({tuple(p) for p in pixels_of(torch.zeros(1, 2, 2, dtype=torch.bool), 99)[0].tolist()}) == 4


def test_noisy_masks_keep_what_is_far_from_a_border() -> None:
    mask = torch.zeros(1, 256, 192, dtype=torch.bool)
    mask[0, 64:192, 16:96] = True
    torch.manual_seed(0)
    logits = noisy_logits(mask, (128, 96))
    assert logits.shape == (1, 1, 128, 96) and set(logits.unique().tolist()) == {-CERTAIN, CERTAIN}
    truth = mask[:, ::2, ::2]
    wrong = (logits[:, 0] > 0) != truth
    assert 10 < int(wrong.sum()) < 0.2 * int(truth.sum())
    assert not wrong[0, 42:86, 14:42].any() and not wrong[0, :20].any() and not wrong[0, :, 60:].any()


def test_saved_and_loaded(tmp_path: Any) -> None:
    from samgraft.adapters.bundle import load_bundle, save_bundle

    grafted, image = moved(attach(toy_backbone(), decoder=HqTokenConfig())), toy_image()
    expected = grafted.decode(grafted.encode(image), toy_prompts())[0]
    loaded = load_bundle(save_bundle(tmp_path / "hq.graft", grafted), toy_backbone())
    assert torch.equal(loaded.decode(loaded.encode(image), toy_prompts())[0], expected)
    assert set(grafted.graft_state()) == {f"decoder.{name}" for name, _ in grafted.decoder.named_parameters()}


def test_double_and_half_precision() -> None:
    image, objects = toy_image(), objects_from_labels(labels())
    grafted = moved(attach(toy_backbone().double(), decoder=HqTokenConfig()))
    features = grafted.encode(image.double())
    assert grafted.decode(features, toy_prompts())[0].dtype == torch.float64
    rough = moved(attach(toy_backbone(), decoder=HqTokenConfig()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = rough.decode(rough.encode(image), toy_prompts())
        losses = rough.decoder.losses(rough.backbone, rough.encode(image), image, objects)
    assert torch.isfinite(logits).all()
    sum(losses.values()).backward()
