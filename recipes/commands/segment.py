"""``samgraft segment INPUT``: segment one file with an adapter, or with boxes and points."""

from collections.abc import Sequence
from typing import Any

from samgraft.errors import ConfigError, PromptError
from samgraft.recipes.commands.everything import add_everything, everything_options
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Segment and write every ``--output``."""
    parser = plain_parser(
        "segment",
        "Segment one volume, raster or picture. With --adapter nothing has to be clicked; with --box or --point the "
        "backbone answers your prompts. Coordinates are (x, y) pixels of the input.",
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
    parser.add_argument("--slice", type=int, default=None, help="volumes: the slice that boxes and points lie in")
    parser.add_argument("--axis", type=int, default=None, help="volumes: array axis that is cut into slices")
    parser.add_argument("--quantize", default=None, metavar="int8", help="run the frozen encoder in int8 (CPU)")
    parser.add_argument(
        "-o", "--output", action="append", default=[], help="file to write, writer by suffix; repeatable"
    )
    add_everything(parser)
    values = parser.parse_args(list(arguments))
    if not values.output and not values.records:
        raise ConfigError(
            "no output named; add -o FILE, such as mask.nii.gz, labels.tif or buildings.geojson; repeat it for several"
        )
    if values.adapter is None and not values.box and not values.point and not values.everything:
        raise ConfigError(
            "nothing says what to segment; add --adapter A.graft, --box X0 Y0 X1 Y1, --point X Y LABEL, or --everything"
        )

    from samgraft.recipes.api import segment
    from samgraft.recipes.heap import keep_memory
    from samgraft.recipes.prompting import UserPrompts

    keep_memory()
    prompts = None
    if values.box or values.point:
        fractional = [p[2] for p in values.point if p[2] not in (0.0, 1.0)]
        if fractional:
            raise PromptError(f"point label {fractional[0]:g}; expected 1 (on the object) or 0 (off it)")
        prompts = UserPrompts(
            boxes=tuple(tuple(b) for b in values.box),
            points=tuple((p[0], p[1], int(p[2])) for p in values.point),
            slice=values.slice,
            axis=values.axis,
        )
    options: dict[str, Any] = {k: v for k in ("backbone", "quantize") if (v := getattr(values, k)) is not None}
    options |= everything_options(values)
    result = segment(values.input, adapter=values.adapter, prompts=prompts, output=list(values.output), **options)
    found = (
        f"{len(result.instances)} objects"
        if result.kind == "instance"
        else f"{int((result.labels > 0).sum()):,} elements"
    )
    say(f"{found} of {result.labels.size:,} on {result.grid.shape}: {', '.join(result.classes.values()) or '-'}")
    if not result.instances and "masks" in result.meta:
        say(f"nothing found: {result.meta['masks']}; lower those thresholds")
    for path in [*values.output, *([values.records] if values.records else [])]:
        say(f"wrote {path}")
