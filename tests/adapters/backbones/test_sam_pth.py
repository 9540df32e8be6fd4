"""Checkpoints in Meta's format: architecture from shapes, every key matched, nothing executed."""

import os
from pathlib import Path

import pytest
import torch

from samgraft.adapters.backbones import HFSamBackbone
from samgraft.adapters.backbones.sam_pth import infer_config, load_sam_pth
from samgraft.errors import CheckpointError
from tests.data.checkpoints import meta_state, toy_config, toy_sam, write_meta_pth


@pytest.mark.parametrize("under", [None, "model", "state_dict"])
def test_same_model_as_the_hugging_face_one(tmp_path: Path, under: str | None) -> None:
    original = toy_sam()
    loaded = load_sam_pth(write_meta_pth(tmp_path / "sam.pth", original, under=under))
    assert set(loaded.state_dict()) == set(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (
        loaded.shared_image_embedding.positional_embedding
        is loaded.prompt_encoder.shared_embedding.positional_embedding
    )
    assert HFSamBackbone(loaded).weights_hash() == HFSamBackbone(toy_sam()).weights_hash()

    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = original(pixel_values=image, input_boxes=torch.tensor([[[3.0, 4.0, 40.0, 50.0]]]))
        found = loaded(pixel_values=image, input_boxes=torch.tensor([[[3.0, 4.0, 40.0, 50.0]]]))
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-5, rtol=1e-5)


def test_architecture_is_read_from_shapes() -> None:
    config = infer_config(meta_state(toy_sam(num_blocks=4, window=5, side=96)))
    expected = toy_config(num_blocks=4, window=5, side=96)
    for part, values in config.items():
        assert {key: values[key] for key in values if key in expected[part]} == {
            key: value for key, value in expected[part].items() if key in values
        }
    assert config["vision_config"]["global_attn_indexes"] == [1]
    assert config["mask_decoder_config"]["attention_downsample_rate"] == 2
    assert config["mask_decoder_config"]["num_multimask_outputs"] == 3
    assert config["mask_decoder_config"]["iou_head_depth"] == 3


@pytest.mark.parametrize(
    ("width", "depth", "heads", "blocks"),
    [(768, 12, 12, [2, 5, 8, 11]), (1024, 24, 16, [5, 11, 17, 23]), (1280, 32, 16, [7, 15, 23, 31])],
    ids="BLH",
)
def test_published_sizes(width: int, depth: int, heads: int, blocks: list[int]) -> None:
    """SAM-B, L and H by their published shapes, on the meta device."""
    state = {name: tensor.to("meta") for name, tensor in meta_state(toy_sam()).items()}
    state = {name: tensor for name, tensor in state.items() if ".blocks." not in name}
    with torch.device("meta"):
        state["image_encoder.patch_embed.proj.weight"] = torch.empty(width, 3, 16, 16)
        state["image_encoder.pos_embed"] = torch.empty(1, 64, 64, width)
        state["image_encoder.blocks.0.mlp.lin1.weight"] = torch.empty(4 * width, width)
        for block in range(depth):
            length = 127 if block in blocks else 27
            state[f"image_encoder.blocks.{block}.attn.rel_pos_h"] = torch.empty(length, width // heads)
    vision = infer_config(state)["vision_config"]
    assert vision["num_attention_heads"] == heads
    assert vision["global_attn_indexes"] == blocks
    assert (vision["image_size"], vision["patch_size"], vision["window_size"]) == (1024, 16, 14)
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["mlp_dim"]) == (width, depth, 4 * width)


def _spoil(state: dict[str, torch.Tensor], how: str) -> None:
    if how == "missing":
        del state["mask_decoder.transformer.layers.1.norm3.bias"]
    elif how == "unknown":
        state["image_encoder.blocks.0.adapter.weight"] = torch.ones(1)
    elif how == "hq":
        state["mask_decoder.hf_token.weight"] = torch.ones(1, 32)
    elif how == "shape":
        state["mask_decoder.iou_token.weight"] = torch.ones(2, 32)
    elif how == "nan":
        state["image_encoder.neck.2.weight"][0, 0, 0, 0] = torch.nan
    elif how == "resized":
        state["image_encoder.blocks.0.attn.rel_pos_h"] = torch.ones(9, 8)
    elif how == "other":
        state.clear()
        state["fc.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing mask_decoder.transformer.layers.1.layer_norm3.bias; unknown nothing"),
        ("unknown", "keys that SAM does not have: image_encoder.blocks.0.adapter.weight"),
        ("hq", "SAM-HQ checkpoint .*hf_token"),
        ("shape", r"mask_decoder.iou_token.weight \(2, 32\) not \(1, 32\)"),
        ("nan", "NaN or Inf in vision_encoder.neck.conv2.weight"),
        ("resized", r"lengths \[5, 9, 15\]; expected 15 for global blocks"),
        ("other", "not a SAM checkpoint: no image_encoder.patch_embed.proj.weight"),
    ],
)
def test_foreign_or_incomplete_files_are_refused_by_key(tmp_path: Path, how: str, message: str) -> None:
    state = meta_state(toy_sam())
    _spoil(state, how)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=message):
        load_sam_pth(tmp_path / "sam.pth")


class Payload:
    """Would make a folder if a reader ran code of the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["absent", "truncated", "noise", "empty", "list", "code"])
def test_damaged_files_are_refused_and_never_run(tmp_path: Path, how: str) -> None:
    path = tmp_path / "sam.pth"
    if how == "truncated":
        write_meta_pth(path, toy_sam())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how in ("noise", "empty"):
        path.write_bytes(b"no checkpoint" * 100 if how == "noise" else b"")
    elif how == "list":
        torch.save([torch.ones(2)], path)
    elif how == "code":
        torch.save({"model": Payload(tmp_path / "ran")}, path)
    message = {"absent": "no checkpoint at", "list": "holds no table of tensors"}.get(how, "cannot be read as tensors")
    with pytest.raises(CheckpointError, match=message):
        load_sam_pth(path)
    assert not (tmp_path / "ran").exists()
