"""The public functions on a toy backbone: adapter to file to result, in one process and in a new one."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.errors import CheckpointError, ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.api import UserPrompts, adapter_meta, with_meta
from tests.adapters.toy import toy_backbone

RECIPE = {
    "size": 64,
    "window": 48,
    "overlap": 0.25,
    "slice_axis": None,
    "neighbours": False,
    "bands": None,
    "min_area": 4,
}
META = BundleMeta(classes={1: "disc", 2: "ring"}, extra={"input": RECIPE})


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.fixture
def grafted():
    network = attach(toy_backbone(), [LoraConfig()], decoder=ClassTokensConfig(num_classes=2))
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return network.eval()


def test_file_gives_the_same_labels_as_the_network_in_memory(path, grafted, tmp_path):
    here = samgraft.segment(path, adapter=with_meta(grafted, META))
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    there = samgraft.segment(path, adapter=file, backbone=toy_backbone())
    assert len(np.unique(here.labels)) > 1
    assert np.array_equal(here.labels, there.labels)
    assert dict(there.classes) == {1: "disc", 2: "ring"} and there.grid == samgraft.open(path).grid


def test_backbone_is_left_as_it_was_after_an_adapter_file(path, grafted, tmp_path):
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    backbone = toy_backbone()
    names = [name for name, _ in backbone.named_modules()]
    image = torch.rand(1, 3, 64, 64)
    before = backbone.encode(image).neck
    samgraft.segment(path, adapter=file, backbone=backbone)
    assert [name for name, _ in backbone.named_modules()] == names
    assert torch.equal(backbone.encode(image).neck, before)


def test_load_adapter_keeps_the_header(grafted, tmp_path):
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    loaded = samgraft.load_adapter(file, toy_backbone())
    assert adapter_meta(loaded).classes == {1: "disc", 2: "ring"}
    assert not loaded.training


def test_adapter_of_another_backbone_is_refused(path, grafted, tmp_path):
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        samgraft.segment(path, adapter=file, backbone=toy_backbone(seed=3))


def test_adapter_without_a_header_is_refused(path, grafted):
    with pytest.raises(CheckpointError, match="names no classes"):
        samgraft.segment(path, adapter=grafted)
    with pytest.raises(ConfigError, match="this adapter has no header"):
        adapter_meta(grafted)
    with pytest.raises(CheckpointError, match="does not say how images become network inputs"):
        samgraft.segment(path, adapter=with_meta(grafted, BundleMeta(classes={1: "a"})))


def test_options_that_the_header_decides_are_refused(path, grafted):
    with pytest.raises(ConfigError, match="decided by the adapter's header"):
        samgraft.segment(path, adapter=with_meta(grafted, META), network_size=64)
    with pytest.raises(ConfigError, match="already attached"):
        samgraft.segment(path, adapter=with_meta(grafted, META), backbone=toy_backbone())


def test_prompts_go_through_the_grafted_encoder_where_no_other_decoder_was_trained_with_it(path):
    prompts = UserPrompts(boxes=((10, 10, 40, 50),))
    plain = samgraft.segment(path, backbone=toy_backbone(), prompts=prompts)
    encoder = attach(toy_backbone(), [LoraConfig()]).eval()
    with torch.no_grad():
        for parameter in encoder.trainable_parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    tuned = samgraft.segment(path, adapter=with_meta(encoder, META), prompts=prompts)
    assert plain.kind == tuned.kind == "instance"
    assert plain.instances != tuned.instances or not np.array_equal(plain.labels, tuned.labels)


def test_quantised_on_request_and_only_what_is_loaded_here(path, tmp_path, capsys):
    words = ["segment", str(path), "--box", "10", "10", "50", "50", "--backbone", "graft-tiny"]
    outputs = [tmp_path / "plain.png", tmp_path / "small.png"]
    assert cli.main([*words, "-o", str(outputs[0])]) == 0
    assert cli.main([*words, "--quantize", "int8", "-o", str(outputs[1])]) == 0
    plain, small = (np.asarray(Image.open(output)) > 0 for output in outputs)
    assert plain.any() and (plain & small).sum() / (plain | small).sum() > 0.9
    assert cli.main([*words, "--quantize", "int3", "-o", str(outputs[1])]) == 2
    assert "precision is 'int3'; expected one of int8" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="needs one that is loaded here"):
        samgraft.segment(path, backbone=toy_backbone(), prompts=UserPrompts(boxes=((1, 1, 9, 9),)), quantize="int8")


def test_quantised_adapter_file(path, grafted, tmp_path):
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    folder = tmp_path / "toy"
    grafted.detach().sam.save_pretrained(folder)
    plain = samgraft.segment(path, adapter=file, backbone=folder)
    small = samgraft.segment(path, adapter=file, backbone=folder, quantize="int8")
    assert len(np.unique(plain.labels)) > 1
    assert (small.labels == plain.labels).mean() > 0.95


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        samgraft.segment(tmp_path / "no.png", backbone=toy_backbone())
    with pytest.raises(CheckpointError, match=r"no adapter file .*no\.graft"):
        samgraft.load_adapter(tmp_path / "no.graft")


def test_new_process_gives_the_same_mask(path, grafted, tmp_path):
    file = save_bundle(tmp_path / "a.graft", grafted, meta=META)
    here = samgraft.segment(path, adapter=with_meta(grafted, META))
    code = (
        "import sys, samgraft; from tests.adapters.toy import toy_backbone; "
        f"samgraft.segment({str(path)!r}, adapter={str(file)!r}, backbone=toy_backbone(), "
        f"output={str(tmp_path / 'm.png')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "m.png")), here.labels)


def _environment():
    import os

    from tests.conftest import ROOT

    return {**os.environ, "PYTHONPATH": f"{ROOT / '.src'}:{ROOT}"}
