"""ONNX files against torch: prompts of every kind, other sizes, adapters; and nothing left behind on failure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.quantize import quantize
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.export import export_adapter, export_backbone, record
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import BottleneckConfig, LoraConfig
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.adapters.prompts.base import Prompts
from samgraft.errors import ConfigError, MissingDependencyError, OutputError, ShapeError
from samgraft.recipes import cli
from tests.contract import perturb
from tests.data.checkpoints import toy_sam, write_hf_folder

runtime = pytest.importorskip("onnxruntime")
TOLERANCE = 1e-4
"""Of the largest value."""
SIZE = (64, 80)
"""Not the native 64 x 64: position tables are interpolated, windows of 3 tokens are padded."""


def open_file(path: Path) -> Any:
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answer(session: Any, **inputs: Tensor) -> list[Tensor]:
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(found) for found in session.run(None, given)]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backbone() -> HFSamBackbone:
    return HFSamBackbone(toy_sam(num_blocks=2), name="toy")


@pytest.fixture(scope="module")
def exported(backbone: HFSamBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "deep" / "files"
    export_backbone(backbone, folder, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def decoder(exported: Path) -> Any:
    return open_file(exported / "decoder.onnx")


def test_folder_and_facts(backbone: HFSamBackbone, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["decoder.onnx", "encoder.onnx", "meta.json"]
    meta = json.loads((exported / "meta.json").read_text())
    assert meta["backbone"] == {"name": "toy", "sha256": backbone.weights_hash(), "licence": "unknown"}
    assert meta["input"]["size"] == [64, 80] and meta["opset"] == 18
    assert meta["input"]["normalisation"]["mean"] == pytest.approx(list(backbone.spec.mean))
    assert meta["files"]["encoder.onnx"]["inputs"] == {"image": ["images", 3, 64, 80]}
    assert meta["files"]["decoder.onnx"]["inputs"]["points"] == ["prompts", "points", 2]
    for about in meta["files"].values():
        assert 0 <= about["largest_relative_difference"] < TOLERANCE
    weights = 4 * sum(p.numel() for p in backbone.sam.vision_encoder.parameters())
    assert weights < (exported / "encoder.onnx").stat().st_size < weights + 400_000, "no weights of the decoder in it"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_encoder(backbone: HFSamBackbone, exported: Path, batch: int) -> None:
    image = noise(batch, 3, *SIZE, seed=batch)
    with torch.no_grad():
        expected = backbone.encode(image).neck
    (found,) = answer(open_file(exported / "encoder.onnx"), image=image)
    assert_equal(found, expected)


def given_prompts(kind: str, number: int) -> tuple[Prompts, dict[str, Tensor]]:
    """The same prompts for ``Backbone.decode`` and for decoder.onnx."""
    scale = torch.tensor((80.0, 64.0))
    index, point = torch.zeros(number, dtype=torch.int64), noise(number, 3, 2, seed=2) * scale
    labels = torch.tensor([[1, 0, -10], [1, 1, 0]]).repeat(4, 1)[:number]
    corners = torch.stack([0.4 * noise(number, 2, seed=3), 0.5 + 0.5 * noise(number, 2, seed=4)], dim=1) * scale
    corner_labels, end = torch.tensor([[2, 3]]).expand(number, -1), torch.full((number, 1), -1)
    nowhere, mask = torch.zeros(number, 1, 2), 4 * noise(number, 1, 32, 40, seed=5) - 2
    no_mask = {"mask": torch.full_like(mask, 99.0), "has_mask": torch.zeros(number)}
    boxes = corners.reshape(number, 4)
    if kind == "box":
        return Prompts(image_index=index, boxes=boxes), {"points": corners, "labels": corner_labels, **no_mask}
    if kind == "point":
        prompts = Prompts(image_index=index, points=point[:, :1], labels=labels[:, :1])
        padded = {"points": torch.cat([point[:, :1], nowhere], dim=1), "labels": torch.cat([labels[:, :1], end], dim=1)}
        return prompts, padded | no_mask
    if kind == "points with padding":
        prompts = Prompts(image_index=index, points=point, labels=labels)
        padded = {"points": torch.cat([point, nowhere], dim=1), "labels": torch.cat([labels, end], dim=1)}
        return prompts, padded | no_mask
    prompts = Prompts(image_index=index, points=point, labels=labels, boxes=boxes, masks=mask)
    both = {"points": torch.cat([point, corners], dim=1), "labels": torch.cat([labels, corner_labels], dim=1)}
    return prompts, both | {"mask": mask, "has_mask": torch.ones(number)}


@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("kind", ["box", "point", "points with padding", "points, box and mask"])
def test_decoder(backbone: HFSamBackbone, decoder: Any, kind: str, number: int) -> None:
    prompts, inputs = given_prompts(kind, number)
    with torch.no_grad():
        features = backbone.encode(noise(1, 3, *SIZE, seed=9))
        single, three = (backbone.decode(features, prompts, multimask=many) for many in (False, True))
    masks, iou = answer(decoder, neck=features.neck, **inputs)
    assert_equal(masks, torch.cat([single[0], three[0]], dim=1))
    assert_equal(iou, torch.cat([single[1], three[1]], dim=1))


def test_masks_are_read_prompt_by_prompt(backbone: HFSamBackbone, decoder: Any) -> None:
    with torch.no_grad():
        neck = backbone.encode(noise(1, 3, *SIZE)).neck
    _, inputs = given_prompts("points, box and mask", 2)
    one = inputs | {"has_mask": torch.tensor([0.0, 1.0])}
    (full, _), (half, _) = answer(decoder, neck=neck, **inputs), answer(decoder, neck=neck, **one)
    assert_equal(half[1], full[1])
    assert float((half[0] - full[0]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("grafts", "parts"),
    [
        ([LoraConfig(targets=("q", "v")), BottleneckConfig()], {"decoder": ClassTokensConfig(num_classes=2)}),
        ([LoraConfig(targets=("qkv", "lin1"))], {"prompter": AutoSamConfig(num_classes=2, channels=16)}),
    ],
    ids=["class_tokens", "merged lora and autosam"],
)
def test_adapter(
    grafts: list[Any],
    parts: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    softmax = "decoder" in parts
    if softmax:
        monkeypatch.setattr(record, "EMBED_LIMIT", 0)  # weights beside the file, as for SAM-H
    folder = write_hf_folder(tmp_path / "toy", toy_sam(num_blocks=2))
    from samgraft.adapters.backbones.hub import load_backbone

    grafted = attach(load_backbone(folder), grafts, **parts)
    perturb(grafted)
    names = {1: "liver", 2: "tumour"}
    path = save_bundle(tmp_path / "a.graft", grafted, meta=BundleMeta(classes=names, input_size=SIZE))
    words = ["export", "--adapter", str(path), "--backbone", str(folder), "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert "largest difference to torch: " in capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"model.onnx", "meta.json"} | ({"model.onnx.data"} if softmax else set())
    assert set(meta["files"]["model.onnx"]["sha256"]) == written - {"meta.json"}
    assert meta["channels"] == (["background"] if softmax else []) + ["liver", "tumour"]
    assert meta["activation"] == ("softmax" if softmax else "sigmoid")
    assert meta["adapter"]["classes"] == {"1": "liver", "2": "tumour"}
    for batch in (1, 2):
        image = noise(batch, 3, *SIZE, seed=batch)
        with torch.no_grad():
            expected = grafted.predict(image).logits
        (found,) = answer(open_file(tmp_path / "out" / "model.onnx"), image=image)
        assert_equal(found, expected)


def test_missing_package_is_named(
    backbone: HFSamBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"needs onnxscript: pip install 'samgraft\[onnx\]'"):
        export_backbone(backbone, tmp_path / "out")
    assert cli.main(["export", "-o", str(tmp_path / "out")]) == 2
    assert "samgraft[onnx]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", ["difference", "recording", "writing"])
def test_failure_leaves_nothing(
    failure: str, backbone: HFSamBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        def save(self, path: Path, external_data: bool) -> None:
            Path(path).write_bytes(b"x")
            if failure == "writing":
                raise OSError(28, "No space left on device")

    def fake(*given: Any, **options: Any) -> Program:
        if failure == "recording":
            raise RuntimeError("no such operator\nand a long story")
        return Program()

    monkeypatch.setattr(torch.onnx, "export", fake)
    monkeypatch.setattr(record, "compare", lambda path, graph: {"one": 1e-6, "two": float("nan")})
    messages = {
        "difference": "encoder.onnx differs from torch by nan of the largest value; allowed is 1e-03",
        "recording": "encoder.onnx cannot be recorded and run .*: no such operator$",
        "writing": "cannot write to .*No space left",
    }
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "encoder.onnx").write_bytes(b"old")
    for folder in (tmp_path / "new" / "deep", kept):
        with pytest.raises(OutputError, match=messages[failure]):
            export_backbone(backbone, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [(path.name, path.read_bytes()) for path in kept.iterdir()] == [("encoder.onnx", b"old")]


def test_refusals(backbone: HFSamBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShapeError, match="size is 60 x 60 pixels .* needs multiples of 8"):
        export_backbone(backbone, tmp_path / "a", size=60)
    with pytest.raises(ConfigError, match="quantised to int8; load it again"):
        export_backbone(quantize(HFSamBackbone(toy_sam(num_blocks=2))), tmp_path / "a")
    other = HFSamBackbone(toy_sam(num_blocks=2))
    grafted = attach(other, LoraConfig())
    with pytest.raises(ConfigError, match="carries grafts; detach"):
        export_backbone(other, tmp_path / "a")
    with pytest.raises(ConfigError, match="needs a head that gives class maps; the prompter is none"):
        export_adapter(grafted, tmp_path / "a")
    assert cli.main(["export"]) == 2
    assert "no folder named; add -o FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
