"""Pretraining: scenes are reproducible and their masks true, prompts lie where they say, a killed run continues."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from samgraft.adapters.backbones.tiny import build_graft_tiny, tiny_config
from samgraft.errors import CheckpointError
from samgraft.recipes.pretrain.export import export
from samgraft.recipes.pretrain.forward import decode, encode, mask_loss
from samgraft.recipes.pretrain.loop import PretrainConfig, Pretraining, correction, run
from samgraft.recipes.pretrain.prompting import ProceduralStream, make_examples, tight_box
from samgraft.recipes.pretrain.scenes import LAYOUTS, make_sample


def test_same_seed_same_scene_and_other_seed_another():
    first, again, other = make_sample(7, 48), make_sample(7, 48), make_sample(8, 48)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_every_layout_appears_and_values_are_in_range():
    samples = [make_sample(seed, 48) for seed in range(120)]
    assert {s.kind for s in samples} == set(LAYOUTS)
    for s in samples:
        assert s.image.shape == (3, 48, 48) and s.image.dtype == np.float32
        assert s.image.min() >= 0 and s.image.max() <= 1 and np.isfinite(s.image).all()
        assert s.masks.ndim == 3 and s.masks.sum((1, 2)).min() >= 3


def test_masks_are_unions_of_whole_regions():
    sample = make_sample(3, 64)
    for mask in sample.masks:
        inside = set(np.unique(sample.regions[mask])) - {0}
        assert not inside & set(np.unique(sample.regions[~mask]))


def test_points_lie_on_their_objects_and_boxes_hold_most_of_them():
    for seed in range(12):
        for example in make_examples(seed, size=64, prompts=3, views=2):
            for mask, box, point in zip(example.masks, example.boxes, example.points, strict=True):
                x, y = int(point[0]), int(point[1])
                assert mask[y, x] == 1
                x0, y0, x1, y1 = box.round().int().tolist()
                assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() >= 0.5 * mask.sum()


def test_tight_box_is_xyxy_with_both_ends_inside():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 11:25] = True
    assert tight_box(mask).tolist() == [11, 4, 24, 8]


def test_stream_continues_where_it_stopped_without_repeating():
    images = [next(iter(ProceduralStream(first=first, size=32, prompts=1)))[0] for first in (0, 1000)]
    assert not torch.equal(images[0], images[1])


def test_correction_clicks_on_the_error_with_the_right_label():
    target = torch.zeros(1, 2, 16, 16)
    target[0, :, 4:12, 4:12] = 1
    previous = torch.full((1, 2, 16, 16), -5.0)
    previous[0, 1, 4:12, 4:12] = 5
    previous[0, 1, 0:3, 12:16] = 5  # something that is not there
    clicks = correction(previous, target, torch.zeros(1, 2, 2), 64, with_point=False)
    assert clicks["labels"].flatten().tolist() == [1, 0]
    (x, y), (u, v) = clicks["points"][0, :, 0].tolist()
    assert 16 <= x < 48 and 16 <= y < 48
    assert u > 44 and v < 12


def test_loss_prefers_the_right_mask_and_reports_true_iou():
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 2:6] = 1
    good = (target * 20 - 10)[:, :, None]
    bad = -good
    right, truth = mask_loss(good, torch.ones(1, 1, 1), target, 0.5)
    wrong, zero = mask_loss(bad, torch.ones(1, 1, 1), target, 0.5)
    assert truth.item() == 1 and zero.item() == 0
    assert right < 0.05 < 1 < wrong


def test_fresh_model_is_neither_flat_nor_wild_and_position_code_is_frozen():
    model = build_graft_tiny(tiny_config()).eval()
    assert not model.shared_image_embedding.positional_embedding.requires_grad
    assert 0.7 < model.shared_image_embedding.positional_embedding.std() < 1.3
    with torch.no_grad():
        neck = encode(model, torch.rand(1, 3, 64, 96))
        logits, iou = decode(model, neck, 96, boxes=torch.tensor([[[8.0, 8, 40, 40]]]), multimask=True)
    assert neck.shape == (1, 128, 8, 12) and logits.shape == (1, 1, 3, 32, 48) and iou.shape == (1, 1, 3)
    assert 1e-3 < logits.std() < 10


def test_run_resumes_and_exports(tmp_path):
    options = {"batch": 2, "prompts": 2, "size": 64, "workers": 0, "save_every": 1, "evaluate_every": 10**6}
    folder = str(tmp_path / "run")
    run(PretrainConfig(run=folder, steps=1, **options))
    first = Pretraining(PretrainConfig(run=folder, steps=2, **options))
    assert first.step == 1
    before = {k: v.clone() for k, v in first.model.state_dict().items()}
    run(PretrainConfig(run=folder, steps=2, **options))
    after = Pretraining(PretrainConfig(run=folder, steps=2, **options))
    assert after.step == 2
    assert any(not torch.equal(before[k], v) for k, v in after.model.state_dict().items())
    target = export(tmp_path / "run", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "graft_tiny.json").read_text())
    assert card["card"]["steps"] == 2 and len(card["card"]["stages"]) == 2
    tensors = load_file(target)
    again = Pretraining(PretrainConfig(run=str(tmp_path / "next"), start=str(target), **options))
    assert again.step == 0
    for key, value in again.model.state_dict().items():
        torch.testing.assert_close(value, after.average[key], rtol=1e-3, atol=1e-4)
    assert target.stat().st_size < 16_000_000 and all(t.dtype == torch.float16 for t in tensors.values())


def test_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        Pretraining(PretrainConfig(run=str(tmp_path)))


def test_export_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        export(tmp_path, tmp_path / "out")


def test_start_from_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not match graft-tiny"):
        Pretraining(PretrainConfig(run=str(tmp_path / "run"), start=str(tmp_path / "other.safetensors")))
