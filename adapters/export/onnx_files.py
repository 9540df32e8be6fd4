"""Write ONNX files, compare each with torch, and keep them only if they agree.

    folder/encoder.onnx  image -> neck                                      (export_backbone)
    folder/decoder.onnx  neck, points, labels, mask, has_mask -> masks, iou (export_backbone)
    folder/model.onnx    image -> class logits                              (export_adapter)
    folder/meta.json     sizes, axes, normalisation, hashes, differences that were measured

The number of images, of prompts and of points per prompt is free; height and width are fixed per file.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.attention import exporting
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.bundle import BundleMeta, samgraft_version
from samgraft.adapters.export.graphs import CORNER, AdaptedGraph, DecoderGraph, EncoderGraph
from samgraft.adapters.export.record import LIMIT, OPSET, Arrays, Graph, write_graphs
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError, MissingDependencyError, ShapeError

FORMAT = 1
"""Of ``meta.json``."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 3)
"""Numbers of images in the comparison."""
PROMPTS = ((1, 1), (7, 3), (2, 6))
"""Numbers (N, K) of prompts and points in the comparison."""


def export_backbone(
    backbone: HFSamBackbone, folder: str | os.PathLike[str], *, size: int | tuple[int, int] | None = None
) -> dict[str, Any]:
    """Write ``encoder.onnx``, ``decoder.onnx`` and ``meta.json``.

    Args:
        backbone: In float32, with nothing attached.
        folder: Made if absent; files of these names are replaced.
        size: (H, W) or side in pixels of the network input; None takes the backbone's own.

    Returns:
        What ``meta.json`` holds.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: the backbone carries grafts, or is not in float32.
        ShapeError: a side that is no multiple of the patch.
        OutputError: a graph cannot be recorded, differs from torch by more than :data:`LIMIT`, or cannot be written.
            Nothing is left behind.
    """
    _require()
    _check_float(backbone)
    if backbone.occupied:
        raise ConfigError(f"backbone {backbone.spec.name!r} carries grafts; detach() them, or use export_adapter")
    height, width = _size(backbone, size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = [{"image": torch.rand(n, 3, height, width, generator=generator)} for n in reversed(BATCHES)]
        neck = backbone.encode(images[-1]["image"]).neck
    encoder, decoder = EncoderGraph(backbone), DecoderGraph(backbone)
    prompts = {name: {0: "prompts"} for name in ("mask", "has_mask")}
    prompts |= {name: {0: "prompts", 1: "points"} for name in ("points", "labels")}
    graphs = [
        Graph(
            file="encoder.onnx",
            module=encoder,
            reference=lambda image: (encoder(image),),
            dynamic={"image": {0: "images"}},
            outputs=("neck",),
            trials=images,
        ),
        Graph(
            file="decoder.onnx",
            module=decoder,
            reference=decoder,
            dynamic={"neck": {}, **prompts},
            outputs=("masks", "iou"),
            trials=[_prompts(neck, (height, width), *shape, generator) for shape in PROMPTS[1:] + PROMPTS[:1]],
        ),
    ]
    about = _about(backbone, (height, width)) | {"points": "(x, y) pixels of the input; 0 is the first pixel's centre"}
    labels = {"0": "background", "1": "foreground", "2": "box, top left", "3": "box, bottom right", "-10": "nothing"}
    about["labels"] = labels | {"-1": "not a point; one such point belongs to every prompt without a box"}
    about["masks"] = "channel 0 answers an unambiguous prompt, 1 to 3 an ambiguous one; logits at 4 / patch_size"
    return write_graphs(graphs, Path(folder), about)


def export_adapter(
    grafted: Grafted,
    folder: str | os.PathLike[str],
    *,
    meta: BundleMeta | None = None,
    size: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Write ``model.onnx``, image (B, 3, H, W) in [0, 1] to class logits (B, K, h', w'), and ``meta.json``.

    LoRA is folded into the weights of the file where all grafts allow it; ``grafted`` stays as it is.

    Args:
        grafted: Backbone in float32 with a head that gives class maps (class tokens, AutoSAM).
        folder: Made if absent; files of these names are replaced.
        meta: Header of the adapter file: classes and how files become network inputs.
        size: (H, W) or side in pixels; None takes that of ``meta``, else the backbone's own.

    Returns:
        What ``meta.json`` holds.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: no head that gives class maps, or the backbone is not in float32.
        ShapeError: a side that is no multiple of the patch.
        OutputError: as :func:`export_backbone`.
    """
    _require()
    backbone = grafted.backbone
    if not isinstance(backbone, HFSamBackbone):
        raise ConfigError(f"backbone {backbone.spec.name!r} is not of SAM's kind and cannot be exported")
    _check_float(backbone)
    module = AdaptedGraph(grafted)
    meta = meta or BundleMeta()
    height, width = _size(backbone, meta.input_size if size is None else size)
    generator = torch.Generator().manual_seed(0)
    images = [{"image": torch.rand(n, 3, height, width, generator=generator)} for n in reversed(BATCHES)]
    training = grafted.training
    grafted.eval()
    try:
        with torch.no_grad():
            expected = [grafted.predict(trial["image"]) for trial in images]
        answers = {id(trial["image"]): output.logits for trial, output in zip(images, expected, strict=True)}
        graph = Graph(
            file="model.onnx",
            module=module,
            reference=lambda image: (answers[id(image)],),
            dynamic={"image": {0: "images"}},
            outputs=("logits",),
            trials=images,
        )
        first = expected[0]
        about = _about(backbone, (height, width)) | {
            "adapter": meta.to_dict(),
            "activation": first.activation,
            "channels": list(first.channels) or _channels(first.logits.shape[1], first.activation, meta.classes),
        }
        with _merged(grafted):
            return write_graphs([graph], Path(folder), about)
    finally:
        grafted.train(training)


def _channels(count: int, activation: str, classes: Mapping[int, str]) -> list[str]:
    """Name of every output channel."""
    first = 0 if activation == "softmax" else 1
    return ["background" if i == 0 else classes.get(i, f"class_{i}") for i in range(first, first + count)]


def _require() -> None:
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise MissingDependencyError(f"ONNX export needs {', '.join(missing)}: pip install 'samgraft[onnx]'")
    if exporting is bool:
        raise MissingDependencyError(f"ONNX export needs torch 2.7 or later; this is {torch.__version__}; update torch")


def _check_float(backbone: HFSamBackbone) -> None:
    if backbone.quantized:
        raise ConfigError(
            f"backbone {backbone.spec.name!r} is quantised to {backbone.quantized}; load it again to export"
        )
    weight = backbone.sam.vision_encoder.patch_embed.projection.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ConfigError(
            f"backbone {backbone.spec.name!r} is in {weight.dtype} on {weight.device}; export needs torch.float32 on "
            "the CPU; load it again"
        )


def _size(backbone: HFSamBackbone, size: int | tuple[int, int] | None) -> tuple[int, int]:
    chosen = backbone.spec.native_size if size is None else size
    height, width = (chosen, chosen) if isinstance(chosen, int) else chosen
    patch = backbone.spec.patch_size
    if min(height, width) < patch or height % patch or width % patch:
        raise ShapeError(
            f"size is {height} x {width} pixels (H x W); {backbone.spec.name!r} needs multiples of {patch}"
        )
    return height, width


def _prompts(neck: Tensor, size: tuple[int, int], number: int, points: int, generator: torch.Generator) -> Arrays:
    """N prompts of K points, with every label and with and without a mask."""
    grid = (4 * neck.shape[-2], 4 * neck.shape[-1])
    scale = torch.tensor((size[1], size[0]), dtype=torch.float32)
    labels = torch.randint(0, 2, (number, points), generator=generator)
    labels[:, -1] = -1
    if points > 2:
        labels[::2, -2:] = torch.tensor((CORNER, CORNER + 1))
    if points > 3:
        labels[1::2, 0] = -10
    return {
        "neck": neck,
        "points": torch.rand(number, points, 2, generator=generator) * scale,
        "labels": labels,
        "mask": 4 * torch.randn(number, 1, *grid, generator=generator),
        "has_mask": (torch.arange(number) % 2).float(),
    }


def _about(backbone: HFSamBackbone, size: tuple[int, int]) -> dict[str, Any]:
    spec = backbone.spec
    return {
        "format": FORMAT,
        "samgraft": samgraft_version(),
        "torch": torch.__version__,
        "opset": OPSET,
        "backbone": {"name": spec.name, "sha256": backbone.weights_hash(), "licence": spec.licence},
        "input": {
            "size": list(size),
            "axes": "image, channel (red, green, blue), row, column",
            "dtype": "float32",
            "range": [0.0, 1.0],
            "normalisation": {"where": "inside the file", "mean": list(spec.mean), "std": list(spec.std)},
            "patch_size": spec.patch_size,
        },
        "limit": LIMIT,
    }


@contextlib.contextmanager
def _merged(grafted: Grafted) -> Iterator[None]:
    """Grafts folded into the weights where all of them allow it."""
    foldable = not grafted.merged and grafted.attached and not any(g.merge_refusal for g in grafted.grafts.values())
    if not foldable:
        yield
        return
    grafted.merge()
    try:
        yield
    finally:
        grafted.unmerge()
