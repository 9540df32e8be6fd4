"""PerSAM and PerSAM-F: where points, attention and masks come from, on images that are not square."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones import guidance as guiding
from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.guidance import Guidance
from samgraft.adapters.prompts import PersamConfig, PersamFConfig, Prompts, make_references
from samgraft.adapters.prompts.object_masks import mask_iou
from samgraft.adapters.prompts.persam import attention_prior, location_prior
from samgraft.adapters.prompts.persam_f import mask_loss, targets
from samgraft.errors import ConfigError, ShapeError
from tests.adapters.prompts.one_shot import BOX, SIZE, inside, overlap, scene, shown
from tests.adapters.toy import toy_backbone, toy_image, toy_prompts
from tests.recipes._oracle import Oracle

SECOND = (8, 40, 31, 55)
each_method = pytest.mark.parametrize("config", [PersamConfig(position=0.0), PersamFConfig(position=0.0)])


def test_points_lie_at_the_extremes() -> None:
    """4 x 6 cells of 8 pixels: the best cell is row 1, column 4, the worst row 3, column 0."""
    similarity = torch.zeros(1, 1, 4, 6)
    similarity[0, 0, 1, 4], similarity[0, 0, 3, 0] = 1.0, -1.0
    prompts = location_prior(similarity, torch.ones(1, 4, 6, dtype=torch.bool), (32, 48), negative=True)
    assert prompts.labels.tolist() == [[1, 0]]
    assert prompts.points[0, 0].tolist() == pytest.approx([35.5, 11.5], abs=1.5)
    assert prompts.points[0, 1].tolist() == pytest.approx([3.5, 27.5], abs=4.0)
    allowed = torch.ones(1, 4, 6, dtype=torch.bool)
    allowed[0, 1, 4] = False
    elsewhere = location_prior(similarity, allowed, (32, 48), negative=False)
    x, y = elsewhere.points[0, 0].tolist()
    assert not (31.5 < x < 39.5 and 7.5 < y < 15.5) and elsewhere.points.shape == (1, 1, 2)


def test_bias_is_a_standardised_similarity_without_padding() -> None:
    """Of the four known cells mean 2 and deviation 1; the padded column neither counts nor is looked at."""
    similarity = torch.tensor([[[[1.0, 3.0, 50.0], [3.0, 1.0, -50.0]]]])
    valid = torch.tensor([[[True, True, False], [True, True, False]]])
    low, high = torch.tensor(-1.0).sigmoid(), torch.tensor(1.0).sigmoid()
    expected = torch.tensor([[low, high, 0], [high, low, 0]])
    assert torch.allclose(attention_prior(similarity, valid)[0, 0], expected)


def attention_of(backbone: object, features: Features, prompts: Prompts, told: Guidance | None) -> list[Tensor]:
    """Weights (n, T, h w) of the token-to-image attentions of the layers, mean over heads."""
    backbone.sam.config._attn_implementation = "eager"  # type: ignore[attr-defined]
    transformer = backbone.sam.mask_decoder.transformer  # type: ignore[attr-defined]
    kept: list[Tensor] = []
    hooks = []
    for layer in transformer.layers:
        attention = layer.cross_attn_token_to_image
        attention.config._attn_implementation = "eager"
        hooks.append(attention.register_forward_hook(lambda module, args, out: kept.append(out[1].mean(dim=1))))
    backbone.decode(features, prompts, guidance=told)  # type: ignore[attr-defined]
    for hook in hooks:
        hook.remove()
    return kept


def test_attention_is_drawn_to_the_object_on_an_image_that_is_not_square() -> None:
    """Cells (rows 1 to 3, columns 7 to 9 of 8 x 12) gain attention; where a squashed square would put them, none do."""
    backbone = toy_backbone()
    image, mask = scene()
    features, references = shown(backbone, image, mask)
    prompter = PersamConfig(tap=0, position=0.0, semantic=False, strength=8.0).build(backbone)
    similarity = prompter.similarity(features, image, references)
    told = prompter.guidance(similarity, torch.ones(1, 8, 12, dtype=torch.bool), references)
    assert told is not None and told.bias is not None and told.bias.shape == (1, 8, 12)
    prompts = Prompts(image_index=torch.tensor([0]), boxes=torch.tensor([[0.0, 0.0, 95.0, 63.0]]))
    before, after = (attention_of(backbone, features, prompts, g) for g in (None, told))
    own = (mask[0, 0, ::8, ::8] > 0).flatten()
    squashed = (
        functional.interpolate(mask, size=(12, 8), mode="area")[0, 0].flatten() > 0.5
    )  # read with the wrong width
    assert len(after) == 2 and not torch.equal(own, squashed)
    for weight, former in zip(after, before, strict=True):
        assert weight.shape == (1, 7, 96)
        gain = weight / former
        assert float(gain[..., own].min()) > float(gain[..., ~own].mean()) > 0
        assert float(weight[..., own].sum(dim=-1).min()) > 1.5 * float(former[..., own].sum(dim=-1).max())
        assert float(gain[..., squashed & ~own].mean()) < 1


def test_bias_equals_attention_on_one_cell() -> None:
    """An enormous bias on one cell leaves that cell only: the attention then gives its value, whatever is asked."""
    backbone, image = toy_backbone(), toy_image(64, 96)
    features = backbone.encode(image)
    bias = torch.zeros(3, 8, 12)
    bias[0, 2, 10] = bias[1, 6, 1] = bias[2, 0, 11] = 1e4
    for weight in attention_of(backbone, features, toy_prompts(), Guidance(bias=bias)):
        assert weight.sum(dim=1).argmax(dim=1).tolist() == [2 * 12 + 10, 6 * 12 + 1, 11]
        assert torch.allclose(weight.amax(dim=2), torch.ones(3, weight.shape[1]))


def test_nothing_told_is_bit_equal_and_parts_fit_together() -> None:
    backbone, image, prompts = toy_backbone(), toy_image(64, 96), toy_prompts()
    features = backbone.encode(image)
    plain = backbone.decode(features, prompts, multimask=True)
    for told in (Guidance(), Guidance(bias=torch.zeros(3, 8, 12), target=torch.zeros(3, 32))):
        guided = backbone.decode(features, prompts, multimask=True, guidance=told)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(guided, plain, strict=True))
    told = Guidance(bias=torch.rand(3, 8, 12), target=torch.randn(3, 32))
    whole, parts = (backbone.decode(features, prompts, guidance=told, chunk=chunk)[0] for chunk in (None, 1))
    assert torch.allclose(whole, parts, atol=1e-5) and not torch.allclose(whole, plain[0][:, :1], atol=1e-3)
    with pytest.raises(ShapeError, match=r"guidance.bias has shape \(3, 12, 8\); expected \(3, 8, 12\)"):
        backbone.decode(features, prompts, guidance=Guidance(bias=torch.zeros(3, 12, 8)))


def test_published_form_is_the_same_transformer_with_another_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, image, prompts = toy_backbone(), toy_image(64, 96), toy_prompts()
    features = backbone.encode(image)
    told = {"bias": torch.rand(3, 8, 12), "target": torch.randn(3, 32)}
    additive = backbone.decode(features, prompts, guidance=Guidance(**told))[0]
    published = backbone.decode(features, prompts, guidance=Guidance(**told, double_softmax=True))[0]
    assert not torch.allclose(published, additive, atol=1e-3)

    def once(attention, query, key, value, bias):  # type: ignore[no-untyped-def]
        return attention(query=query, key=key, value=value, attention_similarity=bias)[0]

    monkeypatch.setattr(guiding, "_twice_normalised", once)
    same = backbone.decode(features, prompts, guidance=Guidance(**told, double_softmax=True))[0]
    assert torch.allclose(same, additive, atol=1e-5)


def test_two_softmaxes_by_hand() -> None:
    """One head of width 1, two cells: weights softmax(0, 1) = (.2689, .7311), then softmax of them plus (1, 0)."""
    attention = toy_backbone().sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    attention.num_attention_heads, attention.scaling = 1, 1.0
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[0, 0] = 1
    query, keys = torch.zeros(1, 1, 1, 32), torch.zeros(1, 1, 2, 32)
    query[..., 0], keys[0, 0, :, 0] = 1, torch.tensor([0.0, 1.0])
    found = guiding._twice_normalised(attention, query, keys, keys, torch.tensor([1.0, 0.0])[None, None, None])
    first = torch.tensor([0.0, 1.0]).softmax(0)
    assert float(found[0, 0, 0, 0]) == pytest.approx(float((first + torch.tensor([1.0, 0.0])).softmax(0)[1]), abs=1e-6)


@each_method
def test_the_reference_itself_is_found(config: PersamConfig) -> None:
    backbone = toy_backbone()
    image, mask = scene()
    features, references = shown(backbone, image, mask)
    prompts = config.build(backbone)(features, image, {"references": references})
    assert inside(prompts.points[0, :1]) == [True]
    assert prompts.points.shape[1] == (2 if isinstance(config, PersamConfig) else 1)
    if isinstance(config, PersamConfig):
        assert inside(prompts.points[0, 1:]) == [False]


@each_method
def test_two_images_and_two_kinds_stand_in_order(config: PersamConfig) -> None:
    """Kind 0 is the bright box, kind 1 what is dark; the second image has the box elsewhere, and padding beside."""
    backbone = Oracle()
    image, mask = scene()
    references = make_references(image, torch.cat([mask, 1 - mask], dim=1)).encode(backbone)
    batch = torch.cat([image, scene(SECOND)[0]])
    options = {"objects": 2} if isinstance(config, PersamFConfig) else {}
    prompter = type(config)(tap="neck", position=0.0, **options).build(backbone)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :, 80:] = False
    prompts = prompter(backbone.encode(batch), batch, {"references": references, "valid": valid})
    assert prompts.image_index.tolist() == [0, 0, 1, 1]
    points = prompts.points[:, 0]
    assert inside(points[:2]) == [True, False] and inside(points[2:], SECOND) == [True, False]
    assert (points[:, 0] < 80).all()


def test_further_objects_are_found_one_after_the_other() -> None:
    backbone = Oracle()
    reference, mask = scene()
    image, _ = scene(BOX, SECOND, seed=1)
    references = make_references(reference, mask).encode(backbone)
    options = {"tap": "neck", "position": 0.0, "strength": 0.0, "semantic": False, "refinements": 0}
    prompter = PersamConfig(max_objects=5, **options).build(backbone)
    found = prompter.find(backbone, backbone.encode(image), image, {"references": references})
    assert len(found) == 2 and found.image_index.tolist() == [0, 0]
    truths = [scene(box)[1][0, 0, ::2, ::2] > 0 for box in (BOX, SECOND)]
    matrix = mask_iou(found.logits > 0, torch.stack(truths))
    assert (matrix > 0.9).sum(dim=0).tolist() == [1, 1]
    assert (
        len(
            PersamConfig(**options)
            .build(backbone)
            .find(backbone, backbone.encode(image), image, {"references": references})
        )
        == 1
    )


class PartWholeRest(Oracle):
    """Three masks: none of the object, the object, everything with larger logits; the single one is everything."""

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        bright = (features.neck[:, 0] - 0.5)[prompts.image_index] * 20
        part = bright.clone()
        part[..., :, :] = -10
        masks = torch.stack([part, bright, torch.full_like(bright, 30.0)], dim=1)
        iou = torch.tensor([0.1, 0.2, 0.9]).expand(len(prompts), -1)
        return (masks, iou) if multimask else (masks[:, 2:], iou[:, 2:])


def test_two_numbers_learn_the_scale_that_the_reference_shows() -> None:
    backbone = PartWholeRest()
    image, mask = scene()
    prompter = PersamFConfig(tap="neck", position=0.0, refinements=0).build(backbone)
    assert sum(p.numel() for p in prompter.parameters()) == 2
    assert torch.allclose(prompter.mixture(), torch.full((1, 3), 1 / 3))
    references = make_references(image, mask)
    target, _ = scene(SECOND, seed=1)
    truth = scene(SECOND)[1][0, 0, ::2, ::2] > 0
    features = backbone.encode(target)
    context = {"references": references}
    assert overlap(prompter.find(backbone, features, target, context).logits[0] > 0, truth) < 0.5
    losses = prompter.fit(backbone, references)
    assert len(losses) == 1000 and losses[-1] < 0.5 * losses[0]
    assert prompter.mixture()[0].argmax() == 1
    assert overlap(prompter.find(backbone, features, target, context).logits[0] > 0, truth) > 0.9
    with pytest.raises(ConfigError, match=r"built for 2 kinds of objects; the references have 1"):
        PersamFConfig(objects=2, position=0.0).build(backbone)(features, target, {"references": references})


def test_target_is_half_mean_half_maximum() -> None:
    cells = torch.tensor([[3.0, 0.0], [1.0, 4.0], [9.0, 9.0]]).reshape(1, 1, 3, 2)
    mask = torch.zeros(1, 1, 8, 24)
    mask[..., :16] = 1
    references = make_references(torch.zeros(1, 3, 8, 24), mask)
    object.__setattr__(references, "features", Features(neck=torch.zeros(1, 2, 1, 3)))
    expected = functional.normalize(torch.tensor([(2.0 + 3.0) / 2, (2.0 + 4.0) / 2]), dim=0)
    assert torch.allclose(targets(cells, references)[0], expected)


def test_loss_by_hand_and_unknown_pixels() -> None:
    logits, truth = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    known = torch.tensor([[[1.0, 0.0]]])
    dice = 1 - (2 * 0.5 + 1) / (1.5 + 1)
    focal = 0.25 * 0.25 * 0.6931472
    assert float(mask_loss(logits, truth, known)) == pytest.approx(dice + focal, abs=1e-6)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="variant is 'publshed'; did you mean 'published'"):
        PersamConfig(variant="publshed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_objects 0"):
        PersamConfig(max_objects=0)
    with pytest.raises(ConfigError, match="steps -1"):
        PersamFConfig(steps=-1)
    with pytest.raises(ConfigError, match="has no SAM mask decoder to guide"):
        image, mask = scene()
        references = make_references(image, mask)
        backbone = Oracle()
        PersamConfig(tap="neck").build(backbone).find(
            backbone, backbone.encode(image), image, {"references": references}
        )
