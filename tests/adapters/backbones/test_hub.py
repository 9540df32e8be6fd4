"""load_backbone: names, folders, files, models, and what it says when there is nothing."""

import json
from pathlib import Path

import pytest
import torch

from samgraft.adapters import BACKBONES as EXPORTED
from samgraft.adapters.backbones import BACKBONES, HFSamBackbone, hub, load_backbone
from samgraft.errors import CheckpointError, ConfigError, NoMatchError
from tests.data.checkpoints import toy_config, toy_sam, write_embedded, write_hf_folder, write_meta_pth


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_embedded(tmp_path / "embedded", toy_sam(), toy_config())
    monkeypatch.setattr(hub, "EMBEDDED", folder)
    return folder


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_registry_names() -> None:
    assert EXPORTED is BACKBONES
    assert {"graft-tiny", "sam-vit-base", "sam-vit-large", "sam-vit-huge", "medsam", "slimsam-50"} <= set(
        BACKBONES.names()
    )
    assert BACKBONES.get("medsam").std == (1.0, 1.0, 1.0)
    assert BACKBONES.get("sam-vit-huge").mean == (0.485, 0.456, 0.406)


def test_folder_gives_the_same_backbone(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "mine", toy_sam())
    backbone = load_backbone(folder, local_files_only=True)
    assert backbone.weights_hash() == HFSamBackbone(toy_sam()).weights_hash()
    assert (backbone.spec.name, backbone.spec.mean) == ("mine", (0.485, 0.456, 0.406))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone.encode(image).neck, HFSamBackbone(toy_sam()).encode(image).neck)
    assert load_backbone(str(folder), name="x", mean=(0, 0, 0), std=(1, 1, 1)).spec.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("content", "mean"),
    [
        ({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, (0.1, 0.2, 0.3)),
        ({"do_normalize": False, "image_mean": [0.1, 0.2, 0.3]}, (0.0, 0.0, 0.0)),
    ],
)
def test_folder_normalisation_comes_from_its_preprocessor(tmp_path: Path, content: object, mean: object) -> None:
    folder = write_hf_folder(tmp_path / "mine", toy_sam())
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    assert load_backbone(folder).spec.mean == mean


def test_half_precision_folder_is_loaded_in_float32(tmp_path: Path) -> None:
    backbone = load_backbone(write_hf_folder(tmp_path / "half", toy_sam().half()))
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_embedded(embedded: Path) -> None:
    backbone = load_backbone()
    assert backbone.spec.name == "graft-tiny"
    assert (backbone.spec.mean, backbone.spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (backbone.spec.licence, backbone.spec.source) == ("Apache-2.0", "embedded")
    expected = toy_sam().half().float().state_dict()
    for name, tensor in backbone.sam.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert load_backbone("graft-tiny").weights_hash() == backbone.weights_hash()


@pytest.mark.parametrize("name", ["graft_tiny.safetensors", "graft_tiny.json"])
def test_embedded_missing_or_damaged(embedded: Path, name: str) -> None:
    whole = (embedded / name).read_bytes()
    (embedded / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_backbone("graft-tiny")
    (embedded / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        load_backbone("graft-tiny")


@pytest.mark.parametrize(
    ("file", "name", "mean"),
    [("tiny.pth", "tiny", 0.485), ("medsam_vit_b.pth", "medsam", 0.0), ("weights.pt", "weights", 0.485)],
)
def test_pth(tmp_path: Path, file: str, name: str, mean: float) -> None:
    backbone = load_backbone(write_meta_pth(tmp_path / file, toy_sam()))
    assert (backbone.spec.name, backbone.spec.mean[0]) == (name, mean)
    assert backbone.weights_hash() == HFSamBackbone(toy_sam()).weights_hash()


def test_model_and_backbone_objects() -> None:
    model = toy_sam()
    backbone = load_backbone(model, name="mine", device="cpu")
    assert backbone.sam is model
    assert backbone.spec.name == "mine"
    assert load_backbone(backbone) is backbone
    with pytest.raises(ConfigError, match="name cannot change a backbone"):
        load_backbone(backbone, name="other")
    with pytest.raises(ConfigError, match="give both or neither"):
        load_backbone(model, mean=(0, 0, 0))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("source", ["sam-vit-base", "facebook/sam-vit-base", "somebody/some-sam"])
def test_hub_name_offline_says_how_to_get_it(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"not on this machine .* run `hf download \w+/"):
        load_backbone(source, local_files_only=True)


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(NoMatchError, match="did you mean 'graft-tiny'"):
        load_backbone("graft-tyni")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_backbone(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="no backbone at"):
        load_backbone(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no backbone at ./absent/folder"):
        load_backbone("./absent/folder")
    with pytest.raises(CheckpointError, match="no config.json"):
        load_backbone(tmp_path)


def _break(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "type":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "sam2"}))
    elif how == "json":
        config.write_text("{")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights":
        weights.unlink()
    elif how == "nan":
        model = toy_sam()
        with torch.no_grad():
            model.mask_decoder.iou_token.weight[0, 0] = torch.inf
        model.save_pretrained(folder)
    else:
        data = json.loads(config.read_text())
        key, value = ("num_hidden_layers", 4 if how == "missing" else 2) if how != "shape" else ("mlp_dim", 64)
        data["vision_config"][key] = value
        config.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("type", "type 'sam2'; expected 'sam'"),
        ("json", "config.json cannot be read"),
        ("truncated", "damaged or incomplete"),
        ("no weights", "damaged or incomplete"),
        ("nan", "NaN or Inf in mask_decoder.iou_token.weight"),
        ("missing", "missing_keys: vision_encoder.layers.3.attn"),
        ("unexpected", "unexpected_keys: vision_encoder.layers.2.attn"),
        ("shape", "cannot be loaded|mismatched_keys"),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, how: str, message: str) -> None:
    """transformers would fill missing tensors with random numbers and go on."""
    folder = write_hf_folder(tmp_path / "mine", toy_sam())
    _break(folder, how)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)
