"""Prompts beside an adapter: who answers, and whether its grafts are in the encoder meanwhile."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig, DecoderConfig, HqTokenConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.recipes.engine.asking import answering
from samgraft.recipes.prompting import UserPrompts

BOX = UserPrompts(boxes=[(12, 6, 36, 30)])


def trained(decoder: DecoderConfig | None) -> Grafted:
    """A network whose graft changes what the encoder says, as after training."""
    torch.manual_seed(0)
    grafted = attach(samgraft.load_backbone("graft-tiny"), [LoraConfig(rank=2)], decoder=decoder)
    with torch.no_grad():
        for tensor in grafted.grafts.parameters():
            tensor.normal_(std=0.5)
    return grafted.eval()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    rows, columns = np.mgrid[:48, :64]
    disc = np.hypot(rows - 18, columns - 24) < 11
    noise = np.random.default_rng(0).normal(0, 25, (48, 64, 3))
    Image.fromarray((60 + 120 * disc[..., None] + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def asked(picture: Path, **network: object) -> np.ndarray:
    return samgraft.segment(picture, prompts=BOX, progress=False, **network).labels  # type: ignore[arg-type]


def test_beside_class_maps_the_backbone_answers_without_the_grafts(picture: Path, tmp_path: Path) -> None:
    grafted = trained(ClassTokensConfig(num_classes=1))
    meta = BundleMeta(classes={1: "a"}, extra={"input": {"size": 64}})
    file, image = save_bundle(tmp_path / "a.graft", grafted, meta=meta), torch.rand(1, 3, 64, 64)
    frozen = asked(picture, backbone=samgraft.load_backbone("graft-tiny"))
    changed, own = grafted.backbone.encode(image).neck, grafted.predict(image).logits
    assert np.array_equal(asked(picture, adapter=grafted), frozen) and grafted.attached
    assert np.array_equal(asked(picture, adapter=file, backbone=samgraft.load_backbone("graft-tiny")), frozen)
    assert torch.equal(grafted.backbone.encode(image).neck, changed)
    assert torch.equal(grafted.predict(image).logits, own)
    assert not np.array_equal(asked(picture, backbone=grafted.backbone), frozen)  # what was answered before


@pytest.mark.parametrize("decoder", [None, HqTokenConfig()], ids=["encoder only", "decoder with prompts"])
def test_an_adapter_that_can_answers_itself(picture: Path, decoder: DecoderConfig | None) -> None:
    grafted = trained(decoder)
    with answering(grafted) as network:
        assert network is grafted and grafted.attached
    assert not np.array_equal(
        asked(picture, adapter=grafted), asked(picture, backbone=samgraft.load_backbone("graft-tiny"))
    )


def test_what_was_detached_stays_detached() -> None:
    grafted = trained(ClassTokensConfig(num_classes=1))
    grafted.detach()
    with answering(grafted) as network:
        assert network is grafted.backbone
    assert not grafted.attached


def test_the_grafts_come_back_after_an_error() -> None:
    grafted = trained(ClassTokensConfig(num_classes=1))
    with pytest.raises(RuntimeError), answering(grafted) as network:
        assert isinstance(network, Backbone) and not grafted.attached
        raise RuntimeError
    assert grafted.attached
