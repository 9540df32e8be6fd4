"""``samgraft segment INPUT``: segment one file with an adapter, with boxes and points, or like labelled files."""

import argparse
from collections.abc import Sequence
from typing import Any

from samgraft.errors import ConfigError, PromptError
from samgraft.recipes.commands.parsing import plain_parser, say

METHODS = ("persam", "persam_f", "matcher", "in_context", "reference_region")
"""Choices of ``--method``; here as well, since the engine takes seconds to import and ``--help`` should not."""


def run(arguments: Sequence[str]) -> None:
    """Segment and write every ``--output``."""
    values = _parser().parse_args(list(arguments))
    _check(values)

    from samgraft.recipes.api import segment
    from samgraft.recipes.heap import keep_memory

    keep_memory()
    options = {k: v for k in ("backbone", "quantize") if (v := getattr(values, k)) is not None}
    said: dict[str, Any] = {"prompts": _prompts(values), "references": _references(values)}
    result = segment(values.input, adapter=values.adapter, output=list(values.output), **said, **options)
    found = (
        f"{len(result.instances)} objects"
        if result.kind == "instance"
        else f"{int((result.labels > 0).sum()):,} elements"
    )
    say(f"{found} of {result.labels.size:,} on {result.grid.shape}: {', '.join(result.classes.values()) or '-'}")
    for path in values.output:
        say(f"wrote {path}")


def _parser() -> argparse.ArgumentParser:
    parser = plain_parser(
        "segment",
        "Segment one volume, raster or picture. With --adapter nothing has to be clicked; with --box or --point the "
        "backbone answers your prompts; with --reference it looks for what a labelled file shows. Coordinates are "
        "(x, y) pixels of the input.",
    )
    parser.add_argument("input", help="NIfTI, DICOM folder, MHA, NRRD, GeoTIFF, VRT, PNG, JPEG, TIFF")
    parser.add_argument("-a", "--adapter", default=None, help="adapter file (*.graft)")
    parser.add_argument(
        "--backbone", default=None, help="name, folder or file; by default the adapter's, else graft-tiny"
    )
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="one object; repeatable",
    )
    parser.add_argument(
        "--point",
        nargs=3,
        type=float,
        action="append",
        default=[],
        metavar=("X", "Y", "LABEL"),
        help="label 1 on, 0 off; repeatable",
    )
    parser.add_argument("--everything", action="store_true", help="pictures and rasters: all that looks like an object")
    parser.add_argument(
        "--reference", action="append", default=[], metavar="IMAGE", help="a labelled image like INPUT; repeatable"
    )
    parser.add_argument(
        "--reference-mask", action="append", default=[], metavar="MASK", help="its labels, 0 background; one for each"
    )
    parser.add_argument(
        "--method", default=None, choices=METHODS, help="how references are used; persam_f if none is named"
    )
    parser.add_argument(
        "--slice", type=int, default=None, help="volumes: the slice that boxes, points or references are for"
    )
    parser.add_argument("--axis", type=int, default=None, help="volumes: array axis that is cut into slices")
    parser.add_argument("--quantize", default=None, metavar="int8", help="run the frozen encoder in int8 (CPU)")
    parser.add_argument(
        "-o", "--output", action="append", default=[], help="file to write, writer by suffix; repeatable"
    )
    return parser


def _check(values: argparse.Namespace) -> None:
    """Refuse what is missing or contradicts itself, before anything is loaded."""
    if not values.output:
        raise ConfigError(
            "no output named; add -o FILE, such as mask.nii.gz, labels.tif or buildings.geojson; repeat it for several"
        )
    if len(values.reference) != len(values.reference_mask):
        raise ConfigError(
            f"{len(values.reference)} --reference and {len(values.reference_mask)} --reference-mask; every reference "
            "image needs the file with its labels, in the same order"
        )
    if values.method is not None and not values.reference:
        raise ConfigError(f"--method {values.method} needs labelled images; add --reference IMG --reference-mask MASK")
    prompted = values.box or values.point
    if values.adapter is None and not prompted and not values.everything and not values.reference:
        raise ConfigError(
            "nothing says what to segment; add --adapter A.graft, --box X0 Y0 X1 Y1, --point X Y LABEL, --reference "
            "IMG --reference-mask MASK, or --everything"
        )
    fractional = [p[2] for p in values.point if p[2] not in (0.0, 1.0)]
    if fractional:
        raise PromptError(f"point label {fractional[0]:g}; expected 1 (on the object) or 0 (off it)")


def _prompts(values: argparse.Namespace) -> Any:
    """``UserPrompts`` of the boxes and points, or None."""
    from samgraft.recipes.prompting import UserPrompts

    if not values.box and not values.point:
        return None
    return UserPrompts(
        boxes=tuple(tuple(b) for b in values.box),
        points=tuple((p[0], p[1], int(p[2])) for p in values.point),
        slice=values.slice,
        axis=values.axis,
    )


def _references(values: argparse.Namespace) -> Any:
    """``Examples`` of the labelled files, or None."""
    from samgraft.recipes.engine.referenced import Example, Examples

    if not values.reference:
        return None
    pairs = zip(values.reference, values.reference_mask, strict=True)
    files = tuple(Example(image=image, mask=mask) for image, mask in pairs)
    options = {} if values.method is None else {"method": values.method}
    return Examples(files=files, slice=values.slice, axis=values.axis, **options)
