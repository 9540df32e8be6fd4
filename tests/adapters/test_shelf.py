"""Several adapters on one backbone: same answers as alone, one encoder pass where that is enough, nothing left."""

from pathlib import Path
from typing import Any

import pytest
import torch

from samgraft.adapters.bundle import load_bundle, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import DecoderLoraConfig, GraftConfig, LoraConfig
from samgraft.adapters.shelf import AdapterShelf
from samgraft.errors import ConfigError, NoMatchError
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import perturb, tree

ADAPTERS: dict[str, tuple[GraftConfig, ...]] = {
    "spleen": (),
    "kidney": (DecoderLoraConfig(rank=2),),
    "liver": (LoraConfig(rank=2, blocks="last:1"),),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three adapters with different taps."""
    found = {}
    for seed, (name, grafts) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        taps = (seed % 2,)
        grafted = attach(toy_backbone(), grafts, decoder=ClassTokensConfig(num_classes=2, taps=taps))
        perturb(grafted)
        found[name] = save_bundle(tmp_path / f"{name}.graft", grafted)
    return found


def test_answers_are_those_of_each_adapter_alone(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, image = toy_backbone(), toy_image()
    names = tree(backbone)
    shelf = AdapterShelf(backbone)
    for name, file in files.items():
        shelf.add(name, file)
    assert shelf.names() == tuple(ADAPTERS)
    assert tree(backbone) == names
    passes: list[Any] = []
    encode = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda *a: passes.append(a) or encode(*a))
    together = shelf.predict(image)
    assert len(passes) == 2, "one for both that leave the encoder alone, one for LoRA"
    assert tree(backbone) == names and not backbone.occupied
    for name, file in files.items():
        alone = load_bundle(file, toy_backbone()).predict(image).logits
        assert torch.equal(together[name].logits, alone), name
        with shelf.using(name) as grafted:
            assert torch.equal(grafted.predict(image).logits, alone)
    assert not torch.equal(together["spleen"].logits, together["kidney"].logits)


def test_the_backbone_is_free_after_an_error(files: dict[str, Path]) -> None:
    shelf = AdapterShelf(toy_backbone())
    for name, file in files.items():
        shelf.add(name, file)
    names = tree(shelf.backbone)
    with pytest.raises(ZeroDivisionError), shelf.using("liver"):
        raise ZeroDivisionError
    assert tree(shelf.backbone) == names
    with shelf.using("liver"):
        for call in (lambda: shelf.predict(toy_image()), lambda: shelf.add("x", files["liver"])):
            with pytest.raises(ConfigError, match="'liver' is in use"):
                call()
        with pytest.raises(ConfigError, match="'liver' is in use"):
            shelf.remove("liver")
    with pytest.raises(NoMatchError, match=r"no adapter 'spline'.*known: spleen, kidney, liver"):
        shelf.predict(toy_image(), ["spline"])
    with pytest.raises(ConfigError, match="'liver' already"):
        shelf.add("liver", files["liver"])
    grafted = shelf.remove("liver")
    assert shelf.names() == ("spleen", "kidney")
    grafted.install()
    with pytest.raises(ConfigError, match="carries grafts"):
        AdapterShelf(shelf.backbone)
    shelf.add("liver again", grafted)
    assert tree(shelf.backbone) == names
    with pytest.raises(ConfigError, match="another backbone object"):
        shelf.add("foreign", attach(toy_backbone(), LoraConfig()))
