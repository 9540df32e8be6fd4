"""``samgraft info``: what a file, a result, an adapter or a backbone is, without reading pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import plain_parser, say

MOST_VALUES = 32
"""Longer lists of an adapter's header are only counted."""
VECTORS = (".gpkg", ".fgb", ".parquet", ".geojson")


def run(arguments: Sequence[str]) -> None:
    """Print what was asked for."""
    parser = plain_parser("info", "Say what an image file, an adapter or a backbone is.")
    parser.add_argument(
        "path", nargs="?", default=None, help="image file, DICOM folder, adapter, or a result of samgraft segment"
    )
    parser.add_argument("-a", "--adapter", default=None, help="adapter file: print its header")
    parser.add_argument("--backbone", default=None, help="backbone: print its facts; with --adapter, what is trainable")
    values = parser.parse_args(list(arguments))
    if values.path is None and values.adapter is None and values.backbone is None:
        raise ConfigError("nothing to describe; give a PATH, --adapter A.graft or --backbone NAME")
    adapter = values.adapter
    if values.path is not None and str(values.path).endswith(".graft"):
        adapter = values.path
    elif values.path is not None:
        _file(str(values.path))
    if adapter is not None:
        from samgraft.adapters.bundle import read_header

        say(json.dumps(_short(read_header(adapter)), indent=2))
    if values.backbone is not None:
        _backbone(values.backbone, adapter)


def _short(value: Any) -> Any:
    """A header without the numbers of long tables, such as histograms of the training images."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    count = _count(value) if isinstance(value, list) else 0
    return f"{count} values" if count > MOST_VALUES else value


def _count(value: Any) -> int:
    """Values in a list of lists."""
    return sum(map(_count, value)) if isinstance(value, list) else 1


def _file(path: str) -> None:
    """An image, a label raster or a vector file, and what it says of its making."""
    from samgraft.domains.atomic import full_suffix

    suffix = full_suffix(Path(path))
    if suffix in VECTORS:
        from samgraft.domains.remote_sensing.provenance import describe_vectors

        say(describe_vectors(path))
    else:
        from samgraft.domains.opening import open_scene

        say(repr(open_scene(path)))
    if suffix in (*VECTORS, ".tif", ".tiff"):
        from samgraft.domains.remote_sensing.provenance import read_provenance

        told = read_provenance(path)
        if told is not None:
            say(json.dumps(told, indent=2, ensure_ascii=False))


def _backbone(name: str, adapter: str | None) -> None:
    from dataclasses import asdict

    from samgraft.adapters.backbones.hub import load_backbone

    backbone = load_backbone(name)
    facts = {**asdict(backbone.spec), "parameters": sum(p.numel() for p in backbone.parameters())}
    for key, value in facts.items():
        say(f"{key:<14} {value}")
    say(f"{'sha256':<14} {backbone.weights_hash()}")
    if adapter is not None:
        from samgraft.adapters.bundle import load_bundle

        say("")
        say(load_bundle(adapter, backbone).trainable_table())
