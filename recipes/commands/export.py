"""``samgraft export -o FOLDER``: a backbone, or an adapter on its backbone, as ONNX files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Write the files and say how far they are from torch."""
    parser = plain_parser(
        "export",
        "Write encoder.onnx and decoder.onnx of a backbone, or model.onnx (image to class logits) of an adapter, and "
        "meta.json. Each file is compared with torch on random inputs and kept only if it agrees.",
    )
    parser.add_argument(
        "--backbone", default=None, help="name, folder or file; by default the adapter's, or graft-tiny"
    )
    parser.add_argument(
        "-a", "--adapter", default=None, help="adapter file (*.graft) with a head that gives class maps"
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=int,
        default=None,
        metavar="PIXELS",
        help="side of the network input, or height and width; by default the adapter's or the backbone's own",
    )
    parser.add_argument("-o", "--output", default=None, help="folder to write to")
    values = parser.parse_args(list(arguments))
    if values.output is None:
        raise ConfigError("no folder named; add -o FOLDER")
    size = _size(values.size)
    folder = Path(values.output)
    meta = _adapter(values, folder, size) if values.adapter is not None else _backbone(values, folder, size)
    for name, about in meta["files"].items():
        for trial, difference in about["compared_on"].items():
            say(f"  {name}  {trial}  {difference:.1e}")
    worst = max(about["largest_relative_difference"] for about in meta["files"].values())
    say(f"largest difference to torch: {worst:.1e} of the largest value (allowed {meta['limit']:.0e})")
    for name in [name for about in meta["files"].values() for name in about["sha256"]] + ["meta.json"]:
        say(f"wrote {folder / name}")


def _size(given: list[int] | None) -> int | tuple[int, int] | None:
    if given is None or len(given) == 1:
        return None if given is None else given[0]
    if len(given) > 2:
        raise ConfigError(f"--size has {len(given)} numbers; expected a side, or height and width")
    return given[0], given[1]


def _backbone(values: Any, folder: Path, size: int | tuple[int, int] | None) -> dict[str, Any]:
    from samgraft.adapters.backbones.hub import load_backbone
    from samgraft.adapters.export import export_backbone

    return export_backbone(load_backbone(values.backbone or "graft-tiny"), folder, size=size)


def _adapter(values: Any, folder: Path, size: int | tuple[int, int] | None) -> dict[str, Any]:
    from samgraft.adapters.export import export_adapter
    from samgraft.recipes.engine.run import adapter_meta, load_adapter

    grafted = load_adapter(values.adapter, values.backbone)
    return export_adapter(grafted, folder, meta=adapter_meta(grafted), size=size)
