"""Merged adapter files: what they answer, what their header says, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import BottleneckConfig, GraftConfig, LayerNormConfig, LoraConfig
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes import cli
from samgraft.recipes.continual.merging import merge_adapters
from tests.adapters.toy import toy_backbone, toy_image
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.recipes._adapters import toy_adapter, toy_file, toy_meta


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two adapters of the same parts."""
    return [toy_file(tmp_path / f"{name}.graft", seed=seed) for seed, name in enumerate("ab")]


@torch.no_grad()
def answer(path: Path) -> torch.Tensor:
    return load_bundle(path, toy_backbone()).predict(toy_image()).logits


@pytest.mark.parametrize("how", ["average", "exact"])
def test_all_weight_on_one_adapter_is_that_adapter(pair: list[Path], tmp_path: Path, how: str) -> None:
    merge_adapters(pair, tmp_path / "m.graft", weights=[0.0, 1.0], how=how, backbone=toy_backbone())  # type: ignore[arg-type]
    torch.testing.assert_close(answer(tmp_path / "m.graft"), answer(pair[1]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_exact_merge_answers_like_the_average_of_weights(pair: list[Path], tmp_path: Path) -> None:
    backbone = toy_backbone()
    report = merge_adapters(pair, tmp_path / "m.graft", how="exact", backbone=backbone)
    assert not backbone.occupied
    weights, heads = [], []
    for path in pair:
        own = toy_backbone()
        grafted = load_bundle(path, own)
        heads.append({k: v for k, v in grafted.graft_state().items() if k.startswith("decoder")})
        grafted.merge()
        weights.append(dict(own.named_parameters()))
    base = toy_backbone()
    for name, parameter in base.named_parameters():
        parameter.copy_((weights[0][name] + weights[1][name]) / 2)
    expected = attach(base, decoder=ClassTokensConfig(num_classes=2))
    expected.load_graft_state({key: (heads[0][key] + heads[1][key]) / 2 for key in heads[0]})
    found = answer(report.adapter)
    torch.testing.assert_close(found, expected.predict(toy_image()).logits, atol=1e-4, rtol=1e-4)
    averaged = merge_adapters(pair, tmp_path / "n.graft", backbone=toy_backbone())
    assert (answer(averaged.adapter) - found).abs().max() > 10 * (
        found - expected.predict(toy_image()).logits
    ).abs().max()
    assert report.parameters > averaged.parameters == report.before[0]


def test_the_header_says_what_it_is_made_of(pair: list[Path], tmp_path: Path) -> None:
    meta = read_meta(pair[0])
    again = replace(meta, metrics={"dice": 0.9}, extra={**meta.extra, "features": {"x": 1}, "trust": {}})
    save_bundle(pair[0], toy_adapter(), meta=again)
    report = merge_adapters(
        pair, tmp_path / "m.graft", weights=[0.25, 0.75], how="svd", rank=1, backbone=toy_backbone()
    )
    found, header = read_meta(report.adapter), read_header(report.adapter)
    assert found.classes == {1: "a", 2: "b"} and found.extra["input"] == meta.extra["input"]
    assert found.metrics == {} and set(found.extra) == {"input", "merged"}
    parts = [read_header(path)["tensors_sha256"] for path in pair]
    assert found.extra["merged"] == {
        "how": "svd",
        "of": [
            {"adapter": "a.graft", "sha256": parts[0], "weight": 0.25},
            {"adapter": "b.graft", "sha256": parts[1], "weight": 0.75},
        ],
    }
    assert header["grafts"]["lora"]["rank"] == 1
    assert 0 < report.discarded["lora"] < 1 and "of the change did not fit into the rank" in report.text()


def variant(path: Path, config: GraftConfig = LoraConfig(rank=2), classes: int = 2, **options: object) -> Path:  # noqa: B008
    backbone = toy_backbone(seed=int(str(options.pop("backbone_seed", 0))))
    grafted = attach(backbone, config, decoder=ClassTokensConfig(num_classes=classes))
    meta: BundleMeta = replace(toy_meta(), **options)  # type: ignore[arg-type]
    return save_bundle(path, grafted, meta=meta)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": LoraConfig(rank=3)}, ConfigError, "graft 'lora' has rank 3 in adapter 2, 2 in the first"),
        ({"config": BottleneckConfig()}, ConfigError, r"has grafts \['bottleneck'\], the first one \['lora'\]"),
        ({"classes": 1}, ConfigError, "x.graft has decoder .*'num_classes': 1.*as many classes can be merged"),
        ({"backbone_seed": 2}, CheckpointError, "only adapters of one backbone can be merged"),
        ({"classes": 2, "modality": "CT"}, ConfigError, "x.graft has modality 'CT', .* like=FILE"),
    ],
)
def test_what_does_not_go_together_is_named(
    pair: list[Path], tmp_path: Path, options: dict, error: type[Exception], message: str
) -> None:
    other = variant(tmp_path / "x.graft", **options)
    with pytest.raises(error, match=message):
        merge_adapters([pair[0], other], tmp_path / "m.graft", backbone=toy_backbone())
    assert not (tmp_path / "m.graft").exists()


def test_like_says_whose_classes_count(pair: list[Path], tmp_path: Path) -> None:
    other = variant(tmp_path / "x.graft", classes=2)
    meta = toy_meta(window=48)
    save_bundle(other, toy_adapter(seed=2), meta=replace(meta, classes={1: "vein", 2: "artery"}))
    with pytest.raises(ConfigError, match="x.graft has classes .*'vein'"):
        merge_adapters([pair[0], other], tmp_path / "m.graft", backbone=toy_backbone())
    merge_adapters([pair[0], other], tmp_path / "m.graft", like=other, backbone=toy_backbone())
    found = read_meta(tmp_path / "m.graft")
    assert found.classes == {1: "vein", 2: "artery"} and found.extra["input"]["window"] == 48
    with pytest.raises(ConfigError, match="like is .*z.graft; expected one of"):
        merge_adapters(pair, tmp_path / "m.graft", like=tmp_path / "z.graft", backbone=toy_backbone())


def test_norms_are_merged_by_their_distance_from_the_frozen_ones(tmp_path: Path) -> None:
    files = []
    for seed in (0, 1):
        grafted = toy_adapter((LayerNormConfig(),), seed=seed)
        files.append(save_bundle(tmp_path / f"{seed}.graft", grafted, meta=toy_meta()))
    merge_adapters(files, tmp_path / "m.graft", weights=[0.7, 0.6], how="exact", backbone=toy_backbone())
    merged, frozen = (load_bundle(tmp_path / "m.graft", toy_backbone()).graft_state(), toy_backbone().state_dict())
    one, two = (load_bundle(path, toy_backbone()).graft_state() for path in files)
    for key in (key for key in merged if key.startswith("grafts.")):
        start = frozen[key.removeprefix("grafts.layer_norm.tensors.").replace("/", ".")]
        torch.testing.assert_close(merged[key], start + 0.7 * (one[key] - start) + 0.6 * (two[key] - start))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from samgraft.adapters.backbones import load_backbone

    folder = write_hf_folder(tmp_path / "toy", toy_sam())
    files = [toy_file(tmp_path / f"{n}.graft", seed=n, backbone=load_backbone(folder)) for n in range(3)]
    out = tmp_path / "m.graft"
    words = ["merge", *map(str, files), "-o", str(out), "--backbone", str(folder)]
    assert cli.main([*words, "--weights", "0.5", "0.25", "0.25", "--how", "exact"]) == 0
    assert "exact: " in (told := capsys.readouterr().out) and f"wrote {out}" in told
    assert read_header(out)["grafts"]["lora"]["rank"] == 6
    assert cli.main([*words, "--weights", "1", "1", "1"]) == 2
    assert "sum to 3; an average needs 1" in capsys.readouterr().err
