"""The backbone computes what transformers.SamModel computes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SamModel

from samgraft.adapters.backbones import HFSamBackbone
from samgraft.adapters.backbones.hf import SAM_MEAN, SAM_STD
from samgraft.adapters.prompts.base import Prompts
from tests.data.checkpoints import SIDE, toy_sam

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
"""Windows that reach beyond the image are asked less than in transformers, so the last bits may differ."""

BOXES = torch.tensor([[5.0, 6.0, 40.0, 50.0], [0.0, 0.0, 20.0, 30.5], [30.0, 20.0, 63.0, 63.0]])
POINTS = torch.tensor([[[20.0, 30.0], [7.0, 3.0]], [[5.0, 9.0], [40.0, 12.0]], [[50.0, 50.0], [0.0, 0.0]]])
LABELS = torch.tensor([[1, 0], [1, 1], [1, -10]])
MASKS = torch.randn(3, 1, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(5)) * 4
OWNER = torch.tensor([0, 1, 1])
"""Image of each of the three instances: one in the first, two in the second."""

CASES = {
    "box": {"boxes": BOXES},
    "point": {"points": POINTS[:, :1], "labels": LABELS[:, :1]},
    "several points": {"points": POINTS, "labels": LABELS},
    "box and points": {"boxes": BOXES, "points": POINTS, "labels": LABELS},
    "mask": {"masks": MASKS},
    "mask and box": {"masks": MASKS, "boxes": BOXES},
    "mask and points": {"masks": MASKS, "points": POINTS, "labels": LABELS},
}


def images(height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def normalise(image: Tensor) -> Tensor:
    return (image - torch.tensor(SAM_MEAN)[:, None, None]) / torch.tensor(SAM_STD)[:, None, None]


@torch.no_grad()
def reference(model: SamModel, image: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
    """One call of SamModel per instance, each with its own image."""
    logits, scores = [], []
    for row in range(len(prompts)):
        one = prompts.select(torch.tensor([row]))
        out = model(
            pixel_values=normalise(image[one.image_index]),
            input_points=None if one.points is None else one.points[:, None],
            input_labels=None if one.labels is None else one.labels[:, None],
            input_boxes=None if one.boxes is None else one.boxes[:, None],
            input_masks=one.masks,
            multimask_output=multimask,
        )
        logits.append(out.pred_masks[:, 0])
        scores.append(out.iou_scores[:, 0])
    return torch.cat(logits), torch.cat(scores)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_sam_model(case: str, multimask: bool) -> None:
    model = toy_sam().double()  # in single precision the sums differ by processor
    image = images().double()
    prompts = Prompts(
        image_index=OWNER, **{k: v.double() if v.is_floating_point() else v for k, v in CASES[case].items()}
    )
    expected, expected_scores = reference(model, image, prompts, multimask=multimask)
    assert expected.std() > 0.1  # the toy says something

    backbone = HFSamBackbone(model)
    logits, scores = backbone.decode(backbone.encode(image), prompts, multimask=multimask)
    assert logits.shape == (3, 3 if multimask else 1, SIDE // 2, SIDE // 2)
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    torch.testing.assert_close(scores, expected_scores, **TOLERANCE)


def test_batch_with_different_numbers_of_prompts_equals_one_call_per_image() -> None:
    model = toy_sam()
    image = images()
    with torch.no_grad():
        first = model(pixel_values=normalise(image[:1]), input_boxes=BOXES[None, :1])
        second = model(pixel_values=normalise(image[1:]), input_boxes=BOXES[None, 1:])
    backbone = HFSamBackbone(model)
    order = torch.tensor([2, 0, 1])  # instances of one image need not stand together
    prompts = Prompts(image_index=OWNER, boxes=BOXES).select(order)
    logits, scores = backbone.decode(backbone.encode(image), prompts, multimask=True)
    expected = torch.cat([first.pred_masks[0], second.pred_masks[0]])[order]
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    torch.testing.assert_close(scores, torch.cat([first.iou_scores[0], second.iou_scores[0]])[order], **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [4, 3, 5, 14])
@pytest.mark.parametrize("rel_pos", [True, False])
def test_neck_and_taps_equal_for_every_kind_of_window(attention: str, window: int, rel_pos: bool) -> None:
    """4 divides the grid of 8 tokens, 3 and 5 need padding, 14 is larger than the grid."""
    model = toy_sam(attention=attention, window=window, rel_pos=rel_pos)
    outputs: dict[int, Tensor] = {}
    for index, layer in enumerate(model.vision_encoder.layers):
        layer.register_forward_hook(lambda _m, _i, out, index=index: outputs.update({index: out}))
    with torch.no_grad():
        expected = model.vision_encoder(normalise(images())).last_hidden_state
    features = HFSamBackbone(model).encode(images(), taps=(0, 2))
    torch.testing.assert_close(features.neck, expected, **TOLERANCE)
    assert sorted(features.taps) == [0, 2]
    for index, tap in features.taps.items():
        torch.testing.assert_close(tap, outputs[index], **TOLERANCE)


def resized_model(model: SamModel, side: int) -> SamModel:
    """A SamModel built for ``side``, with the tables of ``model`` interpolated here, by block index."""
    other = toy_sam(side=side)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grid = side // 8
    table = state["vision_encoder.pos_embed"].permute(0, 3, 1, 2)
    table = functional.interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
    state["vision_encoder.pos_embed"] = table.permute(0, 2, 3, 1)
    for block in model.config.vision_config.global_attn_indexes:
        for axis in "hw":
            key = f"vision_encoder.layers.{block}.attn.rel_pos_{axis}"
            rows = functional.interpolate(state[key].T[None], size=2 * grid - 1, mode="linear", align_corners=False)
            state[key] = rows[0].T
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("side", [40, 96, 104])
def test_other_sizes_equal_a_model_built_for_that_size(side: int) -> None:
    model = toy_sam()
    prompts = Prompts(image_index=OWNER, boxes=BOXES * side / SIDE, points=POINTS * side / SIDE, labels=LABELS)
    expected, scores = reference(resized_model(model, side), images(side, side), prompts, multimask=True)
    backbone = HFSamBackbone(model)
    found, found_scores = backbone.decode(backbone.encode(images(side, side)), prompts, multimask=True)
    assert found.shape == (3, 3, side // 2, side // 2)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(found_scores, scores, **TOLERANCE)


@pytest.mark.parametrize("size", [(64, 96), (40, 24), (8, 8), (72, 64)])
def test_sides_may_differ(size: tuple[int, int]) -> None:
    """A wide image with constant rows: swapping height and width swaps the tables, so the transposed model agrees."""
    model = toy_sam()
    backbone = HFSamBackbone(model)
    flipped_model = toy_sam()
    with torch.no_grad():
        encoder = flipped_model.vision_encoder
        encoder.patch_embed.projection.weight.copy_(encoder.patch_embed.projection.weight.transpose(2, 3).clone())
        encoder.neck.conv2.weight.copy_(encoder.neck.conv2.weight.transpose(2, 3).clone())
        encoder.pos_embed.copy_(encoder.pos_embed.transpose(1, 2).clone())
        for layer in encoder.layers:
            across, down = layer.attn.rel_pos_w.clone(), layer.attn.rel_pos_h.clone()
            layer.attn.rel_pos_h.copy_(across)
            layer.attn.rel_pos_w.copy_(down)
    neck = backbone.encode(images(*size)).neck
    assert neck.shape == (2, 32, size[0] // 8, size[1] // 8)
    assert torch.isfinite(neck).all()
    other = HFSamBackbone(flipped_model).encode(images(*size).transpose(2, 3)).neck
    torch.testing.assert_close(neck, other.transpose(2, 3), **TOLERANCE)


def test_prompt_coordinates_are_shares_of_the_actual_size() -> None:
    """x is divided by W and y by H of this input, not by the native side."""
    backbone = HFSamBackbone(toy_sam())
    point = Prompts(image_index=torch.tensor([0]), points=torch.tensor([[[23.5, 11.5]]]), labels=torch.tensor([[1]]))
    native = Prompts(image_index=torch.tensor([0]), points=torch.tensor([[[15.5, 15.5]]]), labels=torch.tensor([[1]]))
    wide, _ = backbone.embed(point, (48, 96))  # (23.5 + .5) / 96 = (15.5 + .5) / 64 and (11.5 + .5) / 48 = the same
    square, dense = backbone.embed(native, (64, 64))
    torch.testing.assert_close(wide, square)
    assert wide.shape == (1, 2, 32)
    assert dense.shape == (1, 32, 8, 8)


def test_box_and_point_order_and_extra_sparse_tokens() -> None:
    backbone = HFSamBackbone(toy_sam())
    extra = torch.randn(3, 4, 32)
    prompts = Prompts(image_index=OWNER, boxes=BOXES, points=POINTS, labels=LABELS, sparse=extra)
    sparse, _ = backbone.embed(prompts, (64, 64))
    assert sparse.shape == (3, 2 + 2 + 4, 32)
    torch.testing.assert_close(sparse[:, 4:], extra)
    torch.testing.assert_close(sparse[2, 1], torch.zeros(32))  # the padding point
    only, _ = backbone.embed(Prompts(image_index=OWNER, sparse=extra), (64, 64))
    torch.testing.assert_close(only, extra)


def test_dense_prompt_replaces_no_mask() -> None:
    model = toy_sam()
    backbone = HFSamBackbone(model)
    features = backbone.encode(images())
    no_mask = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(3, -1, 8, 8)
    plain, _ = backbone.decode(features, Prompts(image_index=OWNER, boxes=BOXES))
    same, _ = backbone.decode(features, Prompts(image_index=OWNER, boxes=BOXES, dense=no_mask))
    other, _ = backbone.decode(features, Prompts(image_index=OWNER, boxes=BOXES, dense=no_mask + 1))
    torch.testing.assert_close(same, plain, rtol=0, atol=0)
    assert (other - plain).abs().max() > 1e-2
