"""``samgraft segment INPUT``: segment one file with an adapter, with prompts, or like labelled files."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError, PromptError
from samgraft.recipes.commands.align_options import add_align, align_options
from samgraft.recipes.commands.everything import add_everything, everything_options
from samgraft.recipes.commands.labels import add_seg, seg_options
from samgraft.recipes.commands.mosaic import add_mosaic, by_tiles, reading_options, run_tiles
from samgraft.recipes.commands.parsing import PlainParser, plain_parser, say
from samgraft.recipes.commands.routing import add_adapters, choose_adapter
from samgraft.recipes.commands.test_time_options import (
    add_test_time,
    test_time_adapter,
    test_time_method,
    test_time_segment,
)
from samgraft.recipes.commands.volume_options import add_volume, volume_options, volume_report

if TYPE_CHECKING:
    from samgraft.domains.scene import Scene
    from samgraft.domains.segmentation import Segmentation
    from samgraft.recipes.engine.referenced import Examples
    from samgraft.recipes.prompting import ObjectPrompts, UserPrompts
    from samgraft.recipes.volume_prompts import VolumePrompts

METHODS = ("persam", "persam_f", "matcher", "in_context", "reference_region")
"""Choices of ``--method``; here as well, since the engine takes seconds to import and ``--help`` should not."""


def run(arguments: Sequence[str]) -> None:
    """Segment and write every ``--output``."""
    values = _parser().parse_args(list(arguments))
    _check(values)
    values.adapter = choose_adapter(values)
    segment = test_time_segment(test_time_method(values))

    from samgraft.domains.opening import open_scene
    from samgraft.recipes.heap import keep_memory

    keep_memory()
    several = len(values.input) > 1
    scene = None if several else open_scene(values.input[0], **reading_options(values))
    if scene is not None:
        _look_before(values, scene)
    options: dict[str, Any] = {k: v for k in ("backbone", "quantize") if (v := getattr(values, k)) is not None}
    options |= everything_options(values) | align_options(values)
    tiled = by_tiles(values, scene)
    if tiled or scene is None:
        values.adapter = test_time_adapter(values, scene, reading_options(values))
        run_tiles(values, options.get("everything"))
        return
    result = _written(segment, values, scene, options)
    found = (
        f"{len(result.instances)} objects"
        if result.kind == "instance"
        else f"{int((result.labels > 0).sum()):,} elements"
    )
    say(f"{found} of {result.labels.size:,} on {result.grid.shape}: {', '.join(result.classes.values()) or '-'}")
    for name in ("align", "spacing"):
        if name in result.meta:
            say(f"{name}: {result.meta[name]}")
    for line in volume_report(result):
        say(line)
    if not result.instances and "masks" in result.meta:
        say(f"nothing found: {result.meta['masks']}; lower those thresholds")
    for path in [*values.output, *([values.records] if values.records else [])]:
        say(f"wrote {path}")


def _written(
    segment: "Callable[..., Segmentation]", values: argparse.Namespace, scene: "Scene", options: dict[str, Any]
) -> "Segmentation":
    """Segment, bring labels to the file's own pixels, and write all outputs, or none."""
    from samgraft.adapters.prompts.improve import Improvement
    from samgraft.domains.atomic import all_or_none
    from samgraft.recipes.engine.run import output_paths
    from samgraft.recipes.ground import on_source

    targets = output_paths(values.output, scene)
    better = Improvement(augment=values.augment_points, refine=values.refine)
    with all_or_none():
        result = segment(
            scene,
            adapter=values.adapter,
            prompts=_prompts(values, scene),
            volume=volume_options(values),
            references=_references(values),
            better=better or None,
            **options,
        )
        result = on_source(result, scene)
        for path in targets:
            result.save(path, dicom=seg_options(values) if _is_seg(str(path)) else None)
    return result


def _look_before(values: argparse.Namespace, scene: "Scene") -> None:
    """Trust values, refuse outputs and tell the memory, before anything is computed."""
    from samgraft.domains.segmentation import require_series

    if values.trust_values:
        scene.trust_values()
    for path in filter(_is_seg, values.output):
        require_series(scene, Path(path))
    if scene.kind == "volume":
        say(_memory(values, scene))


def _memory(values: argparse.Namespace, scene: "Scene") -> str:
    """What the volume will take beside the network."""
    from samgraft.adapters.bundle import read_meta
    from samgraft.recipes.header import InputRecipe
    from samgraft.recipes.prompting import coarsest_axis
    from samgraft.recipes.volume_memory import volume_memory

    axis = values.axis
    if axis is None and values.adapter is not None:
        axis = InputRecipe.from_meta(read_meta(values.adapter)).slice_axis
    return volume_memory(scene, coarsest_axis(scene.grid) if axis is None else axis).text()


def _is_seg(path: str) -> bool:
    """True for a DICOM segmentation object, which has options of its own."""
    return path.lower().endswith(".dcm")


def _parser() -> PlainParser:
    parser = plain_parser(
        "segment",
        "Segment one volume, raster or picture. With --adapter nothing has to be clicked; with --box, --point, --line "
        "or --prompts the backbone answers your prompts; with --reference it looks for what a labelled file shows. "
        "Coordinates are (x, y) pixels of the input.",
    )
    parser.add_argument(
        "input",
        nargs="+",
        help="NIfTI, DICOM folder, MHA, NRRD, GeoTIFF, VRT, PNG, JPEG, TIFF; several rasters are one mosaic",
    )
    add_adapters(parser)
    parser.add_argument(
        "--backbone", default=None, help="name, folder or file; by default the adapter's, else graft-tiny"
    )
    _add_many(parser, "--box", ("X0", "Y0", "X1", "Y1"), "one object; repeatable")
    _add_many(parser, "--point", ("X", "Y", "LABEL"), "label 1 on, 0 off; repeatable")
    _add_many(parser, "--line", ("X0", "Y0", "X1", "Y1"), "one object by the ends of its diameter (RECIST); repeatable")
    parser.add_argument(
        "--prompts",
        default=None,
        metavar="FILE",
        help="one object per detection (COCO .json, .csv, .geojson, .gpkg), or per label of an earlier mask; or "
        "prompts in 3D (JSON, see docs/volume_prompts.md)",
    )
    parser.add_argument("--class-field", default=None, help="--prompts: field of a vector file that holds the class")
    parser.add_argument("--min-score", type=float, default=0.0, help="--prompts: leave out detections below this score")
    parser.add_argument(
        "--refine", type=int, default=0, metavar="N", help="hand masks back as prompts, at most N times"
    )
    parser.add_argument(
        "--augment-points", default=None, metavar="KIND", help="one more point: random, entropy, distance or saliency"
    )
    parser.add_argument(
        "--reference", action="append", default=[], metavar="IMAGE", help="a labelled image like INPUT; repeatable"
    )
    parser.add_argument(
        "--reference-mask", action="append", default=[], metavar="MASK", help="its labels, 0 background; one for each"
    )
    parser.add_argument(
        "--method", default=None, choices=METHODS, help="how references are used; persam_f if none is named"
    )
    parser.add_argument("--slice", type=int, default=None, help="volumes: the slice that prompts or references are for")
    parser.add_argument("--axis", type=int, default=None, help="volumes: array axis that is cut into slices")
    parser.add_argument("--quantize", default=None, metavar="int8", help="run the frozen encoder in int8 (CPU)")
    parser.add_argument(
        "-o", "--output", action="append", default=[], help="file to write, writer by suffix; repeatable"
    )
    parser.add_argument(
        "--trust-values", action="store_true", help="CT adapters: take values that do not look like Hounsfield units"
    )
    add_seg(parser)
    add_volume(parser)
    add_align(parser)
    add_everything(parser)
    add_mosaic(parser)
    add_test_time(parser)
    return parser


def _add_many(parser: PlainParser, name: str, words: tuple[str, ...], text: str) -> None:
    """An option of several numbers that may be given again."""
    parser.add_argument(name, nargs=len(words), type=float, action="append", default=[], metavar=words, help=text)


def _check(values: argparse.Namespace) -> None:
    """Refuse calls that cannot work, before anything is loaded."""
    if not values.output and not values.records:
        raise ConfigError(
            "no output named; add -o FILE, such as mask.nii.gz, labels.tif or buildings.geojson; repeat it for several"
        )
    _check_references(values)
    clicked = bool(values.box or values.point)
    kinds = sum((clicked, bool(values.line), values.prompts is not None))
    if values.adapter is None and not kinds and not values.everything and not values.reference:
        raise ConfigError(
            "nothing says what to segment; add --adapter A.graft, --box X0 Y0 X1 Y1, --point X Y LABEL, "
            "--line X0 Y0 X1 Y1, --prompts FILE, --reference IMG --reference-mask MASK, or --everything"
        )
    if kinds > 1:
        raise ConfigError("--box and --point, --line, and --prompts exclude each other; run them one after the other")
    if not kinds and (values.refine or values.augment_points):
        raise ConfigError("--refine and --augment-points improve answers to prompts; add --box, --point or --prompts")
    _check_places(values)


def _check_places(values: argparse.Namespace) -> None:
    """Refuse points and boxes that cannot be what is meant."""
    if values.gsd is not None and (values.box or values.point or values.line):
        raise ConfigError(
            "--box, --point and --line count pixels of the file, and --gsd makes other ones of them; leave one of them "
            "out, or give places in map coordinates (--prompts FILE.geojson)"
        )
    fractional = [p[2] for p in values.point if p[2] not in (0.0, 1.0)]
    if fractional:
        raise PromptError(f"point label {fractional[0]:g}; expected 1 (on the object) or 0 (off it)")


def _check_references(values: argparse.Namespace) -> None:
    if len(values.reference) != len(values.reference_mask):
        raise ConfigError(
            f"{len(values.reference)} --reference and {len(values.reference_mask)} --reference-mask; every reference "
            "image needs the file with its labels, in the same order"
        )
    if values.method is not None and not values.reference:
        raise ConfigError(f"--method {values.method} needs labelled images; add --reference IMG --reference-mask MASK")


def _prompts(values: argparse.Namespace, scene: "Scene") -> "UserPrompts | ObjectPrompts | VolumePrompts | None":
    """What the call asks for."""
    from samgraft.recipes.prompt_files import line_prompts, prompts_from_file
    from samgraft.recipes.prompting import UserPrompts
    from samgraft.recipes.volume_prompt_files import is_volume_prompts, read_volume_prompts

    where = {"slice": values.slice, "axis": values.axis}
    if values.prompts is not None and is_volume_prompts(values.prompts):
        return read_volume_prompts(values.prompts, scene)
    if values.prompts is not None:
        found = prompts_from_file(
            values.prompts, scene, class_field=values.class_field, min_score=values.min_score, **where
        )
        if found.left_out:
            say(found.remark())
        return found.prompts
    if values.line:
        return line_prompts([tuple(line) for line in values.line], scene, **where)
    if values.box or values.point:
        return UserPrompts(
            boxes=tuple(tuple(b) for b in values.box),
            points=tuple((p[0], p[1], int(p[2])) for p in values.point),
            **where,
        )
    return None


def _references(values: argparse.Namespace) -> "Examples | None":
    """``Examples`` of the labelled files, or None."""
    from samgraft.recipes.engine.referenced import Example, Examples

    if not values.reference:
        return None
    pairs = zip(values.reference, values.reference_mask, strict=True)
    files = tuple(Example(image=image, mask=mask) for image, mask in pairs)
    options = {} if values.method is None else {"method": values.method}
    return Examples(files=files, slice=values.slice, axis=values.axis, **options)
