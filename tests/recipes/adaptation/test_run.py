"""Whole adaptations on a toy: what is written, what is left alone, what the guard does, how a killed run goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.bundle import load_bundle, read_header, read_meta, tensors_hash
from samgraft.errors import ConfigError, InputError, OutputError
from samgraft.recipes import cli
from samgraft.recipes.adaptation.config import AdaptConfig, GuardConfig, TermWeights
from samgraft.recipes.adaptation.run import adapt
from samgraft.recipes.adaptation.session import Session
from samgraft.recipes.callbacks import frozen_hashes
from samgraft.recipes.config import DataConfig
from samgraft.recipes.engine.run import load_adapter
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_volumes
from tests.recipes.adaptation._sets import train_source, write_discs
from tests.recipes.test_tasks import small_config

SHORT = AdaptConfig(steps=4, every=2, judge_tiles=4, tiles=12, lr=1e-3, look="plain", progress=False)
GAIN, OFFSET = 0.3, 10.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    return train_source(write_discs(root / "d", cases=24), root / "run", toy_backbone())


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return write_discs(tmp_path_factory.mktemp("target") / "d", cases=20, gain=GAIN, offset=OFFSET, seed=1)


def mean_dice(adapter, root):
    """Over the four held-out pictures of a folder."""
    grafted = load_adapter(adapter, toy_backbone())
    names = json.loads((root / "splits.json").read_text())[0]["val"]
    found = []
    for name in names:
        predicted = samgraft.segment(root / "images" / f"{name}.png", adapter=grafted, progress=False).labels > 0
        truth = np.asarray(Image.open(root / "masks" / f"{name}.png")) > 0
        found.append(2 * (predicted & truth).sum() / max(1, predicted.sum() + truth.sum()))
    return float(np.mean(found))


@pytest.mark.parametrize(("gain", "offset", "look"), [(GAIN, OFFSET, "plain"), (-0.5, 200.0, "auto")])
def test_adaptation_recovers_what_another_scanner_took(source, tmp_path, gain, offset, look):
    target = write_discs(tmp_path / "d", cases=20, gain=gain, offset=offset, seed=1)
    config = AdaptConfig(
        steps=40, every=20, judge_tiles=6, lr=2e-3, momentum=0.8, batch_size=4, look=look, progress=False
    )
    lines = []
    data = DataConfig(path=str(target), layout="image_mask")
    result = adapt(source, data, tmp_path / "a.graft", config, tell=lines.append, backbone=toy_backbone())
    before, after = mean_dice(source, target), mean_dice(result.adapter, target)
    assert not result.fell_back and before < 0.8 and after > before + 0.05, (before, after, lines)
    chosen = read_meta(result.adapter).extra["adaptation"]["look"]
    assert chosen == "plain" if look == "plain" else "negative" in chosen
    assert read_meta(result.adapter).extra["input"]["tone"] == chosen  # by which the bundle sees images from now on


def adapted(source, target, folder, config=SHORT, **options):
    """A short run with the toy backbone."""
    backbone = options.pop("backbone", None) or toy_backbone()
    return adapt(source, [target], folder / "a.graft", config, backbone=backbone, **options)


def test_what_is_written_and_what_is_left_alone(source, target, tmp_path):
    backbone, before = toy_backbone(), source.read_bytes()
    hashes = frozen_hashes(backbone)
    grafted = load_adapter(source, toy_backbone())
    picture = target / "images" / "s19.png"
    masks = samgraft.segment(picture, adapter=grafted, progress=False).labels
    loose = replace(SHORT, guard=GuardConfig(margin=-10.0, least_agreement=0.0, share_factor=1e6))
    result = adapted(source, target, tmp_path, loose, backbone=backbone)
    assert not result.fell_back and not backbone.occupied and frozen_hashes(backbone) == hashes
    assert source.read_bytes() == before
    again = samgraft.segment(picture, adapter=load_adapter(source, toy_backbone()), progress=False).labels
    assert np.array_equal(again, masks)
    old, new = read_header(source), read_header(result.adapter)
    assert new["tensors_sha256"] != old["tensors_sha256"] and new["backbone"] == old["backbone"]
    assert new["grafts"] == old["grafts"] and new["decoder"] == old["decoder"]
    meta = read_meta(result.adapter)
    told = meta.extra["adaptation"]
    assert set(meta.extra) == {"input", "adaptation"} and meta.classes == {1: "class 1"} and meta.metrics == {}
    assert told["source"] == {"file": "adapter.graft", "tensors_sha256": old["tensors_sha256"]}
    assert [one["step"] for one in told["rounds"]] == [0, 2, 4] and told["best_step"] == result.best_step > 0
    assert told["rounds"][0]["anchor"] == 1.0 and told["labels"] == "none" and told["images"] == 20
    html = result.report.read_text()
    assert "s0" in html and html.count("<img") >= 3 and "before" in html and "Dice before to after" in html
    assert json.loads((result.work / "result.json").read_text())["fell_back"] is False


def test_labels_are_never_opened_and_change_nothing(source, target, tmp_path, monkeypatch):
    noise = tmp_path / "noise"
    (noise / "images").mkdir(parents=True)
    (noise / "masks").mkdir()
    for path in (target / "images").iterdir():
        (noise / "images" / path.name).write_bytes(path.read_bytes())
        (noise / "masks" / path.name).write_bytes(b"not a picture")
    opened, own = [], open
    for name in ("builtins.open", "io.open"):
        monkeypatch.setattr(name, lambda file, *a, **k: opened.append(str(file)) or own(file, *a, **k))
    config = DataConfig(path=str(noise), layout="image_mask")
    first = adapt(source, config, tmp_path / "a.graft", SHORT, backbone=toy_backbone())
    (noise / "masks").rename(noise / "gone")
    second = adapt(source, config, tmp_path / "b.graft", SHORT, backbone=toy_backbone())
    assert read_header(first.adapter)["tensors_sha256"] == read_header(second.adapter)["tensors_sha256"]
    assert any("images" in name for name in opened) and not any("masks" in name for name in opened)


def test_harm_makes_the_guard_keep_the_source_byte_by_byte(source, target, tmp_path):
    harmful = replace(SHORT, lr=5.0, momentum=0.0, steps=6)
    result = adapted(source, target, tmp_path, harmful)
    assert result.fell_back and result.best_step == 0 and "the guard kept the source adapter" in result.reason
    assert all(one.refused for one in result.rounds[1:])
    theirs, ours = load_bundle(source, toy_backbone()), load_bundle(result.adapter, toy_backbone())
    assert tensors_hash(ours.graft_state()) == tensors_hash(theirs.graft_state())
    old, new = read_meta(source), read_meta(result.adapter)
    told = new.extra.pop("adaptation")
    assert new == old and told["fell_back"] is True and told["reason"] == result.reason
    assert "Source adapter kept" in result.report.read_text()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(source, target, tmp_path, monkeypatch):
    whole = adapted(source, target, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    own, rounds = Session.advance, []

    def dies(self, tick=None):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(1)
        return own(self, tick)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "advance", dies)
        with pytest.raises(KeyboardInterrupt):
            adapted(source, target, other)
    assert not (other / "a.graft").exists()
    with pytest.raises(OutputError, match="holds a run already"):
        adapted(source, target, other)
    with pytest.raises(ConfigError, match="other settings"):
        adapted(source, target, other, replace(SHORT, lr=1e-4), resume=True)
    resumed = adapted(source, target, other, None, resume=True)
    assert [dict(a.figures) for a in resumed.rounds] == [dict(b.figures) for b in whole.rounds]
    assert read_header(resumed.adapter)["tensors_sha256"] == read_header(whole.adapter)["tensors_sha256"]
    with pytest.raises(InputError, match="nothing to resume"):
        adapted(source, target, tmp_path, None, resume=True, work=tmp_path / "nowhere")


def test_a_new_graft_moves_and_the_old_ones_stay(source, target, tmp_path):
    config = replace(SHORT, moving="new", new={"ssf": {}}, guard=GuardConfig(margin=-10.0))
    result = adapted(source, target, tmp_path, config)
    old, new = (load_bundle(path, toy_backbone()).graft_state() for path in (source, result.adapter))
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = {name: value for name, value in new.items() if name not in old}
    assert added and all(name.startswith("grafts.ssf_target.") for name in added)
    assert result.rounds[0].figures["anchor"] == 1.0
    with pytest.raises(ConfigError, match="which changes the source adapter's answers"):
        adapted(source, target, tmp_path, replace(config, new={"lora": {"init": "published"}}), work=tmp_path / "w2")


def test_everything_mode_is_kept_on_disk(source, target, tmp_path):
    config = replace(SHORT, everything=3, steps=2)
    result = adapted(source, target, tmp_path, config)
    with np.load(result.work / "regions.npz") as kept:
        assert kept["regions"].shape == (8, 64, 64) and int(kept["points"]) == 3


def test_a_budget_of_seconds_ends_the_run(source, target, tmp_path):
    result = adapted(source, target, tmp_path, replace(SHORT, steps=10**6, every=10**4, seconds=3.0))
    assert 0 < result.rounds[-1].step < 10**4
    assert result.fell_back or "3 s of process time were spent" in result.reason


@pytest.mark.parametrize("head", ["class_tokens", "distances", "rsprompter_query"])
def test_heads_that_separate_objects(head, target, tmp_path):
    root = write_discs(tmp_path / "d", cases=8)
    path = train_source(root, tmp_path / "run", toy_backbone(), steps=10, kind="instance", head=head)
    guard = GuardConfig(margin=-10.0, least_agreement=0.0, share_factor=1e6)
    config = replace(SHORT, steps=2, everything=3, weights=TermWeights(contrast=0.0), guard=guard)
    result = adapted(path, target, tmp_path, config)
    old, new = read_header(path), read_header(result.adapter)
    assert read_meta(result.adapter).task == "instance" and new["prompter"] == old["prompter"]
    assert result.best_step == 2 and new["tensors_sha256"] != old["tensors_sha256"]
    losses = {name for name in result.rounds[-1].figures if name.startswith("train_")}
    assert {"train_loss", "train_pseudo", "train_anchor"} <= losses and "train_prior" not in losses


@pytest.mark.parametrize("slab", [None, 3])
def test_volumes_slice_by_slice_and_in_slabs(slab, tmp_path):
    root = write_volumes(tmp_path / "v")
    settings = small_config(root, slab=slab)
    path = fit(settings, tmp_path / "run", backbone=toy_backbone(), report=False).adapter
    # discs of 149 and 81 pixels on 4 of 6 slices of 40 x 36
    left, right = 149 * 4 / 8640, 81 * 4 / 8640
    assert read_meta(path).training["class_shares"] == pytest.approx([1 - left - right, left, right], abs=2e-3)
    guard = GuardConfig(margin=-10.0, least_agreement=0.0, share_factor=1e6)
    config = replace(SHORT, steps=2, batch_size=2, guard=guard)
    result = adapt(path, DataConfig(path=str(root)), tmp_path / "a.graft", config, backbone=toy_backbone())
    assert result.best_step == 2 and result.rounds[-1].figures["train_prior"] > 0
    found = samgraft.segment(
        root / "imagesTr" / "case_03_0000.nii.gz",
        adapter=load_adapter(result.adapter, toy_backbone()),
        progress=False,
    )
    assert found.labels.shape == found.grid.shape and set(np.unique(found.labels)) <= {0, 1, 2}
    assert "slice" in result.report.read_text()


def test_the_command(source, target, tmp_path, monkeypatch, capsys):
    import samgraft.adapters.backbones.hub as hub

    monkeypatch.setattr(hub, "load_backbone", lambda name: toy_backbone())
    settings = tmp_path / "adapt.yaml"
    settings.write_text(
        "steps: 4\nevery: 2\njudge_tiles: 4\nprogress: false\ntiles: 12\nlook: plain\nweights: {contrast: 0.0}\n"
    )
    words = ["adapt", "--adapter", str(source), "--data", str(target), "-o", str(tmp_path / "a.graft")]
    assert cli.main([*words, "--backbone", "toy", "--config", str(settings), "--lr", "0.001"]) == 0
    said = capsys.readouterr().out
    assert "20 images, 12 tiles: 8 to learn from, 4 judge" in said and f"adapter: {tmp_path / 'a.graft'}" in said
    saved = (tmp_path / "a.adapt" / "config.yaml").read_text()
    assert "lr: 0.001" in saved and "contrast: 0.0" in saved
    assert cli.main([*words, "--backbone", "toy"]) == 2 and "resume it" in capsys.readouterr().err
    assert cli.main([*words, "--backbone", "toy", "--resume"]) == 0
    assert cli.main(["adapt", "--data", str(target), "-o", "x.graft"]) == 2
    assert "--adapter is missing" in capsys.readouterr().err
    assert cli.main([*words[:-1], str(source), "--work", str(tmp_path / "w")]) == 2
    assert "stays as it is" in capsys.readouterr().err
