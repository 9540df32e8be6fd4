"""The adapter file: round trip in a new process, and every way in which it is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta, replace_meta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import AdaptFormerConfig, BottleneckConfig, LoraConfig
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.errors import CheckpointError, ConfigError, NoMatchError, OutputError
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import perturb, tree

META = BundleMeta(
    classes={0: "background", 1: "left atrium", 2: "wall"},
    modality="MR",
    intensity={"kind": "percentile", "lower": 0.5, "upper": 99.5},
    input_size=(64, 96),
    training={"cases": 5, "steps": 100},
    metrics={"dice": 0.91, "n": 12},
)


def make(decoder: bool = True) -> Grafted:
    grafted = attach(
        toy_backbone(),
        {
            "slices": LoraConfig(rank=2),
            "mlp": LoraConfig(targets=("lin1",)),
            "bottle": BottleneckConfig(blocks="last:1"),
        },
        prompter=None if decoder else AutoSamConfig(channels=16),
        decoder=ClassTokensConfig(num_classes=2, full_resolution=True) if decoder else None,
    )
    perturb(grafted)
    return grafted


@pytest.mark.parametrize("decoder", [True, False], ids=["class_tokens", "autosam"])
def test_round_trip(tmp_path: Path, decoder: bool) -> None:
    grafted, image = make(decoder), toy_image()
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    assert [path.name for path in tmp_path.iterdir()] == ["a.graft"], "no temporary file is left"
    assert file.stat().st_size < 2_000_000
    with torch.no_grad():
        loaded = load_bundle(file, toy_backbone())
        assert torch.equal(loaded.predict(image).logits, grafted.predict(image).logits)
    assert loaded.configs == grafted.configs
    assert (loaded.prompter_config, loaded.decoder_config) == (grafted.prompter_config, grafted.decoder_config)
    assert read_meta(file) == META
    header = read_header(file)
    assert header["backbone"]["sha256"] == grafted.base_hash == toy_backbone().weights_hash()
    assert header["parameters"] == sum(p.numel() for p in grafted.trainable_parameters())


def test_grafts_at_one_place_are_added_in_the_order_of_before(tmp_path: Path) -> None:
    """Sums in another order differ in their last bits; the header must not sort the names."""
    image = toy_image()
    grafted = attach(toy_backbone(), {"z": AdaptFormerConfig(), "m": AdaptFormerConfig(), "a": AdaptFormerConfig()})
    perturb(grafted)
    file = save_bundle(tmp_path / "a.graft", grafted, meta=BundleMeta(classes={10: "ten", 2: "two"}))
    with torch.no_grad():
        loaded = load_bundle(file, toy_backbone())
        assert list(loaded.configs) == ["z", "m", "a"]
        assert torch.equal(loaded.encode(image).neck, grafted.encode(image).neck)
        sorted_ = attach(toy_backbone(), {name: grafted.configs[name] for name in ("a", "m", "z")})
        sorted_.load_graft_state(grafted.graft_state())
        assert not torch.equal(sorted_.encode(image).neck, grafted.encode(image).neck)
    assert list(read_meta(file).classes) == [10, 2]
    replace_meta(file, BundleMeta(classes={2: "two"}))
    assert list(read_header(file)["grafts"]) == ["z", "m", "a"]


@pytest.mark.slow
def test_same_masks_in_a_new_process(tmp_path: Path, repo_root: Path) -> None:
    grafted, image = make(), toy_image()
    file = save_bundle(tmp_path / "a.graft", grafted)
    with torch.no_grad():
        expected = grafted.predict(image).logits
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from samgraft.adapters.bundle import load_bundle\n"
        "from tests.adapters.toy import toy_backbone, toy_image\n"
        "with torch.no_grad(): logits = load_bundle(sys.argv[1], toy_backbone()).predict(toy_image()).logits\n"
        "torch.save(logits, sys.argv[2])"
    )
    env = {**os.environ, "PYTHONPATH": f"{repo_root / '.src'}{os.pathsep}{repo_root}"}
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "out.pt")], check=True, env=env)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def rewrite(file: Path, tensors: dict[str, torch.Tensor] | None = None, **header: object) -> None:
    """Write ``file`` again with other tensors or header fields."""
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["samgraft"])
    state = safetensors.torch.load_file(file) if tensors is None else tensors
    file.write_bytes(safetensors.torch.save(state, metadata={"samgraft": json.dumps({**metadata, **header})}))


def refused(file: Path, message: str, error: type[Exception] = CheckpointError, seed: int = 0) -> None:
    """Loading raises ``error``, and the backbone stays as it was."""
    backbone = toy_backbone(seed=seed)
    names = tree(backbone)
    with pytest.raises(error, match=message):
        load_bundle(file, backbone)
    assert tree(backbone) == names


def test_wrong_and_truncated_adapters_are_refused(tmp_path: Path) -> None:
    file = save_bundle(tmp_path / "a.graft", make())
    data = file.read_bytes()
    refused(tmp_path / "none.graft", "there is no adapter file .*none.graft")
    refused(file, "was trained on backbone .* with weights .*; got .*", seed=1)
    file.write_bytes(data[: len(data) // 2])
    refused(file, "is damaged")
    file.write_bytes(b"")
    refused(file, "is damaged")
    file.write_bytes(b"not a file of ours" * 100)
    refused(file, "is damaged")
    file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    refused(file, "tensors do not have the hash")
    file.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    refused(file, "no samgraft adapter")


def test_adapters_with_nan_or_other_tensors_are_refused(tmp_path: Path) -> None:
    from samgraft.adapters.bundle import tensors_hash

    file = save_bundle(tmp_path / "a.graft", make())
    original = file.read_bytes()
    state = safetensors.torch.load_file(file)
    first = next(iter(sorted(state)))

    def case(tensors: dict[str, torch.Tensor], message: str) -> None:
        file.write_bytes(original)
        rewrite(file, tensors, tensors_sha256=tensors_hash(tensors))
        refused(file, message)

    case({**state, "grafts.slices.extra": torch.zeros(1)}, r"unknown \['grafts.slices.extra'\], missing \[\]")
    case({k: v for k, v in state.items() if k != first}, rf"unknown \[\], missing \['{first}'\]")
    case({**state, first: torch.zeros(3, 3, 3)}, rf"'{first}' is \(3, 3, 3\); expected")
    case({**state, first: torch.full_like(state[first], float("nan"))}, rf"'{first}' holds NaN or infinity")

    def header(message: str, error: type[Exception] = CheckpointError, **fields: object) -> None:
        file.write_bytes(original)
        rewrite(file, **fields)
        refused(file, message, error)

    header("has format 99; this samgraft reads 1", format=99)
    header("unknown graft 'lorra'; did you mean 'lora'", NoMatchError, grafts={"x": {"method": "lorra"}})
    header(
        "graft 'lora' has no option 'rnk'; did you mean 'rank'", ConfigError, grafts={"x": {"method": "lora", "rnk": 4}}
    )


def test_unwritable_output_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grafted = make()
    with pytest.raises(OutputError, match="cannot write .*; check folder, permissions and free space"):
        save_bundle(tmp_path / "missing" / "a.graft", grafted)
    old = tmp_path / "a.graft"
    old.write_bytes(b"old")

    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        save_bundle(old, grafted)
    assert [path.name for path in tmp_path.iterdir()] == ["a.graft"] and old.read_bytes() == b"old"


def test_non_finite_and_odd_meta_are_not_written(tmp_path: Path) -> None:
    grafted = make()
    with pytest.raises(CheckpointError, match="not plain JSON"):
        save_bundle(tmp_path / "a.graft", grafted, meta=BundleMeta(metrics={"dice": float("nan")}))
    with torch.no_grad():
        grafted.trainable_parameters()[0].fill_(float("inf"))
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        save_bundle(tmp_path / "a.graft", grafted)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_header_field_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"unknown fields \['colour'\]"):
        BundleMeta.from_dict({**META.to_dict(), "colour": 1})
